"""The one border between text and token ids: prompts in, answers out, fingerprints of both."""

import bisect
import hashlib
import itertools
import json
import re
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase
from transformers.utils import chat_template_utils as chats

from anchorlwf.data.record import Messages, ModelStamp, Record
from anchorlwf.errors import ModelError, ModelWarning, PromptError, RecordError, wrong
from anchorlwf.model import chat_template

__all__ = ["Codec", "Notice"]

_MARKS = re.compile(f"[{chats._CONTROL_TOKEN_START}{chats._CONTROL_TOKEN_END}]")  # noqa: SLF001 - they have no public name
_DATE_FORM = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1")
_SENTINEL = "anchorlwf"
"""Stands for what somebody says, where it matters only what a template makes of it."""
_GIVEN = {"user", "tool", "function", "ipython"}
"""Roles whose words come from outside; nothing in them is markup."""
_THOUGHT = re.compile(r"<think(ing)?>.*?</think(ing)?>", re.DOTALL)
"""What the model thought in an earlier turn is left out on purpose."""
_SEEN = 8
"""Characters of a text that are enough to say that some of it is in the prompt."""
Notice = Literal["date", "quoted", "forged"]
"""What is noticeable about a part of a rendered chat, see `Codec.noticeable`."""


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _today() -> str:
    return datetime.now(UTC).astimezone().date().isoformat()


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


def _first_lost(content: str, text: str) -> str | None:
    """Where a text stops being in the prompt that should hold it; None where it is there, or is only written otherwise.

    A line counts as there in the form that JSON gives it, too.
    """
    some_seen = False
    for line in filter(None, map(str.strip, content.splitlines())):
        if line in text or json.dumps(line)[1:-1] in text or json.dumps(line, ensure_ascii=False)[1:-1] in text:
            some_seen = True
            continue
        length = bisect.bisect_left(range(len(line) + 1), True, key=lambda end: line[:end] not in text) - 1
        if some_seen or length >= _SEEN:
            return line[length if length >= _SEEN else 0 :]
    return None


def _any_of(tokens: set[str]) -> re.Pattern[str]:
    """Longer ones first, for one may contain another."""
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)")


def _plain_text(content: Any) -> str:
    """What a message says, where there is no template to put its parts together."""
    texts = [content] if isinstance(content, str) else [part.get("text") for part in content or []]
    said = [text for text in texts if isinstance(text, str)]
    if len(said) < len(texts):
        fix = "Give text alone, or a model with a chat template."
        raise PromptError(wrong("prompt", "text (no chat template)", "a part of another kind", fix))
    return "".join(said)


