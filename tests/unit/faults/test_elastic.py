"""What an elastic restart needs of one process: it dies with its agent, waits for its job's lock,
and tells NCCL what to leave behind."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from resnet_dist.config import DistConfig
from resnet_dist.errors import UserError
from resnet_dist.run import lock
from resnet_dist.system import parent
from resnet_dist.world import World, prepare_nccl, start_process_group

ALONE = World(0, 1, 0, 1, torch.device("cpu"))

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
time.sleep(120)
"""


def test_a_worker_dies_with_its_agent() -> None:
    command = [sys.executable, "-c", AGENT, WORKER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as agent:
        assert agent.stdout is not None
        assert agent.stdout.readline() == "ready\n"
        agent.kill()
        start = time.monotonic()
        assert agent.stdout.read() == ""  # the end of the pipe: nobody is left who could write
        assert time.monotonic() - start < 60


ORPHAN = """
import os, sys, time
from resnet_dist.system.parent import die_with_parent
while os.getppid() == int(sys.argv[1]):
    time.sleep(0.01)
die_with_parent()
print("lives", flush=True)
"""


def test_a_worker_whose_agent_is_dead_already_does_not_start() -> None:
    start = "subprocess.Popen([sys.executable, '-c', sys.argv[1], str(os.getpid())])"
    command = [sys.executable, "-c", f"import os, subprocess, sys; {start}", ORPHAN]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    if not parent._is_left_over(1):
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


@contextmanager
def owned_by(folder: Path, job: str | None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The folder belongs to a process of that job."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", job or "none")
    with lock.own_run_folder(folder, job=job):
        yield


def test_the_lock_names_process_host_and_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with owned_by(tmp_path, "night-7", monkeypatch):
        owner = lock.owner_of(tmp_path)
        content = json.loads((tmp_path / lock.FILE_NAME).read_text())
    assert owner == lock.Owner(os.getpid(), socket.gethostname(), "night-7")
    assert content == {"pid": owner.pid, "host": owner.host, "job": "night-7"}
    assert str(owner) == f"process {os.getpid()} on {socket.gethostname()}, elastic job night-7"
    assert lock.owner_of(tmp_path) is None, "the file stays, and says nothing any more"


@pytest.mark.parametrize("content", ["", "{", "7", '{"pid": 1}', "process 7 on node1\n"])
def test_a_lock_that_names_nobody_still_locks(tmp_path: Path, content: str) -> None:
    """Also that of an owner which has not written its name yet."""
    with lock.own_run_folder(tmp_path):
        (tmp_path / lock.FILE_NAME).write_text(content)
        assert lock.owner_of(tmp_path) == lock.Owner(None, None)
        with (
            pytest.raises(UserError, match=r"in use by a running training \(an unknown process"),
            lock.own_run_folder(tmp_path),
        ):
            pass


def test_a_shorter_name_leaves_nothing_of_a_longer_one(tmp_path: Path) -> None:
    with lock.own_run_folder(tmp_path, job="a long name of a job"):
        pass
    with lock.own_run_folder(tmp_path):
        assert json.loads((tmp_path / lock.FILE_NAME).read_text())["job"] is None


def test_waits_for_the_former_rank_0_of_its_own_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with owned_by(tmp_path, "job", monkeypatch):
        released = threading.Event()

        def own() -> None:
            with lock.sync_own_run_folder(tmp_path, ALONE, 2.0):
                released.set()

        waiting = threading.Thread(target=own)
        waiting.start()
        time.sleep(1.2)  # more than two turns
        assert not released.is_set()
    waiting.join(10)
    assert released.is_set()
    assert capsys.readouterr().err.count("waiting for the former rank 0") == 1


def test_waits_no_longer_than_the_time_out_and_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "GRACE_S", 0.5)
    start = time.monotonic()
    with (
        owned_by(tmp_path, "job", monkeypatch),
        pytest.raises(UserError, match=r"in use by a running training \(process"),
        lock.sync_own_run_folder(tmp_path, ALONE, 0.5),
    ):
        pass
    assert 1.0 <= time.monotonic() - start < 10


@pytest.mark.parametrize(("owner", "mine"), [("job", "other"), ("job", None), (None, None)])
def test_another_run_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: str | None, mine: str | None
) -> None:
    """Also two with torchrun's default id, which says nothing."""
    start = time.monotonic()
    with owned_by(tmp_path, owner, monkeypatch):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", mine or "none")
        with (
            pytest.raises(UserError, match=f"process {os.getpid()} on"),
            lock.sync_own_run_folder(tmp_path, ALONE, 600.0),
        ):
            pass
    assert time.monotonic() - start < 10


NCCL = (
    "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC",
    "TORCH_NCCL_TRACE_BUFFER_SIZE",
    "TORCH_NCCL_DUMP_ON_TIMEOUT",
    "TORCH_NCCL_DEBUG_INFO_TEMP_FILE",
)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The process's environment for one test, without variables of NCCL."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    for name in NCCL:
        os.environ.pop(name, None)
    return os.environ  # type: ignore[return-value]


def test_nccl_writes_its_last_collectives_into_the_run_folder(
    environment: dict[str, str], tmp_path: Path
) -> None:
    prepare_nccl(DistConfig(timeout_s=90.5, flight_recorder_entries=7), tmp_path / "run")
    folder = tmp_path / "run" / "flight_recorder"
    assert folder.is_dir()
    assert [environment[name] for name in NCCL] == ["91", "7", "1", f"{folder}/rank_"]


def test_the_flight_recorder_can_be_off_and_the_users_variables_stay(
    environment: dict[str, str], tmp_path: Path
) -> None:
    environment["TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC"] = "33"
    prepare_nccl(DistConfig(flight_recorder_entries=0), tmp_path)
    assert [environment.get(name) for name in NCCL] == ["33", "0", "0", None]
    assert list(tmp_path.iterdir()) == []


def test_an_evaluation_writes_no_record(environment: dict[str, str]) -> None:
    prepare_nccl(DistConfig(), None)
    assert environment["TORCH_NCCL_DUMP_ON_TIMEOUT"] == "0"


def test_a_cpu_run_sets_nothing(environment: dict[str, str], tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is visible")
    start_process_group(DistConfig(), tmp_path)
    assert [name for name in NCCL if name in environment] == []
