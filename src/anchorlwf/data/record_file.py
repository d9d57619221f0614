"""Files of records too long for memory, or shared with other processes while they grow."""

import os
import uuid
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, overload

import numpy as np

from anchorlwf.data.jsonl import BadLine, Line, Reading, checked_line, last_of_each, refusal, row_of
from anchorlwf.data.record import Record
from anchorlwf.errors import BadLineWarning, RecordError, warn, wrong
from anchorlwf.files import append_held, held_file

__all__ = ["RecordFile", "RecordJournal"]


class RecordFile(Sequence[Record]):
    """What `load_records` gives, read when it is asked for: 20 bytes of each record are held in memory.

    Opening reads the whole file once and checks every line; what remains of a line is where it stands and a checksum.
    A record is read and parsed anew each time. No file stays open, so that copies of the object work in other
    processes. Lines may be appended meanwhile; they are not seen.

    Args:
        path: of a JSONL file.
        skip_bad: go on after bad lines and warn of each (`BadLineWarning`) instead of raising.

    Raises:
        RecordError: as `load_records` when opened; and where a line is asked for that is no longer what it was.
    """

    def __init__(self, path: str | Path, *, skip_bad: bool = False) -> None:
        self.path = Path(path)
        starts, sizes, sums, ids = array("Q"), array("Q"), array("I"), bytearray()
        reading = Reading(path, Record)
        for line, record in reading.good_lines():
            starts.append(line.start)
            sizes.append(len(line.content))
            sums.append(zlib.crc32(line.content))
            ids += uuid.UUID(record.id).bytes
        reading.report(skip_bad=skip_bad)
        latest = last_of_each(ids)
        self._starts = np.array(starts, np.uint64)[latest]
        self._sizes = np.array(sizes, np.uint64)[latest]
        self._sums = np.array(sums, np.uint32)[latest]

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [self._read(number) for number in range(*index.indices(len(self)))]
        return self._read(index)

    def _read(self, index: int) -> Record:
        start, size, checksum = int(self._starts[index]), int(self._sizes[index]), int(self._sums[index])
        try:
            with open(self.path, "rb", buffering=0) as stream:
                stream.seek(start)
                content = stream.read(size)
        except OSError as error:
            raise self._changed(start, error.strerror) from error
        if len(content) != size or zlib.crc32(content) != checksum:
            raise self._changed(start, "another")
        return Record.model_validate(row_of(content))

    def _changed(self, start: int, got: object) -> RecordError:
        fix = "Leave the file as it is while it is in use (lines may be appended), and start again."
        where, expected = f"{self.path}, byte {start}", "the line that stood there when it was opened"
        return RecordError(wrong(where, expected, got, fix))


class RecordJournal:
    """A file of records that several processes append to: what is new in it, and a locked way to add to it.

    What stands in the file is never changed or moved; a later line replaces an earlier one of the same id.

    Args:
        path: of a JSONL file; it need not be there yet.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        # Bytes, lines and good lines read so far, up to the last line break; and what is torn behind it.
        self._end, self._lines, self._good = 0, 0, 0
        self._torn = b""

    def news(self) -> Iterator[Record]:
        """The records appended since it was last asked, those that a later line replaces too.

        A line that is no record is warned of (`BadLineWarning`) and must not keep the work from going on.

        Raises:
            RecordError: there are lines, and none of them is a record: the file is something else.
        """
        if not self.path.is_file():
            return
        yield from self._read()
        if self.path.stat().st_size > self._end:
            # Half a line: somebody is writing it, or died over it. Nobody writes while we hold the file.
            with held_file(self.path):
                rest = list(self._read(alone=True))
            yield from rest

    def add(self, choose: Callable[[Iterable[Record]], Iterable[Record]], *, over_torn: bool = False) -> list[Record]:
        """Append records durably, chosen in the light of what the file holds at that moment.

        Args:
            choose: is given the news, and gives the records to append. No other process of ours writes meanwhile, so
                it should be quick.
            over_torn: a torn last line is taken away, since what it held is among the chosen; else it is closed, and
                remains a bad line.

        Returns:
            The records appended.

        Raises:
            StorageError: not all could be stored; the file ends with the last whole one, or is as it was.
            RecordError: as `news`.
        """
        with held_file(self.path) as stream:
            chosen = list(choose(list(self._read(alone=True))))
            if chosen:
                if over_torn and self._torn:
                    os.ftruncate(stream.fileno(), self._end)
                append_held(stream, [record.model_dump_json() for record in chosen])
                self._lines += len(chosen) + (not over_torn and bool(self._torn))
                self._good += len(chosen)
                self._end, self._torn = stream.seek(0, os.SEEK_END), b""
        return chosen

    def _go_on(self, stream: BinaryIO) -> None:
        """Stand behind what was read; at the start where somebody has put another file in its place."""
        stream.seek(max(0, self._end - 1))
        if self._end and stream.read(1) != b"\n":
            self._end = self._lines = self._good = stream.seek(0)

    def _read(self, *, alone: bool = False) -> Iterator[Record]:
        """The lines behind those read before; one without a line break only where nobody else is writing."""
        bad: list[BadLine] = []
        torn, some = b"", self._good > 0
        with open(self.path, "rb") as stream:
            self._go_on(stream)
            for content in stream:
                whole = content.endswith(b"\n")
                if not whole and not alone:
                    break
                line = Line(self._lines + 1, row_of(content), self._end, content)
                row = checked_line(line, str(self.path), Record) if content.strip() else None
                if whole:
                    self._end, self._lines = self._end + len(content), self._lines + 1
                if isinstance(row, Record):
                    self._good, some = self._good + whole, True
                    yield row
                elif row is not None:
                    torn = b"" if whole else content
                    if whole or torn != self._torn:
                        bad.append(row)
        if alone:
            self._torn = torn
        if bad and not some:
            raise refusal(bad, 0)
        for bad_line in bad:
            warn(str(bad_line), BadLineWarning)
