"""The main job as users start it: torchrun, shipped configs, real images, real kill -9. Slow."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.launch import assert_same_run, losses, newest_checkpoint, records, torchrun

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture
def imagenet_root(real_images: Path, tmp_path: Path) -> Path:
    """train/ and val/ of photographs."""
    root = tmp_path / "imagenet"
    root.mkdir()
    for split in ("train", "val"):
        (root / split).symlink_to(real_images)
    return root


def test_resnet50_with_dali_is_killed_and_resumed(imagenet_root: Path, tmp_path: Path) -> None:
    """configs/resnet50.yaml in bfloat16 with sync batch norm; a small batch, to save time."""

    def arguments(run_dir: Path) -> list[str]:
        return torchrun(
            2,
            [
                "--config",
                "resnet50",
                f"data.root={imagenet_root}",
                "data.loader=dali",
                f"run.dir={run_dir}",
                "train.global_batch_size=16",
                "train.max_steps=5",
                "checkpoint.every_steps=2",
                "log.every_steps=1",
            ],
        )

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(arguments(whole), check=True)
    with subprocess.Popen(arguments(killed), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "step 3/" in line:
                break
        children = ["ps", "-o", "pid=", "--ppid", str(process.pid)]
        workers = subprocess.run(children, capture_output=True, text=True, check=True).stdout
        for pid in workers.split():
            os.kill(int(pid), signal.SIGKILL)
        process.stdout.read()
    assert process.returncode != 0
    assert newest_checkpoint(killed)["step"] == 2
    subprocess.run(arguments(killed), check=True)
    assert_same_run(whole, killed)
    assert len(losses(whole)) == 5


def test_the_embedded_default_on_eight_ranks(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    subprocess.run(
        torchrun(8, [f"run.dir={run_dir}", "train.max_steps=4", "log.every_steps=2"]), check=True
    )
    assert [record["step"] for record in records(run_dir)] == [2, 4]
