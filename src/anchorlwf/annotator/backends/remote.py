"""An OpenAI-compatible server as the decoder: token ids in, token ids and log-probabilities out (vLLM's dialect).

    POST /v1/completions  {"prompt": [ids], "temperature": 0, "logprobs": k, "return_token_ids": true,
                           "return_tokens_as_token_ids": true, "stream": true}

What the answers must hold, and what refuses a server, stands in `remote_wire.py`.
"""

import math
import random
import time
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from anchorlwf.annotator.backends.remote_wire import (
    Later,
    Piece,
    first_of,
    next_logprobs,
    piece_of,
    prompt_logprobs,
    read_choice,
    refuse,
)
from anchorlwf.data.record import ModelStamp
from anchorlwf.decoding.greedy import TIE, Choices, Step
from anchorlwf.errors import KEY_VARIABLE, ConfigError, ModelError, PromptError, ServerError, api_key, redacted, wrong
from anchorlwf.model.codec import Codec
from anchorlwf.model.vocabulary import TokenTable

__all__ = ["KEY_VARIABLE", "Patience", "RemoteDecoder", "check_url", "key_header"]

_MAXIMUM_LOGPROBS = 20
"""The maximum that vLLM gives, unless it was started otherwise."""


def check_url(url: str) -> None:
    """Raise `ConfigError`, which does not repeat it, for a URL that is none, or that holds what may be a secret.

    To be called before anything is sent there or said of it.
    """
    key = f"Put the key into the environment variable {KEY_VARIABLE}."
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError):
        parsed = httpx.URL("")
    # An @ that is spelled %40 belongs to no name of a host.
    if parsed.scheme not in ("http", "https") or not parsed.host or "%40" in parsed.host:
        fix = f"Write http://HOST:PORT/v1. {key}"
        raise ConfigError(wrong("remote URL", "one of http or https", "another", fix))
    if parsed.userinfo:
        raise ConfigError(wrong("remote URL", "one without a password", "a password in it", key))
    if "?" in url or "#" in url:
        raise ConfigError(wrong("remote URL", "one that ends with its path", "a query or fragment behind it", key))


def key_header() -> dict[str, str]:
    """The header that lets us in. Raises `ConfigError` for a key that no header can hold."""
    key = api_key()
    if key is None:
        return {}
    if not (key.isascii() and key.isprintable()) or " " in key:
        fix = "Look for a line break or a blank in it."
        raise ConfigError(wrong(KEY_VARIABLE, "visible ASCII characters", "others among them", fix))
    return {"Authorization": f"Bearer {key}"}


@dataclass(frozen=True)
class Patience:
    """How long to wait for a server, and how often to ask again."""

    connect: float = 5.0
    """Seconds."""
    read: float = 60.0
    """Seconds between two pieces of an answer."""
    tries: int = 4
    pause: float = 0.25
    """Seconds before the second try; doubled each time, with a random part, 8 or less."""

    def before(self, attempt: int, asked: str | None) -> float:
        """Seconds to wait before another attempt (counted from 1); `asked`: the server's Retry-After."""
        wanted = float(asked) if asked and asked.isdigit() else self.pause * 2 ** (attempt - 1)
        return min(8.0, wanted) * (1 + random.random() / 4)


class _RemoteStream:
    """Tokens of one continuation; a connection that breaks is taken up again behind the last token."""

    def __init__(
        self,
        ask: Callable[[list[int], dict[str, Any]], Generator[Piece]],
        prompt: list[int],
        prefix: list[int],
        limit: int,
        stop_ids: frozenset[int],
    ) -> None:
        self._ask, self._prompt, self._ids, self._limit, self._stop = ask, prompt, prefix, limit, stop_ids
        self._cancelled = False

    def close(self) -> None:
        """The connection is closed with the next token, which makes the server stop."""
        self._cancelled = True

    def _over(self) -> bool:
        return self._cancelled or len(self._ids) >= self._limit or bool(self._ids and self._ids[-1] in self._stop)

    def __iter__(self) -> Iterator[Step]:
        while not self._over():
            room = self._limit - len(self._ids)
            pieces = self._ask(self._prompt + self._ids, {"max_tokens": room, "stream": True})
            before, finish = len(self._ids), None
            try:
                for piece in pieces:
                    finish = piece.finish or finish
                    for step in piece.steps:
                        self._ids.append(step.token_id)
                        yield step
                        if self._over():
                            return
            except ServerError:
                if len(self._ids) == before:
                    raise
                continue
            finally:
                pieces.close()
            # Servers may cap answers on their own (max_new_tokens of a generation config): asked again, they go on.
            if finish != "length" or len(self._ids) == before:
                got = f"an end after token {self._ids[-1] if self._ids else 'none'}"
                fix = "Give the tokenizer and generation_config.json of the model that is served."
                raise ModelError(wrong("remote answer", f"an end-of-turn token ({sorted(self._stop)})", got, fix))


