"""Finding out about a server before any work depends on it."""

from typing import Any

import httpx

from anchorlwf.annotator.backends.remote import KEY_VARIABLE, Patience, RemoteDecoder, check_url, key_header
from anchorlwf.errors import ModelError, ServerError, wrong
from anchorlwf.model.language_model import canonical_name, load_codec

__all__ = ["connect_remote"]


def _served(url: str, wanted: str | None, headers: dict[str, str], patience: Patience) -> tuple[str, int | None]:
    """The model's name on the server, and its context."""
    try:
        reply = httpx.get(url.rstrip("/") + "/models", headers=headers, timeout=patience.connect)
        listed: list[dict[str, Any]] = reply.json()["data"] if reply.status_code == 200 else []
        names = [str(model.get("id")) for model in listed]
    # OverflowError: a port above 65535. RecursionError: brackets without end.
    except (
        httpx.HTTPError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        fix = "Check the URL; it usually ends in /v1."
        raise ServerError(wrong(f"remote model at {url}", "a list of models", error or type(error), fix)) from None
    if not listed:
        fix = f"Check the URL, and {KEY_VARIABLE} where the server wants a key."
        raise ModelError(wrong(f"remote model at {url}", "a list of models", f"status {reply.status_code}", fix))
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
        ConfigError: a URL that holds a password or a query, or a key that no header can hold; before anything is sent.
        ModelError: the server re-tokenises, or leaves out token ids or log-probabilities; the message says which.
        ServerError: it cannot be reached.
    """
    check_url(url)
    headers, patience = key_header(), patience or Patience()
    codec, stop_ids = load_codec(tokenizer, trust_remote_code)
    name, context = _served(url, served, headers, patience)
    stamp = codec.stamp(canonical_name(tokenizer))
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
