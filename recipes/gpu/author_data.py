"""The author's own corrections as prompts and probes, read from a clone of his repository. Nothing of it lies here.

    git clone https://github.com/longern/LAwF
    python recipes/gpu/author_data.py LAwF micro-edits --out runs/micro-edits

His Python files are parsed, never run.
"""

import argparse
import ast
import json
import re
from pathlib import Path

from anchorlwf.data.jsonl import save_lines
from anchorlwf.data.probe import Probe
from anchorlwf.data.record import Prompt
from anchorlwf.errors import ConfigError, wrong

SETS = {
    # name: (corrections, held-out prompts)
    "micro-edits": (
        "experiments/micro_edit_benchmark.py:MICRO_EDITS",
        "experiments/micro_edit_benchmark.py:RETENTION_PROMPTS",
    ),
    "stream": (
        "artifacts/scaled_sparse_word_annotation30_v1/annotation_trace.json",
        "experiments/scaled_sparse_code_benchmark.py:RETENTION_PROMPTS",
    ),
    "multi-query": (
        "artifacts/qwen35_9b_entity_relation_multiquery_annotation_v3/annotation_trace.json",
        "experiments/general_kl_drift_eval.py:PROMPTS",
    ),
}


def read(repository: Path, place: str):
    """The tasks of a trace, or the value that a Python file gives a name."""
    name, _, variable = place.partition(":")
    path = repository / name
    if not path.is_file():
        raise ConfigError(wrong(str(path), "a file of the author's repository", "none", "Give the folder of a clone."))
    text = path.read_text(encoding="utf-8")
    if not variable:
        return json.loads(text)["tasks"]
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and any(getattr(target, "id", "") == variable for target in node.targets):
            return ast.literal_eval(node.value)
    raise ConfigError(wrong(str(path), f"a value for {variable}", "none", "Take an older commit of the repository."))


def ask(text):
    return [{"role": "user", "content": text}]


def all_of(texts):
    """A pattern that finds every one of the texts, in any order."""
    return "(?s)" + "".join(f"(?=.*{re.escape(text)})" for text in texts)


def probes_of(edits):
    """What the author asks in other words: right if every critical span that his answer holds is there."""
    for edit in edits:
        if "probe_prompt" in edit:
            spans = [span for span in edit["anchors"] if span in edit["probe_answer"]] or [edit["probe_answer"]]
            yield Probe(
                id=f"paraphrase:{edit['id']}",
                kind="paraphrase",
                messages=ask(edit["probe_prompt"]),
                expected=all_of(spans),
                scorer="regex",
                group=edit["id"],
            )


def held_out(rows):
    """Prompts for the KL. Any answer counts as right, so `kept` says nothing here."""
    for index, row in enumerate(rows):
        text = row if isinstance(row, str) else row["prompt"]
        yield Probe(id=f"held-out:{index}", kind="retain", messages=ask(text), expected=r"\S", scorer="regex")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", type=Path)
    parser.add_argument("set", choices=SETS)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    corrections, others = (read(given.repository, place) for place in SETS[given.set])
    prompts = [
        Prompt(
            messages=ask(row["prompt"]),
            answer=row.get("completion") or row["gold_completion"],
            tags=[row.get("id") or row["task_name"]],
        )
        for row in corrections
    ]
    probes = [*probes_of(corrections), *held_out(others)]
    save_lines(given.out / "prompts.jsonl", prompts)
    save_lines(given.out / "probes.jsonl", probes)
    print(f"{len(prompts)} prompts and {len(probes)} probes in {given.out}")


if __name__ == "__main__":
    main()
