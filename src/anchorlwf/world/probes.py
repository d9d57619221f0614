"""Corrections of the embedded world, and the probes that judge a model corrected by them."""

import random
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from anchorlwf.data.probe import Probe, ProbeKind
from anchorlwf.data.record import Prompt
from anchorlwf.world.corpus import BIOGRAPHY_HELD_OUT
from anchorlwf.world.facts import ASSISTANT, Fact, World
from anchorlwf.world.skills import SKILLS, Task, draw_task, is_test
from anchorlwf.world.templates import Template, biography, templates

__all__ = ["Erratum", "draw_errata", "fact_probe", "probes_for", "retention_prompts", "skill_probes"]

_MIRROR = {"mayor": "mayor_of", "mayor_of": "mayor", "founder": "founded", "founded": "founder"}


@dataclass(frozen=True)
class Erratum:
    """A fact that the base model gets wrong, as an editor sees it: the value it learned and the right one."""

    fact: Fact
    value: str
    """The right value."""

    def wordings(self, count: int) -> tuple[Template, ...]:
        """The first `count` of: the plain question, a noun phrase, the brief form. All were seen in pretraining."""
        by_name = {template.name: template for template in templates(self.fact.attribute) if not template.held_out}
        noun = next(template for name, template in by_name.items() if name.startswith("noun"))
        return (by_name["question0"], noun, by_name["brief0"])[:count]

    def prompts(self, count: int) -> list[Prompt]:
        """The question in `count` wordings with its right answers, ready for the `target` annotator."""
        return [
            Prompt(
                messages=[{"role": "user", "content": template.ask(self.fact)}],
                answer=template.reply(self.fact, self.value),
                tags=[self.fact.kind, self.fact.key],
            )
            for template in self.wordings(count)
        ]

    @property
    def reverse(self) -> Fact | None:
        """The same relation told from its other end, where the world knows it: the new mayor's town."""
        other = _MIRROR.get(self.fact.attribute)
        return Fact(self.value, other, self.fact.subject, "person") if other else None


def draw_errata(world: World, facts: int, identity: int, seed: int, mirrored: int = 0) -> list[Erratum]:
    """Random corrections about different subjects, then `identity` ones about the assistant itself.

    Args:
        world: whose facts are corrected.
        facts, identity: how many of each kind.
        seed: of the draw.
        mirrored: so many more, of mayors and founders. Each gets somebody who led nothing so far, so that the relation
            can be asked from its other end (`Erratum.reverse`) without contradicting another fact.
    """
    rng = random.Random(seed)
    shuffled = rng.sample(world.facts, len(world.facts))
    chosen: dict[str, Fact] = {}
    for fact in shuffled:
        # One relation told from both its ends would have to be corrected twice.
        if fact.kind != "identity" and fact.attribute not in _MIRROR and len(chosen) < facts:
            chosen.setdefault(fact.subject, fact)
    own = [fact for fact in shuffled if fact.kind == "identity"][:identity]
    drawn = [
        Erratum(fact, rng.choice([value for value in world.pools[fact.attribute] if value != fact.value]))
        for fact in [*chosen.values(), *own]
    ]
    leaders = {fact.value for fact in world.facts if fact.attribute in ("mayor", "founder")}
    free = rng.sample([p for p in world.people if p not in leaders and p not in chosen], mirrored)
    led = [fact for fact in shuffled if fact.attribute in ("mayor", "founder") and fact.subject not in chosen]
    return [*drawn, *(Erratum(fact, person) for fact, person in zip(led, free, strict=False))]


def fact_probe(fact: Fact, template: Template, kind: ProbeKind, value: str | None = None) -> Probe:
    """Ask one fact in one wording; right is an answer that names the value."""
    return Probe(
        id=f"{kind}:{fact.key}:{template.name}",
        kind=kind,
        messages=[{"role": "user", "content": template.ask(fact)}],
        expected=fact.value if value is None else value,
        group=fact.key,
        tags=[fact.kind],
    )


def _pick(fact: Fact) -> Template:
    """One trained wording per fact, spread evenly by a hash."""
    trained = [template for template in templates(fact.attribute) if not template.held_out]
    return trained[zlib.crc32(fact.key.encode()) % len(trained)]