class Codec:
    """A tokenizer with its chat template, read-only.

    decode -> encode does not return the same ids in general, so ids are what is stored and continued from; text made
    here is for people.

    Attributes:
        date: YYYY-MM-DD, what a template that asks for the date is given; today, until `pin` says otherwise.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.date = _today()
        self._ends: dict[str, tuple[int | None, int | None]] = {}
        self._controls: dict[str, tuple[re.Pattern[str], re.Pattern[str]]] = {}

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

    @property
    def prints_date(self) -> bool:
        """The chat template asks for the date."""
        return "strftime_now" in json.dumps(self.tokenizer.chat_template or "")

    def stamp(self, name: str, revision: str | None = None) -> ModelStamp:
        """Fingerprints that tie records to this tokenizer and template, for a model of that name."""
        return ModelStamp(
            name=name,
            revision=revision,
            tokenizer_sha=self.tokenizer_sha,
            template_sha=self.template_sha,
            date=self.date if self.prints_date else None,
        )

    def pin(self, earlier: ModelStamp | None) -> None:
        """Print the date of earlier work from now on, where it has one and was done with this template."""
        if earlier is not None and earlier.date is not None and earlier.template_sha == self.template_sha:
            self.date = earlier.date

    def _template(self, tools: list[dict[str, Any]] | None = None) -> str | None:
        if not self.tokenizer.chat_template:
            return None
        try:
            return str(self.tokenizer.get_chat_template(None, tools or None))
        except ValueError as error:
            fix = "Set chat_template in the model's folder."
            raise ModelError(wrong("chat template", "one to use by default", error, fix)) from error

    def _render(
        self,
        template: str,
        messages: Messages,
        tools: list[dict[str, Any]] | None,
        *,
        opened: bool = True,
        thinking: bool | None = None,
    ) -> str:
        if not messages:
            raise PromptError(wrong("prompt", "at least one message", "none", "Give some."))
        # As transformers does: other programs write null where a field is absent.
        said = [{key: value for key, value in message.items() if value is not None} for message in messages]
        variables = {**self.tokenizer.special_tokens_map, **({} if thinking is None else {"enable_thinking": thinking})}
        return chat_template.render(template, said, tools or None, variables, date=self.date, opened=opened)

    def encode_prompt(
        self, messages: Messages, tools: list[dict[str, Any]] | None = None, *, thinking: bool | None = None
    ) -> list[int]:
        """Ids of a chat up to and including the opening of the assistant's turn.

        Control tokens that a message spells out are encoded as the text they are; `remarks` tells where the template
        does not allow it. Without a chat template (base models) the prompt must be one user message; its text is
        taken as it is. `thinking` is what a template that has a choice is told (`enable_thinking`); None: nothing.

        Raises:
            PromptError: the template refuses the messages, or there is no template for a chat.
            ModelError: the template oversteps the limits of `chat_template`.
        """
        template = self._template(tools)
        if template is None:
            if len(messages) != 1 or messages[0].get("role") != "user":
                fix = "Give one user message, or a tokenizer with a chat template."
                got = ", ".join(str(message.get("role")) for message in messages) or "none"
                raise PromptError(wrong("prompt", "one user message (no chat template)", got, fix))
            return self._ids(_plain_text(messages[0]["content"]), add_special_tokens=True)
        text = self._render(template, messages, tools, thinking=thinking)
        spelled = self._spelled(messages, tools)
        quoted = self._quoted(self._marked(template, messages, tools, text, thinking)) if spelled else None
        return self._ids(text) if quoted is None else quoted

    def opening(self) -> str:
        """What the template opens the assistant's turn with; empty where there is no template, or no telling."""
        template, asked = self._template(), [{"role": "user", "content": "a"}]
        if template is None:
            return ""
        try:
            opened, closed = (self._render(template, asked, None, opened=opened) for opened in (True, False))
        except PromptError:
            return ""
        return opened.removeprefix(closed) if opened.startswith(closed) else ""

    def _ids(self, text: str, *, add_special_tokens: bool = False, **options: Any) -> list[int]:
        """The tokenizer's ids. Raises `PromptError` for text that it has none for."""
        try:
            text.encode()
            return list(self.tokenizer(text, add_special_tokens=add_special_tokens, **options)["input_ids"])
        except UnicodeEncodeError as error:
            fix = "Send it as UTF-8."
            raise PromptError(wrong("text", "whole characters", f"half of one, {text[error.start]!r}", fix)) from error
        except Exception as error:
            # tokenizers raises a plain Exception where even the token for unknown text is unknown.
            if type(error) is not Exception:
                raise
            fix = "Use the tokenizer files that came with the model."
            raise PromptError(wrong("text", "what the tokenizer has tokens for", error, fix)) from error

    def _control_tokens(self, template: str | None) -> tuple[re.Pattern[str], re.Pattern[str]]:
        """Those that nobody may spell (the special ones), and all that a template writes, such as `<think>`."""
        key = template or ""
        if key not in self._controls:
            added = self.tokenizer.added_tokens_decoder.values()
            special = {token.content for token in added if token.special}
            others = {token.content for token in added if token.content.strip()} - special
            listed = getattr(self.tokenizer, "chat_control_tokens", None)
            if listed is not None:
                others &= set(listed)
            elif others and template is not None:
                written = chat_template.literals(template)
                others = {token for token in others if token in written}
            self._controls[key] = _any_of(special), _any_of(special | others)
        return self._controls[key]

    def _spelled(self, messages: Messages, tools: list[dict[str, Any]] | None) -> list[str]:
        """The control tokens that stand in messages and tools as text, each once."""
        special, every = self._control_tokens(self._template(tools))
        parts = [(every if message.get("role") in _GIVEN else special, message) for message in messages]
        spelled = [
            token
            for pattern, part in [*parts, (special, tools)]
            for text in _strings(part)
            for token in pattern.findall(text)
        ]
        return list(dict.fromkeys(spelled))

    def _quoted(self, marked: str | None) -> list[int] | None:
        """Ids of a chat that `_marked` has marked, whose spelled control tokens are text; None where that cannot be.

        What the model said before keeps the markup of its own turn (`<think>`), for there it means what it says.
        """
        try:
            return None if marked is None else self._ids(marked, sanitize_control_tokens=True)
        except (PromptError, ValueError, NotImplementedError):
            return None

    def _marked(
        self,
        template: str,
        messages: Messages,
        tools: list[dict[str, Any]] | None,
        plain: str,
        thinking: bool | None = None,
    ) -> str | None:
        """The chat with marks around the control tokens that messages and tools spell; None where that changes it."""
        special, every = self._control_tokens(template)
        marked = [
            chats.mark_control_tokens(message, every if message.get("role") in _GIVEN else special)
            for message in messages
        ]
        try:
            text = self._render(template, marked, chats.mark_control_tokens(tools, special), thinking=thinking)
        except PromptError:
            return None
        # A template that looks into the text, or escapes it, would say something else.
        return text if _MARKS.sub("", text) == plain else None

    def noticeable(
        self, messages: Messages, tools: list[dict[str, Any]] | None = None
    ) -> list[tuple[int, int, Notice]]:
        """What a reader of the rendered chat should notice: from and to which character, and what it is.

        `date`: printed by the template. `quoted`: a control token that a message spells, and that the model reads as
        text. `forged`: one that it reads as a control token. Where the template changes the text around it, it is not
        found; `remarks` tells of it all the same.

        Raises as `encode_prompt`.
        """
        template = self._template(tools)
        if template is None:
            return []
        plain, found = self._render(template, messages, tools), list[tuple[int, int, Notice]]()
        for form in {match[2] for match in _DATE_FORM.finditer(template)}:
            printed = datetime.fromisoformat(self.date).strftime(form)
            if printed:
                found += [(match.start(), match.end(), "date") for match in re.finditer(re.escape(printed), plain)]
        if not self._spelled(messages, tools):
            return sorted(found)
        if (marked := self._marked(template, messages, tools, plain)) is None:
            return sorted([*found, *self._forged(template, messages, plain)])
        what: Notice = "forged" if self._quoted(marked) is None else "quoted"
        # The marks themselves are not in the plain text: each one before a place moves it by one.
        places = [match.start() - index for index, match in enumerate(_MARKS.finditer(marked))]
        return sorted([*found, *((start, stop, what) for start, stop in zip(places[::2], places[1::2], strict=True))])

    def _forged(self, template: str, messages: Messages, plain: str) -> Iterator[tuple[int, int, Notice]]:
        """Where messages spell control tokens, found by what stands around them, in a chat that cannot be marked."""
        special, every = self._control_tokens(template)
        for message in messages:
            for text in _strings(message):
                for match in (every if message.get("role") in _GIVEN else special).finditer(text):
                    before, behind = text[max(0, match.start() - _SEEN) : match.start()], text[match.end() :][:_SEEN]
                    place = plain.find(before + match[0] + behind)
                    if place >= 0 and before + behind:
                        yield place + len(before), place + len(before) + len(match[0]), "forged"

    def remarks(self, messages: Messages, tools: list[dict[str, Any]] | None = None) -> list[str]:
        """What the model will not read as it was written: forged control tokens, and what the template leaves out.

        Raises as `encode_prompt`.
        """
        template, spelled = self._template(tools), self._spelled(messages, tools)
        text = "" if template is None else self._render(template, messages, tools)
        said = []
        if spelled and (template is None or self._quoted(self._marked(template, messages, tools, text)) is None):
            who = "the tokenizer reads them" if template is None else "the chat template passes them on"
            said.append(f"{', '.join(spelled)} in its text: {who} as control tokens, which can end or begin a turn")
        if template is not None:
            said += [f"the chat template leaves out {what}" for what in self._dropped(template, messages, tools, text)]
        return said

    def _dropped(
        self, template: str, messages: Messages, tools: list[dict[str, Any]] | None, text: str
    ) -> Iterator[str]:
        def same(others: Messages, offered: list[dict[str, Any]] | None) -> bool:
            try:
                return self._render(template, others, offered) == text
            except PromptError:
                return False  # it is missed, so it is used

        if tools and same(messages, None):
            yield "the tools"
        for index, message in enumerate(messages):
            before, after, content = messages[:index], messages[index + 1 :], message.get("content")
            other = {key: value for key, value in message.items() if key != "tool_calls"}
            if message.get("tool_calls") and same([*before, other, *after], tools):
                yield f"the tool calls of message {index + 1}"
            seen = isinstance(content, str) and content.strip() in text
            if content and not seen and same([*before, {**message, "content": _SENTINEL}, *after], tools):
                yield f"message {index + 1} ({message.get('role')})"
            elif isinstance(content, str) and not seen and (lost := _first_lost(_THOUGHT.sub("", content), text)):
                yield f"a part of message {index + 1} ({message.get('role')}), from {lost[:40]!r} on"

    def encode(self, text: str) -> list[int]:
        """Ids of plain text, no special tokens added; markers spelled out in the text are read as themselves.

        Raises:
            PromptError: text that the tokenizer has no token for, not even the one for unknown text.
        """
        return self._ids(text)

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
        record.model.require_same(ours, f"record {record.id}", "Use that model, or annotate again with this one.")
        record.require_vocabulary(vocabulary)
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

    def _template_ends(self) -> tuple[int | None, int | None]:
        """The token that the template puts behind an assistant's turn; and what comes there once the user goes on."""
        template = self._template()
        if template is None:
            return None, None
        if template not in self._ends:
            turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _SENTINEL}]
            self._ends[template] = self._token_behind(template, turn), self._token_behind(template, [*turn, turn[0]])
        return self._ends[template]

    def _token_behind(self, template: str, chat: Messages) -> int | None:
        """The control token behind `_SENTINEL`, if that is all that follows it."""
        try:
            _, said, behind = self._render(template, chat, None, opened=False).rpartition(_SENTINEL)
            ids = self.encode(behind) if said else []
        except PromptError:
            return None  # a template that wants other chats than this one does not tell, nor one that has no ids
        control = {number for number, token in self.tokenizer.added_tokens_decoder.items() if token.content.strip()}
        for token in ids:
            if token in control:
                return token
            if self.decode([token]).strip():
                break
        return None

    def end_id(self, stop_ids: frozenset[int]) -> int:
        """The token that the chat template itself puts behind an assistant's turn; else the tokenizer's own."""
        end, following = self._template_ends()
        if end is not None:
            return end
        # Where nothing closes a turn, the next one's header may (GLM); whether it does, the stop tokens say.
        for candidate in (following, self.tokenizer.eos_token_id):
            if candidate in stop_ids:
                return int(candidate)
        return min(stop_ids)

    def stop_ids(self, configured: int | list[int] | None) -> frozenset[int]:
        """End-of-turn ids: whatever generation config, tokenizer or chat template ends a turn with.

        Args:
            configured: `eos_token_id` of the generation config.

        Raises:
            ModelError: none of them names one, so no answer would ever end; or a template beyond all limits.
        """
        ends = {*_listed(configured), self.tokenizer.eos_token_id, self._template_ends()[0]} - {None}
        if not ends:
            fix = "Set eos_token_id in the model's generation_config.json."
            raise ModelError(wrong("stop tokens", "an end-of-turn token", "none", fix))
        return frozenset(int(token) for token in ends if token is not None)

    def warn_of_ends(self, configured: int | list[int] | None) -> None:
        """Warn (`ModelWarning`) where the generation config does not stop at what the template ends turns with."""
        end, named = self._template_ends()[0], _listed(configured) or _listed(self.tokenizer.eos_token_id)
        if end is None or end in named:
            return
        shown = ", ".join(f"{token} ({self.decode([token], special=True)})" for token in named) or "none"
        expected = f"{end} ({self.decode([end], special=True)}), with which the chat template ends turns"
        fix = (
            "Here answers end at any of them, and anchors take the template's; elsewhere they may run on, unless "
            f"generation_config.json has eos_token_id: {sorted({end, *named})}."
        )
        warnings.warn(wrong("end-of-turn token", expected, shown, fix), ModelWarning, stacklevel=3)


def _listed(ids: int | list[int] | None) -> list[int]:
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)
