"""The one border between text and token ids: prompts in, answers out, fingerprints of both."""

import hashlib
import itertools
import json
from typing import Any

from transformers import PreTrainedTokenizerBase

from anchorlwf.errors import ModelError, PromptError, RecordError, StampError, wrong
from anchorlwf.record import ModelStamp, Record

__all__ = ["Codec"]


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class Codec:
    """A tokenizer with its chat template, read-only.

    decode -> encode does not return the same ids in general, so ids are what is stored and continued from; text made
    here is for people.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    @property
    def tokenizer_sha(self) -> str:
        """SHA-256 over what decides the ids; padding and truncation settings, which do not, are left out."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            return _sha(json.dumps(sorted(self.tokenizer.get_vocab().items())))
        state = json.loads(backend.to_str())
        return _sha(json.dumps({**state, "padding": None, "truncation": None}, sort_keys=True))

    @property
    def template_sha(self) -> str:
        """SHA-256 of the chat template; of the empty string where there is none."""
        template = self.tokenizer.chat_template or ""
        return _sha(template if isinstance(template, str) else json.dumps(template, sort_keys=True))

    def encode_prompt(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> list[int]:
        """Ids of a chat up to and including the opening of the assistant's turn.

        Without a chat template (base models) the prompt must be one user message; its text is taken as it is.

        Raises:
            PromptError: the template refuses the messages, or there is no template for a chat.
        """
        if not self.tokenizer.chat_template:
            if len(messages) != 1 or messages[0].get("role") != "user":
                fix = "Give one user message, or a tokenizer with a chat template."
                raise PromptError(wrong("prompt", "one user message (no chat template)", f"{len(messages)}", fix))
            return self.tokenizer(str(messages[0]["content"]))["input_ids"]
        try:
            encoded = self.tokenizer.apply_chat_template(
                messages, tools=tools or None, add_generation_prompt=True, tokenize=True, return_dict=True
            )
        except Exception as error:  # jinja2 raises many kinds; all of them mean that these messages do not fit
            fix = "Check roles and contents against the model's chat template."
            raise PromptError(wrong("prompt", "messages that the template takes", error, fix)) from error
        return list(encoded["input_ids"])

    def encode(self, text: str) -> list[int]:
        """Ids of plain text, no special tokens added; markers spelled out in the text are read as themselves."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def decode(self, ids: list[int], *, special: bool = False) -> str:
        """Text of ids, special tokens left out unless asked for."""
        return self.tokenizer.decode(ids, skip_special_tokens=not special, clean_up_tokenization_spaces=False)

    def check_record(self, record: Record, ours: ModelStamp, vocabulary: int) -> None:
        """Raise unless the record's ids are this tokenizer's and template's, and its text is theirs.

        Args:
            record: as it was read.
            ours: stamp of the model of this tokenizer.
            vocabulary: ids are below this.

        Raises:
            StampError: another tokenizer or template, or an id that no token has.
            RecordError: `completion` is not the text of `completion_ids`.
        """
        theirs = record.model
        for field, what in (("tokenizer_sha", "tokenizer"), ("template_sha", "chat template")):
            made_with, have = getattr(theirs, field), getattr(ours, field)
            if made_with != have:
                expected, got = f"{made_with[:12]} ({theirs.name})", f"{have[:12]} ({ours.name})"
                fix = "Use that model, or annotate again with this one."
                raise StampError(wrong(f"record {record.id}: {what}", expected, got, fix))
        rejected = [anchor.rejected_id for anchor in record.anchors if anchor.rejected_id is not None]
        largest = max(*record.prompt_ids, *record.completion_ids, *record.original_ids, *rejected)
        if largest >= vocabulary:
            fix = "No token has that id; annotate again."
            raise StampError(wrong(f"record {record.id}: token ids", f"less than {vocabulary}", largest, fix))
        self.check_text(record)

    def check_text(self, record: Record) -> None:
        """Raise `RecordError` unless the record's `completion` is the text of its `completion_ids`."""
        text = self.decode(record.completion_ids)
        if text != record.completion:
            pairs = zip(text, record.completion, strict=False)
            same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
            start = max(0, same - 20)
            expected, got = repr(text[start : start + 60]), repr(record.completion[start : start + 60])
            where = f"record {record.id}: completion, from character {same} on"
            fix = "Ids are the truth: put their text there, or annotate again."
            raise RecordError(wrong(where, f"the text of its ids, ...{expected}", got, fix))

    def pieces(self, ids: list[int]) -> list[str]:
        """Each token's own text, for display. Bytes that are no whole character show as U+FFFD."""
        return [self.decode([token], special=True) for token in ids]

    @property
    def pad_id(self) -> int:
        """An id to pad with; any will do where the padding is masked."""
        for candidate in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if candidate is not None:
                return candidate
        return 0

    def end_id(self, stop_ids: frozenset[int]) -> int:
        """The stop token that the chat template itself puts behind an assistant's turn; else the tokenizer's own."""
        if self.tokenizer.chat_template:
            turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}]
            encoded = self.tokenizer.apply_chat_template(turn, tokenize=True, return_dict=True)["input_ids"]
            # The last one: templates such as Qwen's close the user's turn with the same token.
            for token in reversed(encoded):
                if token in stop_ids:
                    return token
        own = self.tokenizer.eos_token_id
        return own if own in stop_ids else min(stop_ids)

    def stop_ids(self, configured: int | list[int] | None) -> frozenset[int]:
        """End-of-turn ids: those of the generation config, else the tokenizer's own.

        Raises:
            ModelError: neither names one, so no answer would ever end.
        """
        if configured is None:
            configured = self.tokenizer.eos_token_id
        if configured is None:
            fix = "Set eos_token_id in the model's generation_config.json."
            raise ModelError(wrong("stop tokens", "an end-of-turn token", "none", fix))
        return frozenset([configured] if isinstance(configured, int) else configured)
