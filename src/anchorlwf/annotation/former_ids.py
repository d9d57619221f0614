"""Work that release 0.1.0 began: its records have ids of their rendered prompts, and are gone on with under these."""

from anchorlwf.data.record import ModelStamp, Prompt
from anchorlwf.model.codec import Codec
from anchorlwf.model.language_model import canonical_name

__all__ = ["FormerIds"]


class FormerIds:
    """The ids under which earlier work on a model's prompts may be stored.

    Args:
        stamp, codec: of the model.
    """

    def __init__(self, stamp: ModelStamp, codec: Codec) -> None:
        self._stamp, self._codec = stamp, codec
        self._names, self._seen = {stamp.name}, {stamp.name}

    def learn(self, name: str) -> None:
        """Take note of the name that earlier work has for its model; 0.1.0 wrote the path of a folder as it was given.

        The name of another model changes nothing: its work on the same prompts is not this model's.
        """
        if name not in self._seen:
            self._seen.add(name)
            if canonical_name(name) == self._stamp.name:
                self._names.add(name)

    def of(self, prompt: Prompt) -> list[str]:
        """The ids that a prompt's record may have from 0.1.0. Raises `PromptError` as `encode_prompt`."""
        prompt_ids = self._codec.encode_prompt(prompt.messages, prompt.tools)
        return [prompt.former_id(name, prompt_ids) for name in sorted(self._names)]
