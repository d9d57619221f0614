"""TRL, where it is installed: silent, and without telemetry."""

import os

import huggingface_hub.constants

from anchorlwf.extras import require_extra

__all__ = ["require_trl"]


def require_trl() -> None:
    """Import TRL, silent and without telemetry.

    Raises:
        ConfigError: it is not installed.
    """
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    # The variable is read once, when huggingface_hub is imported, which transformers has done long ago.
    huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True
    require_extra("rl", "GRPO, DPO, SDFT and comparisons with TRL")
    import trl  # noqa: F401 - now that nothing speaks
