"""A real model and real facts, installed by `make real`. Only code and words of our own are committed.

No torch and none of the packages is imported before it is used.
"""
