"""The place of a process in a job, from Slurm's variables."""

from __future__ import annotations

import pytest

from launch.node.task import FIRST_PORT, NUM_PORTS, SlurmTask

VARIABLES = {
    "SUBMITIT_EXECUTOR": "slurm",  # from the batch script
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NUM_NODES": "3",
    "SLURM_NODEID": "1",
    "SLURM_JOB_NODELIST": "node[09-10],gpu3",
    "SLURM_RESTART_COUNT": "2",
    "SLURM_JOB_END_TIME": "1700000000",
}


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The variables of a task of Slurm."""
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURMD_NODENAME", raising=False)
    return monkeypatch


def test_a_task_of_slurm(slurm: pytest.MonkeyPatch) -> None:
    task = SlurmTask.from_environment()
    assert task == SlurmTask("4711", 2, 1, ("node09", "node10", "gpu3"), "node10", 1.7e9)
    slurm.setenv("SLURMD_NODENAME", "node10-ib")
    assert SlurmTask.from_environment().host == "node10-ib"


def test_what_old_slurms_do_not_set(slurm: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_RESTART_COUNT", "SLURM_JOB_END_TIME"):
        slurm.delenv(name)
    task = SlurmTask.from_environment()
    assert (task.restart, task.end_time) == (0, None)


def test_without_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    task = SlurmTask.from_environment()
    assert (task.is_local, task.port, task.hosts) == (True, 0, ("localhost",))
    assert SlurmTask.local("machine").hosts == ("machine",)


def test_jobs_and_attempts_have_ports_of_their_own() -> None:
    ports = [
        SlurmTask(str(job), restart, 0, ("a",), "a").port
        for job in (100, 101)
        for restart in range(5)
    ]
    assert len(set(ports)) == len(ports)
    assert all(FIRST_PORT <= port < FIRST_PORT + NUM_PORTS for port in ports)
