"""Processes that die with their parent, and helpers that its signals do not reach."""

from __future__ import annotations

import subprocess
import sys

import pytest

from resnet_dist.system import processes

AGENT = """
import os, subprocess, sys
os.environ["TORCHELASTIC_RUN_ID"] = "job"
worker = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
worker.wait()
"""
WORKER = """
import time
from resnet_dist.config import DistConfig
from resnet_dist.world import start_process_group
start_process_group(DistConfig())
print("ready", flush=True)
time.sleep(1000)
"""


def test_a_worker_dies_with_its_agent() -> None:
    command = [sys.executable, "-c", AGENT, WORKER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as agent:
        assert agent.stdout is not None
        assert agent.stdout.readline() == "ready\n"
        agent.kill()
        # The end of the pipe: nobody is left who could write. The worker alone sleeps longer than
        # the time limit of a test.
        assert agent.stdout.read() == ""


ORPHAN = """
import os, sys, time
from resnet_dist.system.processes import die_with_parent
while os.getppid() == int(sys.argv[1]):
    time.sleep(0.01)
die_with_parent()
print("lives", flush=True)
"""


def test_a_worker_whose_agent_is_dead_already_does_not_start() -> None:
    start = "subprocess.Popen([sys.executable, '-c', sys.argv[1], str(os.getpid())])"
    command = [sys.executable, "-c", f"import os, subprocess, sys; {start}", ORPHAN]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    if not processes._is_left_over(1):
        pytest.skip("process 1 is a Python here, and could be a launcher")
    assert ended.stdout == ""


SERVER = """
import os, signal
from multiprocessing import forkserver
from resnet_dist.system import workers

workers.start_server()
server = forkserver._forkserver._forkserver_pid
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
    os.kill(server, number)
reader = workers.context().Process(target=print, args=("reads",))
reader.start()
reader.join()
assert reader.exitcode == 0, reader.exitcode
assert forkserver._forkserver._forkserver_pid == server
"""


def test_the_agents_signals_leave_the_loaders_server_alone() -> None:
    """torchrun sends SIGTERM to the trainer's whole process group; it still needs its readers."""
    command = [sys.executable, "-c", SERVER]
    subprocess.run(command, check=True, timeout=120, stdout=subprocess.DEVNULL)