class RemoteDecoder:
    """A `Decoder` over a server; `connect_remote` makes one and checks the server first.

    Args:
        url: such as `http://127.0.0.1:8000/v1`; see `check_url`.
        served: the model's name there.
        codec, stamp, stop_ids: of the same model.
        context: maximum number of tokens of prompt and answer together.
        alternatives: how many are kept with each token.
        patience: time-outs and retries.
        sleep: waits; tests need not.
    """

    remote = True

    def __init__(
        self,
        url: str,
        served: str,
        codec: Codec,
        stamp: ModelStamp,
        stop_ids: frozenset[int],
        *,
        context: int | None = None,
        alternatives: int = 10,
        patience: Patience | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        check_url(url)
        self.table, self.stamp, self.stop_ids = TokenTable(codec), stamp, stop_ids
        self._served, self._context, self._top = served, context, min(alternatives, _MAXIMUM_LOGPROBS)
        self._patience, self._sleep = patience or Patience(), sleep
        self._client = httpx.Client(
            base_url=url.rstrip("/") + "/",
            headers=key_header(),
            timeout=httpx.Timeout(self._patience.read, connect=self._patience.connect),
            limits=httpx.Limits(max_connections=64),
            follow_redirects=False,
        )

    @property
    def vocabulary(self) -> int:
        """See `Decoder`; the server does not say."""
        return len(self.table)

    def close(self) -> None:
        """See `Decoder`."""
        self._client.close()

    def room(self, prompt_ids: Sequence[int], wanted: int) -> int:
        """See `Decoder`."""
        if self._context is None:
            return wanted
        if len(prompt_ids) >= self._context:
            what = f"fewer than {self._context} tokens (context)"
            raise PromptError(wrong("prompt", what, len(prompt_ids), "Shorten the prompt."))
        return min(wanted, self._context - len(prompt_ids))

    def stream(
        self, key: Hashable, prompt_ids: Sequence[int], prefix_ids: Sequence[int], limit: int, **_ours: object
    ) -> _RemoteStream:
        """See `Decoder`; the server shares its own time out, and has no use for expected tokens."""
        return _RemoteStream(self._pieces, [*prompt_ids], [*prefix_ids], self.room(prompt_ids, limit), self.stop_ids)

    def read(self, key: Hashable, prompt_ids: Sequence[int], ids: Sequence[int], **_ours: object) -> _RemoteStream:
        """See `Decoder`; the server keeps caches of its own, and gives nothing here."""
        return _RemoteStream(self._pieces, [*prompt_ids], [*ids], 0, self.stop_ids)

    def rest(self, key: Hashable) -> None:
        """See `Decoder`."""

    def judge(
        self, key: Hashable, prompt_ids: Sequence[int], prefix_ids: Sequence[int], token_ids: Sequence[int]
    ) -> Choices:
        """See `Decoder`."""
        judged = Choices([], [], [])
        for token, values in zip(token_ids, self._weights([*prompt_ids, *prefix_ids], [*token_ids]), strict=True):
            if token not in values:
                raise refuse("the log-probability of every prompt token", "some left out")
            best = max(values, key=lambda number: (values[number], -number))
            judged.best_ids.append(best)
            judged.probabilities.append(min(1.0, math.exp(values[token])))
            judged.tied.append(best != token and values[best] - values[token] < TIE)
        return judged

    def _weights(self, before: list[int], tokens: list[int]) -> list[dict[int, float]]:
        """For each of the tokens (id -> nats): itself and the best one there."""
        ids = before + tokens
        if self._context is not None and len(ids) >= self._context:
            # vLLM wants room for one token behind every prompt: the last one is weighed as an answer.
            options = {"max_tokens": 1, "logprobs": _MAXIMUM_LOGPROBS, "logprob_token_ids": tokens[-1:]}
            inside = self._weights(before, tokens[:-1]) if tokens[:-1] else []
            return [*inside, next_logprobs(self._whole(ids[:-1], options))]
        choice = self._whole(ids, {"max_tokens": 1, "prompt_logprobs": 1})
        return prompt_logprobs(choice, len(ids))[len(before) :]

    def options(
        self, key: Hashable, prompt_ids: Sequence[int], prefix_ids: Sequence[int], top: int, starts: str = ""
    ) -> list[tuple[int, float]]:
        """See `Decoder`; among the twenty best, which is what servers tell."""
        count = min(_MAXIMUM_LOGPROBS, max(top, self._top)) if not starts else _MAXIMUM_LOGPROBS
        choice = self._whole([*prompt_ids, *prefix_ids], {"max_tokens": 1, "logprobs": count})
        wanted = starts.lstrip().lower()
        ranked = sorted(first_of(choice, count).alternatives, key=lambda pair: -pair[1])
        return [pair for pair in ranked if self.table.beginnings[pair[0]].startswith(wanted)][:top]

    def _body(self, prompt: list[int], options: dict[str, Any]) -> dict[str, Any]:
        # Penalties are given because servers take them from the model's own generation config otherwise.
        return {
            "model": self._served,
            "prompt": prompt,
            "temperature": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "logprobs": self._top,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            "stop_token_ids": sorted(self.stop_ids),
            **options,
        }

    def _retried(self, attempt: Callable[[], Generator[Any]]) -> Generator[Any]:
        """Pieces of an attempt; one that fails before its first piece is made again after a while."""
        for number in range(1, self._patience.tries + 1):
            begun = False
            try:
                for piece in attempt():
                    begun = True
                    yield piece
            except (Later, httpx.TransportError) as error:
                reason, after = (str(error) or type(error).__name__), getattr(error, "after", None)
                # Broken off midway: whoever reads goes on behind the last token, with tries of its own.
                if begun or number == self._patience.tries:
                    fix = "Look at the server, then try again."
                    raise ServerError(wrong("remote model", f"an answer within {number} tries", reason, fix)) from None
                self._sleep(self._patience.before(number, after))
            else:
                return

    def _pieces(self, prompt: list[int], options: dict[str, Any]) -> Generator[Piece]:
        def attempt() -> Generator[Piece]:
            with self._client.stream("POST", "completions", json=self._body(prompt, options)) as response:
                if response.status_code != 200:
                    response.read()
                    raise _failure(response)
                finish = None
                for line in response.iter_lines():
                    if line.startswith("data:") and line[5:].strip() == "[DONE]":
                        break
                    if line.startswith("data:"):
                        piece = piece_of(read_choice(line[5:], prompt), self._top)
                        finish = piece.finish or finish
                        yield piece
                if finish not in ("stop", "length"):  # also "abort": vLLM is shutting down
                    raise Later(f"a stream that broke off ({finish or 'without a reason'})")

        return self._retried(attempt)

    def _whole(self, prompt: list[int], options: dict[str, Any]) -> dict[str, Any]:
        def attempt() -> Generator[dict[str, Any]]:
            response = self._client.post("completions", json=self._body(prompt, options))
            if response.status_code != 200:
                raise _failure(response)
            yield read_choice(response.text, prompt)

        return next(self._retried(attempt))


def _failure(response: httpx.Response) -> Exception:
    said = f"status {response.status_code}: {redacted(response.text)[:200]}"
    if response.status_code in (408, 425, 429) or response.status_code >= 500:
        return Later(said, response.headers.get("retry-after"))
    if response.status_code in (401, 403):
        return ModelError(wrong("remote model", "to be let in", said, f"Put the key into {KEY_VARIABLE}."))
    return ModelError(wrong("remote model", "a completion of token ids", said, "Check URL and model name."))
