"""Runs the demo and draws what it printed.

python benchmarks/picture.py docs/demo.svg
"""

import io
import re
import sys

from rich.console import Console
from rich.terminal_theme import MONOKAI

from anchorlwf.cli.demo import show
from anchorlwf.cli.shared import quiet_libraries
from anchorlwf.files import write_atomic
from anchorlwf.workflow import demo


def main():
    """Run, draw, write."""
    quiet_libraries()
    console = Console(record=True, width=112, file=io.StringIO(), highlight=False)
    show(demo("runs/demo"), console)
    drawn = console.export_svg(title="make demo", theme=MONOKAI)
    # Rich asks for a font from elsewhere; a picture must not.
    write_atomic(sys.argv[1], re.sub(r"@font-face \{.*?\}", "", drawn, flags=re.DOTALL))


if __name__ == "__main__":
    main()
