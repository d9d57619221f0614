"""Tokens in a form that a screen can show: text, or raw bytes where a token is only part of a character."""

import json
import re
from dataclasses import dataclass
from functools import cached_property

from anchorlwf.errors import RecordError, wrong
from anchorlwf.model.codec import Codec

__all__ = ["TokenTable", "TokenText"]

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_of_char() -> dict[str, int]:
    """The byte-level alphabet of GPT-2: printable bytes stand for themselves, the others from U+0100 on."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in set(plain)]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_of_char()


@dataclass(frozen=True)
class TokenText:
    """One vocabulary entry."""

    id: int
    text: str
    """U+FFFD for each byte that is no whole character."""
    hex: str | None
    """The raw bytes, where `text` cannot say them."""
    special: bool
    """A marker of the template or the tokenizer, not text."""


class TokenTable:
    """Texts and bytes of a tokenizer's vocabulary, looked up once each."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        backend = getattr(codec.tokenizer, "backend_tokenizer", None)
        pipeline = json.dumps(json.loads(backend.to_str())["decoder"]) if backend is not None else ""
        self._byte_level, self._fallback = "ByteLevel" in pipeline, "ByteFallback" in pipeline
        self._added = {number: str(token) for number, token in codec.tokenizer.added_tokens_decoder.items()}
        self._special = set(codec.tokenizer.all_special_ids) | {
            number for number, token in codec.tokenizer.added_tokens_decoder.items() if token.special
        }
        self._seen: dict[int, TokenText] = {}

    def __len__(self) -> int:
        return len(self.codec.tokenizer)

    def raw(self, token: int) -> bytes:
        """The bytes a token stands for."""
        if token in self._added:
            return self._added[token].encode()
        piece = self.codec.tokenizer.convert_ids_to_tokens(token)
        if piece is None:
            return b""
        if self._byte_level and all(char in _BYTES for char in piece):
            return bytes(_BYTES[char] for char in piece)
        if self._fallback and (match := _BYTE.fullmatch(piece)):
            return bytes([int(match[1], 16)])
        return piece.replace("\u2581", " ").encode(errors="replace")

    def token(self, token: int) -> TokenText:
        """One entry; ids beyond the vocabulary have an empty text."""
        if token not in self._seen:
            raw = self.raw(token)
            try:
                text, code = raw.decode(), None
            except UnicodeDecodeError:
                text, code = raw.decode(errors="replace"), raw.hex()
            self._seen[token] = TokenText(token, text, code, token in self._special)
        return self._seen[token]

    @cached_property
    def beginnings(self) -> list[str]:
        """Every entry's text, lower case and without white space before it, for filtering."""
        return [self.token(number).text.lstrip().lower() for number in range(len(self))]

    def check(self, ids: list[int]) -> None:
        """Raise `RecordError` unless all ids are in the vocabulary."""
        stray = next((token for token in ids if not 0 <= token < len(self)), None)
        if stray is not None:
            fix = "Choose a token of this model."
            raise RecordError(wrong("token id", f"0 to {len(self) - 1}", stray, fix))

    def encode(self, text: str) -> list[int]:
        """Ids of plain text. Raises `RecordError` where it holds half a character (a lone surrogate)."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            fix = "Paste the text again."
            raise RecordError(wrong("text", "whole characters", f"half of one at {error.start}", fix)) from error
        return self.codec.encode(text)
