"""Tokens in a form that a screen can show: text, or raw bytes where a token is only part of a character."""

import codecs
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

from anchorlwf.errors import RecordError, wrong
from anchorlwf.model.codec import Codec

__all__ = ["TokenTable", "TokenText"]

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_NEAR = 16
"""Tokens before a text that decide how it is split: merges look no further back than a word."""
_LONGEST = 4
"""Bytes of a character."""


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


@cache
def _kind(begun: bytes) -> str:
    """What the characters that begin with these bytes have in common: their script, or that they are symbols."""
    missing = {0xC0: 1, 0xD0: 1, 0xE0: 2, 0xF0: 3}[begun[0] & 0xF0] - len(begun) + 1
    lead = begun[0] & (0xFF >> (len(begun) + missing + 1))
    for byte in begun[1:]:
        lead = lead << 6 | byte & 0x3F
    first, size = lead << 6 * missing, 1 << 6 * missing
    points = range(first, min(first + size, 0x110000), max(1, size // 256))
    names = [name for point in points if (name := unicodedata.name(chr(point), ""))]
    [(word, count)] = Counter(name.split(" ")[0] for name in names).most_common(1) or [("", 0)]
    if names and count * 4 >= len(names) * 3:
        return word if word == "CJK" else word.title()
    symbols = sum(unicodedata.category(unicodedata.lookup(name)) == "So" for name in names)
    return "Symbol" if names and symbols * 4 >= len(names) * 3 else "Character"


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

    def encode_behind(self, before_ids: Sequence[int], text: str) -> list[int]:
        """Ids that the tokenizer gives `text` where it stands behind other tokens, which stay as they are.

        Some tokenizers put a space before whatever they are given alone, and so would change the text.

        Args:
            before_ids: what stands before; the last tokens are enough.
            text: plain text.

        Raises:
            RecordError: as `encode`.
        """
        near = list(before_ids[-_NEAR:])
        before = b"".join(map(self.raw, near)).decode(errors="ignore")
        # Where the tokens before would not be the same with the text behind them, a line break stands for them.
        for context, last in ((before, near[-1:]), ("\n", None)):
            head = self.encode(context)
            whole = self.encode(context + text)
            if head and last in (None, head[-1:]) and len(whole) > len(head) and whole[: len(head)] == head:
                return whole[len(head) :]
        return self.encode(text)

    def span(self, ids: Sequence[int], start: int, stop: int) -> str:
        """Text of the tokens from `start` to before `stop`, and of those beside them that share a character with them.

        U+FFFD stands only for bytes that are no character in the answer either.
        """
        for _ in range(_LONGEST - 1):
            start -= 0 < start < len(ids) and self._goes_on(ids[start])
            stop += stop < len(ids) and self._goes_on(ids[stop])
        return self.codec.decode(list(ids[start:stop]), special=True)

    def _goes_on(self, token: int) -> bool:
        """Its first byte is not the first one of a character."""
        return any(0x80 <= byte < 0xC0 for byte in self.raw(token)[:1])

    def becomes(self, before_ids: Sequence[int], token: int) -> str | None:
        """What a token that is part of a character becomes behind others; None for tokens that are text of their own.

        The character that its bytes complete; where they only begin one, what it can be, such as `Arabic…`. None as
        well where they can become no character there.
        """
        if self.token(token).hex is None:
            return None
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for number in before_ids[-_LONGEST:]:
            decoder.decode(self.raw(number))
        shown, begun = decoder.decode(self.raw(token)), decoder.getstate()[0]
        if "\ufffd" in shown:
            return None
        return f"{shown}{_kind(begun)}…" if begun else shown

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
        """Ids of plain text. Raises `PromptError` as `Codec.encode`."""
        return self.codec.encode(text)
