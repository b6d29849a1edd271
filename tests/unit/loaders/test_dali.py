"""The DALI loader: what it yields, what it refuses, and how it ends."""

from __future__ import annotations

import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import resnet_dist
from resnet_dist.config import DataConfig
from resnet_dist.data.loaders import build
from resnet_dist.data.loaders.build import Batch, Index, open_index
from resnet_dist.data.micro_batches import BatchSplit
from resnet_dist.data.read import decode
from resnet_dist.errors import UserError

pytest.importorskip("nvidia.dali", reason="DALI is not installed")

CPU = torch.device("cpu")
WriteImage = Callable[..., None]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def data(image_root: Path, tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    cache = tmp_path_factory.getbasetemp() / "cache"
    return DataConfig(
        root=str(image_root),
        cache_dir=str(cache),
        loader="dali",
        train_size=32,
        eval_size=48,
        eval_resize_size=56,
    )


def open_split(data: DataConfig, split: str = "train") -> Index:
    return open_index(data, split, build=True, show_progress=False)


def iterate_train(
    data: DataConfig,
    index: Index,
    steps: tuple[int, int],
    *,
    batch_split: BatchSplit,
    rank: int = 0,
    device: torch.device = CPU,
) -> Iterator[Batch]:
    loader = build.build_train_loader(
        data, index, batch_split=batch_split, seed=7, rank=rank, device=device, num_workers=2
    )
    assert loader.name == "dali"
    return loader.batches(*steps)


def iterate_eval(
    data: DataConfig, *, batch_size: int, rank: int = 0, world: int = 1
) -> list[Batch]:
    loader = build.build_eval_loader(
        data,
        open_split(data, "val"),
        batch_size=batch_size,
        rank=rank,
        world_size=world,
        device=CPU,
        num_workers=1,
    )
    return list(loader.batches())


def num_threads() -> int:
    """Threads of this process, DALI's own included."""
    return len(list(Path("/proc/self/task").iterdir()))


def wait_for_threads(wanted: int) -> None:
    """Threads take a moment to end after they were told to."""
    deadline = time.monotonic() + 10
    while num_threads() > wanted and time.monotonic() < deadline:
        time.sleep(0.01)
    assert num_threads() <= wanted, threading.enumerate()


def assert_equal(left: Batch, right: Batch) -> None:
    assert left.step == right.step
    np.testing.assert_array_equal(left.sample_ids, right.sample_ids)
    assert torch.equal(left.labels, right.labels)
    assert torch.equal(left.images, right.images)


@pytest.mark.parametrize("crop", ["random_resized", "pad_reflect"])
def test_a_start_anywhere_equals_the_sequence_from_zero(data: DataConfig, crop: Any) -> None:
    data = replace(data, crop=crop)
    index = open_split(data)
    batch_split = BatchSplit(7, 1, 2)  # micro-batches of 3 and 4
    whole = list(
        iterate_train(data, index, (0, 7), batch_split=batch_split)
    )  # over two epochs of 3 steps
    assert [batch.step for batch in whole] == [step for step in range(7) for _ in range(2)]
    for start in (2, 5):
        part = list(iterate_train(data, index, (start, 7), batch_split=batch_split))
        for left, right in zip(part, whole[2 * start :], strict=True):
            assert_equal(left, right)


def test_ranks_divide_the_batch(data: DataConfig) -> None:
    index = open_split(data)
    (whole,) = iterate_train(data, index, (5, 6), batch_split=BatchSplit(11, 1, 1))
    parts = [
        next(iterate_train(data, index, (5, 6), batch_split=BatchSplit(11, 3, 1), rank=rank))
        for rank in range(3)
    ]
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)


def test_batches_are_what_the_model_wants(data: DataConfig) -> None:
    index = open_split(data)
    batch = next(iterate_train(data, index, (0, 1), batch_split=BatchSplit(8, 1, 1)))
    assert batch.images.shape == (8, 3, 32, 32)
    assert batch.images.dtype == torch.float32
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_array_equal(batch.labels.numpy(), index.labels[batch.sample_ids])


def test_a_flip_is_an_exact_mirror_image(data: DataConfig) -> None:
    index = open_split(data)
    batch_split = BatchSplit(27, 1, 1)
    plain, mirrored = (
        next(
            iterate_train(replace(data, flip_probability=p), index, (0, 1), batch_split=batch_split)
        ).images
        for p in (0.0, 1.0)
    )
    difference = (plain - mirrored.flip(3)).abs() * min(255 * s for s in data.std)
    assert difference.mean() < 0.01  # of 255: a value may be rounded the other way
    assert difference.max() < 1.1


@pytest.mark.parametrize(("batch_size", "world"), [(5, 1), (5, 2), (50, 3)])
def test_evaluation_reads_every_sample_once(data: DataConfig, batch_size: int, world: int) -> None:
    batches: list[Batch] = []
    for rank in range(world):
        mine = iterate_eval(data, batch_size=batch_size, rank=rank, world=world)
        assert all(batch.step % world == rank for batch in mine)
        batches += mine
    assert sorted(i for batch in batches for i in batch.sample_ids) == list(range(12))


