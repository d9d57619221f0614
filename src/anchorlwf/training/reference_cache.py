"""What training needs of the reference, computed once and kept on disk: no step then needs a reference forward.

That is its final hidden states, or, where the head allows it, their summary (`loss.reference_summary`), which spares
the steps the reference's projection too.

A cache is a folder named after its key: the reference's weights, tokenizer and template, the records' token ids, and
how it was computed. It holds an index (the key in full) and one safetensors file per length-sorted batch. Every file is
written atomically and carries its key and a checksum, so that a build that was broken off goes on behind its last whole
file, and a damaged file is computed again instead of believed.

Shape suffixes: N completion tokens, D hidden width, X numbers kept of each token.
"""

import hashlib
import json
import logging
import re
import shutil
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from anchorlwf.divergence import completion_hidden
from anchorlwf.errors import ConfigError, RecordError, wrong
from anchorlwf.files import clear_leftovers, write_atomic
from anchorlwf.loss.reference_summary import summarize
from anchorlwf.model.batch import Turn
from anchorlwf.model.fingerprint import tensors_sha
from anchorlwf.model.head import reference_head
from anchorlwf.model.language_model import LanguageModel
from anchorlwf.training.packing import batch_of

__all__ = [
    "GIB",
    "Contents",
    "ReferenceCache",
    "ReferenceKey",
    "Turns",
    "build_reference_cache",
    "length_sorted",
    "reference_bytes",
]

_BATCH_TOKENS = 8192
"""Most tokens, padding included, of a batch of several records: a file stays below 128 MiB at D = 4,096 in float32."""


class Turns(Protocol):
    """Turns by number: a list, or what reads each of them when it is asked for."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Turn: ...


class Contents:
    """Different contents of turns (prompt and completion ids), in the order of their digests.

    Neither the order of the turns nor how often one occurs matters; nor do anchors and ids.

    Args:
        turns: read once, one after another.

    Attributes:
        places: int64, of each content where in `turns` it stands first.
        lengths: int64, of each the tokens of prompt and completion.
        completion_lengths: int64, of each the tokens of the completion.
    """

    def __init__(self, turns: Iterable[Turn]) -> None:
        digests, prompts, completions = bytearray(), array("I"), array("I")
        for turn in turns:
            digests += _digest(turn)
            prompts.append(len(turn.prompt_ids))
            completions.append(len(turn.completion_ids))
        # numpy leaves out zeros at the end of what it hands out as bytes; comparing is right all the same.
        self._digests, self.places = np.unique(np.frombuffer(digests, "S32"), return_index=True)
        self.completion_lengths = np.array(completions, np.int64)[self.places]
        self.lengths = self.completion_lengths + np.array(prompts, np.int64)[self.places]

    def __len__(self) -> int:
        return len(self._digests)

    def name(self, number: int) -> str:
        """The digest of a content, as 64 hexadecimal digits."""
        return self._digests[number : number + 1].tobytes().hex()

    def find(self, turns: Sequence[Turn]) -> NDArray[np.int64]:
        """The number of each turn's content. Raises `KeyError` for one that is not there."""
        wanted = np.frombuffer(b"".join(map(_digest, turns)), "S32")
        numbers = np.searchsorted(self._digests, wanted)
        if (self._digests.take(numbers, mode="clip") != wanted).any():
            raise KeyError("a turn with another content")
        return numbers

    @property
    def sha(self) -> str:
        """SHA-256 over all names, a line each."""
        whole = hashlib.sha256()
        for number in range(len(self)):
            whole.update(b"\n" * (number > 0) + self.name(number).encode())
        return whole.hexdigest()


def length_sorted(contents: Contents, most: int = _BATCH_TOKENS) -> list[NDArray[np.int64]]:
    """Batches of contents by number, shortest first: the same whatever order the turns came in.

    Args:
        contents: of any number of turns.
        most: tokens of a batch, padding included; a longer turn makes a batch of its own.
    """
    order = np.argsort(contents.lengths, kind="stable")
    ends, begin = list[int](), 0
    for index, length in enumerate(contents.lengths[order].tolist()):
        # Sorted, so this one is as long as the batch is wide.
        if index > begin and (index - begin + 1) * length > most:
            ends.append(index)
            begin = index
    return [batch for batch in np.split(order, ends) if len(batch)]


def _digest(turn: Turn) -> bytes:
    """SHA-256 of what the reference reads: prompt and completion ids, and where one ends."""
    return hashlib.sha256(json.dumps([turn.prompt_ids, turn.completion_ids]).encode()).digest()


