"""Train a model on records until every anchor holds within the drift budget.

The loss is cross-entropy at anchors and KL to the reference at keep tokens. Writes an adapter (or a model, with
--method full) and the figures of every step to a run folder. Training is done when every anchor holds, every answer is
reproduced and the drift is within its budget. If it reaches --max-steps before that, the weights are saved all the
same, what is missing is printed, and the exit code is 4.

Beside the records it trains on prompts that the model writes itself, so that its other answers stay; a quarter of them
is held out and measures the drift. They are kept in the cache folder for the next time. --retain says otherwise.

--direction reverse is the paper's printed formula. It needs confidence below 1 and hardly learns anchors whose
probability is near zero, because its gradient vanishes there.

Ctrl-C and SIGTERM (exit codes 130 and 143) stop training after the current step and write a checkpoint; Ctrl-C also
saves the weights. --resume continues from the newest complete checkpoint of this run, and refuses that of another.

Examples:
  anchorlwf train records.jsonl --out runs/first
  anchorlwf train records.jsonl --out runs/first --model ./my-model --drift-budget 0.005
  anchorlwf train records.jsonl --out runs/first --model ./my-model --retain none
  anchorlwf train records.jsonl --out runs/first --retain prompts.jsonl --config train.yaml
  anchorlwf train records.jsonl --out runs/first --paraphrase wordings.jsonl
  anchorlwf train records.jsonl --out runs/first --save-steps 100 --resume
  anchorlwf train records.jsonl --out runs/first --report-to tensorboard --dtype bfloat16
"""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from anchorlwf.cli.shared import (
    NOT_CONVERGED,
    AsJson,
    Config,
    Device,
    DriftBudget,
    Dtype,
    Model,
    Paraphrase,
    Retain,
    SkipBad,
    Targets,
    TrustCode,
    beside_from,
    options_from,
    out,
    print_json,
    print_wordings,
    quiet_libraries,
    train_progress,
)

if TYPE_CHECKING:
    from anchorlwf.data.record import Record

Loss = Annotated[
    Literal["forward", "reverse"] | None,
    typer.Option(help="forward (default), or reverse, the paper's printed formula."),
]
Mean = Annotated[
    Literal["token", "balanced"] | None, typer.Option(help="balanced (default), or token, the paper's mean.")
]

Steps = Annotated[
    int | None, typer.Option(help="Maximum number of optimizer steps. Default: 200, or 60 passes over the records.")
]
ReportTo = Annotated[
    str | None,
    typer.Option(help="Where steps are reported: tensorboard, trackio, wandb (by commas), or none (default)."),
]


def train(
    records: Annotated[Path, typer.Argument(help="JSONL file of records.")],
    to: Annotated[Path, typer.Option("--out", "-o", help="The run folder.")],
    model: Model = None,
    config: Config = None,
    device: Device = None,
    dtype: Dtype = None,
    retain: Retain = None,
    paraphrase: Paraphrase = None,
    method: Annotated[Literal["lora", "full"] | None, typer.Option(help="lora (default) or full.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", "--lr", help="Learning rate at the start. Default: 0.0003.")
    ] = None,
    max_steps: Steps = None,
    batch_size: Annotated[int | None, typer.Option(help="Records per micro-batch on each device. Default: 16.")] = None,
    accumulation: Annotated[int | None, typer.Option(help="Micro-batches per optimizer step. Default: 1.")] = None,
    rank: Annotated[int | None, typer.Option(help="LoRA rank. Default: 8.")] = None,
    targets: Targets = None,
    drift_budget: DriftBudget = None,
    hold: Annotated[float | None, typer.Option(help="Probability at which an anchor holds. Default: 0.9.")] = None,
    direction: Loss = None,
    reduction: Mean = None,
    save_steps: Annotated[
        int | None, typer.Option(help="Write a checkpoint every so many steps. Default: 0, never.")
    ] = None,
    reference_cache_size: Annotated[
        float | None, typer.Option(help="Maximum GiB on disk for the reference's states; 0: keep none. Default: 8.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the adapter's weights, the order of records and dropout. Default: 0.")
    ] = None,
    report_to: ReportTo = None,
    skip_bad: SkipBad = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from this run's newest checkpoint.")] = False,
    as_json: AsJson = False,
    trust_remote_code: TrustCode = False,
) -> None:
    from accelerate import PartialState

    from anchorlwf.config import TrainConfig
    from anchorlwf.extras import require_reporters
    from anchorlwf.training import run_folder
    from anchorlwf.workflow.file_training import train_file

    quiet_libraries()
    given = {key: value for key, value in locals().items() if key in TrainConfig.model_fields}
    settings = options_from(TrainConfig, config, **given)
    require_reporters(settings.report_to)
    with run_folder(to), train_progress() as progress:
        loading = {"name": model, "dtype": dtype, "device": device, "trust_remote_code": trust_remote_code}
        beside = {"retain": retain, "paraphrase": paraphrase, "config": beside_from(config)}
        options: dict[str, Any] = {"config": settings, "resume": resume, "skip_bad": skip_bad, **progress}
        result, wordings = train_file(records, to, loading, beside, **options)
    if PartialState().is_main_process:
        _print(result, wordings, to, as_json)
    PartialState().destroy_process_group()
    raise typer.Exit(0 if result.converged else NOT_CONVERGED)


def _print(result: Any, wordings: list["Record"], to: Path, as_json: bool) -> None:
    if as_json:
        print_json(asdict(result))
        return
    print_wordings(wordings, to)
    report = result.report
    state = "Converged" if result.converged else "NOT converged"
    out.print(f"{state} after {result.steps} steps, {result.seconds:.1f} s")
    for lack in result.missing:
        out.print(f"missing: {lack}")
    out.print(f"anchors held: {report.anchors_held} of {report.anchors}")
    out.print(f"answers reproduced: {report.records_reproduced} of {report.records}")
    if not report.held_out:
        out.print(f"drift at keep tokens: {report.keep_kl:.5f} nats per token")
    for kind, drift in report.held_out.items():
        interval = f"({drift.low:.5f} to {drift.high:.5f}), worst per cent of tokens {drift.worst:.3f}"
        out.print(f"drift on held-out answers, {kind}: {drift.mean:.5f} nats per token {interval}")
    out.print(f"trained: {result.targets}")
    out.print(f"weights: {result.weights}")
