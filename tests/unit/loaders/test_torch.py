"""The torch backend's reader processes, and the device stage that all backends share."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from torchvision.transforms import functional as tvf

from resnet_dist.config import Config, DataConfig
from resnet_dist.data.augment.crop import apply_offsets_and_flips
from resnet_dist.data.augment.device_stage import DeviceStage
from resnet_dist.data.batch import BatchSpec, Done
from resnet_dist.data.loaders import torch_backend
from resnet_dist.data.micro_batches import BatchSplit
from resnet_dist.errors import UserError
from resnet_dist.system import workers
from tests.launch import share_fork_server
from tests.loading import CPU, assert_same_batch, open_split, train_batches
from tests.unit.loaders.test_contract import children

SPLIT = BatchSplit(9, 1, 1)


@pytest.fixture
def config(image_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    cache = tmp_path_factory.getbasetemp() / "cache"
    return Config(
        data=DataConfig(root=str(image_root), cache_dir=str(cache), loader="torch", train_size=32)
    )


@pytest.mark.parametrize("is_flipped", [False, True])
def test_offset_and_flip_equal_torchvision(is_flipped: bool) -> None:
    size, padding = 9, 4
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (81, 3, size, size), dtype=np.uint8))
    grid = np.stack(np.meshgrid(range(-4, 5), range(-4, 5), indexing="ij"), -1).reshape(-1, 2)
    offsets, flips = grid.astype(np.int32), rng.random(81) < 0.5
    source = images.clone()
    if is_flipped:
        source[flips] = source[flips].flip(3)
    source = source.permute(0, 2, 3, 1)
    ours = apply_offsets_and_flips(source, offsets, flips, is_flipped=is_flipped)
    padded = tvf.pad(images, [padding], padding_mode="reflect")
    for i, (row, column) in enumerate(offsets.tolist()):
        expected = tvf.crop(padded[i], row + padding, column + padding, size, size)
        expected = tvf.hflip(expected) if flips[i] else expected
        assert torch.equal(ours[i].permute(2, 0, 1), expected)


def test_device_stage_does_what_the_loader_did_not() -> None:
    data = DataConfig()
    images = torch.randint(0, 256, (4, 6, 6, 3), dtype=torch.uint8)
    flips = np.array([True, False, True, False])
    zeros, ids = np.zeros((4, 2), np.int32), np.arange(4)
    spec = BatchSpec(0, ids, ids, zeros, zeros, zeros, None, flips, 6)
    stage = DeviceStage(data, CPU)
    batch = stage(images, spec, Done.CROPPED)
    images[flips] = images[flips].flip(2)
    assert_same_batch(batch, stage(images, spec, Done.FLIPPED))
    assert_same_batch(batch, stage(images, spec, Done.AUGMENTED))
    normalised = batch.images.permute(0, 2, 3, 1).clone()
    assert_same_batch(batch, stage(normalised, spec, Done.NORMALISED))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (data.mean, data.std))
    expected = (images.permute(0, 3, 1, 2) / 255 - mean) / std
    torch.testing.assert_close(batch.images, expected, rtol=1e-5, atol=2e-6)


def read_without_end(config: Config, sender: Connection) -> None:
    share_fork_server()
    for batch in train_batches(config, open_split(config), SPLIT, (0, 10**9), num_workers=1):
        sender.send(batch.step)
        time.sleep(0.01)


@pytest.fixture
def trainer(config: Config) -> Iterator[tuple[BaseProcess, Connection, int]]:
    """A process that reads batches without end and sends their steps, and the id of its worker."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = workers.context().Process(target=read_without_end, args=(config, sender))
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
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


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


def test_too_little_shared_memory(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    index = open_split(config)
    real = os.statvfs("/dev/shm")
    small = os.statvfs_result((1024, 1024, 1, 1, 1, *tuple(real)[5:]))
    monkeypatch.setattr(torch_backend.os, "statvfs", lambda _: small)
    with pytest.raises(UserError, match=r"data.num_workers \(1\): .*/dev/shm.*--shm-size"):
        train_batches(config, index, SPLIT, (0, 1), num_workers=1)
    assert list(train_batches(config, index, SPLIT, (0, 1)))
