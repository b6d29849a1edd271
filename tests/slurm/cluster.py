"""A real Slurm on one machine: a head and several nodes, each with a network, a host name and
processes of its own (Linux namespaces), joined by a switch; one file system, one clock.

    with cluster(3, folder) as slurm:
        slurm.run("sinfo")                  # a command on the head, which is the login node too
        slurm.node("node2").power_off()     # everything there dies at once
        slurm.node("node3").host.cut()      # its cable is pulled

The settings differ from a production cluster's in their times, so that the tests are short, and in
the GPUs, which are device nodes that Slurm counts and hands out, and nothing else.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults import hosts
from tests.faults.hosts import Host, network, wait_until

DAEMONS = ("slurmctld", "slurmd", "munged", "sbatch")
ACCOUNTING = ("slurmdbd", "mariadbd", "mariadb-install-db")
ROOT = Path(__file__).parents[2]
GPUS_PER_NODE = 2
_SETTINGS = """
ClusterName=test
SlurmctldHost=head
SlurmUser=root
AuthType=auth/munge
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=5
SlurmdTimeout=10
SlurmctldTimeout=10
InactiveLimit=0
MessageTimeout=5
CompleteWait=0
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,bf_interval=2,bf_resolution=1
JobAcctGatherType=jobacct_gather/none
AccountingStorageHost=head
GresTypes=gpu
""".strip().splitlines()
_NSENTER = shutil.which("nsenter") or "nsenter"  # whatever PATH the command is given
_NAMESPACES = ("unshare", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")


def reason_to_skip() -> str | None:
    """Why no Slurm can be started here, None if one can."""
    missing = [name for name in DAEMONS if shutil.which(name, path=_path()) is None]
    if missing:
        return f"a real Slurm is needed ({', '.join(missing)}: apt-get install slurmctld slurmd " \
            "slurm-client munge)"  # fmt: skip
    return hosts.reason_to_skip()


def _path() -> str:
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


@dataclass
class Machine:
    """A computer: it has a cable, a power switch, and whatever runs on it."""

    name: str
    host: Host
    folder: Path
    start_command: str
    """Shell words that replace the first process."""
    environment: Mapping[str, str]
    _first: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def power_on(self) -> None:
        """Start it, with nothing of its former life."""
        hosts_file = self.folder / "hosts"
        script = (
            f"hostname {self.name}; mount --bind {hosts_file} /etc/hosts; exec {self.start_command}"
        )
        command = [_NSENTER, f"--net=/run/netns/{self.host.namespace}", *_NAMESPACES]
        with (self.folder / "log" / f"{self.name}.out").open("ab") as log:
            self._first = subprocess.Popen(
                [*command, "bash", "-c", script],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=dict(self.environment),
            )

    def power_off(self) -> None:
        """Cut its power: every process there is gone at once, and nobody is told."""
        if self._first is not None:
            self._first.kill()
            self._first.wait()
            wait_until(lambda: not self.host.processes(), what=f"{self.name} is dead", timeout_s=10)
            self._first = None

    def enter(self) -> list[str]:
        """Words that start a command on this machine."""
        assert self._first is not None
        (inner,) = _children(self._first.pid)
        return [_NSENTER, f"--target={inner}", "--net", "--uts", "--mount", "--pid", "--"]

    def run(self, *command: str) -> str:
        """A command on this machine; what it printed."""
        ended = subprocess.run(
            [*self.enter(), *command], capture_output=True, text=True, timeout=30, check=True
        )
        return ended.stdout

    def count(self, pattern: str) -> int:
        """Processes there whose command line matches."""
        words = ["pgrep", "-c", "-f", pattern]
        ended = subprocess.run([*self.enter(), *words], capture_output=True, text=True, timeout=30)
        return int(ended.stdout)

    def kill(self, pattern: str) -> None:
        """SIGKILL to the oldest process there whose command line matches."""
        self.run("pkill", "-KILL", "--oldest", "-f", pattern)


def _children(pid: int) -> list[int]:
    """Ids of a process's children, as soon as there are any."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    wait_until(lambda: bool(path.read_text().split()), what="a machine starts", timeout_s=10)
    return [int(word) for word in path.read_text().split()]


