"""The annotator in a terminal."""
