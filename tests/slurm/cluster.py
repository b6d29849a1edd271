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
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.faults import hosts
from tests.faults.hosts import network, wait_until
from tests.slurm import settings
from tests.slurm.machine import Machine

DAEMONS = ("slurmctld", "slurmd", "munged", "sbatch")
ACCOUNTING = ("slurmdbd", "mariadbd", "mariadb-install-db")
ROOT = Path(__file__).parents[2]


def reason_to_skip() -> str | None:
    """Why no Slurm can be started here, None if one can."""
    missing = [name for name in DAEMONS if shutil.which(name, path=_path()) is None]
    if missing:
        return f"a real Slurm is needed ({', '.join(missing)}: apt-get install slurmctld slurmd " \
            "slurm-client munge)"  # fmt: skip
    return hosts.reason_to_skip()


def _path() -> str:
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


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
        text = settings.slurm_conf(
            self.folder,
            [machine.name for machine in self.nodes],
            has_user_signal=has_user_signal,
            has_accounting=self.has_accounting,
            grace_s=grace_s,
        )
        (self.folder / "slurm.conf").write_text(text)

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
    for number in range(settings.GPUS_PER_NODE):
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
        settings.write_other_files(folder)
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
