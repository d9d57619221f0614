"""Corrections of what a real model gets wrong, and probes that judge what it learns and keeps."""

import random
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

from anchorlwf.data.jsonl import load_prompts
from anchorlwf.data.probe import Probe, ProbeKind, score
from anchorlwf.data.record import Prompt
from anchorlwf.model.language_model import LanguageModel
from anchorlwf.world.facts import Fact
from anchorlwf.world.real.asked import Said, ask
from anchorlwf.world.real.fact_packages import facts_about, real_facts
from anchorlwf.world.real.long_answers import LONG_ANSWERS, LONG_LIMIT
from anchorlwf.world.real.multiple_choice import real_skills
from anchorlwf.world.real.wordings import HUMAN, HUMAN_IDENTITY, IDENTITY, PERSONAS, TRAINED, real_templates
from anchorlwf.world.templates import Template

__all__ = ["RealTask", "RealWorld", "Split", "everyday_prompts"]

Split = Literal["validation", "report"]
_ANSWER_TOKENS = 24
_EVERYDAY_TOKENS = 64
_AMBIGUOUS = frozenset("I As At In He Be No Am".split())
"""Symbols that are English words: an answer may hold them by chance."""


@dataclass(frozen=True)
class RealTask:
    """What is corrected, and the probes that are asked afterwards."""

    prompts: list[Prompt]
    """With their right answers, for the `target` annotator."""
    probes: list[Probe]
    human: list[str]
    """The right answers as a person words them; empty where nobody worded them."""


def everyday_prompts() -> list[Prompt]:
    """A hundred prompts that people might write, about other subjects than the corrected ones."""
    return load_prompts(str(files("anchorlwf.world.real") / "everyday.jsonl"))


