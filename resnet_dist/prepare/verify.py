"""Is a prepared data set still what was written?

Reads every byte again: shards and columns against their sha256, the shards' members against the
index. Changes nothing.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet_dist.data.index.packed import (
    COLUMNS_FOLDER,
    DTYPES,
    MANIFEST,
    Manifest,
    check_columns,
    fingerprint_of,
    is_packed,
    map_columns,
    read_manifest,
)
from resnet_dist.errors import UserError
from resnet_dist.prepare.progress import Progress
from resnet_dist.prepare.tar_reader import list_members, open_region


def find_splits(folder: Path) -> list[Path]:
    """Packed splits in a folder, or the folder itself. Raises UserError if there is none."""
    if folder.is_dir():
        candidates = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]
        splits = [path for path in candidates if is_packed(path)]
        if splits:
            return splits
    raise UserError(
        f"DIR ({folder}): holds no prepared data set (DIR/train/{MANIFEST}); give the folder that "
        f"`python -m resnet_dist.prepare` wrote"
    )


def verify_split(folder: Path) -> list[str]:
    """What is wrong with it, one sentence each; none if all is well.

    Raises UserError where dataset.json or a column cannot even be read.
    """
    manifest = read_manifest(folder)
    check_columns(folder, manifest, check_content=False)
    columns = map_columns(folder / COLUMNS_FOLDER, DTYPES)
    problems = list(_check_index(folder, manifest, columns))
    order = np.argsort(columns["shards"], kind="stable")
    bounds = np.searchsorted(columns["shards"][order], np.arange(len(manifest.shards) + 1))
    done = num_bytes = 0

    def check(number: int) -> list[str]:
        ids = order[bounds[number] : bounds[number + 1]]
        return list(_check_shard(folder, manifest, number, ids, columns))

    with (
        Progress(folder.name, manifest.num_samples) as progress,
        ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)))) as pool,
    ):
        for number, found in enumerate(pool.map(check, range(len(manifest.shards)))):
            problems += found
            done += manifest.shards[number].num_samples
            num_bytes += manifest.shards[number].num_bytes
            progress.reach(done, num_bytes)
    return problems


def _check_index(
    folder: Path, manifest: Manifest, columns: dict[str, NDArray[Any]]
) -> Iterator[str]:
    for name, sha256 in manifest.columns.items():
        path = folder / COLUMNS_FOLDER / f"{name}.npy"
        if _sha256(path) != sha256:
            yield f"{path}: is not what was written (its sha256 differs)"
    found = fingerprint_of(manifest.classes, columns, reencoded=manifest.reencoded)
    if found != manifest.fingerprint:
        yield f"{folder / MANIFEST}: its fingerprint is not that of the index"
    planned = {shard.name for shard in manifest.shards}
    for path in sorted(folder.glob("*.tar")):
        if path.name not in planned:
            yield f"{path}: belongs to no sample of the index"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class _Entry:
    """A sample as a shard holds it."""

    offset: int
    length: int
    class_name: str


def _check_shard(
    folder: Path,
    manifest: Manifest,
    number: int,
    ids: NDArray[np.int64],
    columns: dict[str, NDArray[Any]],
) -> Iterator[str]:
    shard = manifest.shards[number]
    path = folder / shard.name
    try:
        num_bytes = path.stat().st_size
        if num_bytes != shard.num_bytes:
            yield f"{path}: has {num_bytes} bytes instead of {shard.num_bytes}"
            return
        if _sha256(path) != shard.sha256:
            yield f"{path}: is not what was written (its sha256 differs)"
            return
        entries = {entry.offset: entry for entry in _entries(path)}
    except OSError as error:
        yield f"{path}: cannot be read ({error.strerror})"
        return
    except UserError as error:
        yield str(error)
        return
    if len(entries) != len(ids):
        yield f"{path}: holds {len(entries)} samples, the index {len(ids)}"
    for sample_id in ids.tolist():
        entry = entries.get(int(columns["offsets"][sample_id]))
        if entry is None or entry.length != columns["lengths"][sample_id]:
            yield f"{path}: sample {sample_id} is not where the index says"
        elif entry.class_name != manifest.classes[columns["labels"][sample_id]]:
            yield f"{path}: sample {sample_id} is of the class {entry.class_name} in the shard"


def _entries(path: Path) -> Iterator[_Entry]:
    with open_region(path, "shard") as region:
        members = list_members(region)
        for image, label in zip(members, members, strict=True):
            if image.name.rpartition(".")[0] != label.name.removesuffix(".cls"):
                raise UserError(f"{path}: {image.name} is not followed by its label")
            yield _Entry(image.offset, image.length, image.name.partition("/")[0])
