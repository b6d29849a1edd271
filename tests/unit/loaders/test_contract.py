"""What every loader promises, whatever makes its batches."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from resnet_dist.config import AugmentConfig, Config, DataConfig
from resnet_dist.data.batch import Batch
from resnet_dist.data.index.index import Index
from resnet_dist.data.index.synthetic import SyntheticIndex
from resnet_dist.data.micro_batches import BatchSplit
from resnet_dist.errors import UserError
from tests.loading import (
    assert_same_batch,
    change,
    datasets_of,
    eval_loader,
    open_split,
    train_batches,
    train_loader,
)

WriteImage = Callable[..., None]
READING = ["torch", "dali", "memory"]
BACKENDS = [*READING, "synthetic"]
SIDE = 32


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory, write_image: WriteImage) -> Path:
    """27 training and 12 validation images of one size, which every backend can read."""
    root = tmp_path_factory.mktemp("squares")
    for split, count in (("train", 27), ("val", 12)):
        for i in range(count):
            path = root / split / "abc"[i % 3] / f"{i:03d}.jpg"
            write_image(path, SIDE, SIDE, seed=i + 100 * len(split))
    return root


@pytest.fixture
def loader(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def config(loader: Any, squares: Path) -> Config:
    """That the backend can read `squares` with."""
    if loader == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    data = DataConfig(
        root=str(squares),
        cache_dir=str(squares / "cache"),
        loader=loader,
        train_size=SIDE,
        eval_size=SIDE - 8,
        eval_resize_size=SIDE,
    )
    return Config(data=data, augment=AugmentConfig(crop="pad_reflect"))


def opened(config: Config, split: str = "train") -> Index | SyntheticIndex:
    if config.data.loader == "synthetic":
        return SyntheticIndex(27 if split == "train" else 12, 3)
    return open_split(config, split)


def read(config: Config, split: BatchSplit, steps: tuple[int, int], **kwargs: Any) -> list[Batch]:
    return list(train_batches(config, opened(config), split, steps, **kwargs))


def children() -> set[int]:
    """Processes forked from this process's fork server that are alive."""
    server = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    return {child.pid for child in psutil.Process(server).children()} if server else set()


def num_threads() -> int:
    """Threads of this process, also those that Python does not know."""
    return psutil.Process().num_threads()


def wait_for_threads(wanted: int) -> None:
    """Threads take a moment to end after they were told to."""
    deadline = time.monotonic() + 10
    while num_threads() > wanted and time.monotonic() < deadline:
        time.sleep(0.01)
    assert num_threads() <= wanted, threading.enumerate()


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("loader", BACKENDS, indirect=True)
def test_a_start_anywhere_equals_the_sequence_from_zero(
    config: Config, loader: str, num_workers: int
) -> None:
    crops = ["pad_reflect"] if loader == "memory" else ["pad_reflect", "random_resized"]
    for crop in crops:
        config = change(config, crop=crop)
        split = BatchSplit(7, 1, 2)  # micro-batches of 3 and 4
        whole = read(config, split, (0, 7))  # over two epochs of 3 steps
        assert [batch.step for batch in whole] == [step for step in range(7) for _ in range(2)]
        for start in (1, 3, 5):
            late = read(config, split, (start, 7), num_workers=num_workers)
            for left, right in zip(late, whole[2 * start :], strict=True):
                assert_same_batch(left, right)
        assert not read(config, split, (3, 3))


@pytest.mark.parametrize("loader", BACKENDS, indirect=True)
def test_samples_are_those_of_the_order(config: Config, loader: str) -> None:
    index = opened(config)
    order = datasets_of(config, index, global_batch_size=8).order
    for batch in read(config, BatchSplit(8, 1, 1), (0, 7)):
        assert batch.sample_ids.tolist() == order.sample_ids(batch.step).tolist()
        if loader != "synthetic":
            np.testing.assert_array_equal(batch.labels.numpy(), index.labels[batch.sample_ids])


@pytest.mark.parametrize("loader", READING, indirect=True)
def test_ranks_divide_the_batch(config: Config) -> None:
    (whole,) = read(config, BatchSplit(11, 1, 1), (5, 6))
    parts = [read(config, BatchSplit(11, 3, 1), (5, 6), rank=rank)[0] for rank in range(3)]
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
    assert [len(part.labels) for part in parts] == [3, 4, 4]


