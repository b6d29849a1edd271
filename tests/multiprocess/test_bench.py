"""The benchmark's verdict where the limit was made on purpose: real files, ranks, cables, cores."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.faults.hosts import network, reason_to_skip
from tests.launch import torchrun

MODULE = "tests.multiprocess.short_bench"
SMALL = ["--config", "quickstart", "dist.device=cpu", "data.train_size=32", "data.eval_size=32"]
SMALL += ["data.eval_resize_size=36", "train.global_batch_size=16"]

pytestmark = pytest.mark.slow


def bench(nproc: int, *settings: str, environment: dict[str, str] | None = None) -> str:
    command = torchrun(nproc, [*SMALL, *settings], module=MODULE)
    variables = {**os.environ, **(environment or {})}
    ended = subprocess.run(command, capture_output=True, text=True, env=variables, check=True)
    return ended.stdout


def test_a_slow_model() -> None:
    assert "the step is the bottleneck" in bench(1, "data.loader=synthetic")


def test_a_slow_loader(tmp_path: Path) -> None:
    """Large photographs for a tiny network."""
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(8):
                pixels = generator.integers(0, 255, (2000, 2000, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{number}.jpg")
    settings = [f"data.root={tmp_path}", "data.loader=torch", "data.num_workers=1", "model.width=8"]
    assert "the loader is the bottleneck" in bench(1, *settings)


def test_one_slow_rank() -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    printed = bench(2, "data.loader=synthetic", environment={"BUSY_RANK": "1"})
    assert "rank 1 on" in printed
    assert "is slow" in printed


def test_a_slow_link(tmp_path: Path) -> None:
    reason = reason_to_skip()
    if reason is not None:
        pytest.skip(reason)
    with network(2) as hosts:
        for host in hosts:
            host.limit(20)
        started = []
        for number, host in enumerate(hosts):
            command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2"]
            command += [f"--node-rank={number}", "--nproc-per-node=1"]
            command += [f"--master-addr={hosts[0].address}", "--master-port=29400", "-m", MODULE]
            command += [*SMALL, "data.loader=synthetic"]
            log = tmp_path / f"log{number}"
            started.append(host.start(command, log=log, environment={"GLOO_SOCKET_IFNAME": "eth0"}))
        assert [each.wait(timeout=250) for each in started] == [0, 0], (
            tmp_path / "log0"
        ).read_text()
    assert "the network is the bottleneck" in (tmp_path / "log0").read_text()
