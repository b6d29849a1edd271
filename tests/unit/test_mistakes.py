"""The most confident mistakes: which they are, and their pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from resnet_dist.build import eval_loader
from resnet_dist.config.load import load_config
from resnet_dist.data.datasets import sync_open_datasets
from resnet_dist.evaluate.mistakes import (
    TAG,
    Mistake,
    MistakePictures,
    mistakes_of,
    most_confident,
)
from resnet_dist.metrics.null import NullRecorder
from resnet_dist.world import World

WORLD = World(0, 1, 0, 1, torch.device("cpu"))


class Kept(NullRecorder):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.pictures: list[tuple[int, str, torch.Tensor]] = []
        self.messages: list[str] = []

    def images(self, step: int, tag: str, images: torch.Tensor) -> None:
        self.pictures.append((step, tag, images))

    def message(self, text: str) -> None:
        self.messages.append(text)


def test_only_wrong_ones_by_confidence_whatever_the_ranks() -> None:
    logits = torch.tensor([[3.0, 0.0], [0.0, 2.0], [5.0, 0.0], [2.0, 0.0]])
    found = mistakes_of([7, 8, 9, 3], logits, torch.tensor([1, 1, 1, 1]))
    assert [(one.sample_id, one.label, one.predicted) for one in found] == [
        (9, 1, 0),
        (7, 1, 0),
        (3, 1, 0),
    ]
    equal = [Mistake(0.5, number, 0, 1) for number in range(50)]
    assert most_confident(reversed(equal)) == most_confident(equal) == equal[:20]


def shown(root: Path, found: Sequence[Mistake], *, break_it: bool = False) -> Kept:
    settings = [f"data.root={root}", "data.loader=torch", "data.num_workers=1"]
    settings += [
        "data.eval_size=32",
        "data.eval_resize_size=36",
        "eval.batch_size=4",
        "train.global_batch_size=8",
    ]
    config = load_config(["resnet50"], settings).config
    datasets = sync_open_datasets(config, WORLD)
    loader = eval_loader(config, datasets, WORLD)
    if break_it:
        for path in (root / "val").rglob("*.*"):
            path.unlink()
    recorder = Kept()
    MistakePictures(loader, datasets).sync_record(found, 9, recorder, WORLD)
    return recorder


def test_pictures_are_those_of_the_samples(run_root: Path) -> None:
    found = [Mistake(0.9 - number / 10, number, 1, 0) for number in (5, 2, 0, 7, 3)]
    recorder = shown(run_root, found)
    ((step, tag, pictures),) = recorder.pictures
    assert (step, tag) == (9, TAG)
    assert pictures.shape == (4, 3, 96 + 28, 96)  # no more than a batch
    assert not np.array_equal(pictures[0], pictures[1])
    assert shown(run_root, []).pictures == []


def test_a_file_that_has_gone_costs_the_pictures_only(tmp_path: Path, run_root: Path) -> None:
    import shutil

    root = tmp_path / "data"
    shutil.copytree(run_root, root)
    recorder = shown(root, [Mistake(0.9, 0, 1, 0)], break_it=True)
    assert recorder.pictures == []
    assert recorder.messages[0].startswith("note: no pictures of mistakes: ")
