"""Writes docs/demo.svg: runs the demo and draws what it printed, `python -m anchorlwf.cli.picture docs/demo.svg`."""

import io
import re
import sys

from rich.console import Console
from rich.terminal_theme import MONOKAI

from anchorlwf.cli.demo import show
from anchorlwf.cli.shared import quiet_libraries
from anchorlwf.files import write_atomic

__all__ = ["draw"]


def draw(path: str) -> None:
    """Run the demo in runs/demo and write its table as SVG to `path`."""
    from anchorlwf.workflow import demo

    quiet_libraries()
    console = Console(record=True, width=112, file=io.StringIO(), highlight=False, markup=False, emoji=False)
    show(demo("runs/demo"), console)
    drawn = console.export_svg(title="make demo", theme=MONOKAI)
    # Rich asks for a font from the network; a picture must not.
    write_atomic(path, re.sub(r"@font-face \{.*?\}", "", drawn, flags=re.DOTALL))


if __name__ == "__main__":
    draw(sys.argv[1])
