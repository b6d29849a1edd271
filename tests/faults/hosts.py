"""Hosts in one machine: network namespaces with an address each, joined by a switch.

    with network(2) as hosts:
        hosts[0].start([...])          # a process that sees only this host's interfaces
        hosts[1].cut()                 # pull its cable

The switch is in a namespace of its own: the machine's own network is not touched. All hosts share
the file system, the clock, and the host name.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

INTERFACE = "eth0"
"""Name of a host's network interface."""


def ip(*arguments: str, namespace: str | None = None) -> str:
    """Run iproute2's `ip`; what it printed. Raises CalledProcessError."""
    command = ["ip", *(["-n", namespace] if namespace else []), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout


def reason_to_skip() -> str | None:
    """Why no hosts can be made here, None if they can."""
    if os.geteuid() != 0:
        return "hosts are network namespaces, and making them needs root"
    try:
        with network(1):
            return None
    except FileNotFoundError:
        return "hosts are network namespaces, and `ip` (iproute2) is not installed"
    except subprocess.CalledProcessError as error:
        return f"hosts are network namespaces, which cannot be made here: {error.stderr.strip()}"


@dataclass(frozen=True)
class Host:
    """A network namespace with one cable to the switch."""

    namespace: str
    switch: str
    port: str
    """The switch's port that the cable is plugged into."""
    address: str

    def start(
        self, command: list[str], *, log: Path, environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        """A process on this host; its id is the command's own. Output is appended to `log`."""
        with log.open("ab") as file:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.namespace, *command],
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
            )

    def limit(self, mbit: float) -> None:
        """Make the cable slow, both ways."""
        shape = ["root", "tbf", "rate", f"{mbit}mbit", "burst", "64kb", "latency", "400ms"]
        for namespace, device in ((self.namespace, INTERFACE), (self.switch, self.port)):
            command = ["tc", "-n", namespace, "qdisc", "replace", "dev", device, *shape]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=20)

    def cut(self) -> None:
        """Pull the cable: packets are lost, and nobody is told."""
        ip("link", "set", self.port, "down", namespace=self.switch)

    def mend(self) -> None:
        """Plug it in again."""
        ip("link", "set", self.port, "up", namespace=self.switch)

    def processes(self) -> list[int]:
        """The ids of the processes on this host."""
        return [int(pid) for pid in ip("netns", "pids", self.namespace).split()]


_NUMBERS = itertools.count()


@contextmanager
def network(count: int) -> Iterator[list[Host]]:
    """`count` hosts, 10.77.0.1 and so on. Kills what still runs on them in the end."""
    name = f"resnet{os.getpid()}_{next(_NUMBERS)}"  # the tests' Slurm has a network of its own
    switch = f"{name}_switch"
    with ExitStack() as stack:
        stack.enter_context(_namespace(switch))
        ip("link", "add", "bridge", "type", "bridge", namespace=switch)
        ip("link", "set", "bridge", "up", namespace=switch)
        hosts = []
        for number in range(1, count + 1):
            host = Host(f"{name}_{number}", switch, f"port{number}", f"10.77.0.{number}")
            stack.enter_context(_namespace(host.namespace))
            _connect(host)
            hosts.append(host)
        yield hosts


@contextmanager
def _namespace(name: str) -> Iterator[None]:
    ip("netns", "add", name)
    try:
        yield
    finally:
        for pid in ip("netns", "pids", name).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        ip("netns", "del", name)


def _connect(host: Host) -> None:
    end = ["peer", "name", INTERFACE, "netns", host.namespace]
    ip("link", "add", host.port, "type", "veth", *end, namespace=host.switch)
    ip("link", "set", host.port, "master", "bridge", namespace=host.switch)
    ip("link", "set", host.port, "up", namespace=host.switch)
    ip("addr", "add", f"{host.address}/24", "dev", INTERFACE, namespace=host.namespace)
    for interface in ("lo", INTERFACE):
        ip("link", "set", interface, "up", namespace=host.namespace)
