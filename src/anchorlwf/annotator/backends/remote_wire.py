"""What a completion server's answers say, or why they will not do (`remote.py` asks).

A server that re-tokenises, or leaves ids or log-probabilities out, would spoil records silently: it is refused.
"""

import contextlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from anchorlwf.decoding.greedy import Step
from anchorlwf.errors import ModelError, redacted, wrong

__all__ = ["Later", "Piece", "first_of", "next_logprobs", "piece_of", "prompt_logprobs", "read_choice", "refuse"]


class Later(Exception):  # noqa: N818 - no error yet: a reason to ask again
    """The server is in trouble; it may be well soon."""

    def __init__(self, reason: str, after: str | None = None) -> None:
        super().__init__(reason)
        self.after = after
        """Seconds, as its Retry-After says."""


@dataclass(frozen=True)
class Piece:
    """Some tokens of a stream."""

    steps: list[Step]
    finish: str | None
    """Why the answer ends with them, "stop", "length" or some trouble; None: it goes on."""


def read_choice(text: str, prompt: list[int]) -> dict[str, Any]:
    """The one choice of a JSON answer to `prompt`. Raises `Later`, or `ModelError` where it is to other ids."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise Later(f"no JSON: {redacted(text)[:80]!r}") from None
    if not isinstance(data, dict):
        raise Later(f"no JSON object: {redacted(text)[:80]!r}")
    if "error" in data:
        raise Later(redacted(str(data["error"]))[:200])
    choices = data.get("choices")
    if not choices:
        return {"token_ids": []}
    if not isinstance(choices, list) or not isinstance(choices[0], dict):
        raise refuse("a list of choices", choices)
    echoed = choices[0].get("prompt_token_ids")
    if echoed is not None and echoed != prompt:
        raise refuse("the prompt's ids taken as they are", "other ids")
    choice: dict[str, Any] = choices[0]
    return choice


def piece_of(choice: dict[str, Any], top: int) -> Piece:
    """Tokens with `top` alternatives each. Raises `ModelError`."""
    return Piece(_steps(choice, top), choice.get("finish_reason"))


def prompt_logprobs(choice: dict[str, Any], length: int) -> list[dict[int, float]]:
    """For each of `length` prompt tokens (id -> nats): itself and the best one there. Raises `ModelError`."""
    listed = choice.get("prompt_logprobs")
    if not isinstance(listed, list) or len(listed) != length:
        raise refuse("log-probabilities of the prompt (prompt_logprobs)", "none")
    with _well_formed():
        return [{int(name): float(value["logprob"]) for name, value in (entry or {}).items()} for entry in listed]


def next_logprobs(choice: dict[str, Any]) -> dict[int, float]:
    """The answer's first token and what is listed with it (id -> nats). Raises `ModelError`."""
    first_of(choice, 1)
    with _well_formed():
        return {_number(name): float(value) for name, value in choice["logprobs"]["top_logprobs"][0].items()}


def first_of(choice: dict[str, Any], top: int) -> Step:
    """The answer's first token with `top` alternatives. Raises `ModelError`."""
    steps = _steps(choice, top)
    if not steps:
        raise refuse("a token", "none")
    return steps[0]


def refuse(missing: str, got: object) -> ModelError:
    """The error that says what the server left out."""
    fix = "Use vLLM, which gives them; `transformers serve`, for one, gives no log-probabilities."
    return ModelError(wrong("remote model", missing, redacted(str(got))[:200], fix))


@contextlib.contextmanager
def _well_formed() -> Iterator[None]:
    """What is put together in another way than it should be, as `ModelError`."""
    try:
        yield
    except ModelError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise refuse("log-probabilities by token, numbers of at most 0", error) from error


def _number(name: str) -> int:
    head, _, digits = name.partition(":")
    if head != "token_id" or not digits.isdigit():
        raise refuse("tokens named by id (return_tokens_as_token_ids)", repr(name))
    return int(digits)


def _steps(choice: dict[str, Any], top: int) -> list[Step]:
    """The tokens of a choice (whole, or a piece of a stream). Raises `ModelError`."""
    ids, logprobs = choice.get("token_ids"), choice.get("logprobs")
    if not isinstance(ids, list):
        raise refuse("token ids in the answer (return_token_ids)", "none")
    if not ids:
        return []
    if not isinstance(logprobs, dict):
        raise refuse("log-probabilities of the answer (logprobs)", "none")
    own, best = logprobs.get("token_logprobs") or [], logprobs.get("top_logprobs") or []
    if not len(own) == len(best) == len(ids):
        raise refuse("log-probabilities for every token", f"{len(own)} for {len(ids)} tokens")
    steps = []
    with _well_formed():
        for token, logprob, others in zip(ids, own, best, strict=True):
            named = ((_number(name), _probability(value)) for name, value in others.items())
            probability = _probability(logprob)
            rest = [pair for pair in sorted(named, key=lambda pair: -pair[1]) if pair[0] != token]
            alternatives = tuple([(int(token), probability), *rest][:top])
            steps.append(Step(int(token), probability, alternatives, _entropy([p for _, p in alternatives])))
    return steps


def _probability(logprob: float) -> float:
    """Of nats; rounding may have carried them above 0. Raises `ValueError` where they are no number."""
    if math.isnan(logprob):
        raise ValueError("NaN as a log-probability")
    return math.exp(min(0.0, logprob))


def _entropy(probabilities: list[float]) -> float:
    """Nats, with all that is not listed counted as one outcome: a lower bound."""
    parts = [*probabilities, max(0.0, 1.0 - sum(probabilities))]
    return sum(-part * math.log(part) for part in parts if part > 0)
