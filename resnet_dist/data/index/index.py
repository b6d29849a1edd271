"""The index: what a data set is, for loaders that know nothing else of it.

Owns the table of samples (where the bytes lie, label, height, width), its cache on disk and when
that is out of date. Arrays are memory-mapped: all processes of a node share one copy. The table of
a folder of class folders is made by reading it; that of a packed split lies beside its shards.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet_dist.config import DataConfig
from resnet_dist.data.index import packed, scan
from resnet_dist.data.index.places import cache_root, split_folder
from resnet_dist.errors import UserError, printable
from resnet_dist.system.files import locked, replace_file, sync_folder
from resnet_dist.system.names import unknown_names

_VERSION = 2
_MAX_FILES_CHECKED = 100_000
_KEPT_S = 86_400.0


@dataclass(frozen=True)
class Index:
    """The samples of a split, in a fixed order. Columns are read-only, one entry a sample."""

    folder: Path
    classes: list[str]
    """Names by label. Of a validation split: the training split's."""
    own_classes: list[str]
    """Classes of this split."""
    labels: NDArray[np.int64]
    heights: NDArray[np.int32]
    """As stored in the file (EXIF rotation ignored), pixels."""
    widths: NDArray[np.int32]
    lengths: NDArray[np.int64]
    """Lengths of the encoded images, bytes."""
    path_bytes: NDArray[np.uint8]
    """All names (paths below a folder of class folders), one after the other."""
    path_offsets: NDArray[np.int64]
    """`[N + 1]` where each begins."""
    fingerprint: str
    """sha256 over class names, relative paths, labels and sizes; equal wherever the root lies."""

    columns: Path
    """Folder of the columns' files."""
    shards: packed.Shards | None = None
    """Where the samples of a packed split lie; None: each is a file."""
    left_out: tuple[tuple[str, int], ...] = ()
    """Kinds of the files in the folder that are no samples, and how many there are."""

    def __len__(self) -> int:
        return len(self.labels)

    def __reduce__(self) -> tuple[Any, ...]:
        """In another process the same pages are mapped: no column is copied."""
        shards = self.shards
        return _open_columns, (
            self.columns,
            self.folder,
            self.own_classes,
            self.classes,
            self.fingerprint,
            None
            if shards is None
            else (shards.names, shards.num_bytes, shards.layout, shards.content),
        )

    def shown_path(self, sample_id: int) -> str:
        """`path` as a terminal may show it."""
        return printable(self.path(sample_id))

    def path(self, sample_id: int) -> str:
        """File of a sample; of a packed one FOLDER/SHARD:NAME, for messages."""
        start, stop = self.path_offsets[sample_id : sample_id + 2]
        name = os.fsdecode(self.path_bytes[start:stop].tobytes())
        if self.shards is None:
            return f"{self.folder}/{name}"
        return f"{self.folder}/{self.shards.names[self.shards.numbers[sample_id]]}:{name}"

    @property
    def remedy(self) -> str:
        """What to do about a sample that is damaged."""
        if self.shards is None:
            return "replace or remove the file"
        return f"`python -m resnet_dist.prepare verify {self.folder.parent}` finds damaged shards"


def open_index(
    data: DataConfig,
    split_name: str,
    *,
    build: bool,
    show_progress: bool,
    classes: list[str] | None = None,
) -> Index:
    """The index of `<data.root>/<split_name>`, of a folder from the cache if it is current.

    With `build`, a missing or outdated one is made first; any number of processes may call this at
    once, and one of them works. Without, the caller says that it was just built: only the class
    folders are checked. `classes` numbers the labels of a validation split by the training
    split's classes. Raises UserError for anything wrong with the folder or the cache.
    """
    folder = split_folder(data, split_name)
    if packed.is_packed(folder):
        index = _open_packed(folder, check_content=build)
    else:
        index = _open_folder(data, folder, build=build, show_progress=show_progress)
    return index if classes is None else _renumber(index, classes)


