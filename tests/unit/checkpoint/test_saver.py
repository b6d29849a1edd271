"""Saving in the background: order, errors, and a state that changes while it is written."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from resnet_dist.checkpoint import saver as saver_module
from resnet_dist.checkpoint.files import decode_checkpoint, read_verified
from resnet_dist.checkpoint.manager import CheckpointManager
from resnet_dist.checkpoint.saver import BackgroundSaver, Snapshots
from resnet_dist.config import CheckpointConfig
from resnet_dist.errors import UserError


class Records:
    """Stands for the recorder: can be made to wait or fail."""

    def __init__(self) -> None:
        self.may_flush = threading.Event()
        self.may_flush.set()
        self.error: OSError | None = None
        self.flushed = 0

    def flush(self) -> None:
        assert self.may_flush.wait(20)
        if self.error is not None:
            raise self.error
        self.flushed += 1


class Setup:
    def __init__(self, folder: Path, *, max_failures: int = 3) -> None:
        self.manager = CheckpointManager(folder, CheckpointConfig(keep_last=2))
        self.manager.open()
        self.records = Records()
        self.told: list[str] = []
        self.weight = torch.zeros(1000)
        self.saver = BackgroundSaver(
            self.manager,
            device=torch.device("cpu"),
            max_failures=max_failures,
            flush_records=self.records.flush,
            describe_next_batch=lambda step: {"next_batch": f"digest {step}"},
            tell=self.told.append,
        )

    def payload(self) -> dict[str, Any]:
        return {"model": {"weight": self.weight}, "plain": [1, (2.0, "x")]}

    def save(self, step: int, *, is_best: bool = False) -> None:
        self.weight.fill_(step)
        self.saver.save(self.payload(), step=step, is_best=is_best)

    def value(self, name: str) -> float:
        path = self.manager.folder / name
        weight: torch.Tensor = decode_checkpoint(read_verified(path), path)["model"]["weight"]
        assert len(set(weight.tolist())) == 1
        return float(weight[0])


@pytest.fixture
def setup(tmp_path: Path) -> Iterator[Setup]:
    made = Setup(tmp_path)
    yield made
    made.records.may_flush.set()
    made.saver.close()


def test_the_state_may_change_as_soon_as_save_returns(setup: Setup) -> None:
    setup.records.may_flush.clear()
    setup.save(1)
    setup.weight.fill_(99)
    setup.saver.poll()
    assert setup.manager.steps() == [], "nothing is committed before the records are durable"
    setup.records.may_flush.set()
    setup.saver.finish()
    assert setup.value("step_00000001.pt") == 1
    loaded = torch.load(setup.manager.path(1), weights_only=True)
    assert loaded["next_batch"] == "digest 1"
    assert loaded["plain"] == [1, (2.0, "x")]
    assert set(setup.saver.read_times()) == {"blocked_ms", "write_s"}
    assert setup.saver.read_times() == {}


def test_saves_commit_in_order_one_at_a_time(setup: Setup) -> None:
    for step in range(1, 6):
        setup.save(step, is_best=step == 2)
    setup.saver.finish()
    assert setup.manager.steps() == [4, 5]
    assert [setup.value(name) for name in ("step_00000004.pt", "step_00000005.pt")] == [4, 5]
    assert setup.value("best.pt") == 2


def test_a_file_system_that_hangs_does_not_stop_the_training(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saver_module, "LONGEST_WAIT_S", 0.05)
    setup.records.may_flush.clear()
    setup.save(1)
    setup.save(2)
    assert "no checkpoint of step 2: the one of step 1 is still being written" in setup.told[0]
    setup.records.may_flush.set()
    setup.saver.finish()
    assert setup.manager.steps() == [1]


def test_a_full_disk_is_reported_and_does_not_end_the_run(setup: Setup) -> None:
    setup.save(1)
    setup.saver.finish()
    setup.records.error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for failures in (1, 2):
        setup.save(10 + failures, is_best=True)
        with pytest.raises(UserError, match="the last one, cannot be written"):
            setup.saver.finish()
        assert f"{failures} of 3 failures" in setup.told[-1]
        assert "best.pt stays as it was" in setup.told[-1]
        assert "free some space" in setup.told[-1]
    assert not setup.saver.has_given_up
    assert setup.manager.steps() == [1]
    setup.records.error = None
    setup.save(20)
    setup.saver.finish()
    assert setup.manager.steps() == [1, 20]
    setup.records.error = OSError(errno.EIO, os.strerror(errno.EIO))
    for step in (31, 32, 33):
        assert not setup.saver.has_given_up
        setup.save(step)
        with pytest.raises(UserError, match=r"resumes from step 20"):
            setup.saver.finish()
    assert setup.saver.has_given_up
    assert "so the run stops" in setup.told[-1]
    assert setup.value("step_00000020.pt") == 20


def test_an_error_that_is_no_fault_of_the_disk_is_raised(setup: Setup) -> None:
    setup.saver.save({"model": lambda: None}, step=1, is_best=False)
    with pytest.raises(Exception, match="pickle"):
        setup.saver.finish()


def test_a_trial_checkpoint_is_written_and_deleted(setup: Setup, tmp_path: Path) -> None:
    line = setup.saver.probe(setup.payload())
    assert line.startswith("checkpoints: 0.0 MiB, written in ")
    assert list(setup.manager.folder.iterdir()) == []
    blocked = Setup(tmp_path / "other")
    blocked.manager.folder.rmdir()
    with pytest.raises(UserError, match="a trial checkpoint cannot be written"):
        blocked.saver.probe(blocked.payload())
    blocked.saver.close()


def test_closing_waits_for_the_writer_and_keeps_its_error(
    setup: Setup, capsys: pytest.CaptureFixture[str]
) -> None:
    setup.records.error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    setup.save(1)
    setup.saver.close()
    assert "checkpoint of step 1" in capsys.readouterr().err


def test_snapshots_keep_the_layout_and_use_their_memory_again() -> None:
    snapshots = Snapshots(torch.device("cpu"))
    image = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    first = snapshots.take({"a": image, "b": [image, {"c": torch.tensor(3)}]})
    assert first["a"].stride() == image.stride()
    assert torch.equal(first["a"], image)
    pointers = first["a"].data_ptr(), first["b"][0].data_ptr()
    second = snapshots.take({"a": image + 1, "b": [image, {"c": torch.tensor(4)}]})
    assert (second["a"].data_ptr(), second["b"][0].data_ptr()) == pointers
    assert torch.equal(second["a"], image + 1)
    assert second["b"][1]["c"] == 4
    third = snapshots.take({"a": torch.zeros(5)})
    assert third["a"].shape == (5,)
