"""The moment at which a prepared split exists: its index columns, then dataset.json.

Owns putting the records of all shards together, in the order of a folder's index.
"""

from __future__ import annotations

import hashlib
import io
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet_dist.data.index.packed import (
    COLUMNS_FOLDER,
    DTYPES,
    MANIFEST,
    Manifest,
    ShardFile,
    fingerprint_of,
)
from resnet_dist.prepare.samples import Split
from resnet_dist.prepare.shards import Record, Task
from resnet_dist.system.files import replace_file


def commit(split: Split, tasks: list[Task], records: list[Record], inputs: str) -> Manifest:
    """Write the index and dataset.json of a split whose shards are all made. Raises OSError.

    A kill before the last rename leaves a split that does not count as prepared; the next call
    keeps the shards and comes here again.
    """
    columns = make_columns(split, records)
    folder = tasks[0].folder
    (folder / COLUMNS_FOLDER).mkdir(exist_ok=True)
    hashes = {}
    for name, column in columns.items():
        content = io.BytesIO()
        np.save(content, column)
        hashes[name] = hashlib.sha256(content.getbuffer()).hexdigest()
        path = folder / COLUMNS_FOLDER / f"{name}.npy"
        replace_file(path, lambda file, content=content: file.write(content.getbuffer()))  # type: ignore[misc]
    reencoded = _joined(record.reencoded for record in records)
    manifest = Manifest(
        split=split.name,
        classes=split.classes,
        num_samples=len(columns["labels"]),
        fingerprint=fingerprint_of(split.classes, columns, reencoded=reencoded),
        shards=[
            ShardFile(task.name, record.num_bytes, record.sha256, len(record.ids))
            for task, record in zip(tasks, records, strict=True)
        ],
        columns=hashes,
        inputs=inputs,
        options=asdict(tasks[0].options) | asdict(tasks[0].policy),
        reencoded=reencoded,
        damaged=_joined(record.damaged for record in records),
        skipped=_joined(record.bad for record in records),
        versions={name: version(name) for name in ("torchvision", "pillow", "numpy")}
        | {"python": platform.python_version()},
    )
    replace_file(folder / MANIFEST, lambda file: file.write(manifest.to_json().encode()))
    return manifest


def _joined(parts: Any) -> dict[str, str]:
    merged: dict[str, str] = {}
    for part in parts:
        merged.update(part)
    return dict(sorted(merged.items()))


def make_columns(split: Split, records: list[Record]) -> Mapping[str, NDArray[Any]]:
    """All columns, in the order of the samples; those left out are missing."""
    ids = np.concatenate([np.array(record.ids, np.int64) for record in records])
    order = np.argsort(ids)
    kept = [split.samples[i] for i in ids[order].tolist()]
    names = [os.fsencode(sample.name) for sample in kept]
    columns: dict[str, Any] = {
        "labels": [sample.label for sample in kept],
        "path_bytes": np.frombuffer(b"".join(names), np.uint8),
        "path_offsets": np.cumsum([0, *(len(name) for name in names)]),
        "shards": np.repeat(np.arange(len(records)), [len(r.ids) for r in records])[order],
    }
    for name in ("heights", "widths", "lengths", "offsets"):
        joined = np.concatenate([np.array(getattr(r, name), np.int64) for r in records])
        columns[name] = joined[order]
    return {name: np.asarray(columns[name], dtype) for name, dtype in DTYPES.items()}
