"""The job: what each Slurm task, one a node, does with the help of torchrun.

`TrainJob` is what submitit carries to the nodes. On each it sets or heeds the fence, takes part in
the preflight, runs torchrun (`launch.agent`), and passes on the signals that Slurm sends: under
cgroups only this process gets them. It never requeues by itself; when all tasks have ended, the
batch script decides from what they wrote down (`launch.epilogue`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from submitit.helpers import DelayedSubmission
from submitit.slurm.slurm import _parse_node_list

from launch.attempt import Attempt, AttemptName, StaleAttemptError, events, is_cancelled
from launch.cluster import ClusterConfig
from launch.preflight import examine, pass_together, wants_gpus
from resnet_dist.config import Config
from resnet_dist.config.load import load_config

FIRST_PORT, NUM_PORTS = 15000, 15000
"""Ports of rendezvous: below those that Linux gives to outgoing connections."""

_POLL_S = 0.2
_RESEND_S = 2.0
"""Between repetitions of a signal: workers that are still importing do not hear the first."""
_PEERS_S = 10.0
"""How long a node that failed waits, so that the others can write down why they did."""

_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class Place:
    """Where in a job this process is."""

    job_id: str
    """Slurm's number of the job (of the one element of an array); `local` without Slurm."""
    restart: int
    """How often Slurm has requeued it."""
    node: int
    hosts: tuple[str, ...]
    """Names of the job's nodes; the first holds the rendezvous."""
    host: str
    """Name of this one."""
    end_time: float | None = None
    """When the time limit is reached, seconds since 1970."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Place:
        """As Slurm's variables say; `local` without them."""
        variables = os.environ if environment is None else environment
        if "SLURM_JOB_ID" not in variables or "SLURM_NODEID" not in variables:
            return cls("local", 0, 0, ("localhost",), "localhost")
        node = int(variables["SLURM_NODEID"])
        hosts = tuple(_parse_node_list(variables["SLURM_JOB_NODELIST"]))
        end = variables.get("SLURM_JOB_END_TIME")
        return cls(
            job_id=variables["SLURM_JOB_ID"],
            restart=int(variables.get("SLURM_RESTART_COUNT") or 0),  # not set in the first run
            node=node,
            hosts=hosts,
            host=variables.get("SLURMD_NODENAME", hosts[node]),
            end_time=float(end) if end else None,
        )

    @property
    def port(self) -> int:
        """Of the rendezvous: another for each job and each attempt."""
        if self.job_id == "local":
            return 0
        return FIRST_PORT + (int(self.job_id) * 17 + self.restart) % NUM_PORTS


@dataclass(frozen=True)
class TrainJob:
    """One submission of a run. Calling it does this node's part and ends the process."""

    run_dir: str
    submission: int
    """Number of the folder in `submissions/`."""
    config: str
    """The resolved config that was submitted."""
    code: str
    """Folder with the packages that were submitted."""
    cluster: ClusterConfig
    module: str = "resnet_dist.train"

    def __call__(self) -> None:
        """Run until the training has ended, on this node. Never returns: a result would tell
        submitit that the job is over, though it may be requeued."""
        sys.exit(run_task(self, Place.from_environment()))

    def checkpoint(self) -> DelayedSubmission:
        """For a signal that comes before the job has taken over the signals from submitit: be
        requeued as it is."""
        return DelayedSubmission(self)


