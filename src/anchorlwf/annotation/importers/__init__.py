"""Records from the files of other annotation tools."""
