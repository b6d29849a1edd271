"""The torch and synthetic loaders, their device stage, and how they end."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional as tvf

from resnet_dist.config import DataConfig
from resnet_dist.data.augment.device_stage import DeviceStage, offset_and_flip, to_uint8
from resnet_dist.data.batch import BatchSpec
from resnet_dist.data.loaders import build, torch_loader
from resnet_dist.data.loaders.build import Batch, Index, open_index, train_spec
from resnet_dist.data.micro_batches import BatchSplit
from resnet_dist.errors import UserError
from resnet_dist.system import workers
from tests.launch import share_fork_server

CPU = torch.device("cpu")
WriteImage = Callable[..., None]


@pytest.fixture
def data(image_root: Path, tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    cache = tmp_path_factory.getbasetemp() / "cache"
    return DataConfig(
        root=str(image_root),
        cache_dir=str(cache),
        loader="torch",
        train_size=32,
        eval_size=48,
        eval_resize_size=56,
    )


def open_split(data: DataConfig, split: str = "train") -> Index:
    return open_index(data, split, build=True, show_progress=False)


def train_batches(
    data: DataConfig,
    index: Index | None,
    steps: tuple[int, int],
    *,
    batch_split: BatchSplit,
    rank: int = 0,
    num_workers: int = 0,
) -> list[Batch]:
    loader = build.build_train_loader(
        data, index, batch_split=batch_split, seed=7, rank=rank, device=CPU, num_workers=num_workers
    )
    return list(loader.batches(*steps))


def assert_equal(left: Batch, right: Batch) -> None:
    assert left.step == right.step
    np.testing.assert_array_equal(left.sample_ids, right.sample_ids)
    assert torch.equal(left.labels, right.labels)
    assert torch.equal(left.images, right.images)


@pytest.mark.parametrize("crop", ["random_resized", "pad_reflect"])
def test_a_start_anywhere_equals_the_sequence_from_zero(data: DataConfig, crop: str) -> None:
    data = replace(data, crop=crop)
    index = open_split(data)
    batch_split = BatchSplit(6, 1, 2)
    whole = train_batches(
        data, index, (0, 9), batch_split=batch_split
    )  # over two epochs of 4 steps
    assert [batch.step for batch in whole] == [step for step in range(9) for _ in range(2)]
    for start in (1, 4, 6):
        part = train_batches(data, index, (start, 9), batch_split=batch_split, num_workers=2)
        assert len(part) == len(whole) - 2 * start
        for left, right in zip(part, whole[2 * start :], strict=True):
            assert_equal(left, right)


def test_ranks_divide_the_batch(data: DataConfig) -> None:
    index = open_split(data)
    (whole,) = train_batches(data, index, (5, 6), batch_split=BatchSplit(11, 1, 1))
    parts = [
        train_batches(data, index, (5, 6), batch_split=BatchSplit(11, 3, 1), rank=r)
        for r in range(3)
    ]
    assert torch.equal(torch.cat([part[0].images for part in parts]), whole.images)
    assert [len(part[0].labels) for part in parts] == [3, 4, 4]


def test_batches_are_what_the_model_wants(data: DataConfig) -> None:
    index = open_split(data)
    (batch,) = train_batches(data, index, (0, 1), batch_split=BatchSplit(8, 1, 1), num_workers=1)
    assert batch.images.shape == (8, 3, 32, 32)
    assert batch.images.dtype == torch.float32
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.labels.dtype == torch.int64
    np.testing.assert_array_equal(batch.labels.numpy(), index.labels[batch.sample_ids])


@pytest.mark.parametrize("loader", ["torch", "dali", "synthetic"])
def test_a_smaller_type_is_the_rounded_batch(data: DataConfig, loader: Literal["torch"]) -> None:
    """Rounded last, after erasing and mixing: what autocast would do to the float32 batch."""
    data = replace(data, loader=loader, erase_probability=0.5, mixup_alpha=0.5)
    index = open_split(data) if loader != "synthetic" else None
    batch_split = BatchSplit(8, 1, 1)
    images = [
        train_batches(replace(data, image_dtype=name), index, (0, 1), batch_split=batch_split)[
            0
        ].images
        for name in ("float32", "bfloat16", "float16")
    ]
    for rounded in images[1:]:
        assert torch.equal(images[0].to(rounded.dtype), rounded)
        assert rounded.is_contiguous(memory_format=torch.channels_last)
    assert [batch.dtype for batch in images] == [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("loader", ["torch", "dali", "synthetic"])
def test_padded_batches_have_a_channel_of_zeros(data: DataConfig, loader: Literal["torch"]) -> None:
    data = replace(data, loader=loader, mixup_alpha=0.5, image_dtype="bfloat16")
    index = open_split(data) if loader != "synthetic" else None
    plain, padded = (
        train_batches(
            replace(data, pad_channels=pads), index, (0, 1), batch_split=BatchSplit(8, 1, 1)
        )[0]
        for pads in (False, True)
    )
    assert padded.images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(padded.images[:, :3], plain.images)
    assert padded.images.shape[1] == 4
    assert not padded.images[:, 3].any()
    assert torch.equal(to_uint8(padded.images, data), to_uint8(plain.images, data))


def denormalise(data: DataConfig, images: torch.Tensor) -> torch.Tensor:
    """Back to 0 to 255, float32."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (data.mean, data.std))
    return (images * std + mean) * 255


