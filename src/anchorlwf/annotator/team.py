"""The people who annotate: their names, and a file of names and tokens where they are several."""

from pathlib import Path

import yaml

from anchorlwf.config import YAML_ERRORS
from anchorlwf.errors import ConfigError, wrong

__all__ = ["SHORTEST_TOKEN", "is_name", "load_annotators"]

SHORTEST_TOKEN = 16
"""Characters of a token, at the least."""


def is_name(name: str) -> bool:
    """Whether an annotator may be called so: 1 to 64 printable characters."""
    return name.isprintable() and 1 <= len(name) <= 64


def load_annotators(path: Path) -> dict[str, str]:
    """Read a YAML file of `name: token` lines (`sha256:<hex>` instead of a token keeps it secret).

    Raises:
        ConfigError: no such file, or a name or token that cannot be.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except YAML_ERRORS as error:
        raise ConfigError(wrong(f"annotators {path}", "a YAML file of `name: token`", error, "Check it.")) from error
    if not isinstance(data, dict) or not data:
        raise ConfigError(wrong(f"annotators {path}", "`name: token` lines", type(data).__name__, "Mend the file."))
    team: dict[str, str] = {}
    for name, token in data.items():
        if not isinstance(name, str) or not is_name(name):
            raise ConfigError(wrong(f"annotators {path}", "names of 1 to 64 characters", repr(name), "Rename it."))
        if not isinstance(token, str) or len(token) < SHORTEST_TOKEN or token in team.values():
            fix = "python -c 'import secrets; print(secrets.token_urlsafe(32))' makes one."
            raise ConfigError(wrong(f"token of {name}", f"{SHORTEST_TOKEN} characters of its own", "another", fix))
        team[name] = token
    return team
