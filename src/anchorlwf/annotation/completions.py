"""What a completion server's answers say, or why they will not do (`remote.py` asks).

A server that re-tokenises, or leaves ids or log-probabilities out, would spoil records silently: it is refused.
"""

import json
import math
from dataclasses import dataclass
from typing import Any

from anchorlwf.annotation.decoders import Chosen
from anchorlwf.errors import ModelError, wrong

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

    steps: list[Chosen]
    finish: str | None
    """Why the answer ends with them, "stop", "length" or some trouble; None: it goes on."""


def read_choice(text: str, prompt: list[int]) -> dict[str, Any]:
    """The one choice of a JSON answer to `prompt`. Raises `Later`, or `ModelError` where it is to other ids."""
    try:
        data = json.loads(text)
    except ValueError:
        raise Later(f"no JSON: {text[:80]!r}") from None
    if not isinstance(data, dict):
        raise Later(f"no JSON object: {text[:80]!r}")
    if "error" in data:
        raise Later(str(data["error"])[:200])
    choices = data.get("choices")
    if not choices:
        return {"token_ids": []}
    echoed = choices[0].get("prompt_token_ids")
    if echoed is not None and echoed != prompt:
        raise refuse("the prompt's ids taken as they are", "other ids")
    found: dict[str, Any] = choices[0]
    return found


def piece_of(choice: dict[str, Any], top: int) -> Piece:
    """Tokens with `top` alternatives each. Raises `ModelError`."""
    return Piece(_steps(choice, top), choice.get("finish_reason"))


def prompt_logprobs(choice: dict[str, Any], length: int) -> list[dict[int, float]]:
    """For each of `length` prompt tokens (id -> nats): itself and the best one there. Raises `ModelError`."""
    listed = choice.get("prompt_logprobs")
    if not isinstance(listed, list) or len(listed) != length:
        raise refuse("log-probabilities of the prompt (prompt_logprobs)", "none")
    return [{int(name): value["logprob"] for name, value in (entry or {}).items()} for entry in listed]


def next_logprobs(choice: dict[str, Any]) -> dict[int, float]:
    """The answer's first token and what is listed with it (id -> nats). Raises `ModelError`."""
    first_of(choice, 1)
    return {_number(name): value for name, value in choice["logprobs"]["top_logprobs"][0].items()}


def first_of(choice: dict[str, Any], top: int) -> Chosen:
    """The answer's first token with `top` alternatives. Raises `ModelError`."""
    steps = _steps(choice, top)
    if not steps:
        raise refuse("a token", "none")
    return steps[0]


def refuse(missing: str, got: object) -> ModelError:
    """The error that says what the server left out."""
    fix = "Use vLLM, which gives them; `transformers serve`, for one, gives no log-probabilities."
    return ModelError(wrong("remote model", missing, str(got)[:200], fix))


def _number(name: str) -> int:
    head, _, digits = name.partition(":")
    if head != "token_id" or not digits.isdigit():
        raise refuse("tokens named by id (return_tokens_as_token_ids)", repr(name))
    return int(digits)


def _steps(choice: dict[str, Any], top: int) -> list[Chosen]:
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
    found = []
    for token, logprob, others in zip(ids, own, best, strict=True):
        ranked = sorted(((_number(name), math.exp(value)) for name, value in others.items()), key=lambda pair: -pair[1])
        probability = min(1.0, math.exp(logprob))
        rest = [pair for pair in ranked if pair[0] != token]
        alternatives = tuple([(token, probability), *rest][:top])
        found.append(Chosen(token, probability, alternatives, _entropy([p for _, p in alternatives])))
    return found


def _entropy(probabilities: list[float]) -> float:
    """Nats, with all that is not listed counted as one outcome: a lower bound."""
    parts = [*probabilities, max(0.0, 1.0 - sum(probabilities))]
    return sum(-part * math.log(part) for part in parts if part > 0)
