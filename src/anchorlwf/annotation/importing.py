"""lawftrack's data sets into a file of records; the model's tokenizer is all that is needed."""

from dataclasses import dataclass
from pathlib import Path

from anchorlwf.annotation.connect import load_codec
from anchorlwf.annotation.lawftrack import Flag, Span, read_lawftrack
from anchorlwf.annotation.tokens import TokenTable
from anchorlwf.errors import RecordError, wrong
from anchorlwf.files import ensure_writable
from anchorlwf.jsonl import earlier_records, save_records
from anchorlwf.model import EMBEDDED, canonical_name

__all__ = ["Imported", "import_lawftrack"]


@dataclass(frozen=True)
class Imported:
    """What came of a file."""

    records: int
    """New in the file of records."""
    anchors: int
    """Of those."""
    drafts: int
    """Those that hold a flagged anchor; training leaves them out until somebody finishes them."""
    known: int
    """Records that were there already; they stay as they are."""
    flags: list[Flag]


def import_lawftrack(
    path: str | Path,
    out: str | Path,
    model: str | None = None,
    *,
    span: Span = "first",
    trust_remote_code: bool = False,
) -> Imported:
    """Put the records of a lawftrack data set into `out`, behind those it holds.

    Args:
        path: a data set export, training JSONL, or a trace of the author's experiments.
        out: file of records.
        model: folder or hub name of the model that was annotated; None: the embedded one. Its weights are not read.
        span: which tokens of a replacement become anchors: the first, or the whole of it.
        trust_remote_code: run code that comes with the tokenizer.

    Raises:
        ModelError: no such tokenizer.
        RecordError: a file that cannot be read at all; what does not fit in one that can is flagged.
        StorageError: `out` cannot be written; what it held is still there.
    """
    ensure_writable(out)
    try:
        content = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(wrong(str(path), "a lawftrack data set in UTF-8", error, "Check the path.")) from error
    name = EMBEDDED if model is None else model
    codec, stop_ids = load_codec(name, trust_remote_code)
    found = read_lawftrack(content, TokenTable(codec), codec.stamp(canonical_name(name)), stop_ids, span=span)
    known = earlier_records(out)
    new = {record.id: record for record in found.records if record.id not in known}
    if new:
        save_records(out, [*known.values(), *new.values()])
    return Imported(
        len(new),
        sum(len(record.anchors) for record in new.values()),
        sum(record.status == "draft" for record in new.values()),
        len({record.id for record in found.records} & known.keys()),
        found.flags,
    )
