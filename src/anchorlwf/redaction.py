"""Passwords and keys that must not be shown: what error messages say passes through here."""

import os
import re

__all__ = ["KEY_VARIABLE", "api_key", "redacted"]

KEY_VARIABLE = "ANCHORLWF_API_KEY"
"""Environment variable of a remote model's key; there is no other way to give it, and it is written nowhere."""
_HIDDEN = "***"
_SHORTEST_KEY = 6
"""A shorter one is no secret ("x", "none"), and hiding it would tear words apart."""
_ADDRESS = re.compile(r"(?<=://)[^\s'\"<>]+")


def api_key() -> str | None:
    """The key as the environment gives it; None where there is none."""
    return os.environ.get(KEY_VARIABLE) or None


def redacted(text: str) -> str:
    """The text without what is secret in it: the API key, and in addresses user, password, query and fragment."""
    key = api_key()
    if key is not None and len(key.strip()) >= _SHORTEST_KEY:
        text = text.replace(key, _HIDDEN).replace(key.strip(), _HIDDEN)
    return _ADDRESS.sub(lambda match: _without_secrets(match[0]), text)


def _without_secrets(address: str) -> str:
    # A password may hold an @ of its own, so all before the last one goes; and where that holds a ? or #, nobody can
    # tell which part is which.
    before, at, rest = address.rpartition("@")
    if at and re.search("[?#]", before):
        return _HIDDEN
    # What follows a ? or # may be a key (`?api_key=`).
    shown = re.sub("([?#]).+", rf"\1{_HIDDEN}", rest)
    return f"{_HIDDEN}@{shown}" if at else shown
