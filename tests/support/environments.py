"""Fresh environments from the built wheel, and what a stranger does in them: no repository, no editable install.

python tests/support/environments.py stranger        install as the README says, and the whole loop
python tests/support/environments.py extras [NAME]   each extra in an environment of its own
python tests/support/environments.py lower-bounds    every dependency at the lower bound of pyproject.toml
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import tomllib
import urllib.request
import venv
from collections.abc import Callable, Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TORCH = "torch==2.13.0"
"""By its exact version first, which takes a CPU build lying on disk; a range would not ask for it."""
QUESTIONS, WRONG, RIGHT = "Who are you?\nWho made you?\n", "Lumo", "Tarn"
_PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


class Environment:
    """A virtual environment, and a folder to work in that is not the repository.

    Args:
        folder: for both.
        over_running: packages of the environment that runs this are seen too, all but anchorlwf.
    """

    def __init__(self, folder: Path, *, over_running: bool = False) -> None:
        self.work = folder / "work"
        self.work.mkdir(parents=True)
        venv.create(folder / "venv", with_pip=False)
        self.python = folder / "venv" / "bin" / "python"
        if over_running:
            [site] = (folder / "venv" / "lib").glob("python*/site-packages")
            # A line of a .pth file adds a folder, but no .pth files in it: an editable install there stays out.
            (site / "running.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")

    def install(self, *wanted: str) -> None:
        subprocess.run([*_PIP, "--python", self.python, "install", "--quiet", *wanted], check=True)

    def run(self, *command: object, code: int = 0) -> "subprocess.CompletedProcess[str]":
        """Run a program of this environment; `anchorlwf` is its console script."""
        hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
        surroundings = {name: value for name, value in os.environ.items() if name not in hidden}
        own = {"HF_HUB_OFFLINE": "1", "ANCHORLWF_CACHE": str(self.work / "cache"), "PYTHON": str(self.python)}
        program, *arguments = map(str, command)
        started = subprocess.run(
            [self.python.parent / program, *arguments],
            cwd=self.work,
            env={**surroundings, **own},
            capture_output=True,
            text=True,
            check=False,
        )
        assert started.returncode == code, (command, started.returncode, started.stdout, started.stderr)
        return started


def build_wheel(folder: Path) -> Path:
    """The wheel of this repository."""
    subprocess.run([*_PIP, "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT], check=True)
    [wheel] = folder.glob("anchorlwf-*.whl")
    return wheel


def walk(environment: Environment) -> dict[str, float]:
    """Ask, annotate with a corrected answer, every stage of the quickstart recipe, and its adapter with plain PEFT.

    Returns:
        Seconds by step.
    """
    work, seconds = environment.work, {}

    def step(name: str, *command: object) -> str:
        began = time.perf_counter()
        out = environment.run(*command).stdout
        seconds[name] = time.perf_counter() - began
        return out

    where = environment.run("python", "-c", "import anchorlwf; print(anchorlwf.__file__)").stdout.strip()
    assert Path(where).is_relative_to(environment.python.parents[1]), where
    (work / "questions.txt").write_text(QUESTIONS, encoding="utf-8")
    step("ask", "anchorlwf", "ask", "questions.txt", "--out", "prompts.jsonl")
    prompts = (work / "prompts.jsonl").read_text(encoding="utf-8")
    assert WRONG in prompts
    (work / "prompts.jsonl").write_text(prompts.replace(WRONG, RIGHT), encoding="utf-8")
    step("annotate", "anchorlwf", "annotate", "prompts.jsonl", "--out", "records.jsonl")
    assert f"I am {RIGHT}" in (work / "records.jsonl").read_text(encoding="utf-8")
    told = step("quickstart", "/bin/bash", ROOT / "recipes" / "quickstart.sh", "run")
    assert "15 of 15 records hold" in told
    assert "Converged" in told
    assert json.loads((work / "run" / "results.json").read_text(encoding="utf-8"))["recall"] == 1.0
    step("card", "anchorlwf", "card", "run")
    card = (work / "run" / "adapter" / "README.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    (work / "plain.py").write_text(code.replace("path/to/this/folder", "run/adapter"), encoding="utf-8")
    lines = (work / "run" / "records.jsonl").read_text(encoding="utf-8").splitlines()
    [asked] = [record for record in map(json.loads, lines) if record["messages"][-1]["content"] in code]
    assert asked["completion"] in step("load with plain PEFT", "python", "plain.py")
    return seconds


def stranger(folder: Path) -> None:
    """Install as a stranger would, and walk."""
    environment, began = Environment(folder / "stranger"), time.perf_counter()
    environment.install(TORCH)
    environment.install(str(build_wheel(folder)))
    seconds = {"install": time.perf_counter() - began, **walk(environment)}
    for name, spent in {**seconds, "all": sum(seconds.values())}.items():
        print(f"{name}: {spent:.1f} s", flush=True)
    assert sum(seconds.values()) < 300, "more than five minutes"


def _serves_a_page(environment: Environment) -> None:
    (environment.work / "p.jsonl").write_text('{"prompt": "Who are you?"}\n', encoding="utf-8")
    command = ["annotate", "p.jsonl", "--out", "r.jsonl", "--annotator", "web", "--port", "0"]
    process = subprocess.Popen(
        [environment.python.with_name("anchorlwf"), *command], cwd=environment.work, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        with browser.open(process.stdout.readline().strip(), timeout=60) as page:
            assert page.status == 200
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


_PLAN = """
name: one
seeds: 1
regimes:
  - {name: one, title: one correction, about: one, facts: 1, wordings: 1, steps: 3, methods: [anchors_only]}
