"""lm-evaluation-harness on base and tuned model, document by document.

Both are the same loaded weights, the adapter off and on, so no second copy is made. lm_eval is an optional extra.
"""

import contextlib
import copy
import difflib
import io
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import set_seed

from anchorlwf.config import EvaluateConfig
from anchorlwf.errors import ConfigError, wrong
from anchorlwf.evaluation.measure import Progress
from anchorlwf.evaluation.stats import paired_interval
from anchorlwf.extras import require_extra
from anchorlwf.model.language_model import LanguageModel

__all__ = ["MetricChange", "TaskChange", "run_tasks"]


@dataclass(frozen=True)
class MetricChange:
    """One metric of one task, before and after training."""

    base: float
    tuned: float
    higher_is_better: bool
    interval: tuple[float, float] | None
    """Of tuned - base, by a paired bootstrap over documents. None: the metric is no mean over documents."""
    right_to_wrong: list[str] | None
    """Documents that scored 1 before and 0 now. None: the metric gives other scores than 0 and 1."""
    wrong_to_right: list[str] | None

    @property
    def drop(self) -> float:
        """How much worse the tuned model is; negative where it is better."""
        return self.base - self.tuned if self.higher_is_better else self.tuned - self.base


@dataclass(frozen=True)
class TaskChange:
    """One task (or group of tasks) before and after training."""

    documents: int
    version: str
    """The task's own, as lm_eval gives it."""
    metrics: dict[str, MetricChange]


@dataclass(frozen=True)
class _Run:
    """What one run of the harness says of one task."""

    figures: dict[str, float]
    """Aggregate by metric."""
    scores: dict[str, dict[str, float]]
    """By metric and document."""
    better: dict[str, bool]
    """Whether higher is better, by metric name without its filter."""
    version: str


def run_tasks(
    tuned: LanguageModel, base: LanguageModel | None, config: EvaluateConfig, progress: Progress | None = None
) -> dict[str, TaskChange]:
    """Run `config.tasks` on base and tuned model.

    Args:
        tuned: the tuned model.
        base: the model before training; None: the reference inside `tuned` (adapter off, or frozen copy).
        config: tasks, folder of own tasks, limit, batch size, seed, intervals.
        progress: called with (phase, done, all).

    Returns:
        One entry per task; a group (such as mmlu) gives one for itself and one for each of its tasks.

    Raises:
        ConfigError: lm_eval is not installed, a task is not known or runs code that it generates, or its data cannot
            be had.
    """
    if not config.tasks:
        return {}
    require_extra("harness", "tasks")
    with _quiet():
        manager = _manager(config)
        loaded = {name: _load(manager, name) for name in config.tasks}
    with contextlib.ExitStack() as stack:
        reference = base if base is not None else stack.enter_context(tuned.as_reference())
        before = _run(reference, loaded, config, progress, "tasks-base")
    after = _run(tuned, loaded, config, progress, "tasks-tuned")
    return {name: _change(before[name], after[name], config) for name in before}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence lm_eval's progress bars and advice: `progress` reports instead."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def _manager(config: EvaluateConfig) -> Any:
    """lm_eval's index of tasks."""
    from lm_eval.tasks import TaskManager

    if config.tasks_path is not None:
        own = TaskManager(include_path=config.tasks_path, include_defaults=False)
        # Indexing the built-in tasks takes seconds: only where one of them is asked for, by itself or by a group.
        if all(_within(own.task_index, name) for name in config.tasks):
            return own
    return TaskManager(include_path=config.tasks_path)


def _within(index: dict[str, Any], name: str) -> bool:
    """Whether a task, or a group with all that it names, is in the index."""
    members = (index[name].cfg or {}).get("task") if name in index else None
    named = [member for member in members if isinstance(member, str)] if isinstance(members, list) else []
    return name in index and all(_within(index, member) for member in named)


def _load(manager: Any, name: str) -> dict[str, Any]:
    """One task with its data: what `TaskManager.load` gives."""
    if name not in manager.all_tasks:
        close = ", ".join(difflib.get_close_matches(name, manager.all_tasks)) or "none like it"
        fix = f"Known: {close}. Own tasks: give their folder (tasks_path)."
        raise ConfigError(wrong("tasks", "a task of lm_eval or of the tasks path", repr(name), fix))
    try:
        loaded: dict[str, Any] = manager.load([name])
    # A missing set, a hub that cannot be reached, a YAML that does not fit: each library has errors of its own.
    except Exception as error:
        fix = "Its data must be on disk or within reach (HF_HUB_OFFLINE forbids fetching)."
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(wrong(f"task {name}", "a task that loads", first, fix)) from error
    unsafe = [task for task, made in loaded["tasks"].items() if getattr(made, "UNSAFE_CODE", False)]
    if unsafe:
        fix = "Run it with lm_eval itself, in a sandbox."
        raise ConfigError(wrong(f"task {name}", "a task that runs no generated code", ", ".join(unsafe), fix))
    return loaded


