"""A packed split: tar shards, the index's columns beside them, and dataset.json.

Owns the names and the layout of these files, and reading them. `resnet_dist.prepare` writes them.

    train/dataset.json        what is there; written last, so that it exists only when all else does
    train/train-00000.tar     shards in the WebDataset layout: KEY.jpg, KEY.cls (the label), ...
    train/index/labels.npy    one file a column, one entry a sample, in the order of a folder's
                              index: sorted classes, then sorted files. In the shards the samples
                              lie shuffled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet_dist.errors import UserError

MANIFEST = "dataset.json"
COLUMNS_FOLDER = "index"
WORK_FOLDER = ".prepare"
"""Below a split that is being prepared; removed when it is finished."""
FORMAT = "resnet_dist shards"
VERSION = 1

DTYPES: dict[str, np.dtype[Any]] = {
    "labels": np.dtype(np.int64),
    "heights": np.dtype(np.int32),
    "widths": np.dtype(np.int32),
    "lengths": np.dtype(np.int64),
    "path_bytes": np.dtype(np.uint8),
    "path_offsets": np.dtype(np.int64),
    "shards": np.dtype(np.int32),
    "offsets": np.dtype(np.int64),
}
"""Columns of a packed split; the first six are also those of a folder's index."""
FOLDER_COLUMNS = tuple(DTYPES)[:6]


@dataclass(frozen=True)
class ShardFile:
    """One tar file."""

    name: str
    num_bytes: int
    sha256: str
    num_samples: int


@dataclass(frozen=True)
class Manifest:
    """What dataset.json holds."""

    split: str
    classes: list[str]
    """Names by label: those of this split."""
    num_samples: int
    fingerprint: str
    """What identifies the samples, as `fingerprint_of` computes it."""
    shards: list[ShardFile]
    columns: dict[str, str]
    """sha256 of each column's file."""
    inputs: str
    """Digest of the source's samples and of the options that change what is stored."""
    options: dict[str, Any] = field(default_factory=dict)
    reencoded: dict[str, str] = field(default_factory=dict)
    """Samples that are not stored as they came, with the sha256 of what is stored."""
    damaged: dict[str, str] = field(default_factory=dict)
    """Samples kept although the decoder complained, with its complaint."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Samples left out, with the reason."""
    versions: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """The content of dataset.json."""
        content = {"format": FORMAT, "version": VERSION, **asdict(self)}
        return json.dumps({**content, "sha256": _digest_of(content)}, indent=1) + "\n"


@dataclass(frozen=True)
class Shards:
    """Where each sample of a packed split lies."""

    names: tuple[str, ...]
    num_bytes: tuple[int, ...]
    numbers: NDArray[np.int32]
    """`[N]` number of each sample's shard."""
    offsets: NDArray[np.int64]
    """`[N]` where its bytes begin there; its tar header is the 512 bytes before."""
    layout: str
    """sha256 of the column `numbers`."""
    content: str
    """sha256 over those of all shards."""


def is_packed(folder: Path) -> bool:
    """Whether a split's folder is packed. Raises UserError if it will be, but is not finished."""
    if (folder / MANIFEST).is_file():
        return True
    if (folder / WORK_FOLDER).is_dir():
        raise UserError(
            f"data.root ({folder}): is not prepared to its end (no {MANIFEST}); give the same "
            f"`python -m resnet_dist.prepare` command again, and it goes on"
        )
    return False


def read_manifest(folder: Path) -> Manifest:
    """Read dataset.json. Raises UserError if it is damaged or of another version."""
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text())
        digest = content.pop("sha256", None)  # data sets of before have none
        if digest is not None and digest != _digest_of(content):
            raise damaged(folder, f"{MANIFEST} was changed since it was written")
        if (content.pop("format"), content.pop("version")) != (FORMAT, VERSION):
            raise UserError(
                f"data.root ({path}): was written by another version of resnet_dist; prepare the "
                f"data again, or use that version"
            )
        shards = [ShardFile(**item) for item in content.pop("shards")]
        return Manifest(shards=shards, **content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise damaged(folder, f"{MANIFEST} cannot be read ({error})") from None


def _digest_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def map_columns(folder: Path, names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Columns by name, as read-only arrays on pages that all processes share."""
    return {name: map_column(folder / f"{name}.npy") for name in names}


def map_column(path: Path) -> NDArray[Any]:
    """One column. Raises OSError, or ValueError for a file that is damaged."""
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # NumPy parses a header of Python's syntax: tokens, types, ...
        raise ValueError(f"{path.name}: {type(error).__name__}: {error}") from None
    # As a plain array on the same pages: np.memmap's own indexing costs several times as much.
    return array.view(np.ndarray)


def check_columns(folder: Path, manifest: Manifest, *, check_content: bool) -> None:
    """Raise UserError unless all columns are there, of the right type and length, and with
    `check_content` also with the bytes that were written."""
    expected = dict.fromkeys(DTYPES, manifest.num_samples)
    expected["path_offsets"] += 1
    try:
        columns = map_columns(folder / COLUMNS_FOLDER, DTYPES)
    except (OSError, ValueError) as error:
        raise damaged(folder, f"a column of the index cannot be read ({error})") from None
    expected["path_bytes"] = int(columns["path_offsets"][-1]) if manifest.num_samples else 0
    for name, column in columns.items():
        if column.dtype != DTYPES[name] or column.shape != (expected[name],):
            raise damaged(folder, f"the column {name} of the index is not the one written with it")
    for name, expected_sha256 in manifest.columns.items() if check_content else ():
        with (folder / COLUMNS_FOLDER / f"{name}.npy").open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != expected_sha256:
                raise damaged(folder, f"the column {name} of the index was changed")


def damaged(folder: Path, what: str) -> UserError:
    """The error for a packed split that is not as it was written."""
    return UserError(
        f"data.root ({folder}): {what}; restore the folder from a copy, or prepare it again "
        f"(`python -m resnet_dist.prepare verify {folder.parent}` says what is wrong)"
    )


def fingerprint_of(
    classes: list[str],
    columns: Mapping[str, NDArray[Any]],
    *,
    reencoded: Mapping[str, str] | None = None,
) -> str:
    """What tells a checkpoint whether these are its samples (sha256, hexadecimal): class names and
    the first six columns, that is names, labels, image sizes and lengths in bytes, in order.

    Where the bytes lie does not enter: a packed split has the fingerprint of the folder that it
    was made from, and a run may resume from either. For bytes that came as they are this is no
    weaker than for a folder. Samples that were encoded again are told apart by their content, even
    if the new bytes are as many as the old.
    """
    digest = hashlib.sha256("\0".join(classes).encode(errors="surrogateescape"))
    for name in FOLDER_COLUMNS:
        digest.update(columns[name].data.cast("B"))
    for name, content in sorted((reencoded or {}).items()):
        digest.update(f"\0{name}\0{content}".encode(errors="surrogateescape"))
    return digest.hexdigest()
