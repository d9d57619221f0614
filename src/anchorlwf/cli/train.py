"""Train a model on records until every anchor holds within the drift budget.

Cross-entropy at anchors, KL to the reference at keep tokens. Writes an adapter (or a model, with --method full) and
every step's figures to a run folder. Training is done when every anchor holds, every answer is reproduced and the drift
is within its budget; if it ends at --max-steps without that, the weights are saved all the same, what is missing is
printed, and the exit code is 4.

--direction reverse is the paper's printed formula: it needs confidence below 1 and hardly learns anchors whose
probability is near zero, because its gradient vanishes there.

Ctrl-C and SIGTERM (exit codes 130 and 143) end it after the step that is under way and write a checkpoint; Ctrl-C keeps
the weights too. --resume goes on from this run's newest whole checkpoint, and refuses another run's.

Examples:
  anchorlwf train records.jsonl --out runs/first
  anchorlwf train records.jsonl --out runs/first --model ./my-model --drift-budget 0.005
  anchorlwf train records.jsonl --out runs/first --retain prompts.jsonl --config train.yaml
  anchorlwf train records.jsonl --out runs/first --save-steps 100 --resume
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from anchorlwf.cli.shared import (
    NOT_CONVERGED,
    AsJson,
    Model,
    SkipBad,
    TrustCode,
    out,
    print_json,
    quiet_libraries,
    train_progress,
)

Loss = Annotated[Literal["forward", "reverse"] | None, typer.Option(help="forward (default), or the printed formula.")]
Mean = Annotated[Literal["token", "balanced"] | None, typer.Option(help="token: the paper's mean. Default: balanced.")]


def train(
    records: Annotated[Path, typer.Argument(help="records.jsonl")],
    to: Annotated[Path, typer.Option("--out", "-o", help="The run folder.")],
    model: Model = None,
    config: Annotated[Path | None, typer.Option(help="YAML of options; those given here win.")] = None,
    retain: Annotated[Path | None, typer.Option(help="Prompts whose present answers become keep records.")] = None,
    method: Annotated[Literal["lora", "full"] | None, typer.Option(help="lora (default) or full.")] = None,
    learning_rate: Annotated[float | None, typer.Option("--learning-rate", "--lr")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Most optimizer steps.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Records per device and micro-batch.")] = None,
    accumulation: Annotated[int | None, typer.Option(help="Micro-batches per optimizer step.")] = None,
    rank: Annotated[int | None, typer.Option(help="LoRA rank.")] = None,
    drift_budget: Annotated[float | None, typer.Option(help="Most mean KL at keep tokens, nats per token.")] = None,
    hold: Annotated[float | None, typer.Option(help="Probability at which an anchor holds.")] = None,
    direction: Loss = None,
    reduction: Mean = None,
    save_steps: Annotated[int | None, typer.Option(help="Checkpoint every so many steps; 0: never.")] = None,
    reference_cache_size: Annotated[float | None, typer.Option(help="GiB on disk for the reference; 0: none.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of adapter, order and dropout.")] = None,
    skip_bad: SkipBad = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from this run's newest checkpoint.")] = False,
    as_json: AsJson = False,
    trust_remote_code: TrustCode = False,
) -> None:
    from accelerate import PartialState

    from anchorlwf.config import TrainConfig
    from anchorlwf.training import run_folder, train

    quiet_libraries()
    settings = TrainConfig.load(config) if config else TrainConfig()
    given = {key: value for key, value in locals().items() if key in TrainConfig.model_fields}
    settings = settings.updated(**given)
    with run_folder(to), train_progress() as progress:
        loaded, chosen = _inputs(model, records, retain, skip_bad, trust_remote_code)
        result = train(loaded, chosen, out=to, config=settings, resume=resume, **progress)
    if PartialState().is_main_process:
        _print(result, as_json)
    PartialState().destroy_process_group()
    raise typer.Exit(0 if result.converged else NOT_CONVERGED)


def _inputs(model: str | None, records: Path, retain: Path | None, skip_bad: bool, trust: bool) -> tuple[Any, Any]:
    from torch.utils.data import ConcatDataset

    from anchorlwf.annotation import retention_records
    from anchorlwf.data.record_file import RecordFile
    from anchorlwf.model.language_model import load_model

    # Whatever has a length and numbers is a dataset to torch, which its types do not say.
    chosen: Any = RecordFile(records, skip_bad=skip_bad)
    loaded = load_model(model, trust_remote_code=trust)
    if retain is not None:
        loaded.codec.pin(chosen[0].model if len(chosen) else None)  # one date in all prompts
        kept: Any = retention_records(loaded, retain, skip_bad=skip_bad)
        chosen = ConcatDataset([chosen, kept])
    return loaded, chosen


def _print(result: Any, as_json: bool) -> None:
    if as_json:
        print_json(asdict(result))
        return
    certificate = result.certificate
    state = "Converged" if result.converged else "NOT converged"
    out.print(f"{state} after {result.steps} steps, {result.seconds:.1f} s")
    for lack in result.missing:
        out.print(f"missing: {lack}")
    out.print(f"anchors held: {certificate.anchors_held} of {certificate.anchors}")
    out.print(f"answers reproduced: {certificate.records_reproduced} of {certificate.records}")
    out.print(f"drift at keep tokens: {certificate.keep_kl:.5f} nats per token")
    out.print(f"weights: {result.weights}")