def imagenet_config(cache: Path) -> DataConfig | None:
    """A root whose splits are the class folders that RESNET_DIST_TEST_IMAGENET names."""
    folder = os.environ.get("RESNET_DIST_TEST_IMAGENET")
    if not folder:
        return None
    (cache / "root").mkdir()
    (cache / "root/train").symlink_to(folder)
    (cache / "root/val").symlink_to(folder)
    return DataConfig(root=str(cache / "root"), cache_dir=str(cache), loader="torch")


@pytest.fixture(params=["generated", "imagenet"])
def parity_data(request: pytest.FixtureRequest, data: DataConfig, tmp_path: Path) -> DataConfig:
    if request.param == "generated":
        return data
    real = imagenet_config(tmp_path)
    if real is None:
        pytest.skip("RESNET_DIST_TEST_IMAGENET does not name a folder of class folders")
    return real


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_evaluation_equals_pillow(parity_data: DataConfig, interpolation: str) -> None:
    data = replace(parity_data, interpolation=interpolation)
    index = open_split(data, "val")
    loader = build.build_eval_loader(
        data, index, batch_size=32, rank=0, world_size=1, device=CPU, num_workers=0
    )
    reference = transforms.Compose(
        [
            transforms.Resize(
                data.eval_resize_size, transforms.InterpolationMode(interpolation), antialias=True
            ),
            transforms.CenterCrop(data.eval_size),
            transforms.PILToTensor(),
        ]
    )
    differences = []
    for batch in loader.batches():
        for i, image in zip(batch.sample_ids, denormalise(data, batch.images), strict=True):
            with Image.open(index.path(i)) as file:
                expected = reference(file.convert("RGB")).float()
            differences.append((image - expected).abs().mean().item())
    assert len(differences) == len(index)
    assert np.mean(differences) <= 0.2
    assert max(differences) < 0.5


def test_training_crops_equal_pillow(parity_data: DataConfig) -> None:
    data = parity_data
    index = open_split(data)
    batch_split = BatchSplit(min(len(index), 64), 1, 1)
    (batch,) = train_batches(data, index, (0, 1), batch_split=batch_split)
    spec = train_spec(data, index, batch_split=batch_split, seed=7, rank=0, step=0, micro_batch=0)
    differences = []
    for row, image in enumerate(denormalise(data, batch.images)):
        with Image.open(index.path(spec.sample_ids[row])) as file:
            crop = tvf.resized_crop(
                file.convert("RGB"), *spec.crop_boxes[row].tolist(), [data.train_size] * 2
            )
        expected = tvf.pil_to_tensor(tvf.hflip(crop) if spec.flips[row] else crop).float()
        differences.append((image - expected).abs().mean().item())
    assert 0 < spec.flips.sum() < len(spec)
    assert np.mean(differences) <= 0.2


@pytest.mark.parametrize("is_flipped", [False, True])
def test_shift_and_flip_equals_torchvision(is_flipped: bool) -> None:
    size, padding = 9, 4
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (81, 3, size, size), dtype=np.uint8))
    grid = np.stack(np.meshgrid(range(-4, 5), range(-4, 5), indexing="ij"), -1).reshape(-1, 2)
    crop_offsets, flips = grid.astype(np.int32), rng.random(81) < 0.5
    source = images.clone()
    if is_flipped:
        source[flips] = source[flips].flip(3)
    ours = offset_and_flip(source.permute(0, 2, 3, 1), crop_offsets, flips, is_flipped=is_flipped)
    padded = tvf.pad(images, [padding], padding_mode="reflect")
    for i, (row, column) in enumerate(crop_offsets.tolist()):
        expected = tvf.crop(padded[i], row + padding, column + padding, size, size)
        expected = tvf.hflip(expected) if flips[i] else expected
        assert torch.equal(ours[i].permute(2, 0, 1), expected)


