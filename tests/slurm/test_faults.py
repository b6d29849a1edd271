"""What a cluster does to a job: it is preempted, loses nodes and networks, and ends up with the
weights of an uninterrupted run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.traced import trace
from tests.faults.waiting import wait_until
from tests.slurm.cluster import Cluster
from tests.slurm.submitted import Submitted, assert_bit_for_bit, submit

pytestmark = pytest.mark.timeout(420)

Reference = Callable[[int], Path]
Start = Callable[..., Submitted]

SLOW_S = 0.5
TRAINING = r"^\S+ -u -m (tests.faults.traced|launch.node.agent) "
"""What the command lines of torchrun and of workers begin with."""


@pytest.fixture
def start(slurm: Cluster, tmp_path: Path, run_root: Path) -> Start:
    """start(*options): a run of two nodes with a rank each that has done a few of its steps."""

    def run(*options: str) -> Submitted:
        submitted = submit(slurm, tmp_path / "run", run_root, "--nodes=2", *options, slow_s=SLOW_S)
        submitted.wait_for_step(3)
        return submitted

    return run


def report(what: str, run: Submitted, since: float, *, count: int = 2) -> None:
    """Print how long it took from a fault to the next step, and what was lost; for those who run
    with -s, and for docs/benchmarks. `count`: starts of the training so far, with that one."""
    wait_until(lambda: len(_starts(run)) >= count, what="it is started again", timeout_s=120)
    again = _starts(run)[-1]

    def lines(*, after: bool) -> list[dict[str, Any]]:
        return [x for x in trace(run.run_dir) if (x["time"] > again["time"]) == after]

    wait_until(lambda: bool(lines(after=True)), what="its next step", timeout_s=60)
    done = max(line["step"] for line in lines(after=False)) + 1
    steps = min(line["time"] for line in lines(after=True))
    placed = [moment for moment in _times(run, "start") if moment > since]
    where = f"{placed[0] - since:.1f} s until it is placed again, " if placed else ""
    print(
        f"\nslurm: {what}: {where}{steps - since:.1f} s until its next step, "
        f"{done - again['step']:.0f} steps begun and lost"
    )


def _starts(run: Submitted) -> list[dict[str, float]]:
    """Time and step of the first record of each start."""
    found = []
    path = run.run_dir / "starts.jsonl"
    for line in path.read_text().splitlines():
        start = json.loads(line)
        moment = time.mktime(time.strptime(start["time"][:19], "%Y-%m-%dT%H:%M:%S"))
        found.append({"time": moment, "step": start["step"]})
    return found


def _times(run: Submitted, event: str) -> list[float]:
    """When node 0 noted an event, over all attempts."""
    found = []
    for path in sorted(run.run_dir.glob("attempts/*/node0.jsonl")):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        found += [line["time"] for line in lines if line["event"] == event]
    return found


def push_aside(slurm: Cluster) -> str:
    """A job of the partition that preempts, on all nodes, for a few seconds. Its number."""
    words = ["sbatch", "--parsable", "--partition=high", "--nodes=4", "--exclusive"]
    return slurm.run(*words, "--output=/dev/null", "--wrap=sleep 3").stdout.strip()


@pytest.mark.slow
def test_preempted_with_a_warning(slurm: Cluster, start: Start, reference: Reference) -> None:
    run = start()
    at = time.time()
    push_aside(slurm)
    run.wait_for_restart(1)
    report("preempted, user signal, 10 s of grace", run, at)
    run.wait_for_end()
    first, last = run.reasons()
    assert "stopped: preempted (SIGUSR2)" in first
    assert last.startswith("finished")
    assert_bit_for_bit(run, reference(2))


@pytest.fixture
def policy(slurm: Cluster) -> Iterator[Callable[[bool, int], None]]:
    """policy(user_signal, grace_s): how the cluster preempts from now on."""

    def change(has_user_signal: bool, grace_s: int) -> None:
        slurm.configure(has_user_signal=has_user_signal, grace_s=grace_s)

    yield change
    slurm.configure()


@pytest.mark.slow
@pytest.mark.parametrize(("has_user_signal", "grace_s"), [(True, 0), (False, 10), (False, 0)])
def test_preempted_under_other_policies(
    slurm: Cluster,
    start: Start,
    reference: Reference,
    policy: Callable[[bool, int], None],
    has_user_signal: bool,
    grace_s: int,
) -> None:
    """Less time to save in, or no warning."""
    policy(has_user_signal, grace_s)
    run = start()
    at = time.time()
    push_aside(slurm)
    run.wait_for_restart(1)
    report(f"preempted, user signal {has_user_signal}, {grace_s} s of grace", run, at)
    run.wait_for_end()
    first, last = run.reasons()
    assert first.startswith("stopped"), first
    assert last.startswith("finished")
    assert_bit_for_bit(run, reference(2))


@pytest.mark.slow
def test_preempted_where_slurm_cancels(slurm: Cluster, start: Start, reference: Reference) -> None:
    """PreemptMode=CANCEL: Slurm would not run the job again. A finished run leaves no job behind,
    and a cancelled one is not taken for a preempted one (tests/slurm/test_jobs.py)."""
    run = start("--partition=fragile")
    at = time.time()
    push_aside(slurm)
    run.wait_for_restart(1)
    report("preempted, PreemptMode=CANCEL", run, at)
    run.wait_for_end()
    first, last = run.reasons()
    assert first.startswith("stopped"), first
    assert last.startswith("finished")
    assert_bit_for_bit(run, reference(2))
    assert slurm.run("squeue", "--noheader").stdout.split() == []


@pytest.mark.slow
def test_requeued_by_an_operator(slurm: Cluster, start: Start, reference: Reference) -> None:
    run = start()
    at = time.time()
    slurm.run("scontrol", "requeue", run.job_id)
    run.wait_for_restart(1)
    report("scontrol requeue", run, at)
    run.wait_for_end()
    assert "SIGTERM" in run.reasons()[0]
    assert_bit_for_bit(run, reference(2))


@pytest.mark.slow
def test_a_worker_and_then_an_agent_is_killed(
    slurm: Cluster, start: Start, reference: Reference
) -> None:
    """torchrun starts workers again within the attempt; without torchrun Slurm starts the job."""
    run = start()
    at = time.time()
    slurm.node("node2").kill(r"^\S+ -u -m tests.faults.traced ")
    report("a worker killed", run, at)
    run.wait_for_step(run.step() + 2)
    assert slurm.restarts(run.job_id) == 0
    status = run.status()
    assert status["num_restarts"] == 1
    assert "exitcode: -9" in str(status["attempts"][0]["restart_reasons"])

    at = time.time()
    slurm.node("node2").kill(r"^\S+ -u -m launch.node.agent ")
    run.wait_for_restart(1)
    report("an agent killed", run, at, count=3)
    run.wait_for_end()
    first, last = run.reasons()
    assert first == "failed: torchrun on node2 was killed by SIGKILL"
    assert last.startswith("finished")
    assert_bit_for_bit(run, reference(2))


def lose_power(slurm: Cluster, start: Start, reference: Reference, number: int, what: str) -> None:
    """Cut the power of one of the job's nodes; it is placed on others."""
    run = start()
    at = time.time()
    name = run.hosts()[0][number]
    slurm.node(name).power_off()
    try:
        run.wait_for_restart(1)
        report(what, run, at)
        run.wait_for_end()
    finally:
        slurm.node(name).power_on()
        slurm.wait_for_nodes("idle", name, timeout_s=60)
    first, second = run.hosts()
    assert name in first
    assert name not in second
    assert run.reasons()[0].startswith(f"lost: {name} left no record"), run.reasons()
    assert_bit_for_bit(run, reference(2))


