"""The application for people: a page and a terminal over one store."""
