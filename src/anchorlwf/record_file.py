"""Records that stay on disk: a sequence over a JSONL file that holds 20 bytes of each in memory."""

import uuid
import zlib
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from anchorlwf.errors import RecordError, wrong
from anchorlwf.lines import good_lines, row_of
from anchorlwf.record import Record

__all__ = ["RecordFile"]


class RecordFile(Sequence[Record]):
    """What `load_records` gives, read when it is asked for.

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
        for line, record in good_lines(path, Record, skip_bad=skip_bad, asked_by=3):
            starts.append(line.start)
            sizes.append(len(line.content))
            sums.append(zlib.crc32(line.content))
            ids += uuid.UUID(record.id).bytes
        latest = _latest(ids)
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
            return [self._read(one) for one in range(*index.indices(len(self)))]
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


def _latest(ids: bytearray) -> NDArray[np.int64]:
    """Where, among 16-byte ids, each stands for the last time: int64, ascending."""
    halves = np.frombuffer(ids, np.uint64).reshape(-1, 2)
    # A stable order: equal ids stay in that of the file.
    order = np.lexsort(halves.T)
    ordered = halves[order]
    last = np.ones(len(order), bool)
    last[:-1] = (ordered[1:] != ordered[:-1]).any(axis=1)
    return np.sort(order[last])
