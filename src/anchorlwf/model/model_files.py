"""Which files decide what a model answers, where they are, and whether they have changed since they were noted."""

import json
import os
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib.resources import files
from pathlib import Path

from huggingface_hub import snapshot_download

from anchorlwf.errors import ModelError, wrong
from anchorlwf.model.formats.gguf import is_gguf

__all__ = ["EMBEDDED", "Marks", "confine", "embedded_path", "files_of", "folder_of", "marks_of"]

EMBEDDED = "embedded"
Marks = dict[str, tuple[int, ...]]
"""By path: device, inode, size, and the times of the last writing and of the last change (nanoseconds)."""

# Every other file in a folder counts: loaders read more kinds of files than a list could name, and a file that is added
# (a template, an index, code) can change every answer. Only files that no loader opens by itself are left out.
_UNREAD_FOLDERS = {".git", ".cache", "__pycache__"}
_UNREAD = [
    *(".git*", ".DS_Store", "*.md", "LICENSE*", "NOTICE*", "*.png", "*.jpg", "*.jpeg", "*.svg", "*.gif", "*.pdf"),
    *("*.jsonl", "*.log", "*.csv", "results.json", "certificate.json", "train.json", "training_args.bin"),
    # Weights for others: ours are always safetensors.
    *("pytorch_model*.bin", "*.gguf", "*.onnx", "*.h5", "*.msgpack", "*.pt", "*.pth"),
]


def embedded_path() -> Path:
    """Folder of the shipped base model (see `anchorlwf.world.pretrain`)."""
    return Path(str(files("anchorlwf") / "world" / "base"))


def folder_of(source: str, revision: str | None = None, *, fetch: bool = False) -> Path:
    """Where the files of a model or adapter lie.

    Args:
        source: local folder, GGUF file (it is its own place), hub name, or `embedded`.
        revision: hub revision.
        fetch: download what a hub name lacks in the local cache; otherwise nothing reaches for the network.

    Raises:
        ModelError: neither a folder nor a cached hub name.
    """
    folder = embedded_path() if source == EMBEDDED else Path(source)
    if folder.is_dir() or is_gguf(folder):
        return folder
    try:
        snapshot = snapshot_download(source, revision=revision, ignore_patterns=_UNREAD, local_files_only=not fetch)
    except (OSError, ValueError) as error:
        fix = "Give the folder, or load the model once."
        raise ModelError(wrong(f"weights {source}", "a folder or a cached hub name", "neither", fix)) from error
    return Path(snapshot)


def _walk(folder: Path) -> Iterator[tuple[str, Path]]:
    for directory, folders, names in os.walk(folder):
        here = Path(directory)
        # A folder that is a link is not walked, but named: `confine` refuses it.
        links = [name for name in folders if (here / name).is_symlink()]
        folders[:] = [name for name in folders if name not in _UNREAD_FOLDERS]
        for name in [*links, *(name for name in names if not any(fnmatch(name, pattern) for pattern in _UNREAD))]:
            yield (here / name).relative_to(folder).as_posix(), here / name


def _shards(folder: Path, index: Path) -> Iterator[tuple[str, Path]]:
    """The files that an index of shards names, wherever they are."""
    try:
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        listed = sorted({str(name) for name in named})
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        fix = "Download or save the model again."
        raise ModelError(wrong(str(index), "an index of shards (weight_map)", error or type(error), fix)) from error
    for name in listed:
        yield name, folder / name


def files_of(folder: Path) -> dict[str, Path]:
    """Every file that can decide an answer, by its name within the folder.

    Raises:
        ModelError: an index of shards that cannot be read.
    """
    if is_gguf(folder):
        return {folder.name: folder}
    deciding = {name: path for name, path in _walk(folder) if path.is_file() or path.is_dir()}
    for name, path in list(deciding.items()):
        if name.endswith(".safetensors.index.json"):
            deciding |= {shard: target for shard, target in _shards(folder, path) if target.is_file()}
    return dict(sorted(deciding.items()))


def confine(source: str, folder: Path, deciding: dict[str, Path]) -> None:
    """Raise `ModelError` for a file outside the folder: whoever receives the folder would not have it.

    Args:
        source: the model's name, for the message.
        folder: as `folder_of` gives it. In the hub's cache, files are links into the repository's blobs.
        deciding: as `files_of` gives them.
    """
    root = folder.resolve()
    within = [root, root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [root]
    for name, path in deciding.items():
        target = path.resolve()
        if path.is_dir() or not any(target.is_relative_to(root) for root in within):
            fix = "Copy it into the folder, and mend what points elsewhere."
            got = f"{name}, which is {target}"
            raise ModelError(wrong(f"weights {source}", "every file inside the folder itself", got, fix))


def marks_of(source: str, revision: str | None = None) -> Marks:
    """What the file system says about each file of a model or adapter, without reading it; empty if there is none yet.

    A file that is replaced or written to gets other marks, even if its size and modification time are restored.
    """
    try:
        return {str(path): _mark(path) for path in files_of(folder_of(source, revision)).values()}
    except (ModelError, OSError):
        return {}


def _mark(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
