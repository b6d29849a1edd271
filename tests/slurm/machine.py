"""One computer of the cluster: network, host name and processes of its own (Linux namespaces)."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.hosts import Host, wait_until

_NSENTER = shutil.which("nsenter") or "nsenter"  # whatever PATH the command is given
_NAMESPACES = ("unshare", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")


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
