"""Training from shards is training from the folder they were made of."""

from __future__ import annotations

import pickle
import resource
from collections.abc import Callable, Generator, Iterable
from pathlib import Path

import numpy as np
import pytest

from resnet_dist.config import Config
from resnet_dist.data.batch import Batch
from resnet_dist.data.micro_batches import BatchSplit
from resnet_dist.data.read import store
from resnet_dist.data.read.store import ShardStore, open_store
from resnet_dist.prepare.__main__ import main
from tests.launch import assert_same_run, train
from tests.loading import (
    assert_same_batch,
    both_splits,
    change,
    eval_loader,
    open_split,
    train_batches,
)


@pytest.fixture(scope="module")
def packed_root(image_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed")
    assert main(["folder", str(image_root), f"--out={out}", "--samples-per-shard=4"]) == 0
    return out


@pytest.fixture(scope="module")
def real_roots(real_images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = both_splits(tmp_path_factory.mktemp("real"), real_images)
    arguments = ["folder", str(root), f"--out={root / 'packed'}", "--samples-per-shard=100"]
    assert main(arguments) == 0
    return root, root / "packed"


def config(root: Path, cache: Path, loader: str = "auto") -> Config:
    small = change(root=str(root), cache_dir=str(cache), loader=loader, train_size=32)
    return change(small, eval_size=48, eval_resize_size=56)


def batches(
    config: Config, *, num_workers: int, batch_size: int, steps: tuple[int, int]
) -> Generator[Batch, None, None]:
    split = BatchSplit(batch_size, 1, 2)
    return train_batches(config, open_split(config), split, steps, num_workers=num_workers)


def assert_equal_batches(left: Iterable[Batch], right: Iterable[Batch]) -> None:
    for one, other in zip(left, right, strict=True):
        assert_same_batch(one, other)


@pytest.mark.parametrize(("loader", "num_workers"), [("torch", 0), ("torch", 2), ("dali", 2)])
def test_the_same_samples_and_pixels(
    image_root: Path, packed_root: Path, tmp_path: Path, loader: str, num_workers: int
) -> None:
    both = [config(root, tmp_path, loader) for root in (image_root, packed_root)]
    arguments = {"num_workers": num_workers, "batch_size": 7, "steps": (2, 8)}
    assert_equal_batches(*(batches(one, **arguments) for one in both))
    evaluations = (
        eval_loader(one, open_split(one, "val"), 5, num_workers=num_workers) for one in both
    )
    assert_equal_batches(*(evaluation.batches() for evaluation in evaluations))


@pytest.mark.parametrize("loader", ["torch", "dali"])
def test_the_same_samples_and_pixels_of_real_images(
    real_roots: tuple[Path, Path], tmp_path: Path, loader: str
) -> None:
    both = (config(root, tmp_path, loader) for root in real_roots)
    arguments = {"num_workers": 0, "batch_size": 16, "steps": (0, 2)}
    assert_equal_batches(*(batches(one, **arguments) for one in both))


def test_a_run_goes_on_from_shards(image_root: Path, packed_root: Path, tmp_path: Path) -> None:
    """Half from the folder, half from shards: bit for bit the run that used the folder alone."""
    small = ["train.epochs=2", "train.global_batch_size=12", "checkpoint.every_steps=2"]
    train(1, image_root, tmp_path / "whole", *small)
    train(1, image_root, tmp_path / "parts", *small, "train.max_steps=3")
    train(1, packed_root, tmp_path / "parts", *small)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_an_index_and_a_store_travel_without_their_columns(
    packed_root: Path, tmp_path: Path
) -> None:
    index = open_split(config(packed_root, tmp_path))
    opened = open_store(index)
    expected = opened.read(np.arange(27))
    sent = pickle.dumps(opened)
    assert len(sent) < 3000
    again = pickle.loads(sent)
    assert isinstance(again, ShardStore)
    for left, right in zip(again.read(np.arange(27)), expected, strict=True):
        np.testing.assert_array_equal(left, right)


def open_descriptors(folder: Path) -> int:
    """Shards below a folder that this process has open."""
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        try:
            target = link.readlink()
            count += target.is_relative_to(folder) and target.suffix == ".tar"
        except FileNotFoundError:
            continue
    return count


def test_shards_are_opened_once_when_they_are_needed(packed_root: Path, tmp_path: Path) -> None:
    index = open_split(config(packed_root, tmp_path))
    opened = open_store(index)
    assert index.shards is not None
    assert open_descriptors(packed_root) == 0
    same_shard = np.flatnonzero(index.shards.numbers == 2)
    opened.read(same_shard)
    assert open_descriptors(packed_root) == 1
    for _ in range(3):
        opened.read(np.arange(27))
    assert open_descriptors(packed_root) == 7
    del opened
    assert open_descriptors(packed_root) == 0


def test_few_descriptors_are_enough(
    packed_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store.resource, "getrlimit", lambda _: (6, 6))
    index = open_split(config(packed_root, tmp_path))
    opened = open_store(index)
    monkeypatch.undo()
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 6
    read = opened.read(np.arange(27))
    assert open_descriptors(packed_root) == 3
    assert [len(one) for one in read] == index.lengths.tolist()


def test_damaged_columns_are_refused(tmp_path: Path, image_root: Path) -> None:
    for number, spoil in enumerate(SPOIL):
        out = tmp_path / str(number)
        assert main(["folder", str(image_root), f"--out={out}"]) == 0
        spoil(out / "train")
        with pytest.raises(ValueError, match=r"data.root \(.*prepare"):
            open_split(config(out, tmp_path))


SPOIL: list[Callable[[Path], object]] = [
    lambda folder: (folder / "index/labels.npy").unlink(),
    lambda folder: np.save(folder / "index/labels.npy", np.zeros(26, np.int64)),
    lambda folder: np.save(folder / "index/labels.npy", np.zeros(27, np.int32)),
    lambda folder: (folder / "dataset.json").write_text("{}"),
    lambda folder: (folder / "dataset.json").write_text("[1"),
    lambda folder: (folder / "dataset.json").write_text(
        (folder / "dataset.json").read_text().replace('"bee"', '"bed"')
    ),
    lambda folder: (folder / "dataset.json").write_text(
        (folder / "dataset.json").read_text().replace('"version": 1', '"version": 2')
    ),
]


def test_any_flipped_bit_in_a_columns_header_is_refused(tmp_path: Path, image_root: Path) -> None:
    out = tmp_path / "out"
    assert main(["folder", str(image_root), f"--out={out}"]) == 0
    path = out / "train/index/lengths.npy"
    whole = path.read_bytes()
    for at in range(128):
        for bit in range(0, 8, 3):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
            with pytest.raises(ValueError, match=r"data.root \(.*prepare"):
                open_split(config(out, tmp_path))