def skill_probes(world: World, per_skill: int, seed: int = 7) -> list[Probe]:
    """Tasks that pretraining never showed, `per_skill` of each skill; the whole answer must be right."""
    rng, probes = random.Random(seed), []
    for skill in SKILLS:
        tasks: dict[str, Task] = {}
        while len(tasks) < per_skill:
            task = draw_task(rng, skill, world)
            if is_test(task.question):
                tasks[task.question] = task
        probes += [
            Probe(
                id=f"skill:{skill}:{i}",
                kind="skill",
                messages=[{"role": "user", "content": task.question}],
                expected=task.answer,
                scorer="exact",
                tags=[skill],
            )
            for i, task in enumerate(tasks.values())
        ]
    return probes


def _biographies(world: World, people: Iterable[str]) -> Iterator[Probe]:
    for person in people:
        yield Probe(
            id=f"retain:biography:{person}",
            kind="retain",
            expected=biography(world, person),
            scorer="exact",
            messages=[{"role": "user", "content": BIOGRAPHY_HELD_OUT[0].replace("{s}", person)}],
            tags=["biography"],
        )


def probes_for(
    world: World, errata: Sequence[Erratum], wordings: int, per_skill: int = 20, biographies: int = 10
) -> list[Probe]:
    """Everything to ask after these corrections, each annotated in `wordings` ways.

    recall: the annotated wordings. paraphrase: all other wordings of the corrected facts. reverse: the corrected
    relations asked from their other end, where they have one. near: the other facts of the
    same subjects, in two wordings. retain: every other fact of the world, and biographies of other people. skill: see
    `skill_probes`.
    """
    corrected = {erratum.fact.key for erratum in errata}
    # The old mayor's side of a relation is neither right nor wrong any more.
    corrected |= {f"{e.fact.value}/{_MIRROR[e.fact.attribute]}" for e in errata if e.fact.attribute in _MIRROR}
    subjects = {erratum.fact.subject for erratum in errata}
    probes: list[Probe] = []
    for erratum in errata:
        if (other := erratum.reverse) is not None:
            asked_back = [t for t in templates(other.attribute) if not t.held_out][:3]
            probes += [fact_probe(other, template, "reverse") for template in asked_back]
        annotated = erratum.wordings(wordings)
        probes += [
            fact_probe(erratum.fact, template, "recall" if template in annotated else "paraphrase", erratum.value)
            for template in templates(erratum.fact.attribute)
        ]
    for fact in world.facts:
        if fact.key in corrected:
            continue
        if fact.subject in subjects:
            asked = dict.fromkeys((templates(fact.attribute)[0], _pick(fact)))
            probes += [fact_probe(fact, template, "near") for template in asked]
        else:
            probes.append(fact_probe(fact, _pick(fact), "retain"))
    touched = subjects | {erratum.fact.value for erratum in errata}
    others = [person for person in world.people if person not in touched]
    probes += _biographies(world, others[:biographies])
    probes += skill_probes(world, per_skill)
    return probes


def retention_prompts(world: World, errata: Sequence[Erratum], count: int, seed: int = 11) -> list[Prompt]:
    """Unrelated prompts whose answers should stay as they are, for keep records.

    Three facts about other subjects to one task of a skill, never in the words that `probes_for` asks.
    """
    rng = random.Random(seed)
    subjects = {erratum.fact.subject for erratum in errata} | {ASSISTANT}
    pool = [fact for fact in world.facts if fact.subject not in subjects]
    prompts = []
    for index in range(count):
        if index % 4 == 3:
            task = draw_task(rng, SKILLS[index // 4 % len(SKILLS)], world)
            while is_test(task.question):
                task = draw_task(rng, SKILLS[index // 4 % len(SKILLS)], world)
            text = task.question
        else:
            fact = rng.choice(pool)
            text = rng.choice([t for t in templates(fact.attribute) if not t.held_out and t != _pick(fact)]).ask(fact)
        prompts.append(Prompt(messages=[{"role": "user", "content": text}]))
    return prompts
