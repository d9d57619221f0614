"""The reference at work: rounds of prompts it writes or is given, with its answers, kept in the cache folder."""

import hashlib
import itertools
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anchorlwf.config import RetainConfig
from anchorlwf.data.record import Prompt, Record
from anchorlwf.decoding.greedy import Decoded, decode_batch, sample_batch
from anchorlwf.files import write_atomic
from anchorlwf.model.language_model import LanguageModel
from anchorlwf.retention.openings import Opening, general_opening, near_opening, write
from anchorlwf.retention.rewording import TEMPERATURES, listed, requests
from anchorlwf.retention.rounds import Answered, Round, rounds
from anchorlwf.retention.screening import Screen

__all__ = ["Writer"]

_FORMAT = 1
_NEAR_DUPLICATE = 0.8
"""Of general prompts. One other word makes a near prompt another question, so there only the same words count."""
_LISTS = 2
"""Lists of other wordings written for each way of asking for them, in every round."""
_WINDOW = 64
"""Prompts of the user's own answered between two writes."""


@dataclass(frozen=True)
class Writer:
    """A reference, the options, and the folder of what depends on these two alone."""

    model: LanguageModel
    config: RetainConfig
    folder: Path

    @classmethod
    def of(cls, model: LanguageModel, config: RetainConfig, root: Path) -> "Writer":
        """The writer of this reference (give it as it is to be sampled: `as_reference`), with its folder in `root`."""
        stamp = model.stamp
        key = {
            "weights": model.reference_sha(),
            "tokenizer": stamp.tokenizer_sha,
            "template": stamp.template_sha,
            # A model's generation settings may name more of them than its tokenizer.
            "ends": sorted(model.stop_ids),
            "dtype": str(model.causal.dtype),
            "device": model.device.type,
            # How many are wanted and held out changes nothing about what is written.
            "settings": config.model_dump(exclude={"general", "near", "held_out"}),
            "format": _FORMAT,
            # A template that prints the date makes other prompts every day.
            **({} if stamp.date is None else {"date": stamp.date}),
        }
        folder = root / "retain" / _sha(key)
        if not (folder / "key.json").exists():
            write_atomic(folder / "key.json", json.dumps(key, indent=2) + "\n")
        return cls(model, config, folder)

    def general(self) -> Iterator[Round]:
        """Prompts about anything, without end. Raises `ModelError` where the model has nothing to start from."""

        def make(number: int, earlier: list[Round]) -> Round:
            rng = random.Random(_seed(self.config.seed, "general", number))
            openings = [general_opening(self.model, rng, self.config) for _ in range(self.config.batch_size)]
            screen = Screen(_texts(earlier), _NEAR_DUPLICATE)
            return self._written(number, openings, screen, "general")

        return rounds(self.folder / "general.jsonl", make)

    def near(self, corrected: Sequence[Record]) -> Iterator[Round]:
        """Prompts that begin like the corrected ones, each of which comes as often as the others, without end."""
        asked = [str(record.messages[-1].get("content", "")) for record in corrected]

        def make(number: int, earlier: list[Round]) -> Round:
            rng = random.Random(_seed(self.config.seed, "near", number))
            start, size = number * self.config.batch_size, self.config.batch_size
            chosen = [corrected[i % len(corrected)] for i in range(start, start + size)]
            openings = [opening for record in chosen if (opening := near_opening(self.model, record, rng)) is not None]
            return self._written(number, openings, Screen([*asked, *_texts(earlier)], 1.0), "near")

        parts = [[record.id, record.prompt_ids, record.completion_ids] for record in corrected]
        return rounds(self.folder / f"near-{_sha(parts)}.jsonl", make)

    def reworded(self, record: Record) -> Iterator[Round]:
        """What the model writes when it is asked for other wordings of a corrected prompt, without end."""
        question = str(record.messages[-1].get("content", ""))

        def make(number: int, earlier: list[Round]) -> Round:
            texts = self._lists(record, question, number)
            screen = Screen([question, *_texts(earlier)], 1.0)
            flaws = [screen.reason(text) for text in texts]
            *history, last = record.messages
            prompts = [
                Prompt(messages=[*history, {**last, "content": text}], tools=record.tools)
                for text, flaw in zip(texts, flaws, strict=True)
                if flaw is None
            ]
            encoded = [self.model.codec.encode_prompt(prompt.messages, prompt.tools) for prompt in prompts]
            answered = self._answered(prompts, encoded, [record.id] * len(prompts))
            left_out = Counter(flaw for flaw in flaws if flaw is not None)
            return Round(number=number, answered=answered, left_out=dict(left_out))

        parts = [record.id, record.prompt_ids]
        return rounds(self.folder / f"reworded-{_sha(parts)}.jsonl", make)

    def _lists(self, record: Record, question: str, number: int) -> list[str]:
        """The entries of every list that the model wrote in this round, in order."""
        limit = self.config.prompt_tokens
        asked = requests(self.model, record, limit)
        texts: list[str] = []
        for turn, temperature in enumerate(TEMPERATURES):
            ids = [request.prompt_ids for request in asked if request.temperature == temperature] * _LISTS
            seed = _seed(self.config.seed, "reworded", number, turn)
            written = sample_batch(self.model, ids, limit, seed=seed, temperature=temperature) if ids else []
            texts += [text for one in written for text in listed(self.model.codec.decode(one.ids), question)]
        return list(dict.fromkeys(texts))

    def own(self, prompts: Sequence[Prompt]) -> Iterator[Round]:
        """Prompts that were given, to the end."""
        windows = [prompts[start : start + _WINDOW] for start in range(0, len(prompts), _WINDOW)]

        def make(number: int, _earlier: list[Round]) -> Round:
            encoded = [self.model.codec.encode_prompt(prompt.messages, prompt.tools) for prompt in windows[number]]
            return Round(number=number, answered=self._answered(windows[number], encoded, [None] * len(encoded)))

        name = _sha([prompt.model_dump() for prompt in prompts])
        return itertools.islice(rounds(self.folder / f"own-{name}.jsonl", make), len(windows))

    def _written(self, number: int, openings: Sequence[Opening], screen: Screen, kind: str) -> Round:
        """The model goes on where the openings end, and answers what passes the screen."""
        left_out: Counter[str] = Counter()
        prompts: list[Prompt] = []
        encoded: list[list[int]] = []
        begun: list[str | None] = []
        context = self.model.context_length
        turns = write(self.model, openings, self.config, _seed(self.config.seed, kind, number)) if openings else []
        for opening, turn in zip(openings, turns, strict=True):
            messages = [*opening.history, {"role": "user", "content": turn.text}]
            ids = [] if turn.flaw else self.model.codec.encode_prompt(messages, opening.tools)
            full = context is not None and len(ids) >= context
            flaw = turn.flaw or ("cut off" if full else screen.reason(turn.text))
            if flaw is not None:
                left_out[flaw] += 1
                continue
            prompts.append(Prompt(messages=messages, tools=opening.tools))
            encoded.append(ids)
            begun.append(opening.of)
        return Round(number=number, answered=self._answered(prompts, encoded, begun), left_out=dict(left_out))

    def _answered(
        self, prompts: Sequence[Prompt], encoded: list[list[int]], begun: Sequence[str | None]
    ) -> list[Answered]:
        """Greedy answers, in the order of the prompts."""
        answers: dict[int, Decoded] = {}
        for batch in decode_batch(self.model, encoded, self.config.answer_tokens, batch_size=self.config.batch_size):
            answers.update(batch)
        return [
            Answered(
                prompt=prompt,
                prompt_ids=encoded[i],
                completion_ids=answers[i].ids,
                completion=self.model.codec.decode(answers[i].ids),
                truncated=answers[i].truncated,
                of=begun[i],
            )
            for i, prompt in enumerate(prompts)
        ]


def _texts(earlier: Sequence[Round]) -> list[str]:
    return [answered.text for made in earlier for answered in made.answered]


def _seed(*parts: object) -> int:
    """A seed of its own for every round: 63 bits, which torch and `random` both take."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def _sha(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]
