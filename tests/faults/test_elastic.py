"""Hosts are lost, cut off, and come back: the run goes on, with the samples and the losses of an
uninterrupted one. One torchrun agent a host, hosts with networks of their own, one file system."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.faults import traced
from tests.faults.hosts import INTERFACE, Host, network, reason_to_skip
from tests.faults.traced import samples_by_step, trace
from tests.faults.waiting import wait_until
from tests.launch import TINY, losses, records, records_so_far, torchrun

pytestmark = [pytest.mark.usefixtures("can_make_hosts"), pytest.mark.timeout(420)]

STEPS_PER_EPOCH, NUM_STEPS = 8, 32
TIMEOUT_S = 10
SETTINGS = [
    *TINY,
    "train.epochs=4",
    # Low, so that over 32 steps rounding, which depends on the number of ranks, stays rounding.
    "optim.lr=0.005",
    "performance.num_threads=1",
    "data.num_workers=1",
    "checkpoint.every_steps=2",
    f"dist.timeout_s={TIMEOUT_S}",
]
RENDEZVOUS = {
    "join_timeout": 120,
    "last_call_timeout": 2,
    "keep_alive_interval": 1,
    "keep_alive_max_attempt": 5,
}
"""Much less patient than the defaults, so that the tests are short."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, write_image: Callable[..., None]) -> Path:
    """210 training and 6 validation JPEGs of 3 classes: 8 steps of 26 an epoch, 2 dropped."""
    root = tmp_path_factory.mktemp("elastic_root")
    for split, count in (("train", 70), ("val", 2)):
        for label, name in enumerate(("ant", "bee", "cat")):
            for i in range(count):
                seed = label * 1000 + i + (500 if split == "val" else 0)
                write_image(root / split / name / f"{i:03d}.jpg", 32, 40, seed=seed)
    return root


@pytest.fixture(scope="module")
def uninterrupted(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two ranks that nothing happens to: `run` and `trace` below it."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    arguments = [*SETTINGS, f"data.root={root}", f"run.dir={folder / 'run'}"]
    arguments.append("dist.timeout_s=60")  # nothing restarts it if the machine is slow
    command = torchrun(2, arguments, module="tests.faults.traced")
    (folder / "trace").mkdir()
    environment = {traced.VARIABLE: str(folder / "trace"), "GLOO_SOCKET_IFNAME": "lo"}
    ended = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=200
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    assert len(losses(folder / "run")) == NUM_STEPS
    return folder


class BatchSpec:
    """An elastic training, an agent a host, all in one run folder."""

    def __init__(
        self, hosts: list[Host], root: Path, folder: Path, *, nodes: str, keeper: int
    ) -> None:
        """`keeper`: the host whose agent keeps the state of the rendezvous; it must survive."""
        self.folder, self.hosts, self._root, self._nodes = folder, hosts, root, nodes
        self._keeper = keeper
        self._agents: dict[int, subprocess.Popen[bytes]] = {}
        (folder / "trace").mkdir()

    def start(self, number: int) -> None:
        """Start the agent of a host."""
        host, is_keeper = self.hosts[number], number == self._keeper
        settings = {**RENDEZVOUS, "is_host": int(is_keeper)}  # the host name is the same on all
        command = [sys.executable, "-m", "torch.distributed.run"]
        command += [f"--nnodes={self._nodes}", "--nproc_per_node=1", "--max-restarts=10"]
        command += ["--rdzv-backend=c10d", "--rdzv-id=night", f"--local-addr={host.address}"]
        command += [f"--rdzv-endpoint={self.hosts[self._keeper].address}:29400"]
        command += ["--rdzv-conf=" + ",".join(f"{k}={v}" for k, v in settings.items())]
        command += ["-m", "tests.faults.traced", *SETTINGS]
        command += [f"data.root={self._root}", f"run.dir={self.folder / 'run'}"]
        environment = {
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
            "GLOO_SOCKET_IFNAME": INTERFACE,
            "RESNET_DIST_FAILPOINT": "step.begin@1-=sleep:0.5",
            traced.VARIABLE: str(self.folder / "trace"),
        }
        log = self.folder / f"host{number}.log"
        self._agents[number] = host.start(command, log=log, environment=environment)

    def start_all(self) -> None:
        """Start the agents of all hosts, and see all of them train."""
        began = time.time()
        for number in range(len(self.hosts)):
            self.start(number)
        self.wait_for_training(len(self.hosts), since=began)
        wait_until(lambda: self.step() >= 5, what="step 5", timeout_s=60)

    def lose(self, number: int) -> None:
        """Kill the agent of a host with SIGKILL, and see that nothing of it lives on."""
        agent = self._agents.pop(number)
        agent.kill()
        agent.wait()
        wait_until(
            lambda: not self.hosts[number].processes(),
            what="the workers of a killed agent are gone",
            timeout_s=10,
        )

    def finish(self) -> None:
        """Wait for the end of all agents that are left. All must have succeeded."""
        codes = [agent.wait(200) for agent in self._agents.values()]
        assert codes == [0] * len(codes), self.output()

    def output(self) -> str:
        """The last of what each host said."""
        logs = sorted(self.folder.glob("host*.log"))
        return "\n".join(f"{log.name}: {log.read_text()[-5000:]}" for log in logs)

    def step(self) -> int:
        """The last step recorded."""
        return max((record["step"] for record in records_so_far(self.folder / "run")), default=0)

    def wait_for_training(self, world_size: int, *, since: float) -> float:
        """Wait for a step of that many ranks that started after the time `since`.

        Returns the seconds from then to the record of the first such step.
        """
        found: list[float] = []

        def is_training() -> bool:
            starts = [
                line["time"]
                for line in trace(self.folder)
                if line["world_size"] == world_size and line["time"] > since
            ]
            times = [record["time"] for record in records_so_far(self.folder / "run")]
            found[:] = [t for t in times if starts and t > min(starts)]
            return bool(found)

        try:
            wait_until(is_training, what=f"training with {world_size} ranks", timeout_s=150)
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.output()}") from None
        return min(found) - since


