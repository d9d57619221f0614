"""What tests of several commands share."""

from commands import job

__all__ = ["job"]  # a fixture