@pytest.mark.parametrize("loader", BACKENDS, indirect=True)
def test_batches_are_what_the_model_wants(config: Config) -> None:
    (batch,) = read(config, BatchSplit(8, 1, 1), (0, 1), num_workers=1)
    assert batch.images.shape == (8, 3, SIDE, SIDE)
    assert batch.images.dtype == torch.float32
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.labels.dtype == torch.int64
    assert abs(batch.images.mean().item()) < 0.7


@pytest.mark.parametrize(("batch_size", "world"), [(5, 1), (5, 2), (50, 3)])
@pytest.mark.parametrize("loader", BACKENDS, indirect=True)
def test_evaluation_reads_every_sample_once(config: Config, batch_size: int, world: int) -> None:
    batches: list[Batch] = []
    for rank in range(world):
        evaluation = eval_loader(
            config,
            opened(config, "val"),
            batch_size,
            rank=rank,
            world_size=world,
            num_workers=rank % 2,
        )
        mine = list(evaluation.batches())
        assert all(batch.step % world == rank for batch in mine)
        assert all(batch.images.shape[2:] == (SIDE - 8, SIDE - 8) for batch in mine)
        batches += mine
    assert len(batches) == evaluation.num_batches
    assert sorted(i for batch in batches for i in batch.sample_ids) == list(range(12))


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("keep", [0.5, 0.999])
@pytest.mark.parametrize("loader", READING, indirect=True)
def test_a_truncated_image_is_named(
    config: Config, squares: Path, tmp_path: Path, loader: str, num_workers: int, keep: float
) -> None:
    root = Path(shutil.copytree(squares, tmp_path / "data"))
    config = change(config, root=str(root), cache_dir=str(tmp_path / "cache"))
    if loader != "memory":
        config = change(config, crop="random_resized", crop_scale=(0.08, 0.1))
    split = BatchSplit(3, 1, 1)
    (before,) = read(config, split, (5, 6))
    victim = Path(open_split(config).path(before.sample_ids[1]))
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    Image.fromarray(noise).save(victim)  # more pixels than header
    whole = victim.read_bytes()
    victim.write_bytes(whole[: min(len(whole) - 1, int(keep * len(whole)))])
    steps: list[int] = []

    def read_to_the_end() -> None:
        index = open_split(config)
        for batch in train_batches(config, index, split, (0, 9), num_workers=num_workers):
            steps.append(batch.step)

    with pytest.raises(UserError) as raised:
        read_to_the_end()
    assert steps == ([] if loader == "memory" else list(range(5)))
    message = str(raised.value)
    assert message.startswith(f"data.root ({victim}): truncated or damaged image (")
    assert "\n" not in message
    assert not children()


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("loader", ["torch", "dali"], indirect=True)
def test_an_image_of_another_size_is_named(
    config: Config, tmp_path: Path, write_image: WriteImage, factor: int
) -> None:
    path = tmp_path / "data/val/a/x.jpg"
    write_image(path, 20, 30, seed=0)
    config = change(config, root=str(tmp_path / "data"), cache_dir=str(tmp_path / "cache"))
    index = open_split(config, "val")
    write_image(path, 30 * factor, 20 * factor, seed=0)
    index = replace(index, lengths=np.array([path.stat().st_size]))
    now = f"{30 * factor}x{20 * factor}"
    with pytest.raises(UserError, match=rf"x.jpg\): changed .* \({now} pixels now, 20x30 then\)"):
        list(eval_loader(config, index, 9).batches())


@pytest.mark.parametrize("loader", BACKENDS, indirect=True)
def test_closing_the_generator_ends_everything_and_leaves_random_state(
    config: Config, loader: str
) -> None:
    split = BatchSplit(9, 1, 1)
    read(config, split, (0, 1))  # DALI keeps a few threads for good
    built = train_loader(config, opened(config), split, num_workers=2)
    before, names = num_threads(), {thread.name for thread in threading.enumerate()}
    state = torch.get_rng_state()
    with contextlib.closing(built.batches(0, 10**9)) as batches:
        # Nothing is started before it is needed.
        assert {thread.name for thread in threading.enumerate()} == names
        assert not children()
        next(batches)
        assert len(children()) == (2 if loader == "torch" else 0)
        assert num_threads() > before or loader != "dali"
    assert not children()
    wait_for_threads(before)
    assert {thread.name for thread in threading.enumerate()} <= names
    assert torch.equal(torch.get_rng_state(), state)
