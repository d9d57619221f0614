"""Every error anchorlwf raises on purpose.

    AnchorLwfError
    ├── RecordError        (ValueError)  a record, probe or prompt breaks its invariants
    ├── StampError         (ValueError)  a record was made with another tokenizer or chat template
    ├── PromptError        (ValueError)  a prompt that this model cannot take
    ├── NothingToDoError   (ValueError)  the model already gives the wanted answer
    ├── ConfigError        (ValueError)  an option or configuration file is wrong
    ├── ModelError         (ValueError)  a model that cannot be loaded, read or trained this way
    ├── LossError          (ValueError)  arguments for which the loss is not defined
    ├── MissingError       (ValueError)  a session, item or project that is not in the store
    ├── ConflictError      (RuntimeError) somebody else holds the item or the folder, or the session moved on meanwhile
    ├── ServerError        (RuntimeError) a remote model did not answer, or not as it should
    └── StorageError       (OSError)     a file could not be written: permission, disk full

    AnchorLwfWarning            (UserWarning)
    ├── ModelWarning            the model's files disagree, or it answers otherwise elsewhere than here
    ├── PromptWarning           the model does not read a prompt as it was written
    └── BadLineWarning          a line of a file was skipped, since it is not what the file should hold

Each message says what was expected, what was got and how to fix it. All of them mean that input or surroundings are at
fault; a failure of our own code is an `AssertionError` or whatever it raised. What a user should know although nothing
stops is an `AnchorLwfWarning`.
"""

import os
import re
import sys
import warnings
from pathlib import Path

__all__ = [
    "KEY_VARIABLE",
    "AnchorLwfError",
    "AnchorLwfWarning",
    "BadLineWarning",
    "ConfigError",
    "ConflictError",
    "LossError",
    "MissingError",
    "ModelError",
    "ModelWarning",
    "NothingToDoError",
    "PromptError",
    "PromptWarning",
    "RecordError",
    "ServerError",
    "StampError",
    "StorageError",
    "api_key",
    "redacted",
    "warn",
    "wrong",
]


class AnchorLwfError(Exception):
    """Base of every deliberate error; catch it to catch them all."""


class AnchorLwfWarning(UserWarning):
    """What a user should know although the work goes on."""


class RecordError(AnchorLwfError, ValueError):
    """A record, probe or prompt line breaks the invariants of its type."""


class StampError(AnchorLwfError, ValueError):
    """A record's token ids belong to another tokenizer or chat template."""


class PromptError(AnchorLwfError, ValueError):
    """A prompt that this model cannot take, such as one longer than its context."""


class NothingToDoError(AnchorLwfError, ValueError):
    """The model already answers as wanted; there is no anchor to learn."""


class ConfigError(AnchorLwfError, ValueError):
    """An option or a configuration file holds an impossible value."""


class ModelError(AnchorLwfError, ValueError):
    """A model that cannot be loaded, or cannot be trained as asked."""


class LossError(AnchorLwfError, ValueError):
    """Arguments for which the divergence is undefined or the shapes do not fit."""


class MissingError(AnchorLwfError, ValueError):
    """Nothing in the annotation store goes by that number or name."""


class ConflictError(AnchorLwfError, RuntimeError):
    """What would be right at another moment: another person or process holds the item, or the session moved on."""


class ServerError(AnchorLwfError, RuntimeError):
    """A remote model did not answer in time, or broke off; asking again may help."""


class StorageError(AnchorLwfError, OSError):
    """A file could not be written: no permission, no space, no such folder."""


class ModelWarning(AnchorLwfWarning):
    """The model can be used as it is, but its files disagree, or make it answer otherwise elsewhere than here."""


class PromptWarning(AnchorLwfWarning):
    """The model does not read a prompt as it was written."""


class BadLineWarning(AnchorLwfWarning):
    """A line was skipped because it is not what the file should hold."""


_PACKAGE = str(Path(__file__).parent) + os.sep


def warn(message: str, kind: type[AnchorLwfWarning] = AnchorLwfWarning) -> None:
    """Warn, pointing at the line of the caller's code that called into this package, through however many of ours."""
    frame, level = sys._getframe(1), 2  # noqa: SLF001 - `skip_file_prefixes` of `warnings.warn` needs Python 3.12
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, kind, stacklevel=level)


def wrong(what: str, expected: object, got: object, fix: str) -> str:
    """The one form of our error messages. Keys and passwords, in addresses for instance, are left out."""
    return redacted(f"{what}: expected {expected}, got {got}. {fix}")


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