@pytest.mark.slow
def test_the_power_of_a_node_is_cut(slurm: Cluster, start: Start, reference: Reference) -> None:
    lose_power(slurm, start, reference, 1, "power of a node cut")


@pytest.mark.slow
def test_the_power_of_the_batch_host_is_cut(
    slurm: Cluster, start: Start, reference: Reference
) -> None:
    lose_power(slurm, start, reference, 0, "power of the batch host cut")


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_a_cable_is_pulled_and_comes_back(
    slurm: Cluster, start: Start, reference: Reference, number: int
) -> None:
    """The old task lives on behind the cut, sees the new attempt, and writes nothing more."""
    run = start()
    at = time.time()
    name = run.hosts()[0][number]
    machine = slurm.node(name)
    assert machine.count(TRAINING) >= 2
    machine.host.cut()
    try:
        run.wait_for_restart(1)
        report(f"cable of node {number} of the job pulled", run, at)
        assert machine.count(TRAINING) == 0, "a newer attempt has begun, so what was cut off ended"
    finally:
        machine.host.mend()
    run.wait_for_end()
    slurm.wait_for_nodes("idle", name, timeout_s=60)
    assert name not in run.hosts()[1]
    assert_bit_for_bit(run, reference(2))


@pytest.mark.slow
def test_a_bad_node_is_named_and_left_out(
    slurm: Cluster, tmp_path: Path, run_root: Path, reference: Reference
) -> None:
    """One that sees an empty folder where the others see the data."""
    machine = slurm.node("node2")
    machine.run("mount", "-t", "tmpfs", "none", str(run_root / "train"))
    try:
        run = submit(slurm, tmp_path / "run", run_root, "--nodes=2")
        run.wait_for_end()
    finally:
        machine.run("umount", str(run_root / "train"))
    first, second = run.status()["attempts"]
    assert first["outcome"] == "failed"
    assert first["reason"] == f"preflight: node2: {run_root / 'train'}: is empty"
    assert first["excluded"] == ["node2"]
    assert "node2" not in second["hosts"]
    assert_bit_for_bit(run, reference(2))


@pytest.mark.slow  # of the same kind as two runs of the sweep
def test_a_run_that_cannot_work_is_given_up(slurm: Cluster, tmp_path: Path, run_root: Path) -> None:
    """Not requeued without end: bad input at once."""
    run = submit(slurm, tmp_path / "run", run_root, "--nodes=1", "model.num_classes=2")
    run.wait_for_end("FAILED")
    (reason,) = run.reasons()
    assert reason.startswith("refused: rank 0 on ")
    assert "model.num_classes (2): the data has 3 classes" in reason
    assert [path.name for path in (run.run_dir / "attempts").iterdir()] == ["001.000"]
