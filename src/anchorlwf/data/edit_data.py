"""Knowledge-editing data sets (zsRE, CounterFact, KnowEdit) as prompts to correct and probes to judge by.

Local files, in the layouts their authors publish: one JSON array of entries. docs/edit_data.md says what becomes what.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from anchorlwf.data.jsonl import parse_json, problem_of
from anchorlwf.data.probe import Probe, ProbeKind
from anchorlwf.data.record import Prompt
from anchorlwf.errors import BadLineWarning, RecordError, warn, wrong

__all__ = ["BadEntry", "Edits", "Layout", "load_edits"]

Layout = Literal["zsre", "counterfact", "knowedit"]
Locality = Literal["near", "retain"]
Text = Annotated[str, Field(min_length=1, pattern=r"\S")]
# Question, right answers (any of them will do), kind, tag.
_Question = tuple[str, list[str], ProbeKind, str]


@dataclass(frozen=True)
class BadEntry:
    """One entry that does not fit its layout, and why."""

    source: str
    index: int
    """Counted from 0, as in the file's array."""
    problem: str
    """Field, expected and got."""

    def __str__(self) -> str:
        return f"{self.source}, entry {self.index}: {self.problem}"


@dataclass(frozen=True)
class Edits:
    """An editing data set: what to annotate, and what to ask afterwards."""

    layout: Layout
    prompts: list[Prompt]
    """The prompt of each edit with its new target as the answer."""
    probes: list[Probe]
    """Of the same edits; `group` names the edit (`zsre:12`)."""
    read: dict[str, int]
    """Fields of the file that were read, each with how many of the chosen entries have it."""
    unread: dict[str, int]
    """The others, nested ones as `requested_rewrite.relation_id`: nothing of them is in prompts or probes."""


class _Part(BaseModel):
    """Fields that are not read may hold anything; they are kept, so that they can be named."""

    model_config = ConfigDict(frozen=True, extra="allow")


class _Entry(_Part):
    """One edit, in the words of its layout."""

    locality: ClassVar[Locality] = "near"

    def edit(self) -> tuple[str, str]:
        """The prompt and the new target."""
        raise NotImplementedError

    def questions(self) -> Iterator[_Question]:
        """Everything else to ask."""
        raise NotImplementedError


def _plain(question: str) -> str:
    """Without what was written for models that were told so: "nq question: who wrote hamlet"."""
    return question.removeprefix("nq question: ")


class _Zsre(_Entry):
    """zsRE as MEND, ROME and EasyEdit read it. Its locality question is about something else altogether."""

    subject: str
    src: Text
    rephrase: Text
    alt: Text
    loc: Text
    loc_ans: Text
    locality: ClassVar[Locality] = "retain"

    def edit(self) -> tuple[str, str]:
        return self.src, self.alt

    def questions(self) -> Iterator[_Question]:
        yield self.rephrase, [self.alt], "paraphrase", "rephrase"
        yield _plain(self.loc).rstrip("?") + "?", [self.loc_ans], "near", "locality"


class _Target(_Part):
    str_: Text = Field(alias="str")


class _Rewrite(_Part):
    prompt: Annotated[str, Field(pattern=r"\{\}")]
    subject: Text
    target_new: _Target
    target_true: _Target


class _CounterFact(_Entry):
    """CounterFact of ROME. Its prompts are beginnings of sentences, and stay so."""

    requested_rewrite: _Rewrite
    paraphrase_prompts: list[Text]
    neighborhood_prompts: list[Text]
    attribute_prompts: list[Text] = []

    def edit(self) -> tuple[str, str]:
        rewrite = self.requested_rewrite
        return rewrite.prompt.replace("{}", rewrite.subject), rewrite.target_new.str_

    def questions(self) -> Iterator[_Question]:
        new, true = self.requested_rewrite.target_new.str_, self.requested_rewrite.target_true.str_
        yield from ((text, [new], "paraphrase", "paraphrase") for text in self.paraphrase_prompts)
        yield from ((text, [true], "near", "neighborhood") for text in self.neighborhood_prompts)
        yield from ((text, [new], "near", "attribute") for text in self.attribute_prompts)


