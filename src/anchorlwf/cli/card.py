"""Write the card of a run: the README.md beside its weights.

Training writes it by itself. Run this after an evaluation, so that its figures and its certificate are in the card too:
results.json counts if it is newer than the weights, certificate.json if it is about these weights. Both are looked for
in the run folder.

Examples:
  anchorlwf card runs/first
  anchorlwf card runs/first --base-name HuggingFaceTB/SmolLM2-135M-Instruct
"""

from pathlib import Path
from typing import Annotated

import typer

from anchorlwf.cli.shared import out


def card(
    run: Annotated[Path, typer.Argument(help="The run folder.")],
    base_name: Annotated[
        str | None, typer.Option(help="Name of the base model, such as on a hub. Default: as it was trained.")
    ] = None,
) -> None:
    from anchorlwf.data.model_card import write_card

    out.print(str(write_card(run, base=base_name)))
