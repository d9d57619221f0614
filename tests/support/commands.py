"""Running commands in this process, and what a good or a refused one looks like."""

import io
import re
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from anchorlwf.cli import main
from anchorlwf.data.jsonl import save_lines
from anchorlwf.data.record import Record
from anchorlwf.world import build_world, draw_errata, fact_probe, skill_probes, templates


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


def run(*arguments: object) -> Done:
    """What `anchorlwf ...` does, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return Done(int(ended.value.code or 0), out.getvalue(), err.getvalue())


def well(*arguments: object) -> Done:
    done = run(*arguments)
    assert done.code == 0, done
    return done


def told(done: Done) -> str:
    """What stands on standard error below the lines that say which models were loaded."""
    lines = done.err.splitlines(keepends=True)
    loaded = [line for line in lines if re.fullmatch(r"model .*: [\d,.]+ M parameters, float32 on \w+\n", line)]
    assert loaded == lines[: len(loaded)] != [], done.err
    return "".join(lines[len(loaded) :])


def refused(done: Done, message: str) -> None:
    """Exit code 2 and one message, which says what was expected and what was got, on standard error."""
    assert done.code == 2, done
    assert done.out == ""
    assert "Traceback" not in done.err
    errors = [line for line in done.err.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, done.err
    assert re.search(message, done.err), done.err


def unconverged(*arguments: object) -> Done:
    """What training that reached its last step does: all is written, and the exit code is its own."""
    done = run(*arguments)
    assert done.code == 4, done
    return done


def save(path: Path, *rows: dict[str, object] | Record) -> Path:
    """A JSONL file of the rows."""
    save_lines(path, rows)
    return path


def save_yaml(path: Path, **options: object) -> Path:
    """A YAML file of the options."""
    path.write_text(yaml.safe_dump(options))
    return path


ERRATUM = draw_errata(build_world(), 1, 0, seed=3)[0]


@pytest.fixture(scope="session")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts, probes, records and a trained adapter, made by the commands themselves."""
    folder = tmp_path_factory.mktemp("job")
    save_lines(folder / "prompts.jsonl", ERRATUM.prompts(2))
    facts = [fact for fact in build_world().facts if fact.subject != ERRATUM.fact.subject][:6]
    save_lines(
        folder / "probes.jsonl",
        [
            *(fact_probe(fact, templates(fact.attribute)[0], "retain") for fact in facts),
            *skill_probes(build_world(), 1),
        ],
    )
    save_lines(folder / "recall.jsonl", [fact_probe(ERRATUM.fact, ERRATUM.wordings(1)[0], "recall", ERRATUM.value)])
    with chdir(folder):
        done = well("annotate", "prompts.jsonl", "--out", "records.jsonl")
        assert re.fullmatch(r"2 records, \d+ anchors among \d+ completion tokens, in records\.jsonl\n", done.out)
        assert told(done) == "annotate 1/2\nannotate 2/2\n"
        done = well("train", "records.jsonl", "--out", "run")
        assert re.match(
            r"Converged after \d+ steps, .* s\nanchors held: (\d+) of \1\nanswers reproduced: 2 of 2\n"
            r"drift at keep tokens: 0\.\d+ nats per token\n"
            r"trained: MLP inputs: gate_proj, up_proj \(4 layers\)\nweights: run/adapter\n",
            done.out,
        )
        assert told(done).startswith("reference 1/1\ntrain  0/")
    return folder
