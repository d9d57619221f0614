"""Multiple-choice and arithmetic questions that lie in lm-evaluation-harness itself."""

import importlib.util
import re
from pathlib import Path

import yaml

from anchorlwf.data.probe import Probe
from anchorlwf.errors import ModelError, wrong

__all__ = ["real_skills"]

_FOLDER = Path("tasks") / "mmlu" / "flan_cot_fewshot"
_ANSWER = re.compile(r"answer is \(([A-D])\)")
_ASKED = "\nAnswer with the letter of the right choice only."


def real_skills() -> list[Probe]:
    """The worked examples of 57 subjects as questions, each with the letter of its right choice.

    Raises:
        ModelError: lm-evaluation-harness is not installed, or holds them no longer.
    """
    spec = importlib.util.find_spec("lm_eval")
    folders = spec.submodule_search_locations if spec else None
    probes = [probe for folder in folders or () for probe in _read(Path(folder) / _FOLDER)]
    if not probes:
        fix = "Run `make real`, or install anchorlwf[harness]."
        raise ModelError(wrong("skills", f"lm_eval with {_FOLDER}", "none", fix))
    return probes


def _read(folder: Path) -> list[Probe]:
    probes = []
    for file in sorted(folder.glob("mmlu_*.yaml")):
        # Only `samples` is read: other keys hold tags that this loader does not know.
        task = yaml.load(file.read_text(encoding="utf-8"), _PlainLoader)  # noqa: S506 - a SafeLoader
        subject = file.stem.removeprefix("mmlu_")
        for number, sample in enumerate(task.get("fewshot_config", {}).get("samples", ())):
            right = _ANSWER.search(sample["target"])
            if right is not None and "(A)" in sample["question"]:
                probes.append(_probe(subject, number, sample["question"].strip(), right[1]))
    return probes


def _probe(subject: str, number: int, question: str, letter: str) -> Probe:
    return Probe(
        id=f"skill:{subject}:{number}",
        kind="skill",
        messages=[{"role": "user", "content": question + _ASKED}],
        # The letter alone, "(C)", "C) True", "The answer is C."; not the word "A" that begins a sentence.
        expected=rf"^\W*(?i:the (?:right |correct )?(?:answer|choice) is\W*)?\(?{letter}(?:[).:,]|\s*$)",
        scorer="regex",
        tags=["multiple choice", subject],
    )


class _PlainLoader(yaml.SafeLoader):
    """Reads tags of the harness (`!function`) as nothing."""


_PlainLoader.add_multi_constructor("!", lambda *_: None)