class Cluster:
    """A running Slurm."""

    def __init__(self, folder: Path, machines: Sequence[Machine]) -> None:
        self.folder = folder
        self.head, *self.nodes = machines
        self.environment = dict(self.head.environment)
        self._services: list[subprocess.Popen[bytes]] = []

    @property
    def has_accounting(self) -> bool:
        """Whether there is a slurmdbd, so that sacct knows of the past."""
        return all(shutil.which(name, path=_path()) for name in ACCOUNTING)

    def node(self, name: str) -> Machine:
        """By its name."""
        return next(machine for machine in self.nodes if machine.name == name)

    def run(
        self, *command: str | Path, check: bool = True, timeout_s: float = 300, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """A command on the head, in the source tree."""
        ended = subprocess.run(
            [*self.head.enter(), *(str(word) for word in command)],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            cwd=ROOT,
            env={**self.environment, **variables},
        )
        if check and ended.returncode != 0:
            raise AssertionError(f"{command}: {ended.returncode}\n{ended.stdout}\n{ended.stderr}")
        return ended

    def launch(
        self, verb: str, *arguments: str | Path, check: bool = True, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """`python -m launch.<verb> ...` on the head."""
        words = (sys.executable, "-m", f"launch.{verb}", *arguments)
        return self.run(*words, check=check, **variables)

    def state(self, job_id: str) -> str:
        """Slurm's word for a job, from the queue or the controller's memory; "" if forgotten."""
        words = self.run("scontrol", "-o", "show", "job", job_id, check=False).stdout.split()
        return next((w.removeprefix("JobState=") for w in words if w.startswith("JobState=")), "")

    def restarts(self, job_id: str) -> int:
        """How often Slurm has requeued a job."""
        words = self.run("scontrol", "-o", "show", "job", job_id).stdout.split()
        return next(int(w.removeprefix("Restarts=")) for w in words if w.startswith("Restarts="))

    def wait_for_state(self, job_id: str, *states: str, timeout_s: float) -> None:
        """Wait until a job is in one of some states."""
        try:
            wait_until(lambda: self.state(job_id) in states, what=f"{states}", timeout_s=timeout_s)
        except TimeoutError as error:
            raise AssertionError(f"job {job_id} is {self.state(job_id)}: {error}") from None

    def configure(self, *, has_user_signal: bool = True, grace_s: int = 10) -> None:
        """How jobs of `low` are preempted: warned by their own signal (`--signal`) or by SIGTERM
        alone, and how long before they are killed."""
        self.write_conf(has_user_signal=has_user_signal, grace_s=grace_s)
        self.run("scontrol", "reconfigure")

    def write_conf(self, *, has_user_signal: bool = True, grace_s: int = 10) -> None:
        """Write slurm.conf."""
        parameters = "preempt_send_user_signal" if has_user_signal else "idle_on_node_suspend"
        storage = "slurmdbd" if self.has_accounting else "none"
        has_cgroups = Path("/sys/fs/cgroup/freezer").is_dir()
        nodes = ",".join(machine.name for machine in self.nodes)
        lines = [
            *_SETTINGS,
            f"AuthInfo=socket={self.folder}/munge/munge.sock,cred_expire=5",
            f"StateSaveLocation={self.folder}/state",
            f"SlurmdSpoolDir={self.folder}/spool/%n",
            f"SlurmctldPidFile={self.folder}/slurmctld.pid",
            f"SlurmdPidFile={self.folder}/slurmd.%n.pid",
            f"SlurmctldLogFile={self.folder}/log/slurmctld.log",
            f"SlurmdLogFile={self.folder}/log/slurmd.%n.log",
            f"SlurmctldParameters={parameters}",
            f"ProctrackType=proctrack/{'cgroup' if has_cgroups else 'linuxproc'}",
            f"AccountingStorageType=accounting_storage/{storage}",
            f"AccountingStoragePass={self.folder}/munge/munge.sock",
            "NodeName=DEFAULT CPUs=4 RealMemory=64000",
            f"NodeName={nodes} Gres=gpu:{GPUS_PER_NODE}",
            f"PartitionName=low Nodes={nodes} Default=YES PriorityTier=1 GraceTime={grace_s} "
            "MaxTime=INFINITE",
            f"PartitionName=high Nodes={nodes} PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE",
        ]
        (self.folder / "slurm.conf").write_text("\n".join(lines) + "\n")

    def write_other_files(self) -> None:
        """What Slurm reads besides slurm.conf."""
        devices = f"{self.folder}/dev/gpu[0-{GPUS_PER_NODE - 1}]"
        (self.folder / "gres.conf").write_text(f"Name=gpu File={devices}\n")
        (self.folder / "cgroup.conf").write_text(
            "CgroupPlugin=cgroup/v1\nCgroupMountpoint=/sys/fs/cgroup\nConstrainCores=no\n"
            "ConstrainRAMSpace=no\n"
        )
        accounting = self.folder / "slurmdbd.conf"
        accounting.write_text(
            "AuthType=auth/munge\n"
            f"AuthInfo=socket={self.folder}/munge/munge.sock\n"
            "DbdHost=head\nSlurmUser=root\nStorageType=accounting_storage/mysql\n"
            "StorageHost=127.0.0.1\nStoragePort=3306\nStorageUser=root\nStorageLoc=slurm_acct\n"
            f"LogFile={self.folder}/log/slurmdbd.log\nPidFile={self.folder}/slurmdbd.pid\n"
        )
        accounting.chmod(0o600)

    def start(self) -> None:
        """Start all services and machines; wait until every node is idle."""
        folder = self.folder
        socket = folder / "munge" / "munge.sock"
        self._serve(
            "munged", "--foreground", "--force", f"--key-file={folder / 'munge.key'}",
            f"--socket={socket}", f"--pid-file={folder / 'munge' / 'munged.pid'}",
            f"--log-file={folder / 'log' / 'munged'}", f"--seed-file={folder / 'munge' / 'seed'}",
        )  # fmt: skip
        wait_until(socket.exists, what="munged is up", timeout_s=20)
        self.head.power_on()
        if self.has_accounting:
            self._start_accounting()
        self._serve_on_head("slurmctld", "-D", "-i", "-c", "-f", str(folder / "slurm.conf"))
        for machine in self.nodes:
            machine.power_on()
        self.wait_for_nodes("idle", *(machine.name for machine in self.nodes), timeout_s=40)

    def wait_for_nodes(self, state: str, *names: str, timeout_s: float) -> None:
        """Wait until nodes are in a state such as `idle`."""

        def is_so() -> bool:
            words = self.run("sinfo", "-h", "-N", "-o", "%N %t", check=False).stdout.splitlines()
            return set(names) <= {line.split()[0] for line in words if line.split()[1] == state}

        wait_until(is_so, what=f"{', '.join(names)} {state}", timeout_s=timeout_s)

    def _start_accounting(self) -> None:
        data = self.folder / "database"
        subprocess.run(
            ["mariadb-install-db", f"--datadir={data}", "--user=root",
             "--auth-root-authentication-method=normal", "--skip-test-db"],
            check=True, capture_output=True, timeout=120, env=self.environment,
        )  # fmt: skip
        self._serve_on_head(
            "mariadbd", "--no-defaults", f"--datadir={data}", "--user=root", "--skip-grant-tables",
            "--port=3306", "--bind-address=127.0.0.1", "--innodb-buffer-pool-size=32M",
            f"--socket={data / 'socket'}", f"--pid-file={data / 'pid'}",
            "--innodb-lock-wait-timeout=900", "--innodb-flush-log-at-trx-commit=0",
        )  # fmt: skip
        wait_until((data / "socket").exists, what="the database is up", timeout_s=40)
        self._serve_on_head("slurmdbd", "-D")

        def is_up() -> bool:
            added = self.run("sacctmgr", "-i", "add", "cluster", "test", check=False)
            return added.returncode == 0 or "already exists" in added.stdout + added.stderr

        wait_until(is_up, what="slurmdbd is up", timeout_s=40)

    def _serve(self, *command: str) -> None:
        self._start(command, name=command[0])

    def _serve_on_head(self, *command: str) -> None:
        self._start([*self.head.enter(), *command], name=command[0])

    def _start(self, command: Sequence[str], *, name: str) -> None:
        with (self.folder / "log" / f"{name}.out").open("ab") as log:
            service = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,
            )
        self._services.append(service)

    def stop(self) -> None:
        """End everything, at once."""
        for machine in [*self.nodes, self.head]:
            with contextlib.suppress(TimeoutError):
                machine.power_off()
        for service in self._services:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(service.pid, signal.SIGKILL)
            service.wait()


@contextmanager
def cluster(num_nodes: int, folder: Path) -> Iterator[Cluster]:
    """A Slurm with its files in `folder`; everything is ended in the end."""
    for name in ("log", "munge", "state", "spool", "dev"):
        (folder / name).mkdir(parents=True)
    (folder / "munge").chmod(0o755)
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    for number in range(GPUS_PER_NODE):
        os.mknod(folder / "dev" / f"gpu{number}", 0o600 | 0o020000, os.makedev(1, 3))
    conf = folder / "slurm.conf"
    environment = {
        "PATH": _path(),
        "HOME": os.environ.get("HOME", "/root"),
        "SLURM_CONF": str(conf),
        "LANG": "C.UTF-8",
        "RESNET_DIST_CACHE": str(folder / "cache"),
        "GLOO_SOCKET_IFNAME": hosts.INTERFACE,
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "ignore",
    }
    names = [f"node{number}" for number in range(1, num_nodes + 1)]
    with ExitStack() as stack:
        cables = stack.enter_context(network(num_nodes + 1))
        lines = ["127.0.0.1 localhost"]
        for host, name in zip(cables, ["head", *names], strict=True):
            lines.append(f"{host.address} {name}")
        (folder / "hosts").write_text("\n".join(lines) + "\n")
        machines = [Machine("head", cables[0], folder, "sleep infinity", environment)]
        machines += [
            Machine(name, host, folder, f"slurmd -D -N {name} -f {conf}", environment)
            for name, host in zip(names, cables[1:], strict=True)
        ]
        slurm = Cluster(folder, machines)
        slurm.write_conf()
        slurm.write_other_files()
        stack.callback(slurm.stop)
        try:
            slurm.start()
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{_logs(folder)}") from None
        yield slurm


def _logs(folder: Path) -> str:
    return "\n".join(
        f"{path.name}: {path.read_text(errors='replace')[-2000:]}"
        for path in sorted((folder / "log").iterdir())
    )
