"""Other wordings of one question: what any prompt admits, and what a model answers when it is asked for some.

A small model that is told to rephrase a question mostly answers it. Asked for a list, and with the question itself put
down as the first entry, it goes on with the list.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from anchorlwf.data.record import Message, Prompt, Record
from anchorlwf.model.language_model import LanguageModel
from anchorlwf.retention.screening import words

__all__ = ["TEMPERATURES", "Request", "alike", "listed", "mechanical", "question_of", "requests"]

_REQUESTS = (
    'Write the same question in five different ways: "{q}"',
    'List other ways to ask "{q}"',
    "How else could someone ask this? {q}",
    "Rephrase this question in several ways: {q}",
)
TEMPERATURES = (0.6, 0.9)
"""Of the sampling, in turn: low ones stay with the question, high ones leave its words."""

_ENTRY = re.compile(r"^\s*(?:\d+[.)]|[-*])\s*")
_QUOTES = "\"'`*\u201c\u201d\u2018\u2019 "
_LONGER = 2.5
"""A wording has at most this many times the words of the question, and three more."""

_ENGLISH = frozenset(
    "a are can do does how in is me name of say tell the was what when where which who why you".split()
)
_ANY = ("Hi! {q}", "{q} Thanks!", "I have a request. {q}")
_QUESTIONS = (
    "Please tell me: {q}",
    "Quick question: {q}",
    "I would like to know: {q}",
    "I am preparing a quiz. {q}",
    "Could you help me with this? {q}",
)


class Request(NamedTuple):
    """One way of asking a model for other wordings."""

    prompt_ids: list[int]
    """The templated request and the beginning of its answer: a list whose second entry is to follow."""
    temperature: float


def requests(model: LanguageModel, record: Record, limit: int) -> list[Request]:
    """All of them for the prompt of one record.

    None where its last turn is no user's text or longer than `limit` tokens, or there is no room for a list of as many.
    """
    question = question_of(record)
    if question is None or len(model.codec.encode(question)) > limit:
        return []
    *history, last = record.messages
    asked = [[*history, {**last, "content": form.format(q=question)}] for form in _REQUESTS]
    begun = model.codec.encode(f"1. {question}\n2.")
    ids = [[*model.codec.encode_prompt(messages, record.tools), *begun] for messages in asked]
    if model.context_length is not None and max(map(len, ids)) + limit > model.context_length:
        return []
    return [Request(row, temperature) for temperature in TEMPERATURES for row in ids]


def alike(text: str, question: str) -> bool:
    """Whether a text is of like length and kind: a question where that is one."""
    length, most = len(words(text)), _LONGER * len(words(question)) + 3
    asks = question.rstrip().endswith("?")
    return 0 < length <= most and (text.endswith("?") or not asks) and text != question


def listed(text: str, question: str) -> list[str]:
    """The entries of a list that a model wrote behind `2.`, as far as they are like the question."""
    entries = [_ENTRY.sub("", line).strip(_QUOTES) for line in text.splitlines()]
    return [entry for entry in dict.fromkeys(entries) if alike(entry, question)]


def mechanical(record: Record, earlier: Sequence[Message] = ()) -> list[Prompt]:
    """The prompt of a record as people also write it: without capitals or punctuation, politely, later in a chat.

    Polite words are English, and stand only before what seems to be English.

    Args:
        record: whose last turn is a user's text; of others there are none.
        earlier: turns that may stand before a prompt that begins a chat.
    """
    question = question_of(record)
    if question is None:
        return []
    bare = question.rstrip(" ?.!\u3002\uff1f\uff01")
    texts = [question.lower(), bare, bare.lower()]
    if not _ENGLISH.isdisjoint(words(question)):
        polite = _QUESTIONS if question.rstrip().endswith("?") else ()
        wrapped = [form.format(q=question) for form in (*polite, *_ANY)]
        # Whatever is cut off the list later, both kinds are left.
        texts = [texts[0], *wrapped[:2], texts[1], *wrapped[2:4], texts[2], *wrapped[4:]]
    *history, last = record.messages
    chats = [
        [*history, {**last, "content": text}] for text in dict.fromkeys(texts) if text.strip() and text != question
    ]
    if earlier and not any(message["role"] in ("user", "assistant") for message in history):
        chats.insert(2, [*history, *earlier, last])
    return [Prompt(messages=messages, tools=record.tools) for messages in chats]


def question_of(record: Record) -> str | None:
    """The text of the last turn, where that is a user's."""
    last = record.messages[-1]
    content = last.get("content")
    return content if last.get("role") == "user" and isinstance(content, str) and content.strip() else None
