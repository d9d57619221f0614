"""What one regime asks with one seed: prompts with right answers, and the probes that judge. No torch.

Probes are split by a hash of their ids: options are chosen by one part, figures are reported from the other.
"""

import random
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from anchorlwf.arena.plan import Plan, Regime
from anchorlwf.data.jsonl import load_probes, load_prompts
from anchorlwf.data.probe import Probe, ProbeKind, Scorer
from anchorlwf.data.record import Message, Prompt
from anchorlwf.errors import RecordError, wrong
from anchorlwf.world import (
    Erratum,
    World,
    build_world,
    corrected_biography,
    draw_errata,
    human_answer,
    human_biography,
    probes_for,
    retention_prompts,
)
from anchorlwf.world.corpus import BIOGRAPHY_HELD_OUT, BIOGRAPHY_PROMPTS

__all__ = ["Correction", "Task", "user_task", "world_task"]


@dataclass(frozen=True)
class Correction:
    """One prompt whose answer is wrong, and what it should be."""

    messages: list[Message]
    own: str
    """The right answer in the model's words."""
    human: str | None
    """The right answer as a person words it."""
    expected: str | list[str]
    """What a right answer contains, for a reward."""
    group: str
    """The fact; all its wordings share it."""
    scorer: Scorer = "contains"
    """How the reward judges."""

    def prompt(self, words: str) -> Prompt:
        """The prompt for the `target` annotator. Raises `RecordError` if there is no human answer."""
        answer = self.own if words == "own" else self.human
        if answer is None:
            raise RecordError(wrong("human-worded answers", "one for every prompt", "none", "Give --human answers."))
        return Prompt(messages=self.messages, answer=answer, tags=[self.group])


@dataclass(frozen=True)
class Task:
    """Everything a cell of the study needs to know."""

    corrections: tuple[Correction, ...]
    keep: tuple[Prompt, ...]
    """Unrelated prompts, for keep records and replay."""
    validation: tuple[Probe, ...]
    test: tuple[Probe, ...]
    notes: dict[str, str]
    """By subject or fact: the note that the context ceiling adds to the prompt (`Probe.group` begins with the key)."""
    long_prompts: tuple[list[Message], ...]
    """Chats whose reference answers are long."""
    everyday: tuple[Probe, ...] = ()
    """Real facts: everyday prompts, each expecting the beginning of the base's own answer."""

    @property
    def groups(self) -> list[list[Correction]]:
        """The corrections fact by fact, in order."""
        by_fact: dict[str, list[Correction]] = {}
        for correction in self.corrections:
            by_fact.setdefault(correction.group, []).append(correction)
        return list(by_fact.values())

    def noted_chats(self) -> dict[str, list[Message]]:
        """By probe id: the question with the right note before it, as a perfect retriever would put it there.

        The ceiling of what can be had without training: notes stand only where the question is about their subject.
        """
        chats = {}
        for probe in self.test:
            for subject, note in self.notes.items():
                if probe.group is not None and probe.group.split("/")[0] == subject:
                    *earlier, last = probe.messages
                    chats[probe.id] = [*earlier, {**last, "content": f"Note: {note} {last['content']}"}]
        return chats


def _split(probes: Sequence[Probe], plan: Plan) -> tuple[tuple[Probe, ...], tuple[Probe, ...]]:
    """(validation, test). Recall probes judge both: they are what is trained on, so nothing is hidden in them."""
    validation, test = [], []
    edge = plan.validation_share
    far = edge + plan.unrelated_share * (1 - edge)
    for probe in probes:
        share = zlib.crc32(probe.id.encode()) % 1000 / 1000
        if probe.kind == "recall" or (probe.kind != "reverse" and share < edge):
            validation.append(probe)
        if probe.kind in ("recall", "reverse") or (share >= edge and (probe.kind != "retain" or share < far)):
            test.append(probe)
    return tuple(validation), tuple(test)