def _open_packed(folder: Path, *, check_content: bool) -> Index:
    manifest = packed.read_manifest(folder)
    packed.check_columns(folder, manifest, check_content=check_content)
    shards = manifest.shards
    return _open_columns(
        folder / packed.COLUMNS_FOLDER,
        folder,
        manifest.classes,
        manifest.classes,
        manifest.fingerprint,
        (
            tuple(one.name for one in shards),
            tuple(one.num_bytes for one in shards),
            manifest.columns.get("shards", ""),
            hashlib.sha256("".join(one.sha256 for one in shards).encode()).hexdigest(),
        ),
    )


def _open_folder(data: DataConfig, folder: Path, *, build: bool, show_progress: bool) -> Index:
    key = hashlib.sha256(os.fsencode(folder)).hexdigest()[:24]
    cache = cache_root(data) / "index" / key
    try:
        index = _load(cache, folder, check_files=build)
        if index is None and build:
            cache.mkdir(parents=True, exist_ok=True)
            with locked(cache / "lock"):
                index = _load(cache, folder, check_files=True)  # another process may have built it
                if index is None:
                    _build(cache, folder, show_progress=show_progress)
                    index = _load(cache, folder, check_files=False)
    except OSError as error:  # the data folder's own are UserErrors already
        raise UserError(
            f"data.cache_dir ({cache}): cannot keep the index there ({error.strerror}); set "
            f"data.cache_dir or $RESNET_DIST_CACHE to a writable folder"
        ) from error
    if index is None:
        raise UserError(
            f"data.cache_dir ({cache_root(data)}): holds no current index of {folder}"
            + (
                ", which changed while it was read; wait until it is complete"
                if build
                else "; build it on this node first, or set data.cache_dir to a folder that all "
                "nodes share"
            )
        )
    return index


def check_splits(train: Index, val: Index) -> None:
    """Raise UserError unless every class of `val` is one of `train`'s."""
    _renumber(val, train.classes)
    assert val.classes == train.classes, "open the validation index with classes=train.classes"


def _renumber(index: Index, classes: list[str]) -> Index:
    numbers = {name: number for number, name in enumerate(classes)}
    unknown = [name for name in index.own_classes if name not in numbers]
    if unknown:
        raise UserError(
            f"data.val_split ({index.folder}): holds classes that the training split (or the "
            f"checkpoint) lacks: {unknown_names(unknown, classes)}; rename or remove them, or "
            f"name other data"
        )
    if classes == index.classes:
        return index
    new_labels = np.array([numbers[name] for name in index.classes], dtype=np.int64)
    return Index(**{**vars(index), "classes": list(classes), "labels": new_labels[index.labels]})


def _load(cache: Path, folder: Path, *, check_files: bool) -> Index | None:
    """The cached index, or None if there is none or it is out of date."""
    classes = scan.list_classes(folder)
    try:
        meta = json.loads((cache / "index.json").read_text())
        if meta["version"] != _VERSION or meta["own_classes"] != classes:
            return None
        if not _is_current(folder, meta, check_files=check_files):
            return None
        columns = cache / meta["data"]
        index = _open_columns(columns, folder, classes, classes, meta["fingerprint"])
        if check_files and _fingerprint_of(index) != index.fingerprint:
            return None
        return replace(index, left_out=tuple(sorted(meta["left_out"].items())))
    except (FileNotFoundError, EOFError, ValueError, KeyError, TypeError, AttributeError):
        return None  # damaged, or another process replaces it right now


def _fingerprint_of(index: Index) -> str:
    """What the columns say; for ImageNet this reads 90 MB in a fifth of a second."""
    return packed.fingerprint_of(index.own_classes, vars(index))