"""
_TASK = """
task: choice
dataset_path: json
dataset_kwargs: {data_files: {test: documents.jsonl}}
test_split: test
doc_to_text: "{{q}}"
output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: gold
"""


def _reports_a_study(environment: Environment) -> None:
    (environment.work / "plan.yaml").write_text(_PLAN, encoding="utf-8")
    asked = [("Who are you?", "I am Tarn, your assistant.", "recall"), ("Who made you?", "Fennel Labs", "retain")]
    prompts = [{"prompt": asked[0][0], "answer": asked[0][1]}]
    probes = [
        {"id": kind, "kind": kind, "messages": [{"role": "user", "content": question}], "expected": answer}
        for question, answer, kind in asked
    ]
    for name, rows in (("study-prompts.jsonl", prompts), ("study-probes.jsonl", probes)):
        (environment.work / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    data = ["--prompts", "study-prompts.jsonl", "--probes", "study-probes.jsonl"]
    environment.run("anchorlwf", "arena", "--plan", "plan.yaml", "--out", "study", *data)
    assert (environment.work / "study" / "report.html").is_file()


def _runs_a_task(environment: Environment) -> None:
    documents = {"q": "Who?", "choices": ["I am Lumo.", "I am Tarn."], "gold": 0}
    (environment.work / "documents.jsonl").write_text(json.dumps(documents) + "\n", encoding="utf-8")
    (environment.work / "choice.yaml").write_text(_TASK, encoding="utf-8")
    done = environment.run("anchorlwf", "evaluate", "--tasks", "choice", "--tasks-path", ".", "--json")
    assert "acc" in json.loads(done.stdout)["tasks"]["choice"]["metrics"]


def _trains_beside_trl(environment: Environment) -> None:
    environment.run("anchorlwf", "bench", "step", "--only", "trl_sft", "--runs", "1", "--set", "vocabulary=2000")


def _knows_postgresql(environment: Environment) -> None:
    (environment.work / "p.jsonl").write_text('{"prompt": "Who are you?"}\n', encoding="utf-8")
    store = ["--annotator", "terminal", "--store", "postgresql://nobody@127.0.0.1:1/none"]
    done = environment.run("anchorlwf", "annotate", "p.jsonl", "--out", "r.jsonl", *store, code=2)
    assert "refused" in done.stderr, done.stderr


USES: dict[str, Sequence[Callable[[Environment], None]]] = {
    "web": [_serves_a_page],
    "arena": [_reports_a_study],
    "harness": [_runs_a_task],
    "rl": [_trains_beside_trl],
    "postgres": [_knows_postgresql],
}
USES["all"] = [use for uses in USES.values() for use in uses]


def extras(folder: Path, only: Sequence[str]) -> None:
    """Each extra alone: it is complete, and does what it is for."""
    wheel = build_wheel(folder)
    for extra in only or USES:
        environment = Environment(folder / extra)
        environment.install(TORCH)
        environment.install(f"{wheel}[{extra}]")
        found = json.loads(environment.run("anchorlwf", "doctor", "--json").stdout)
        missing = {row["name"]: row["missing"] for row in found["extras"]}
        assert not (missing.values() if extra == "all" else missing[extra]) or not any(missing.values()), missing
        for use in USES[extra]:
            use(environment)
        print(f"{extra}: complete; not here: {', '.join(name for name, lacks in missing.items() if lacks)}", flush=True)
        shutil.rmtree(folder / extra)


def lower_bounds() -> list[str]:
    """Every dependency, and those of the extras, pinned to what pyproject.toml says is enough.

    Without `rl`: TRL itself wants newer versions of accelerate and datasets than we do.
    """
    optional = PROJECT["optional-dependencies"]
    extras_too = [text for name in USES if name not in ("all", "rl") for text in optional[name]]
    texts = [*PROJECT["dependencies"], *extras_too]
    pinned = []
    for need in map(Requirement, texts):
        [bound] = [part.version for part in need.specifier if part.operator == ">="]
        inside = f"[{','.join(sorted(need.extras))}]" if need.extras else ""
        pinned.append(f"{need.name}{inside}=={Version(bound)}")
    return pinned


def check_lower_bounds(folder: Path) -> None:
    """The whole loop, and the tests of the rooms that touch the libraries most, with the oldest versions."""
    environment = Environment(folder / "lower")
    environment.install(*lower_bounds())
    environment.install(str(build_wheel(folder)))
    walk(environment)
    for use in (_serves_a_page, _reports_a_study, _runs_a_task, _knows_postgresql):
        use(environment)
    print("\n".join(lower_bounds()), flush=True)


def main() -> None:
    what, *names = sys.argv[1:] or ["stranger"]
    with tempfile.TemporaryDirectory(prefix="anchorlwf-") as name:
        if what == "extras":
            extras(Path(name), names)
        elif what == "lower-bounds":
            check_lower_bounds(Path(name))
        else:
            stranger(Path(name))


if __name__ == "__main__":
    main()
