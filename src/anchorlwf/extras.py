"""The optional parts of the installation: which packages each needs, and whether they are here."""

import importlib.util
from collections.abc import Iterable

from anchorlwf.errors import ConfigError, wrong

__all__ = ["EXTRAS", "missing_packages", "require_extra", "require_reporters"]

EXTRAS = {
    "web": ("fastapi", "uvicorn"),
    "arena": ("matplotlib",),
    "harness": ("lm_eval",),
    "rl": ("trl",),
    "postgres": ("psycopg",),
}
"""Modules by the extra of pyproject.toml that installs them."""


def missing_packages(extra: str) -> list[str]:
    """The modules of an extra that are not installed; nothing is imported."""
    return [module for module in EXTRAS[extra] if importlib.util.find_spec(module) is None]


def require_extra(extra: str, what: str) -> None:
    """Make sure that an extra is installed, before any work begins.

    Args:
        extra: of `EXTRAS`.
        what: needs it, such as an option.

    Raises:
        ConfigError: it is not; what is missing is named, and how it is installed.
    """
    missing = missing_packages(extra)
    if missing:
        fix = f"Install it: pip install 'anchorlwf[{extra}]'."
        raise ConfigError(wrong(what, f"the packages of the extra `{extra}`", f"no {', '.join(missing)}", fix))


def require_reporters(names: Iterable[str]) -> None:
    """Make sure that the packages of `TrainConfig.report_to` are installed. Raises `ConfigError`."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        fix = f"Install it: pip install {' '.join(missing)}."
        raise ConfigError(wrong("report_to", "installed packages", f"no {', '.join(missing)}", fix))