def test_device_stage_flips_what_the_loader_did_not(data: DataConfig) -> None:
    images = torch.randint(0, 256, (4, 6, 6, 3), dtype=torch.uint8)
    flips = np.array([True, False, True, False])
    zeros = np.zeros((4, 2), np.int32)
    ids = np.arange(4)
    spec = BatchSpec(0, ids, ids, zeros, zeros, zeros, None, flips, 6)
    stage = DeviceStage(data, CPU)
    batch = stage(images, spec, is_flipped=False)
    images[flips] = images[flips].flip(2)
    assert_equal(batch, stage(images, spec, is_flipped=True))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (data.mean, data.std))
    expected = (images.permute(0, 3, 1, 2) / 255 - mean) / std
    torch.testing.assert_close(batch.images, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(("n_workers", "batch_size", "world"), [(0, 5, 1), (1, 5, 2), (0, 50, 3)])
def test_evaluation_reads_every_sample_once(
    data: DataConfig, n_workers: int, batch_size: int, world: int
) -> None:
    index = open_split(data, "val")
    batches: list[Batch] = []
    for rank in range(world):
        loader = build.build_eval_loader(
            data,
            index,
            batch_size=batch_size,
            rank=rank,
            world_size=world,
            device=CPU,
            num_workers=n_workers,
        )
        mine = list(loader.batches())
        assert all(batch.step % world == rank for batch in mine)
        batches += mine
    assert len(batches) == loader.num_batches
    assert sorted(i for batch in batches for i in batch.sample_ids) == list(range(len(index)))


def test_odd_images_decode_as_pillow_does(
    data: DataConfig, tmp_path: Path, write_image: WriteImage
) -> None:
    folder = tmp_path / "data/val/a"
    for mode, name in (("CMYK", "a.JPEG"), ("L", "b.jpg"), ("P", "c.png"), ("RGBA", "d.png")):
        write_image(folder / name, 48, 48, seed=3, mode=mode)
    (folder / "d.png").rename(folder / "e.JPEG")
    pixels = np.arange(48 * 48, dtype=np.uint16).reshape(48, 48) * 28
    Image.fromarray(pixels).save(folder / "f.png")
    data = replace(data, root=str(tmp_path / "data"), eval_resize_size=48)
    index = open_split(data, "val")
    loader = build.build_eval_loader(
        data, index, batch_size=9, rank=0, world_size=1, device=CPU, num_workers=0
    )
    (batch,) = loader.batches()
    images = denormalise(data, batch.images).round().to(torch.uint8)
    for i in range(len(index) - 1):
        with Image.open(index.path(i)) as file:
            assert torch.equal(images[i], tvf.pil_to_tensor(file.convert("RGB"))), index.path(i)
    assert (images[-1, 0].numpy() == pixels >> 8).all()


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("keep", [0.5, 0.999])
def test_a_truncated_image_is_named(
    data: DataConfig,
    image_root: Path,
    tmp_path: Path,
    write_image: WriteImage,
    num_workers: int,
    keep: float,
) -> None:
    root = Path(shutil.copytree(image_root, tmp_path / "data"))
    victim = root / "train/bee/004.jpg"
    write_image(victim, 400, 500, seed=0)
    whole = victim.read_bytes()
    victim.write_bytes(whole[: min(len(whole) - 1, int(keep * len(whole)))])
    data = replace(data, root=str(root))
    index = open_split(data)
    with pytest.raises(UserError) as raised:
        train_batches(data, index, (0, 3), batch_split=BatchSplit(9, 1, 1), num_workers=num_workers)
    message = str(raised.value)
    assert message.startswith(f"data.root ({victim}): truncated or damaged image (")
    assert "\n" not in message
    assert not children()


def test_an_image_of_another_size_is_named(
    data: DataConfig, tmp_path: Path, write_image: WriteImage
) -> None:
    path = tmp_path / "data/val/a/x.png"
    write_image(path, 20, 30, seed=0)
    data = replace(data, root=str(tmp_path / "data"))
    index = open_split(data, "val")
    write_image(path, 30, 20, seed=0)
    index = replace(index, lengths=np.array([path.stat().st_size]))
    loader = build.build_eval_loader(
        data, index, batch_size=9, rank=0, world_size=1, device=CPU, num_workers=0
    )
    with pytest.raises(UserError, match=r"x.png\): changed .* \(30x20 pixels now, 20x30 then\)"):
        list(loader.batches())


def children() -> set[int]:
    """Processes forked from this process's fork server that are alive."""
    server = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    if server is None:
        return set()
    return set(map(int, Path(f"/proc/{server}/task/{server}/children").read_text().split()))


def test_closing_the_generator_ends_its_workers_and_leaves_random_state(data: DataConfig) -> None:
    index = open_split(data)
    loader = build.build_train_loader(
        data, index, batch_split=BatchSplit(9, 1, 1), seed=0, rank=0, device=CPU, num_workers=2
    )
    state = torch.get_rng_state()
    batches = loader.batches(0, 10**9)
    next(batches)
    assert len(children()) >= 2
    batches.close()
    assert not children()
    assert torch.equal(torch.get_rng_state(), state)


def read_without_end(data: DataConfig, sender: Connection) -> None:
    share_fork_server()
    index = open_split(data)
    loader = build.build_train_loader(
        data, index, batch_split=BatchSplit(9, 1, 1), seed=0, rank=0, device=CPU, num_workers=1
    )
    for batch in loader.batches(0, 10**9):
        sender.send(batch.step)
        time.sleep(0.01)


@pytest.fixture
def trainer(data: DataConfig) -> Iterator[tuple[BaseProcess, Connection, int]]:
    """A process that reads batches without end and sends their steps, and the id of its worker."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = workers.context().Process(target=read_without_end, args=(data, sender))
    process.start()
    try:
        assert receiver.recv() == 0
        (reader,) = children() - {process.pid}
        yield process, receiver, reader
    finally:
        process.kill()
        process.join()


def is_alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def test_workers_die_with_a_killed_trainer(trainer: tuple[BaseProcess, Connection, int]) -> None:
    process, _, reader = trainer
    process.kill()
    process.join()
    deadline = time.monotonic() + 10
    while is_alive(reader):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_workers_leave_signals_to_the_trainer(
    trainer: tuple[BaseProcess, Connection, int],
) -> None:
    _, steps, reader = trainer
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        os.kill(reader, number)
    assert [steps.recv() for _ in range(20)] == list(range(1, 21))
    assert is_alive(reader)


def test_synthetic_needs_no_data() -> None:
    data = DataConfig(loader="synthetic", train_size=16, eval_size=16)
    batch_split = BatchSplit(10, 3, 2)
    loader = build.build_train_loader(
        data, None, batch_split=batch_split, seed=0, rank=1, device=CPU, num_workers=1
    )
    assert loader.name == "synthetic"
    assert loader.steps_per_epoch == 128_116
    batches = list(loader.batches(3, 5))
    assert [(batch.step, len(batch.labels)) for batch in batches] == [
        (3, 2),
        (3, 2),
        (4, 2),
        (4, 2),
    ]
    assert torch.equal(batches[0].images, batches[3].images)
    assert batches[0].images.is_contiguous(memory_format=torch.channels_last)
    assert abs(batches[0].images.mean().item()) < 0.5
    evaluation = build.build_eval_loader(
        data, None, batch_size=30_000, rank=1, world_size=2, device=CPU, num_workers=1
    )
    assert evaluation.num_batches == 2
    (batch,) = evaluation.batches()
    assert (batch.step, len(batch.labels)) == (1, 20_000)


def test_choice_of_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    assert build.choose_loader(DataConfig(), CPU) == "torch"
    assert build.choose_loader(DataConfig(loader="synthetic"), CPU) == "synthetic"
    monkeypatch.setattr(build, "_is_dali_installed", lambda: False)
    sentence = r"data.loader \(.*\): NVIDIA DALI is not installed; install .*data.loader=torch"
    with pytest.raises(UserError, match=sentence):
        build.choose_loader(DataConfig(loader="dali"), CPU)
    with pytest.raises(UserError, match=sentence):
        build.choose_loader(DataConfig(), torch.device("cuda", 0))


def test_too_little_shared_memory(data: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    index = open_split(data)
    real = os.statvfs("/dev/shm")
    small = os.statvfs_result((1024, 1024, 1, 1, 1, *tuple(real)[5:]))
    monkeypatch.setattr(torch_loader.os, "statvfs", lambda _: small)
    with pytest.raises(UserError, match=r"data.num_workers \(1\): .*/dev/shm.*--shm-size"):
        train_batches(data, index, (0, 1), batch_split=BatchSplit(9, 1, 1), num_workers=1)
    assert train_batches(data, index, (0, 1), batch_split=BatchSplit(9, 1, 1))
