"""Who asks."""

from typing import Annotated

from fastapi import Depends, Request

__all__ = ["Who"]


def _who(request: Request) -> str:
    return request.state.annotator


Who = Annotated[str, Depends(_who)]
"""The annotator's name, as the guard found it."""
