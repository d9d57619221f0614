"""Finding out about a server before any work depends on it."""

import os
from typing import Any

import httpx
from transformers import AutoTokenizer, GenerationConfig

from anchorlwf.annotation.remote import KEY_VARIABLE, Patience, RemoteDecoder
from anchorlwf.errors import ModelError, ServerError, wrong
from anchorlwf.model import EMBEDDED, embedded_path
from anchorlwf.record import ModelStamp
from anchorlwf.text import Codec

__all__ = ["connect_remote", "load_codec", "source_of"]


def source_of(name: str) -> str:
    """Where the files of a model of that name are: its folder or hub name."""
    return str(embedded_path()) if name == EMBEDDED else name


def load_codec(name: str, trust_remote_code: bool) -> tuple[Codec, frozenset[int]]:
    """Tokenizer and end-of-turn ids of a model, without its weights. Raises `ModelError`."""
    source = source_of(name)
    try:
        codec = Codec(AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code))
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        fix = "Name the model's folder or hub name: only its tokenizer is read."
        raise ModelError(wrong(f"tokenizer {name!r}", "a folder or hub name", first, fix)) from error
    try:
        ends = GenerationConfig.from_pretrained(source).eos_token_id
    except OSError:
        ends = None  # a tokenizer without a model beside it names its own end
    return codec, codec.stop_ids(ends)


def _served(url: str, wanted: str | None, headers: dict[str, str], patience: Patience) -> tuple[str, int | None]:
    """The model's name on the server, and its context."""
    try:
        reply = httpx.get(url.rstrip("/") + "/models", headers=headers, timeout=patience.connect)
        listed: list[dict[str, Any]] = reply.json()["data"] if reply.status_code == 200 else []
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        fix = "Check the URL; it usually ends in /v1."
        raise ServerError(wrong(f"remote model at {url}", "a list of models", error or type(error), fix)) from None
    if not listed:
        fix = f"Check the URL, and {KEY_VARIABLE} where the server wants a key."
        raise ModelError(wrong(f"remote model at {url}", "a list of models", f"status {reply.status_code}", fix))
    names = [str(model.get("id")) for model in listed]
    name = wanted or names[0]
    if name not in names:
        raise ModelError(wrong("served model", " or ".join(names), name, "Choose one of them."))
    return name, listed[names.index(name)].get("max_model_len")


def connect_remote(
    url: str,
    tokenizer: str,
    *,
    served: str | None = None,
    alternatives: int = 10,
    patience: Patience | None = None,
    trust_remote_code: bool = False,
) -> RemoteDecoder:
    """A decoder over an OpenAI-compatible server that takes and gives token ids.

    Args:
        url: such as `http://127.0.0.1:8000/v1`.
        tokenizer: folder or hub name of the same model, for its tokenizer, template and end-of-turn tokens.
        served: its name on the server; None: the first one there.
        alternatives: how many are kept with each token.
        patience: time-outs and retries.
        trust_remote_code: run code that came with the tokenizer.

    Raises:
        ModelError: the server re-tokenises, or leaves out token ids or log-probabilities; the message says which.
        ServerError: it cannot be reached.
    """
    patience = patience or Patience()
    codec, stop_ids = load_codec(tokenizer, trust_remote_code)
    key = os.environ.get(KEY_VARIABLE)
    name, context = _served(url, served, {"Authorization": f"Bearer {key}"} if key else {}, patience)
    stamp = ModelStamp(name=tokenizer, tokenizer_sha=codec.tokenizer_sha, template_sha=codec.template_sha)
    decoder = RemoteDecoder(
        url, name, codec, stamp, stop_ids, context=context, alternatives=alternatives, patience=patience
    )
    _probe(decoder)
    return decoder


def _probe(decoder: RemoteDecoder) -> None:
    """Ask for everything once; each of these refuses a server that leaves its part out."""
    codec = decoder.table.codec
    prompt = codec.encode_prompt([{"role": "user", "content": "Hello"}])
    first = next(iter(decoder.stream(None, prompt, [], 1)), None)
    if first is None or first.token_id >= len(decoder.table):
        fix = "Give the tokenizer of the model that is served."
        got = "none" if first is None else first.token_id
        raise ModelError(wrong("remote model", f"a token below {len(decoder.table)}", got, fix))
    decoder.judge(None, prompt, [], [first.token_id])
    decoder.options(None, prompt, [], 1)
