"""A disk that is really full: a small tmpfs is the run folder."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.waiting import wait_until
from tests.launch import assert_same_run, newest_checkpoint, train

SETTINGS = ["checkpoint.every_steps=2", "checkpoint.keep_last=1", "log.tensorboard=false"]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """mount(KiB): a file system of that size. Skips where we may not mount."""
    mounted: list[Path] = []

    def make(kib: int) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
        if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
            pytest.skip("needs root and the right to mount a tmpfs")
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def whole(uninterrupted: Callable[[int, str], Path]) -> Path:
    return uninterrupted(2, "torch")


def fill(folder: Path) -> Path:
    """Take all the space that is left."""
    path = folder / "someone_elses_file"
    with path.open("wb", buffering=0) as file:
        for size in (2**16, 4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue
    return path


def test_a_disk_that_fills_up_costs_nothing_but_checkpoints(
    mount: Callable[[int], Path], whole: Path, run_root: Path, tmp_path: Path
) -> None:
    """It fills up at step 6 and has room again from step 14 on: the run ends as if
    uninterrupted."""
    disk = mount(8192)
    run_dir = disk / "run"
    log = tmp_path / "log"  # not on the disk that fills up
    seen: list[int] = []

    def disturb() -> None:
        path = run_dir / "checkpoints" / "step_00000006.pt"
        wait_until(path.exists, what="a checkpoint of step 6")
        path = fill(disk)
        wait_until(
            lambda: log.exists() and log.read_text().count("cannot be written") >= 2,
            what="two saves that fail",
        )
        seen.extend(
            int(p.stem.removeprefix("step_")) for p in run_dir.glob("checkpoints/step_*.pt")
        )
        path.unlink()

    slow = {"RESNET_DIST_FAILPOINT": "step.begin@1-=sleep:0.3"}
    thread = threading.Thread(target=disturb)
    thread.start()
    ended = train(2, run_root, run_dir, *SETTINGS, environment=slow, log=log)
    thread.join()
    assert seen, "the newest good checkpoint was never deleted"
    assert "the older ones are untouched" in ended.output
    assert "free some space there" in ended.output
    assert_same_run(whole, run_dir)


@pytest.mark.slow
def test_full_to_the_end_is_an_error_that_says_what_to_do(
    mount: Callable[[int], Path], whole: Path, run_root: Path, tmp_path: Path
) -> None:
    disk = mount(8192)
    run_dir = disk / "run"
    train(2, run_root, run_dir, *SETTINGS, "train.max_steps=4", log=tmp_path / "first")
    before = (run_dir / "metrics.jsonl").read_bytes()
    filled: list[Path] = []
    log = tmp_path / "second"

    def disturb() -> None:
        wait_until((run_dir / "starts.jsonl").exists, what="a start")
        wait_until(lambda: log.exists() and "step 5/" in log.read_text(), what="step 5")
        filled.append(fill(disk))

    thread = threading.Thread(target=disturb)
    thread.start()
    ended = train(
        2,
        run_root,
        run_dir,
        *SETTINGS,
        "checkpoint.max_failures=3",
        environment={"RESNET_DIST_FAILPOINT": "step.begin@1-=sleep:0.3"},
        check=False,
        log=log,
    )
    thread.join()
    assert ended.codes == [2, 2]
    assert "Traceback" not in ended.output
    assert "that is as many as checkpoint.max_failures allows, so the run stops" in ended.output
    assert "free some space there and start the same command again" in ended.output
    kept = newest_checkpoint(run_dir)["step"]
    assert kept >= 4
    assert (run_dir / "metrics.jsonl").read_bytes().startswith(before)
    filled[0].unlink()
    train(2, run_root, run_dir, *SETTINGS, log=tmp_path / "third")
    assert_same_run(whole, run_dir)


def test_too_small_from_the_start_is_rejected_before_the_first_step(
    mount: Callable[[int], Path], run_root: Path, tmp_path: Path
) -> None:
    disk = mount(1024)
    ended = train(1, run_root, disk / "run", *SETTINGS, check=False, log=tmp_path / "log")
    assert ended.codes == [2]
    assert "GiB are free, and the checkpoints need" in ended.output
    assert not list((disk / "run").glob("checkpoints/step_*"))