def _flat(value: Any) -> list[Any]:
    """A text, a list of texts and a list of such lists all mean: any of these will do."""
    return [text for item in value for text in _flat(item)] if isinstance(value, list) else [value]


def _texts(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Answers = Annotated[list[Text], Field(min_length=1), BeforeValidator(_flat)]
Wordings = Annotated[list[Text], Field(min_length=1), BeforeValidator(_texts)]


class _Asked(_Part):
    prompt: Wordings
    ground_truth: Answers


def _either(*names: str) -> Any:
    return Field(validation_alias=AliasChoices(*names))


class _KnowEdit(_Entry):
    """KnowEdit's factual sets: wiki_recent, wiki_counterfact, ZsRE, and WikiBio with its own names of fields.

    Or flat, as EasyEdit's requests are: one question of what must stay, beside the prompt instead of in `locality`.
    """

    subject: str = _either("subject", "concept")
    prompt: Text = _either("prompt", "text")
    target_new: Text = _either("target_new", "labels")
    rephrase: Wordings | None = Field(default=None, validation_alias=AliasChoices("rephrase", "rephrase_prompt"))
    portability: dict[str, list[_Asked]] = {}
    locality_: dict[str, list[_Asked]] = Field(default={}, validation_alias="locality")
    locality_prompt: Text | None = None
    locality_ground_truth: Answers | None = None

    def edit(self) -> tuple[str, str]:
        return self.prompt, self.target_new

    def questions(self) -> Iterator[_Question]:
        yield from ((text, [self.target_new], "paraphrase", "rephrase") for text in self.rephrase or [])
        kinds: tuple[tuple[ProbeKind, str, dict[str, list[_Asked]]], ...] = (
            ("paraphrase", "portability", self.portability),
            ("near", "locality", self.locality_),
        )
        for kind, family, groups in kinds:
            for name, asked in groups.items():
                for question in asked:
                    yield from ((text, question.ground_truth, kind, f"{family}:{name}") for text in question.prompt)
        if self.locality_prompt is not None and self.locality_ground_truth is not None:
            yield _plain(self.locality_prompt), self.locality_ground_truth, "near", "locality"

    @model_validator(mode="after")
    def _both(self) -> Self:
        if (self.locality_prompt is None) != (self.locality_ground_truth is None):
            there, missing = ("locality_prompt", "locality_ground_truth")[:: 1 if self.locality_prompt else -1]
            raise ValueError(f"{missing}: expected the field, for there is {there}; got nothing")
        return self


_LAYOUTS: dict[Layout, type[_Entry]] = {"zsre": _Zsre, "counterfact": _CounterFact, "knowedit": _KnowEdit}


def load_edits(
    path: str | Path,
    *,
    layout: Layout | None = None,
    limit: int | None = None,
    locality: Locality | None = None,
    skip_bad: bool = False,
) -> Edits:
    """Read an editing data set from a JSON file.

    Args:
        path: the file, one array of entries.
        layout: None: told by the fields of the first entry.
        limit: most edits; the first ones are taken.
        locality: kind of the probes for what must stay. near, or retain: then the KL is measured on them, too. None:
            near; retain for zsRE, whose questions have nothing to do with the edit.
        skip_bad: go on after bad entries and warn of each (`BadLineWarning`) instead of raising.

    Raises:
        RecordError: no such file, no such layout, or bad entries: each by file, index, field, expected and got.
    """
    entries = _read(path)
    layout = layout or _detect(path, entries[0])
    kind = _LAYOUTS[layout]
    chosen: list[tuple[int, _Entry]] = []
    bad: list[BadEntry] = []
    for index, entry in enumerate(entries):
        if limit is not None and len(chosen) == limit:
            break
        if not isinstance(entry, dict):
            bad.append(BadEntry(str(path), index, f"expected a JSON object, got {type(entry).__name__}"))
            continue
        try:
            chosen.append((index, kind.model_validate(entry)))
        except ValidationError as error:
            bad.append(BadEntry(str(path), index, problem_of(error)))
    if bad and not skip_bad:
        listing = "\n".join(map(str, bad))
        raise RecordError(f"{listing}\n{len(chosen)} other entries are good. Mend the bad ones, or skip them.")
    for bad_entry in bad:
        warn(str(bad_entry), BadLineWarning)
    if not chosen:
        raise RecordError(wrong(str(path), f"at least one good {layout} entry", "none", "Check the layout."))
    prompts = [_prompt(layout, entry) for _, entry in chosen]
    probes = [probe for index, entry in chosen for probe in _probes(layout, index, entry, locality or kind.locality)]
    unread = Counter(name for _, entry in chosen for name in set(_unread(entry)))
    read = Counter(name for index, _ in chosen for name in entries[index] if unread[name] < 1)
    return Edits(layout, prompts, probes, dict(read), dict(sorted(unread.items())))


def _unread(value: Any, name: str = "") -> Iterator[str]:
    """The fields of an entry that its layout does not know."""
    if isinstance(value, _Part):
        yield from (f"{name}{field}" for field in value.model_extra or {})
        for field, kind in type(value).model_fields.items():
            alias = kind.validation_alias if isinstance(kind.validation_alias, str) else field
            yield from _unread(getattr(value, field), f"{name}{alias}.")
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _unread(item, name)


def _read(path: str | Path) -> list[Any]:
    if not Path(path).is_file():
        raise RecordError(wrong(str(path), "a JSON file", "no such file", "Check the path."))
    try:
        content = Path(path).read_bytes()
        entries = parse_json(content.decode(json.detect_encoding(content)))
    except (ValueError, RecursionError) as error:
        raise RecordError(wrong(str(path), "one JSON array", f"broken JSON ({error})", "Mend the file.")) from error
    if not isinstance(entries, list) or not entries:
        got = "an empty array" if entries == [] else f"{type(entries).__name__}"
        raise RecordError(wrong(str(path), "one JSON array of entries", got, "Give the data set's own file."))
    return entries


def _detect(path: str | Path, entry: Any) -> Layout:
    fields = set(entry) if isinstance(entry, dict) else set()
    if "requested_rewrite" in fields:
        return "counterfact"
    if {"src", "alt"} <= fields:
        return "zsre"
    if {"prompt", "target_new"} <= fields or {"text", "labels"} <= fields:
        return "knowedit"
    got = ", ".join(sorted(map(str, fields))) or type(entry).__name__
    known = " or ".join(get_args(Layout))
    raise RecordError(wrong(f"{path}, entry 0", f"the fields of {known}", got, "Name the layout if it is one of them."))


def _prompt(layout: Layout, entry: _Entry) -> Prompt:
    text, target = entry.edit()
    return Prompt(messages=[{"role": "user", "content": text}], answer=target.strip(), tags=[layout])


def _probes(layout: Layout, index: int, entry: _Entry, locality: Locality) -> Iterator[Probe]:
    text, target = entry.edit()
    edit: _Question = (text, [target], "recall", "edit")
    for number, (asked, answers, kind, tag) in enumerate([edit, *entry.questions()]):
        texts = list(dict.fromkeys(answer.strip() for answer in answers))
        yield Probe(
            id=f"{layout}:{index}:{number}",
            kind=locality if kind == "near" else kind,
            messages=[{"role": "user", "content": asked}],
            expected=texts if len(texts) > 1 else texts[0],
            group=f"{layout}:{index}",
            tags=[layout, *([tag.partition(":")[0]] if ":" in tag else []), tag],
        )