def _open_columns(
    columns: Path,
    folder: Path,
    own_classes: list[str],
    classes: list[str],
    fingerprint: str,
    shards: tuple[tuple[str, ...], tuple[int, ...], str, str] | None = None,
) -> Index:
    index = Index(
        folder=folder,
        classes=own_classes,
        own_classes=own_classes,
        fingerprint=fingerprint,
        columns=columns,
        left_out=(),
        shards=None
        if shards is None
        else packed.Shards(
            names=shards[0],
            num_bytes=shards[1],
            layout=shards[2],
            content=shards[3],
            numbers=packed.map_column(columns / "shards.npy"),
            offsets=packed.map_column(columns / "offsets.npy"),
        ),
        **packed.map_columns(columns, packed.FOLDER_COLUMNS),
    )
    return index if classes == own_classes else _renumber(index, classes)


def _is_current(folder: Path, meta: dict[str, Any], *, check_files: bool) -> bool:
    for name, mtime_ns in meta["directories"].items():
        try:
            if (folder / name).stat().st_mtime_ns != mtime_ns:
                return False
        except OSError:
            return False
    if check_files and meta["files_digest"] is not None:
        listings = [scan.list_class(folder, name) for name in meta["own_classes"]]
        return bool(scan.digest_of_files(folder, listings) == meta["files_digest"])
    return True


def _build(cache: Path, folder: Path, *, show_progress: bool) -> None:
    """Scan the folder and publish the result.

    The columns go to a fresh folder first; replacing index.json, which names that folder, is the
    one moment at which the new index exists. A kill before it leaves the old one. Columns that say
    the same stay as they are, and old ones stay for a day: somebody may be reading them.
    """
    files_digest = _digest_if_small(folder)  # before the scan: a change during it shows
    scanned = scan.scan_folder(folder, show_progress=show_progress, bad_list=cache / "bad.txt")
    if len(scanned.labels) > _MAX_FILES_CHECKED:
        files_digest = None
    fingerprint = packed.fingerprint_of(scanned.classes, vars(scanned))
    columns = _columns_that_say(fingerprint, cache, scanned.classes)
    if columns is None:
        columns = Path(tempfile.mkdtemp(prefix="data-", dir=cache))
        _publish(columns, scanned)
    meta = {
        "version": _VERSION,
        "folder": str(folder),
        "own_classes": scanned.classes,
        "directories": scanned.directories,
        "files_digest": files_digest,
        "fingerprint": fingerprint,
        "left_out": scanned.left_out,
        "data": columns.name,
    }
    # The lock is held: nobody else writes it.
    replace_file(cache / "index.json", lambda file: file.write(json.dumps(meta).encode()))
    for old in cache.glob("data-*"):
        if old != columns and time.time() - old.stat().st_mtime > _KEPT_S:
            shutil.rmtree(old, ignore_errors=True)


def _columns_that_say(fingerprint: str, cache: Path, classes: list[str]) -> Path | None:
    """Today's columns, if they are whole and have that fingerprint."""
    try:
        columns = cache / json.loads((cache / "index.json").read_text())["data"]
        said = packed.fingerprint_of(classes, packed.map_columns(columns, packed.FOLDER_COLUMNS))
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None
    return columns if said == fingerprint else None


def _publish(columns: Path, scanned: scan.ScannedFolder) -> None:
    """Write the columns, durable, and readable for whom the umask allows it."""
    mask = os.umask(0)
    os.umask(mask)
    columns.chmod(0o777 & ~mask)  # mkdtemp's folders are their owner's alone
    for name in packed.FOLDER_COLUMNS:
        with (columns / f"{name}.npy").open("wb") as file:
            np.save(file, getattr(scanned, name))
            file.flush()
            os.fsync(file.fileno())
    sync_folder(columns)


def _digest_if_small(folder: Path) -> str | None:
    listings: list[scan.ClassListing] = []
    num_files = 0
    for name in scan.list_classes(folder):
        listings.append(scan.list_class(folder, name))
        num_files += len(listings[-1].files)
        if num_files > _MAX_FILES_CHECKED:
            return None
    return scan.digest_of_files(folder, listings)