class Signals:
    """Signals that this process got, in their order. Handlers only take note."""

    def __init__(self) -> None:
        self._received: list[int] = []
        self._told = 0

    def take_over(self) -> None:
        """From submitit, which would requeue at once."""
        for number in _SIGNALS:
            signal.signal(number, self._take)
        signal.signal(signal.SIGCONT, signal.SIG_IGN)

    def _take(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._received.append(number)

    @property
    def first(self) -> int | None:
        """The first of them."""
        return self._received[0] if self._received else None

    def new(self) -> list[str]:
        """The names of those that were not returned before."""
        fresh = self._received[self._told :]
        self._told += len(fresh)
        return [signal.Signals(number).name for number in fresh]


def run_task(job: TrainJob, place: Place) -> int:
    """This node's part of an attempt. Returns 0, or 1 if it failed."""
    signals = Signals()
    signals.take_over()
    if place.end_time is None and place.job_id != "local":
        # Slurm tells it since 23.02 only; the tasks of a job start within seconds of it.
        place = replace(place, end_time=time.time() + 60 * job.cluster.time_min)
    run_dir = Path(job.run_dir)
    attempt = Attempt(run_dir, AttemptName(job.submission, place.restart), place.node)
    facts = {"job_id": place.job_id, "hosts": list(place.hosts), "restart": place.restart}
    try:
        attempt.enter(job.cluster.preflight_timeout_s, facts)
    except StaleAttemptError as error:
        print(f"{place.host}: {error}; nothing is done here", flush=True)
        return 0
    except TimeoutError as error:
        print(f"{place.host}: {error}", file=sys.stderr, flush=True)
        return 1
    attempt.note("start", pid=os.getpid(), **facts)
    config = load_config([job.config]).config
    findings = examine(job.cluster, config)
    problems = pass_together(
        attempt,
        findings,
        hosts=place.hosts,
        timeout_s=job.cluster.preflight_timeout_s,
        is_interrupted=lambda: signals.first is not None,
    )
    note_signals(attempt, signals, place)
    if problems or signals.first is not None:
        for problem in problems:
            print(f"preflight: {problem['host']}: {problem['what']}", file=sys.stderr, flush=True)
        attempt.note("end", code=1 if problems else 0)
        return 1 if problems else 0
    environment = worker_environment(job, place, findings.visible_devices)
    agent = subprocess.Popen(
        command(job, place, config, attempt.name), env=environment, preexec_fn=_deaf
    )
    code = watch(agent, attempt, signals, place, stop_timeout_s=job.cluster.stop_timeout_s)
    if code is None:
        print(f"{place.host}: a newer attempt has taken over; ended", flush=True)
        return 0
    attempt.note("end", code=code)
    if code != 0 and signals.first is None:
        _wait_for_peers(attempt, signals, len(place.hosts))
    return 0 if code == 0 else 1


def _deaf() -> None:
    """Between fork and exec: torchrun must not die of a signal that is meant for its workers, not
    even before it can say so."""
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def worker_environment(job: TrainJob, place: Place, visible_devices: str | None) -> dict[str, str]:
    """The environment of torchrun and its workers."""
    environment = {**os.environ, **job.cluster.env}
    paths = [job.code, environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    environment["RESNET_DIST_JOB"] = f"{place.job_id}.{job.submission:03d}"
    environment["RESNET_DIST_STOPPED_EXIT_CODE"] = "0"
    # Each start gets a store of its own: restarted workers would look for the ended ones
    # (pytorch issue 135712).
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    # torchrun's own default, which it announces in each log; the trainer sets its threads itself.
    environment.setdefault("OMP_NUM_THREADS", "1")
    if visible_devices is not None:
        environment["CUDA_VISIBLE_DEVICES"] = visible_devices
    if job.cluster.network_interface:
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            environment[name] = job.cluster.network_interface
    return environment


def command(job: TrainJob, place: Place, config: Config, name: AttemptName) -> list[str]:
    """torchrun's command line for this node."""
    cluster = job.cluster
    rendezvous = {
        "is_host": int(place.node == 0),
        "join_timeout": cluster.rendezvous_timeout_s,
        "timeout": cluster.rendezvous_timeout_s,
    }
    overrides = [f"dist.world_size={len(place.hosts) * cluster.num_ranks_per_node}"]
    if wants_gpus(cluster, config):
        overrides.append("dist.device=cuda")
    return [
        sys.executable,
        "-u",
        "-m",
        "launch.agent",
        job.run_dir,
        str(name),
        str(place.node),
        f"--nnodes={len(place.hosts)}",
        f"--nproc-per-node={cluster.num_ranks_per_node}",
        f"--max-restarts={cluster.max_restarts}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={place.hosts[0]}:{place.port}",
        f"--rdzv-id={name.launch_id(place.job_id)}",
        "--rdzv-conf=" + ",".join(f"{key}={value}" for key, value in rendezvous.items()),
        f"--local-addr={place.host}",
        "-m",
        job.module,
        "--config",
        job.config,
        *overrides,
    ]


def watch(
    agent: subprocess.Popen[Any],
    attempt: Attempt,
    signals: Signals,
    place: Place,
    *,
    stop_timeout_s: float,
) -> int | None:
    """Wait for torchrun, pass on signals, heed the fence. Returns its exit code (negative: the
    signal that killed it); None if a newer attempt has taken over, and torchrun was killed.

    Polls: a wait that a signal handler interrupts does not see the end of the process.
    """
    asked_at, sent_at, checked_at = None, 0.0, 0.0
    is_told_to_end = False
    while (code := agent.poll()) is None:
        now = time.monotonic()
        note_signals(attempt, signals, place)
        if signals.first is not None:
            asked_at = now if asked_at is None else asked_at
            if now - sent_at > _RESEND_S:
                pass_on(agent.pid, signals.first)
                sent_at = now
            if now - asked_at > stop_timeout_s and not is_told_to_end:
                agent.send_signal(signal.SIGTERM)
                is_told_to_end = True
        if now - checked_at > 1.0:
            checked_at = now
            if attempt.is_stale():
                kill(agent)
                return None
        time.sleep(_POLL_S)
    note_signals(attempt, signals, place)
    return code


def note_signals(attempt: Attempt, signals: Signals, place: Place) -> None:
    """Write down what signals came, and how long before the time limit."""
    for name in signals.new():
        left = None if place.end_time is None else round(place.end_time - time.time())
        attempt.note("signal", signal=name, left_s=left, is_cancelled=is_cancelled(attempt.run_dir))
        print(f"{place.host}: got {name}: the training is asked to stop", flush=True)


def pass_on(agent: int, number: int) -> None:
    """Send a signal to torchrun's workers. Ctrl-C reached them already, and twice is too often."""
    if number == signal.SIGINT:
        return
    for child in children(agent):
        try:
            os.kill(child, number)
        except ProcessLookupError:
            continue


def children(parent: int) -> list[int]:
    """Ids of the processes that `parent` started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name, in parentheses, may hold anything.
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found.append(int(path.parent.name))
    return found


def kill(agent: subprocess.Popen[Any]) -> None:
    """End torchrun and its workers at once: they write no more."""
    workers = children(agent.pid)
    agent.kill()
    for worker in workers:
        try:
            os.kill(worker, signal.SIGKILL)
        except ProcessLookupError:
            continue
    agent.wait()


def _wait_for_peers(attempt: Attempt, signals: Signals, num_nodes: int) -> None:
    """A task that ends with an error takes the others with it; let them write down theirs."""
    deadline = time.monotonic() + _PEERS_S
    while time.monotonic() < deadline and signals.first is None:
        if len(events(attempt.run_dir, attempt.name, "end")) == num_nodes:
            return
        time.sleep(_POLL_S)