@pytest.mark.parametrize("keep", [0.5, 0.999])
def test_a_truncated_image_is_named_after_the_batches_before_it(
    data: DataConfig, image_root: Path, tmp_path: Path, keep: float
) -> None:
    root = Path(shutil.copytree(image_root, tmp_path / "data"))
    data = replace(data, root=str(root), crop_scale=(0.08, 0.1))  # crop_boxes seldom reach the end
    batch_split = BatchSplit(3, 1, 1)
    ids = next(iterate_train(data, open_split(data), (5, 6), batch_split=batch_split)).sample_ids
    victim = Path(open_split(data).path(ids[1]))
    whole = victim.read_bytes()
    victim.write_bytes(whole[: min(len(whole) - 1, int(keep * len(whole)))])
    batches = iterate_train(data, open_split(data), (0, 9), batch_split=batch_split)
    assert [next(batches).step for _ in range(5)] == list(range(5))
    with pytest.raises(UserError) as raised:
        next(batches)
    message = str(raised.value)
    assert message.startswith(f"data.root ({victim}): truncated or damaged image (")
    assert "\n" not in message


def test_damage_that_only_dali_sees_is_named(
    data: DataConfig, image_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(shutil.copytree(image_root, tmp_path / "data"))
    victim = root / "val/bee/001.jpg"
    victim.write_bytes(victim.read_bytes()[:-300])
    monkeypatch.setattr(decode, "make_plain", lambda encoded, *_: encoded)
    data = replace(data, root=str(root))
    open_split(data, "val")
    before = num_threads()
    truncated = re.escape(f"{victim}): truncated or damaged image (")
    with pytest.raises(UserError, match=truncated) as first:
        iterate_eval(data, batch_size=5)
    monkeypatch.setattr(decode, "decode_rgb", lambda *_: None)
    only_dali = re.escape(f"{victim}): DALI cannot decode this image")
    with pytest.raises(UserError, match=only_dali) as second:
        iterate_eval(data, batch_size=5)
    wait_for_threads(before)  # although the tracebacks are alive: see `_Stream.next_output`
    assert first.tb is not second.tb


@pytest.mark.parametrize("factor", [1, 2])
def test_an_image_of_another_size_is_named(
    data: DataConfig, tmp_path: Path, write_image: WriteImage, factor: int
) -> None:
    path = tmp_path / "data/val/a/x.jpg"
    write_image(path, 20, 30, seed=0)
    data = replace(data, root=str(tmp_path / "data"))
    index = open_split(data, "val")
    write_image(path, 30 * factor, 20 * factor, seed=0)
    index = replace(index, lengths=np.array([path.stat().st_size]))
    loader = build.build_eval_loader(
        data, index, batch_size=9, rank=0, world_size=1, device=CPU, num_workers=1
    )
    with pytest.raises(UserError, match=r"x.jpg\): changed since the index was built"):
        list(loader.batches())


def test_closing_the_generator_ends_pipeline_and_threads(data: DataConfig) -> None:
    index = open_split(data)
    list(
        iterate_train(data, index, (0, 1), batch_split=BatchSplit(9, 1, 1))
    )  # DALI keeps a few for good
    before, names_before = num_threads(), {thread.name for thread in threading.enumerate()}
    batches = iterate_train(data, index, (0, 10**9), batch_split=BatchSplit(9, 1, 1))
    next(batches)
    assert num_threads() > before
    batches.close()  # type: ignore[attr-defined]
    wait_for_threads(before)
    assert {thread.name for thread in threading.enumerate()} <= names_before


def test_an_unread_loader_starts_nothing(data: DataConfig) -> None:
    index = open_split(data)
    before = threading.active_count()
    iterate_train(data, index, (0, 10**9), batch_split=BatchSplit(9, 1, 1))
    assert threading.active_count() == before


def test_missing_dali_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "resnet_dist.data.loaders.dali_pipeline", raising=False)
    monkeypatch.delitem(sys.modules, "resnet_dist.data.loaders.dali_loader", raising=False)
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(UserError, match=r"data\.loader \(dali\).*install.*data\.loader=torch"):
        import resnet_dist.data.loaders.dali_loader  # noqa: F401


def test_one_file_imports_dali() -> None:
    package = Path(resnet_dist.__file__).parent
    importing = [
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if re.search(r"^\s*(import|from) nvidia", path.read_text(), re.MULTILINE)
    ]
    assert importing == ["data/loaders/dali_pipeline.py"]


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("crop", ["random_resized", "pad_reflect"])
def test_gpu_batches_equal_those_of_the_cpu(data: DataConfig, crop: Any) -> None:
    data = replace(data, crop=crop)
    index = open_split(data)
    batch_split = BatchSplit(9, 1, 1)
    device = torch.device("cuda", 0)
    on_gpu = list(iterate_train(data, index, (0, 6), batch_split=batch_split, device=device))
    on_cpu = list(iterate_train(data, index, (0, 6), batch_split=batch_split))
    for left, right in zip(on_gpu, on_cpu, strict=True):
        assert left.images.device == device
        assert left.images.is_contiguous(memory_format=torch.channels_last)
        np.testing.assert_array_equal(left.sample_ids, right.sample_ids)
        assert torch.equal(left.labels.cpu(), right.labels)
        difference = (left.images.cpu() - right.images).abs() * 255 * max(data.std)
        assert difference.mean() < 0.5  # of 255: nvJPEG's inverse transform is not libjpeg's
