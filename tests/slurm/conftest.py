"""One Slurm for all tests here, and the runs that submitted ones are compared with."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults import traced
from tests.launch import torchrun
from tests.slurm.cluster import Cluster, cluster, reason_to_skip
from tests.slurm.submitted import SETTINGS

NUM_NODES = 4


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Four nodes, two partitions: `low`, the default, which `high` preempts."""
    reason = reason_to_skip()
    if reason:
        pytest.skip(reason)
    with cluster(NUM_NODES, tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory, run_root: Path) -> Callable[[int], Path]:
    """reference(ranks): the folder of the same run under a local torchrun that nothing happens to,
    with the notes of what its steps consumed."""
    folder = tmp_path_factory.mktemp("reference")

    def run(nproc: int) -> Path:
        run_dir = folder / str(nproc)
        if not run_dir.exists():
            (run_dir / "trace").mkdir(parents=True)
            arguments = [*SETTINGS, f"data.root={run_root}", f"run.dir={run_dir}"]
            arguments.append("dist.timeout_s=60")
            ended = subprocess.run(
                torchrun(nproc, arguments, module="tests.faults.traced"),
                env={
                    **os.environ,
                    traced.VARIABLE: str(run_dir / "trace"),
                    "GLOO_SOCKET_IFNAME": "lo",
                },
                capture_output=True,
                text=True,
                timeout=200,
            )
            assert ended.returncode == 0, ended.stderr[-4000:]
        return run_dir

    return run


@pytest.fixture(autouse=True)
def no_job_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that fails leaves no job to the next one."""
    yield
    if "slurm" in request.fixturenames:
        running: Cluster = request.getfixturevalue("slurm")
        running.run("scancel", "--state=PENDING", "--user=root")
        running.run("scancel", "--signal=KILL", "--full", "--user=root", check=False)
        running.run("scancel", "--user=root")