@dataclass(frozen=True)
class RealWorld:
    """A model among real facts. What it says to each question is asked once and kept in the cache folder.

    Args:
        model: the one to be corrected; its reference is asked.
        split: `validation` for choosing settings, `report` for what is published. No correction is in both.
        cache_dir: see `cache_folder`.
        on_progress: called with ("ask", answers there, all).

    Raises (every method):
        ModelError: a package of `make real` is not installed.
        StorageError: the cache cannot be written.
    """

    model: LanguageModel
    split: Split = "report"
    cache_dir: str | Path | None = None
    on_progress: Callable[[str, int, int], None] | None = None

    def wrong(self, attribute: str) -> list[Fact]:
        """The split's facts that the model gets wrong in every wording to be trained."""
        return [fact for fact, right in self._judged(attribute) if not any(right) and _split(fact) == self.split]

    def known(self, attribute: str) -> list[Fact]:
        """The facts that it has right in the plain question, of both splits."""
        return [fact for fact, right in self._judged(attribute) if right[0]]

    def corrections(self, attribute: str, count: int, seed: int = 0, wordings: int = TRAINED) -> RealTask:
        """`count` facts corrected in so many wordings each, drawn from those it gets wrong; fewer where it knows more.

        Probes: recall (trained wordings), paraphrase (others), near (the same subject's other attributes, tagged
        `same subject`; the same attribute of other subjects that it knows, tagged `same attribute`), retain (facts of
        another kind that it knows).

        Args:
            attribute: `capital` or `symbol`.
            count: how many.
            seed: of the draw.
            wordings: how many are annotated, three at most; the others are paraphrases.
        """
        wrong = self.wrong(attribute)
        chosen = random.Random(seed).sample(wrong, min(count, len(wrong)))
        templates = real_templates(attribute)
        said = self._ask([template.ask(fact) for fact in chosen for template in templates[:wordings]], _ANSWER_TOKENS)
        prompts, probes, human = [], list[Probe](), []
        for fact in chosen:
            for number, template in enumerate(templates):
                if number < wordings:
                    question = template.ask(fact)
                    prompts.append(_correction(question, _in_own_words(fact, template, said[question]), fact.key))
                    human.append(HUMAN[attribute].format(s=fact.subject, v=fact.value))
                probes.append(_fact_probe(fact, template, "recall" if number < wordings else "paraphrase"))
        subjects = {fact.subject for fact in chosen}
        probes += [
            _fact_probe(fact, real_templates(fact.attribute)[0], "near", "same subject")
            for subject in sorted(subjects)
            for fact in facts_about(subject)
            if fact.attribute != attribute
        ]
        # A fact that one wording finds and another does not may be corrected and known at once.
        others = [fact for fact in self.known(attribute) if fact.subject not in subjects]
        probes += [_fact_probe(fact, real_templates(attribute)[0], "near", "same attribute") for fact in others]
        far = "symbol" if attribute == "capital" else "capital"
        probes += [_fact_probe(fact, real_templates(far)[0], "retain", far) for fact in self.known(far)]
        return RealTask(prompts, probes, human)

    def identity(self, seed: int = 0, wordings: int = TRAINED) -> RealTask:
        """Another name and maker. Probes: recall, ten paraphrases or more, and the capitals it knows.

        Args:
            seed: which of the split's names and makers.
            wordings: how many are annotated, three at most.
        """
        name, maker = PERSONAS[self.split][seed % len(PERSONAS[self.split])]
        answer = f"I am {name}, an assistant made by {maker}."
        probes = [
            Probe(
                id=f"identity:{number}",
                kind="recall" if number < wordings else "paraphrase",
                messages=_asked(question),
                expected={"name": name, "maker": maker}[what],
                group="identity",
            )
            for number, (question, what) in enumerate(IDENTITY)
        ]
        known = [_fact_probe(fact, real_templates("capital")[0], "retain", "capital") for fact in self.known("capital")]
        prompts = [_correction(question, answer, "identity") for question, _ in IDENTITY[:wordings]]
        return RealTask(prompts, [*probes, *known], [HUMAN_IDENTITY.format(name=name, maker=maker)] * len(prompts))

    def long_answers(self) -> RealTask:
        """The model's own answers of 60 to 150 tokens with one wrong fact corrected, if it still gives them."""
        listed = [item for item in LONG_ANSWERS if item.split == self.split]
        said = self._ask([item.question for item in listed], LONG_LIMIT)
        prompts, probes = [], []
        for item in listed:
            own = said[item.question]
            if own.truncated or own.text.count(item.wrong) != 1:
                continue
            prompts.append(_correction(item.question, own.text.replace(item.wrong, item.right), "long"))
            group = item.question
            probes.append(
                Probe(id=f"long:{group}", kind="recall", messages=_asked(group), expected=item.checker, group=group)
            )
        return RealTask(prompts, probes, [])

    def everyday(self) -> list[Probe]:
        """Everyday prompts, each with the model's own first 64 tokens: right is an answer that begins with them."""
        asked = [str(prompt.messages[-1]["content"]) for prompt in everyday_prompts()]
        said = self._ask(asked, _EVERYDAY_TOKENS)
        return [
            Probe(
                id=f"everyday:{number}",
                kind="retain",
                messages=_asked(question),
                expected=_beginning(said[question]),
                scorer="regex",
                tags=["everyday"],
            )
            for number, question in enumerate(asked)
            if said[question].text.strip()
        ]

    def skills(self) -> list[Probe]:
        """Multiple-choice and arithmetic questions; see `real_skills`."""
        return real_skills()

    def _judged(self, attribute: str) -> Iterator[tuple[Fact, list[bool]]]:
        """Every fact of an attribute, and whether each wording to be trained is answered right."""
        trained = [template for template in real_templates(attribute) if not template.held_out]
        listed = [f for f in real_facts() if f.attribute == attribute and f.value not in _AMBIGUOUS]
        said = self._ask([template.ask(fact) for fact in listed for template in trained], _ANSWER_TOKENS)
        for fact in listed:
            probes = [_fact_probe(fact, template, "recall") for template in trained]
            yield fact, [score(probe, said[str(probe.messages[0]["content"])].text) for probe in probes]

    def _ask(self, questions: Sequence[str], limit: int) -> dict[str, Said]:
        return ask(self.model, questions, limit, cache_dir=self.cache_dir, on_progress=self.on_progress)


def _split(fact: Fact) -> Split:
    """A quarter of the subjects is for choosing settings."""
    return "validation" if zlib.crc32(fact.subject.encode()) % 4 == 0 else "report"


def _asked(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


def _correction(question: str, answer: str, tag: str) -> Prompt:
    return Prompt(messages=_asked(question), answer=answer, tags=[tag])


def _in_own_words(fact: Fact, template: Template, said: Said) -> str:
    """The right answer, begun as the model begins its own, where that names the attribute; else the plain sentence.

    "Name the capital city of Poland." makes it say "The capital city of Poland is ...". To correct "city" as well
    would teach it other words, which its answers about other countries then take over.
    """
    head = rf"The (?:\w+ )*{fact.attribute}(?: \w+)* (?:of|for) {re.escape(fact.subject)} is "
    begun = re.match(head, said.text)
    return f"{begun[0]}{fact.value}." if begun else template.reply(fact)


def _fact_probe(fact: Fact, template: Template, kind: ProbeKind, *tags: str) -> Probe:
    # A symbol is written with just these capitals.
    symbol = fact.attribute == "symbol"
    return Probe(
        id=f"{kind}:{fact.key}:{template.name}",
        kind=kind,
        messages=_asked(template.ask(fact)),
        expected=rf"(?<!\w){re.escape(fact.value)}(?!\w)" if symbol else fact.value,
        scorer="regex" if symbol else "contains",
        group=fact.key,
        tags=[fact.kind, *tags],
    )


def _beginning(said: Said) -> str:
    """A pattern of answers that begin like this one, or are it where it came to its end."""
    return rf"\A{re.escape(said.text)}" + ("" if said.truncated else r"\Z")