def _run(
    model: LanguageModel,
    loaded: dict[str, dict[str, Any]],
    config: EvaluateConfig,
    progress: Progress | None,
    phase: str,
) -> dict[str, _Run]:
    """Run every task on one model."""
    # Not `simple_evaluate`, which does the same and then asks pip, the compiler and the CPU who they are: a second.
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    runs: dict[str, _Run] = {}
    with _quiet():
        # HFLM gives the tokenizer a padding token where it has none; ours must stay as it is.
        lm = HFLM(pretrained=model.net, tokenizer=copy.deepcopy(model.codec.tokenizer), batch_size=config.batch_size)
    for done, tasks in enumerate(loaded.values(), 1):
        set_seed(config.seed)
        for task in tasks["tasks"].values():
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=config.seed)
        with _quiet():
            runs |= _collect(evaluate(lm=lm, task_dict=tasks, limit=config.task_limit, bootstrap_iters=0))
        if progress is not None:
            progress(phase, done, len(loaded))
    return runs


def _collect(report: dict[str, Any]) -> dict[str, _Run]:
    """Plain numbers out of lm_eval's results (which hold NumPy's), of tasks and of groups of them."""
    scores: dict[str, dict[str, dict[str, float]]] = {}
    for task, samples in report["samples"].items():
        for sample in samples:
            for metric in sample["metrics"]:
                if isinstance(sample[metric], int | float):  # np.float64 is one, a corpus metric's pair is none
                    key = _key(metric, sample["filter"])
                    scores.setdefault(task, {}).setdefault(key, {})[str(sample["doc_id"])] = float(sample[metric])
    runs = {}
    for task, row in {**report["results"], **report.get("groups", {})}.items():
        named = ((*name.partition(",")[::2], value) for name, value in row.items())
        figures = {
            _key(metric, kind): float(value)
            for metric, kind, value in named
            if kind and not metric.endswith("_stderr") and isinstance(value, int | float)
        }
        own = scores.get(task, {})
        for leaf in _leaves(task, report["group_subtasks"]):
            for metric, values in scores.get(leaf, {}).items():
                own.setdefault(metric, {}).update({f"{leaf}/{document}": value for document, value in values.items()})
        runs[task] = _Run(figures, own, report["higher_is_better"].get(task, {}), str(report["versions"].get(task, "")))
    return runs


def _key(metric: str, kind: str) -> str:
    """`acc` for acc,none; a filter that was used stays in the name: exact_match,strict-match."""
    return metric if kind == "none" else f"{metric},{kind}"


def _leaves(task: str, children: dict[str, list[str]]) -> Iterator[str]:
    for child in children.get(task, []):
        yield from _leaves(child, children) if child in children else (child,)


def _change(before: _Run, after: _Run, config: EvaluateConfig) -> TaskChange:
    metrics = {
        metric: _metric(
            (base, after.figures[metric]),
            before.scores.get(metric, {}),
            after.scores.get(metric, {}),
            before.better.get(metric.split(",")[0]) is not False,
            config,
        )
        for metric, base in before.figures.items()
        if metric in after.figures
    }
    documents = max((len(values) for values in before.scores.values()), default=0)
    return TaskChange(documents, before.version, metrics)


def _metric(
    figures: tuple[float, float], old: dict[str, float], new: dict[str, float], better: bool, config: EvaluateConfig
) -> MetricChange:
    """`figures`: the aggregates of base and tuned model; `old`, `new`: their scores by document."""
    documents = sorted(old.keys() & new.keys(), key=lambda name: (len(name), name))
    pairs = [(old[document], new[document]) for document in documents]
    interval, lost, won = None, None, None
    if pairs and all(_is_mean(figure, side) for figure, side in zip(figures, zip(*pairs, strict=True), strict=True)):
        interval = paired_interval(
            *zip(*pairs, strict=True), level=config.confidence_level, resamples=config.resamples, seed=config.seed
        )
    if pairs and all(value in (0, 1) for pair in pairs for value in pair):
        right = float(better)
        named = list(zip(documents, pairs, strict=True))
        lost = [document for document, (base, tuned) in named if base == right != tuned]
        won = [document for document, (base, tuned) in named if tuned == right != base]
    return MetricChange(*figures, better, interval, lost, won)


def _is_mean(aggregate: float, values: Sequence[float]) -> bool:
    return math.isclose(aggregate, math.fsum(values) / len(values), rel_tol=1e-9, abs_tol=1e-9)