def _user(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def _short(erratum: Erratum, wordings: int) -> list[Correction]:
    return [
        Correction(
            prompt.messages,
            str(prompt.answer),
            human_answer(erratum, str(prompt.messages[0]["content"])),
            erratum.value,
            erratum.fact.key,
        )
        for prompt in erratum.prompts(wordings)
    ]


def _thoughtful(erratum: Erratum, wordings: int) -> list[Correction]:
    """A prompt "Think first. ..." answered by a thought in a block of its own, and the answer after it."""
    corrections = []
    for short in _short(erratum, wordings):
        messages = _user(f"Think first. {short.messages[0]['content']}")
        own, human = (f"<think>\n{text}\n</think>\n{text}" for text in (short.own, short.human))
        corrections.append(replace(short, messages=messages, own=own, human=human))
    return corrections


def _thoughtful_probe(probe: Probe) -> Probe:
    if probe.kind not in ("recall", "paraphrase"):
        return probe
    messages = _user(f"Think first. {probe.messages[0]['content']}")
    # The answer counts, not the thought.
    values = "|".join(map(re.escape, probe.accepted))
    pattern = rf"</think>[\s\S]*(?<!\w)(?:{values})(?!\w)"
    return probe.model_copy(update={"messages": messages, "expected": pattern, "scorer": "regex"})


def _biographical(world: World, erratum: Erratum, wordings: int) -> tuple[list[Correction], list[Probe]]:
    fact = erratum.fact
    own, human = corrected_biography(world, erratum), human_biography(world, erratum)
    corrections, probes = [], []
    for index, text in enumerate((*BIOGRAPHY_PROMPTS, *BIOGRAPHY_HELD_OUT)):
        kind: ProbeKind = "recall" if index < wordings else "paraphrase"
        messages = _user(text.replace("{s}", fact.subject))
        if kind == "recall":
            corrections.append(Correction(messages, own, human, erratum.value, fact.key))
        probes.append(
            Probe(
                id=f"{kind}:{fact.key}:biography{index}",
                kind=kind,
                messages=messages,
                group=fact.key,
                expected=erratum.value,
                tags=["biography"],
            )
        )
    return corrections, probes


def _errata(world: World, regime: Regime, seed: int) -> list[Erratum]:
    if regime.form != "biography":
        return draw_errata(world, regime.facts, regime.identity, seed, regime.mirrored)
    # Facts that biographies tell, with values that they do not tell already.
    drawn = [
        erratum
        for erratum in draw_errata(world, 150, 0, seed)
        if erratum.fact.kind == "person"
        and erratum.value not in corrected_biography(world, erratum).replace(erratum.value, "", 1)
    ]
    return drawn[: regime.facts]


def world_task(plan: Plan, regime: Regime, seed: int) -> Task:
    """The task of a regime on the embedded world."""
    world = build_world()
    errata = _errata(world, regime, seed)
    probes = probes_for(world, errata, regime.wordings)
    corrections: list[Correction] = []
    if regime.form == "biography":
        probes = [probe for probe in probes if probe.kind not in ("recall", "paraphrase")]
        for erratum in errata:
            more_corrections, more_probes = _biographical(world, erratum, regime.wordings)
            corrections += more_corrections
            probes += more_probes
    else:
        make = _thoughtful if regime.form == "reasoning" else _short
        corrections = [correction for erratum in errata for correction in make(erratum, regime.wordings)]
        if regime.form == "reasoning":
            probes = [_thoughtful_probe(probe) for probe in probes]
    validation, test = _split(probes, plan)
    touched = {name for erratum in errata for name in (erratum.fact.subject, erratum.fact.value)}
    others = [person for person in world.people if person not in touched]
    chosen = random.Random(seed).sample(others, plan.kl_long)
    return Task(
        tuple(corrections),
        tuple(retention_prompts(world, errata, plan.keep_records)),
        validation,
        test,
        {erratum.fact.subject: erratum.prompts(1)[0].answer or "" for erratum in errata},
        tuple(_user(BIOGRAPHY_HELD_OUT[0].replace("{s}", person)) for person in chosen),
    )


def user_task(plan: Plan, prompts: Path, probes: Path, human: Path | None, keep: Path | None) -> Task:
    """A task from files: prompts with right answers in the model's words, the same with human-worded ones, probes.

    Raises:
        RecordError: a prompt or probe with tools, a prompt without an answer, human answers to other prompts, or files
            that cannot be read.
    """
    written = {repr(prompt.messages): prompt.answer for prompt in load_prompts(human)} if human else {}
    asked = load_probes(probes)
    if armed := next((probe for probe in asked if probe.tools), None):
        fix = "Leave out `tools`: the arena asks without."
        raise RecordError(wrong(f"{probes}", "probes without tools", armed.id, fix))
    judges = {repr(probe.messages): probe for probe in asked if probe.kind == "recall"}
    corrections = []
    for prompt in load_prompts(prompts):
        if prompt.tools:
            fix = "Leave out `tools`: the arena asks without."
            raise RecordError(wrong(f"{prompts}", "prompts without tools", repr(prompt.messages[-1]), fix))
        if not prompt.answer:
            fix = "Add an `answer` to every prompt: the right one, in the model's own words."
            raise RecordError(wrong(f"{prompts}", "an answer for every prompt", repr(prompt.messages[-1]), fix))
        text = written.get(repr(prompt.messages))
        if human and text is None:
            fix = "Give the same prompts in both files."
            raise RecordError(wrong(f"{human}", "an answer for every prompt", repr(prompt.messages[-1]), fix))
        group, judge = repr(prompt.messages), judges.get(repr(prompt.messages))
        expected, scorer = (judge.expected, judge.scorer) if judge else (prompt.answer, "contains")
        corrections.append(Correction(prompt.messages, prompt.answer, text, expected, group, scorer))
    if not judges:
        asked += [
            Probe(id=f"recall:{index}", kind="recall", messages=correction.messages, expected=correction.expected)
            for index, correction in enumerate(corrections)
        ]
    validation, test = _split(asked, plan)
    kept = tuple(load_prompts(keep))[: plan.keep_records] if keep else ()
    long_prompts = tuple(probe.messages for probe in test if "long" in probe.tags)[: plan.kl_long]
    return Task(tuple(corrections), kept, validation, test, {}, long_prompts)