GIB = 2**30
_FORMAT = 1

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReferenceKey:
    """What the states depend on. The order of the records, their anchors and their ids do not matter."""

    weights: str
    """SHA-256 of the reference's weights and configuration."""
    tokenizer: str
    template: str
    records: str
    """SHA-256 over the records' contents, see `Contents`."""
    dtype: str
    """Of the weights; and what they are cast to where the surroundings do that."""
    device: str
    """cpu or cuda: their rounding differs."""
    packed: bool = False
    """Records end to end instead of padded: the states differ by rounding."""
    summarized: bool = False
    """What is kept is a `Summary` of the states."""
    format: int = _FORMAT

    @classmethod
    def of(
        cls,
        model: LanguageModel,
        contents: Contents,
        *,
        packed: bool = False,
        summarized: bool = False,
        weights: str | None = None,
    ) -> "ReferenceKey":
        """The key of these contents under the model's reference, in the autocast context this is called in.

        `weights`: its `reference_sha`, where that is known already.
        """
        stamp, kind = model.stamp, model.device.type
        dtype = str(model.causal.dtype)
        if torch.is_autocast_enabled(kind):
            dtype += f", autocast to {torch.get_autocast_dtype(kind)}"
        return cls(
            weights or model.reference_sha(),
            stamp.tokenizer_sha,
            stamp.template_sha,
            contents.sha,
            dtype,
            kind,
            packed,
            summarized,
        )

    @property
    def sha(self) -> str:
        """SHA-256 of the key."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


class ReferenceCache:
    """Reads what `build_reference_cache` built.

    Args:
        folder: of the cache.
        contents: what it was built for.
        batches: the contents, by number, of each file.
    """

    def __init__(self, folder: Path, contents: Contents, batches: Sequence[NDArray[np.int64]]) -> None:
        self.folder, self._contents = folder, contents
        self._files = np.empty(len(contents), np.int64)
        for number, batch in enumerate(batches):
            self._files[batch] = number

    def states(self, turns: Sequence[Turn]) -> Tensor:
        """The reference's states at the predicting positions, in the order of `collate`, on the CPU.

        [N, D]; or, where they were summarized, `Summary.stacked`: [N, D + 2].

        Raises:
            RecordError: a turn the cache was not built for.
            ConfigError: a file of the cache is gone.
        """
        try:
            numbers = self._contents.find(turns)
        except KeyError:
            fix = "Build the cache for all records that are trained on."
            what = f"reference cache {self.folder}"
            raise RecordError(wrong(what, "a record it was built for", "another", fix)) from None
        files, parts = self._files[numbers], dict[int, Tensor]()
        for file in set(files.tolist()):
            parts |= self._read(file, numbers[files == file].tolist())
        return torch.cat([parts[number] for number in numbers.tolist()])

    def _read(self, file: int, numbers: list[int]) -> dict[int, Tensor]:
        # Copied, and the file closed at once: all that was touched of a file that stays mapped counts as our memory.
        name = _file_name(file)
        try:
            with _opened(self.folder / name) as states:
                return {number: states.get_tensor(self._contents.name(number)).clone() for number in numbers}
        except (OSError, SafetensorError) as error:
            fix = "Start again; what is missing is computed again."
            raise ConfigError(wrong(f"reference cache {self.folder}", f"the file {name}", error, fix)) from error


def reference_bytes(model: LanguageModel, contents: Contents, *, summarized: bool = False) -> int:
    """Bytes of the hidden states, or of their summaries, of all contents."""
    weight_VD = reference_head(model).weight_VD
    width = weight_VD.shape[1] + (2 if summarized else 0)
    return int(contents.completion_lengths.sum()) * width * weight_VD.element_size()


def build_reference_cache(
    model: LanguageModel,
    turns: Turns,
    contents: Contents,
    root: str | Path,
    *,
    limit: int,
    packed: bool = False,
    summarized: bool = False,
    weights: str | None = None,
    checksums: bool = True,
    on_batch: Callable[[int, int], None] | None = None,
) -> ReferenceCache:
    """The cache of these turns: computed, or as much of it as is not there yet, and ready to be read.

    Call it in the autocast context that training runs in.

    Args:
        model: whose reference it is of.
        turns: at least one. Those of a batch are read when it is computed.
        contents: of these turns, in this order.
        root: folder of the caches. Those of other keys go where both would not fit.
        limit: most bytes of states in `root`.
        packed: put records through end to end, as training that packs does.
        summarized: keep a `Summary` of the states; the head must allow it.
        weights: `reference_sha` of the model, where it is known already.
        checksums: check those of the files that are there. Not needed where another process has just done so.
        on_batch: called with (batches done, all) after each batch that is computed.

    Raises:
        ConfigError: more than `limit` is needed; or the folder of this key holds something else.
        StorageError: `root` cannot be written.
    """
    needed = reference_bytes(model, contents, summarized=summarized)
    if needed > limit:
        fix = "Raise reference_cache_size, or train without a cache (0)."
        raise ConfigError(wrong("reference cache", f"at most {limit} bytes", needed, fix))
    key = ReferenceKey.of(model, contents, packed=packed, summarized=summarized, weights=weights)
    batches = length_sorted(contents)
    folder = Path(root) / key.sha[:16]
    if checksums:
        _sweep(folder)
    _make_room(folder, limit - needed)
    _check_index(folder, key)
    for number, batch in enumerate(batches):
        place, names = folder / _file_name(number), [contents.name(one) for one in batch.tolist()]
        if place.exists():
            flaw = _flaw(place, names, key, checksums)
            if flaw is None:
                continue
            _log.warning("reference cache: %s %s; computing it again", place, flaw)
        read = {name: turns[int(contents.places[one])] for name, one in zip(names, batch.tolist(), strict=True)}
        write_atomic(place, _computed(model, read, key))
        if on_batch is not None:
            on_batch(number + 1, len(batches))
    return ReferenceCache(folder, contents, batches)


def _file_name(number: int) -> str:
    return f"{number:06d}.safetensors"


def _sweep(folder: Path) -> None:
    """Remove the parts of files that killed builds left here and in the caches beside, and caches half removed."""
    for cache in folder.parent.glob("*"):
        if re.fullmatch(r"[0-9a-f]{16}", cache.name):
            clear_leftovers(cache, "index.json", "*.safetensors")
            if cache != folder and not (cache / "index.json").exists():
                shutil.rmtree(cache)


def _make_room(folder: Path, spare: int) -> None:
    """Remove caches beside `folder` until they take `spare` bytes at the most, the oldest first."""
    others = [index.parent for index in folder.parent.glob("*/index.json") if index.parent != folder]
    sizes = {other: sum(file.stat().st_size for file in other.iterdir()) for other in others}
    for other in sorted(others, key=lambda one: (one / "index.json").stat().st_mtime):
        if sum(sizes.values()) <= spare:
            return
        _log.info("reference cache: removing %s to make room", other)
        shutil.rmtree(other)
        del sizes[other]


def _check_index(folder: Path, key: ReferenceKey) -> None:
    """Write the index, or make sure that the one there is ours."""
    index, ours = folder / "index.json", json.dumps(asdict(key), indent=2) + "\n"
    if not index.exists():
        write_atomic(index, ours)
        return
    try:
        found = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = "no key"
    if found != asdict(key):
        got = "no key"
        if isinstance(found, dict):
            got = "other " + ", ".join(name for name, value in asdict(key).items() if found.get(name) != value)
        raise ConfigError(wrong(f"reference cache {folder}", "the key it is named after", got, "Delete this folder."))


def _opened(place: Path) -> Any:
    return safe_open(str(place), framework="pt")


def _flaw(place: Path, names: Sequence[str], key: ReferenceKey, checksum: bool) -> str | None:
    """What is wrong with a file of the cache, or None."""
    try:
        file = _opened(place)
        noted, contents = file.metadata() or {}, set(file.keys())
        if noted.get("key") != key.sha or contents != set(names):
            return "belongs to another cache"
        if not checksum:
            return None
        whole = tensors_sha({content: file.get_tensor(content) for content in contents}) == noted.get("sha256")
    except (OSError, SafetensorError):
        whole = False
    return None if whole else "is damaged"


def _computed(model: LanguageModel, batch: Mapping[str, Turn], key: ReferenceKey) -> bytes:
    """One forward pass of the reference, as the content of a file."""
    turns = list(batch.values())
    with model.as_reference() as reference:
        inputs = batch_of(model, turns, packed=key.packed).to(model.device)
        states_NX = completion_hidden(reference.net, reference.backbone, inputs)
    if key.summarized:
        states_NX = summarize(states_NX, reference_head(model), inputs.token_ids_N).stacked()
    parts = states_NX.cpu().split([len(turn.completion_ids) for turn in turns])
    tensors = {content: part.contiguous() for content, part in zip(batch, parts, strict=True)}
    return save(tensors, {"key": key.sha, "sha256": tensors_sha(tensors)})
