"""The report of a study: statistics, claims, plots and the page."""
