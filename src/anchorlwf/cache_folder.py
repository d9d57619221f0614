"""Where what can always be computed again is kept: converted models, what a model wrote itself."""

import os
from pathlib import Path

__all__ = ["CACHE_VARIABLE", "cache_folder"]

CACHE_VARIABLE = "ANCHORLWF_CACHE"
"""The environment variable that moves the cache."""


def cache_folder(given: str | Path | None = None) -> Path:
    """The cache folder, which need not exist yet.

    Args:
        given: by a person, for this one call. None: the folder that `ANCHORLWF_CACHE` names; without that, the one the
            platform sets aside for it (`~/.cache/anchorlwf` on Linux).
    """
    if named := given or os.environ.get(CACHE_VARIABLE):
        return Path(named).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("anchorlwf")
