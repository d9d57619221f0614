"""What tests of several workflows share."""

from commands import job

__all__ = ["job"]  # a fixture
