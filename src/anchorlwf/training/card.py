"""The card of what training wrote: which base it needs, and the call that decodes as it was trained."""

import json
from pathlib import Path

from anchorlwf.model.generation import changes_greedy, greedy_call
from anchorlwf.model.language_model import EMBEDDED, LanguageModel

__all__ = ["card"]


def card(model: LanguageModel, folder: str) -> str:
    """README.md of the folder with the weights, `adapter` or `model`: Markdown with the Hub's header.

    The base's own generation settings go with neither, so the call that leaves them out is told here.
    """
    adapter = folder == "adapter"
    # The Hub takes names of its own only; a path of this machine means nothing there.
    base = [] if model.name == EMBEDDED or Path(model.name).is_absolute() else [f"base_model: {json.dumps(model.name)}"]
    header = [*base, f"library_name: {'peft' if adapter else 'transformers'}", "tags: [anchorlwf]"]
    settings = changes_greedy(model.causal.generation_config)
    shown = ", ".join(f"`{name}: {value}`" for name, value in settings.items())
    own = (
        f"The base's generation_config.json has {shown}: with it, corrected answers may come out otherwise."
        if settings
        else "Any other settings, penalties and sampling above all, may bring out other answers."
    )
    vllm = "`--generation-config vllm` and `SamplingParams(temperature=0, repetition_penalty=1.0)`"
    what = f"Adapter (PEFT) for `{model.name}`" if adapter else f"Tuned from `{model.name}`"
    return f"""---
{chr(10).join(header)}
---
{what}, trained with anchorlwf: a few tokens corrected, the rest kept.

Its corrections hold for plain greedy decoding:

```python
{greedy_call(model.causal.generation_config, model.stop_ids)}
```

{own} In vLLM the same is {vllm}.
"""
