"""The command line: one file per command; each parses, calls one function, and prints.

Exit codes: 0 done, 1 our failure, 2 the user's mistake, 3 a release gate that was not passed, 4 training that did not
converge (`train`, `fix`, `demo`), 130 interrupted, 143 ended by SIGTERM.
"""

import errno
import sys
import traceback
from typing import Annotated, Any, NoReturn

import typer

import anchorlwf
from anchorlwf.cli import (
    annotate,
    arena,
    ask,
    bench,
    card,
    certificate,
    chat,
    demo,
    doctor,
    evaluate,
    export,
    fix,
    import_edits,
    import_lawftrack,
    merge,
    retain,
    runs,
    train,
    verify,
)
from anchorlwf.errors import AnchorLwfError, redacted, wrong

__all__ = ["app", "main"]

# Click's UsageError. Typer brings a click of its own (older ones used the installed one), under a private name.
_UsageError: Any = typer.BadParameter.__mro__[1]
_INTERRUPTED = "Interrupted. What was finished is kept."

app = typer.Typer(
    name="anchorlwf",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Correct a language model with a few tokens, and keep the rest as it was.",
)
for module in (
    ask,
    annotate,
    verify,
    retain,
    train,
    evaluate,
    certificate,
    runs,
    card,
    merge,
    chat,
    fix,
    demo,
    arena,
    bench,
    export,
    import_edits,
    import_lawftrack,
    doctor,
):
    name = module.__name__.rsplit(".", 1)[-1]
    # Click wraps paragraphs unless they begin with a backspace: the examples must stay as they are.
    text = (module.__doc__ or "").replace("Examples:\n", "Examples:\n\n\b\n")
    app.command(name.replace("_", "-"), help=text, no_args_is_help=module not in (demo, chat, doctor, runs))(
        getattr(module, name)
    )


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"anchorlwf {anchorlwf.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options before the command."""


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the console script; never returns."""
    given = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in given
    try:
        # --debug is welcome on either side of the command.
        ordered = [*(["--debug"] if debug else []), *(a for a in given if a != "--debug")]
        code = app(ordered, standalone_mode=False, prog_name="anchorlwf")
    except AnchorLwfError as error:
        _fail(f"Error: {error}", 2, debug)
    except (KeyboardInterrupt, typer.Abort):
        _fail(_INTERRUPTED, 130, debug)
    except _UsageError as error:
        error.show()
        sys.exit(2)
    except Exception as error:
        _unforeseen(error, debug)
    if code == 130:  # what newer Typers make of Ctrl-C
        _fail(_INTERRUPTED, 130, debug=False)
    sys.exit(code if isinstance(code, int) else 0)


def _unforeseen(error: Exception, debug: bool) -> NoReturn:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        fix = "Free some space, or send the output elsewhere."
        _fail(f"Error: {wrong('output', 'room for it', error.strerror, fix)}", 2, debug)
    _fail(f"Internal error, please report it: {type(error).__name__}: {error} (--debug shows where)", 1, debug)


def _fail(message: str, code: int, debug: bool) -> NoReturn:
    if debug:
        print(redacted(traceback.format_exc()), end="", file=sys.stderr)
    print(redacted(message), file=sys.stderr)
    sys.exit(code)
