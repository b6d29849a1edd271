"""What the tests of packing share: reading what was packed, and the images of ImageNet in small."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from resnet_dist.config import DataConfig
from resnet_dist.data.index.index import Index, open_index

Prepare = Callable[..., tuple[int, str]]
"""Calls the entry point: (exit code, what it said)."""


def open_split(out: Path, split: str = "train", classes: list[str] | None = None) -> Index:
    data = DataConfig(root=str(out), cache_dir=str(out.parent / "cache"))
    return open_index(data, split, build=True, show_progress=False, classes=classes)


def split_images(contents: list[bytes], wnids: list[str]) -> tuple[dict[str, list[bytes]], list]:
    """Training images by class, and a fifth for validation."""
    train: dict[str, list[bytes]] = {wnid: [] for wnid in wnids}
    val = []
    for i, content in enumerate(contents):
        if i % 5 == 4:
            val.append((wnids[i * 3 % len(wnids)], content))
        else:
            train[wnids[i % len(wnids)]].append(content)
    return train, val
