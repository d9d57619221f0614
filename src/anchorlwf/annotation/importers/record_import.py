"""lawftrack's data sets into a file of records; the model's tokenizer is all that is needed."""

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig

from anchorlwf.annotation.checks import Room, check_record
from anchorlwf.annotation.importers.lawftrack import Flag, Span, read_lawftrack
from anchorlwf.data.record import Record
from anchorlwf.data.record_file import RecordJournal
from anchorlwf.errors import RecordError, wrong
from anchorlwf.files import ensure_writable
from anchorlwf.model.language_model import EMBEDDED, canonical_name, checkpoint_of, load_codec
from anchorlwf.model.vocabulary import TokenTable

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
    """Append the records of a lawftrack data set to `out`, those that it does not hold yet.

    Args:
        path: a data set export, training JSONL, or a trace of the author's experiments.
        out: file of records.
        model: folder or hub name of the model that was annotated; None: the embedded one. Its weights are not read.
        span: which tokens of a replacement become anchors: the first, or the whole of it.
        trust_remote_code: run code that comes with the tokenizer.

    Raises:
        ModelError: no such tokenizer.
        RecordError: a file that cannot be read at all; what does not fit in one that can is flagged, and a sample that
            is too long for the model's context is left out.
        StorageError: `out` cannot be written; what it held is still there.
    """
    ensure_writable(out)
    try:
        content = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(wrong(str(path), "a lawftrack data set in UTF-8", error, "Check the path.")) from error
    name = EMBEDDED if model is None else model
    codec, stop_ids = load_codec(name, trust_remote_code)
    table, room = TokenTable(codec), _room(name, trust_remote_code)
    held = read_lawftrack(
        content,
        table,
        codec.stamp(canonical_name(name)),
        stop_ids,
        span=span,
        check=lambda record: check_record(record, table, room),
    )
    records = {record.id: record for record in held.records}
    new = _added(out, records) if records else []
    return Imported(
        len(new),
        sum(len(record.anchors) for record in new),
        sum(record.status == "draft" for record in new),
        len(records) - len(new),
        held.flags,
    )


def _room(name: str, trust_remote_code: bool) -> Room:
    """`Decoder.room` of a model of which only the configuration is read; without one there is no limit."""
    context = None
    with contextlib.suppress(OSError, ValueError):
        config = AutoConfig.from_pretrained(checkpoint_of(name).source, trust_remote_code=trust_remote_code)
        context = getattr(config.get_text_config(), "max_position_embeddings", None)
    return lambda prompt_ids, wanted: wanted if context is None else min(wanted, context - len(prompt_ids))


def _added(out: str | Path, records: dict[str, Record]) -> list[Record]:
    """Those of the records that `out` did not hold, appended to it."""
    journal = RecordJournal(out)
    known = {record.id for record in journal.news()}

    def missing(news: Iterable[Record]) -> list[Record]:
        known.update(record.id for record in news)
        return [record for key, record in records.items() if key not in known]

    return journal.add(missing)
