"""Real runs that make no progress: each rank says where it is, and the one that holds up the others
is named."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from resnet_dist.faults.preemption import STALLED_EXIT_CODE
from tests.launch import TINY, newest_checkpoint, records, torchrun, train

WATCH = "faults.watchdog_s=4"


def reports(run_dir: Path) -> dict[int, tuple[dict[str, object], str]]:
    """By rank: the first line's values, and the whole text."""
    found = {}
    for path in (run_dir / "stalls").glob("*_rank*.txt"):
        text = path.read_text()
        values = json.loads(text.splitlines()[0])
        found[values["rank"]] = values, text
    return found


def test_a_rank_that_sleeps_is_named_by_all(run_root: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    environment = {"RESNET_DIST_FAILPOINT": "step.begin@3:1=sleep:600"}
    ended = train(3, run_root, run_dir, WATCH, environment=environment, check=False)
    assert ended.codes == [STALLED_EXIT_CODE] * 3, ended.output
    host = socket.gethostname()
    culprit = f"held up by rank 1 (host {host}), which got only as far as after step 2"
    lines = [line for line in ended.output.splitlines() if line.startswith("watchdog:")]
    assert len(lines) == 3
    assert all(culprit in line for line in lines), lines
    written = reports(run_dir)
    assert sorted(written) == [0, 1, 2]
    assert written[1][0]["phase"] == "beginning of the next step"
    assert written[0][0]["phase"] == written[2][0]["phase"] == "training step"
    for _, text in written.values():
        assert culprit in text
        assert "step.py" in text  # the main thread's stack
        assert "Thread" in text  # and those of others
    assert "failpoints.py" in written[1][1]


def test_a_stopped_rank_is_named_though_it_says_nothing(run_root: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    environment = {"RESNET_DIST_FAILPOINT": "step.before_optimizer@3:1=stop"}
    ended = train(2, run_root, run_dir, WATCH, environment=environment, check=False)
    assert ended.codes[0] == STALLED_EXIT_CODE, ended.output
    assert sorted(reports(run_dir)) == [0]
    assert f"held up by rank 1 (host {socket.gethostname()}): no report from there" in ended.output


@pytest.mark.slow
def test_the_agent_starts_a_stalled_run_again(tmp_path: Path) -> None:
    run_dir, log = tmp_path / "run", tmp_path / "faults.log"
    settings = ["faults.watchdog_s=8", "checkpoint.every_steps=2", "train.max_steps=6"]
    # Without readers, which can take longer to start than the watchdog waits here.
    command = torchrun(2, [*TINY, "data.loader=synthetic", f"run.dir={run_dir}", *settings])
    command.insert(command.index("-m", 2), "--max_restarts=1")
    environment = {
        **os.environ,
        "RESNET_DIST_FAILPOINT": "step.begin@4:1=sleep:600",
        "RESNET_DIST_FAILPOINT_LOG": str(log),
        "GLOO_SOCKET_IFNAME": "lo",
        # Else restarted workers may read the addresses of the ended ones (pytorch issue 135712).
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "rank 1 step 4" in log.read_text()
    assert f"exitcode: {STALLED_EXIT_CODE}" in ended.stderr
    assert "resuming from" in ended.stdout
    assert newest_checkpoint(run_dir)["step"] == 6


def test_a_slow_evaluation_does_not_trigger_the_watchdog(run_root: Path, tmp_path: Path) -> None:
    """Of 8 seconds in 3 batches, with a limit of 5 seconds."""
    run_dir = tmp_path / "run"
    environment = {"RESNET_DIST_FAILPOINT": "evaluate.mid@1-3=sleep:2.7"}
    train(1, run_root, run_dir, "faults.watchdog_s=5", "train.epochs=2", environment=environment)
    assert records(run_dir)[-1]["step"] == 8
    assert not (run_dir / "stalls").exists()


HOLDS_THE_LOCK = """
import ctypes, sys, torch
from pathlib import Path
from resnet_dist.world import World
from resnet_dist.faults import watchdog
watchdog.BACKSTOP_MARGIN_S = 0.5
world = World(0, 1, 0, 1, torch.device("cpu"))
with watchdog.sync_build_watchdog(1.0, Path(sys.argv[1]), world):
    ctypes.PyDLL(None).sleep(60)  # PyDLL keeps the interpreter lock
"""


def test_a_held_interpreter_lock_is_ended_by_the_backstop(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDS_THE_LOCK, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=55)
    assert ended.returncode == 1
    assert "Timeout" in ended.stderr
    assert "Current thread" in ended.stderr or "most recent call first" in ended.stderr


CONTINUES = """
import sys, time, torch
from pathlib import Path
from resnet_dist.world import World
from resnet_dist.faults import watchdog
from resnet_dist.faults.watchdog import Phase
world = World(0, 1, 0, 1, torch.device("cpu"))
with watchdog.sync_build_watchdog(2.0, Path(sys.argv[1]), world) as dog:
    print("ready", flush=True)
    sys.stdin.readline()
    time.sleep(float(sys.argv[2]))
    dog.beat(1, Phase.STEP)
"""


@pytest.mark.parametrize(("then_sleeps_s", "code"), [("0.5", 0), ("30", STALLED_EXIT_CODE)])
def test_a_process_that_was_stopped_and_continued_gets_one_more_interval(
    tmp_path: Path, then_sleeps_s: str, code: int
) -> None:
    command = [sys.executable, "-c", CONTINUES, str(tmp_path), then_sleeps_s]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
        time.sleep(5)  # more than the limit, less than the backstop
        process.send_signal(signal.SIGCONT)
        process.stdin.write("\n")
        process.stdin.close()
        assert process.wait(timeout=50) == code