def assert_as_undisturbed(folder: Path, uninterrupted: Path) -> None:
    """The same samples and losses, step by step, and no sample twice in an epoch."""
    steps = [record["step"] for record in records(folder / "run") if "train/loss" in record]
    assert steps == list(range(1, NUM_STEPS + 1))
    assert losses(folder / "run") == pytest.approx(losses(uninterrupted / "run"), rel=1e-4)
    samples = samples_by_step(folder)
    assert samples == samples_by_step(uninterrupted)
    assert list(samples) == list(range(NUM_STEPS))
    bounds = range(0, NUM_STEPS + 1, STEPS_PER_EPOCH)
    for first, end in pairwise(bounds):
        ids = [i for step in range(first, end) for i in samples[step]]
        assert len(set(ids)) == len(ids) == STEPS_PER_EPOCH * 26


def report(what: str, seconds: float) -> None:
    """Print a time to recover, for those who run with -s or read docs/benchmarks."""
    print(f"\nelastic: {what}: {seconds:.1f} s")


@pytest.fixture(scope="module")
def can_make_hosts() -> None:
    """Skips where hosts cannot be made."""
    reason = reason_to_skip()
    if reason:
        pytest.skip(reason)


@pytest.fixture
def elastic(root: Path, tmp_path: Path) -> Iterator[Callable[..., BatchSpec]]:
    """elastic(hosts, nodes=MIN:MAX): a job; its hosts and their processes go with the test."""
    with contextlib.ExitStack() as stack:

        def make(count: int, *, nodes: str, keeper: int = 0) -> BatchSpec:
            hosts = stack.enter_context(network(count))
            return BatchSpec(hosts, root, tmp_path, nodes=nodes, keeper=keeper)

        yield make


@pytest.mark.slow
def test_a_host_is_killed_and_comes_back(
    elastic: Callable[..., BatchSpec], uninterrupted: Path
) -> None:
    """Two hosts, then one alone, then two again."""
    job = elastic(2, nodes="1:2")
    job.start_all()
    lost = time.time()
    job.lose(1)
    report("2 hosts, one killed, to the next step", job.wait_for_training(1, since=lost))
    back = time.time()
    job.start(1)
    report("it is started again, to the next step of both", job.wait_for_training(2, since=back))
    job.finish()
    # No step was lost on the way up: the survivor's worker saved before it made room.
    assert "stopped at step" in (job.folder / "host0.log").read_text()
    assert_as_undisturbed(job.folder, uninterrupted)


@pytest.mark.slow
def test_a_host_is_killed_and_stays_away(
    elastic: Callable[..., BatchSpec], uninterrupted: Path
) -> None:
    job = elastic(2, nodes="1:2")
    job.start_all()
    lost = time.time()
    job.lose(1)
    report("2 hosts, one killed, to the next step", job.wait_for_training(1, since=lost))
    job.finish()
    assert_as_undisturbed(job.folder, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_the_cable_of_a_host_is_pulled_and_plugged_in_again(
    elastic: Callable[..., BatchSpec], uninterrupted: Path, rank: int
) -> None:
    """Both sides wait for each other until they time out. One goes on alone, the other comes back.

    Rank 0 that is cut off owns the run folder until then: the file system is still there."""
    job = elastic(2, nodes="1:2", keeper=1 - rank)
    job.start_all()
    cut = time.time()
    job.hosts[rank].cut()
    report(f"rank {rank} cut off, to the next step", job.wait_for_training(1, since=cut))
    time.sleep(max(0.0, cut + 2 * TIMEOUT_S - time.time()))
    mended = time.time()
    job.hosts[rank].mend()
    report("it is back, to the next step of both", job.wait_for_training(2, since=mended))
    job.finish()
    assert_as_undisturbed(job.folder, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 2])
def test_one_of_three_hosts_is_killed(
    elastic: Callable[..., BatchSpec], uninterrupted: Path, rank: int
) -> None:
    """Without rank 0's host, another becomes rank 0, and all must learn its new address."""
    job = elastic(3, nodes="2:3", keeper=1)
    job.start_all()
    lost = time.time()
    job.lose(rank)
    report(f"3 hosts, rank {rank} killed, to the next step", job.wait_for_training(2, since=lost))
    job.finish()
    assert_as_undisturbed(job.folder, uninterrupted)
