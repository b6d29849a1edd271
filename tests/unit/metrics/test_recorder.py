"""Recorders: every step once across kills, exact numbers, readable lines."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from resnet_dist.config import LogConfig
from resnet_dist.errors import UserError
from resnet_dist.metrics.console import BarConsole, LineConsole, build_console
from resnet_dist.metrics.jsonl import JsonlRecorder, read_records
from resnet_dist.metrics.null import NullRecorder
from resnet_dist.metrics.recorder import MultiRecorder, Recorder, build_recorder
from tests.unit.metrics.event_files import accumulated_steps, raw_steps

TRAIN = {
    "epoch": 1.5,
    "train/loss": 0.5123,
    "train/top1": 0.831,
    "train/lr": 0.075,
    "train/images_per_second": 312.4,
    "train/data_wait_share": 0.034,
    "train/step_time_ms": 520.0,
}
VAL = {"epoch": 2.0, "val/loss": 0.6, "val/top1": 0.8, "val/top5": 0.99, "val/ema_top1": 0.81}


def build(folder: Path, *, resume_step: int = 0, **log: Any) -> Recorder:
    """The main rank's recorder of a run of 8 epochs of 50 steps."""
    return build_recorder(
        LogConfig(**log),
        run_dir=folder,
        is_main=True,
        resume_step=resume_step,
        num_steps=400,
        steps_per_epoch=50,
    )


def steps_of(path: Path) -> list[int]:
    return [int(record["step"]) for record in read_records(path)]


def test_jsonl_floats_come_back_bit_for_bit(tmp_path: Path) -> None:
    values = {
        "a": 0.1 + 0.2,
        "b": 5e-324,
        "c": float(torch.tensor(1 / 3)),
        "d": 7,
        "e": math.nan,
        "f": math.inf,
        "g": -math.inf,
        "h": -0.0,
    }
    recorder = JsonlRecorder(tmp_path / "m.jsonl", resume_step=0)
    recorder.scalars(3, values)
    recorder.close()
    (record,) = read_records(tmp_path / "m.jsonl")
    assert record.pop("time") > 1e9
    assert record.pop("step") == 3
    assert repr(record) == repr(values)
    refuse = pytest.fail  # a reader that knows JSON alone, without Python's NaN
    json.loads((tmp_path / "m.jsonl").read_text(), parse_constant=refuse)


def test_jsonl_cut_at_any_byte_resumes_without_gap_or_repeat(tmp_path: Path) -> None:
    whole = tmp_path / "whole.jsonl"
    recorder = JsonlRecorder(whole, resume_step=0)
    for step in range(1, 5):
        recorder.scalars(step, {"train/loss": 1 / step})
    recorder.close()
    lines = whole.read_bytes().splitlines(keepends=True)
    flushed = len(b"".join(lines[:3]))  # a checkpoint of step 3 exists
    for cut in range(flushed, whole.stat().st_size + 1):
        path = tmp_path / "cut.jsonl"
        path.write_bytes(whole.read_bytes()[:cut])
        recorder = JsonlRecorder(path, resume_step=3)
        assert path.read_bytes() == b"".join(lines[:3])
        recorder.scalars(4, {})
        recorder.close()
        assert steps_of(path) == [1, 2, 3, 4]


def test_jsonl_keeps_both_lines_of_a_step_and_drops_all_at_zero(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    recorder = JsonlRecorder(path, resume_step=0)
    recorder.scalars(0, {"val/top1": 0.1})
    recorder.scalars(2, {"train/loss": 1.0})
    recorder.scalars(2, {"val/top1": 0.5})
    recorder.close()
    before = path.stat()
    JsonlRecorder(path, resume_step=2).close()
    assert steps_of(path) == [0, 2, 2]
    assert path.stat().st_ino == before.st_ino, "nothing to drop, so nothing is rewritten"
    JsonlRecorder(path, resume_step=1).close()
    assert steps_of(path) == [0]
    JsonlRecorder(path, resume_step=0).close()
    assert path.read_bytes() == b""


def test_jsonl_rubbish_after_what_was_flushed_goes_and_before_it_is_an_error(
    tmp_path: Path,
) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"step": 1}\n\0\0\0\n{"step": 9}\n')
    JsonlRecorder(path, resume_step=1).close()
    assert path.read_bytes() == b'{"step": 1}\n'
    foreign = b'{"step": 1}\nhello\n{"step": 2}\n'
    path.write_bytes(foreign)
    with pytest.raises(UserError, match=r"m\.jsonl \(line 2\): is not a record"):
        JsonlRecorder(path, resume_step=2)
    assert path.read_bytes() == foreign
    with pytest.raises(UserError, match="line 2"):
        read_records(path)


RUN = """
    import os, signal, sys
    from pathlib import Path
    import torch
    from resnet_dist.config import LogConfig
    from resnet_dist.metrics.recorder import build_recorder

    def run(resume_step, saved, last, kill):
        recorder = build_recorder(
            LogConfig(progress="lines"), run_dir=Path(sys.argv[1]), is_main=True,
            resume_step=resume_step, num_steps=40, steps_per_epoch=10)
        recorder.images(0, "images", torch.zeros(9, 3, 20, 20, dtype=torch.uint8))
        recorder.text(0, "config", "a: 1")
        for step in range(resume_step + 1, last + 1):
            recorder.scalars(step, {"epoch": step / 10, "train/loss": 1 / step, "train/lr": 0.1})
            if step % 10 == 0:
                recorder.scalars(step, {"epoch": step / 10, "val/top1": step / 40})
            if step == saved:
                recorder.flush()
        if kill:
            os.kill(os.getpid(), signal.SIGKILL)
        recorder.close()

    # Two kills, the second one resuming before what the first had saved (a lost checkpoint).
    for arguments in ((0, 12, 17, True), (12, 22, 31, True), (10, 40, 40, False)):
        child = os.fork()
        if child == 0:
            run(*arguments)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status) == arguments[-1], status
"""


def test_every_step_once_in_both_sinks_after_two_kills(tmp_path: Path) -> None:
    script = textwrap.dedent(RUN)
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, timeout=120)
    records = read_records(tmp_path / "metrics.jsonl")
    trained = [record for record in records if "train/loss" in record]
    assert [record["step"] for record in trained] == list(range(1, 41))
    assert [r["step"] for r in records if "val/top1" in r] == [10, 20, 30, 40]
    assert all(record["train/loss"] == 1 / record["step"] for record in trained)

    expected = {
        "epoch": list(range(1, 41)),
        "train/loss": list(range(1, 41)),
        "train/lr": list(range(1, 41)),
        "val/top1": [10, 20, 30, 40],
    }
    raw = raw_steps(tmp_path)
    assert {tag: raw[tag] for tag in expected} == expected
    assert raw["images"] == raw["config/text_summary"] == [0]
    assert {tag: accumulated_steps(tmp_path)[tag] for tag in expected} == expected


def test_other_ranks_and_closed_runs_write_nothing(tmp_path: Path) -> None:
    null = build_recorder(
        LogConfig(),
        run_dir=tmp_path / "other",
        is_main=False,
        resume_step=0,
        num_steps=4,
        steps_per_epoch=2,
    )
    assert isinstance(null, NullRecorder)
    null.scalars(1, TRAIN)
    null.close()
    assert not (tmp_path / "other").exists()

    recorder = build(tmp_path, progress="lines")
    recorder.scalars(400, TRAIN)
    recorder.close()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    build(tmp_path, resume_step=400, progress="lines").close()  # a finished run started again
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_without_tensorboard_there_is_no_folder(tmp_path: Path) -> None:
    recorder = build(tmp_path, tensorboard=False, progress="lines")
    recorder.images(0, "x", torch.zeros(1, 3, 2, 2, dtype=torch.uint8))
    recorder.text(0, "x", "y")
    recorder.flush()
    recorder.close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_closing_reaches_every_recorder() -> None:
    closed = []

    class Failing(NullRecorder):
        def close(self) -> None:
            closed.append(self)
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        MultiRecorder([Failing(), Failing()]).close()
    assert len(closed) == 2


def test_lines_show_position_loss_rate_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    console = build_console("auto", resume_step=0, num_steps=400, steps_per_epoch=50)
    assert isinstance(console, LineConsole)  # the test's output is not a terminal
    console.scalars(150, TRAIN)
    console.scalars(100, VAL)
    console.scalars(1, {"train/loss": math.nan, "train/lr": 4e-5, "train/skipped_steps": 2})
    console.message("hello")
    assert capsys.readouterr().out.splitlines() == [
        "epoch 3/8 step 150/400 loss 0.5123 top1 83.1% 312 img/s eta 0:02:10",
        "validation epoch 2/8 step 100/400 loss 0.6000 top1 80.00% top5 99.00%",
        "validation (ema) epoch 2/8 step 100/400 top1 81.00%",
        "epoch 1/8 step 1/400 loss nan skipped 2",
        "hello",
    ]


def test_the_bar_shows_position_and_messages_stay_whole(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console = build_console("bar", resume_step=100, num_steps=400, steps_per_epoch=50)
    assert isinstance(console, BarConsole)
    console.advance(101)
    assert console._bar.n == 101  # before any record
    console.scalars(150, TRAIN)
    console.scalars(150, VAL)
    console.message("hello")
    console.close()
    output = capsys.readouterr()
    assert "150/400" in output.err
    assert "loss 0.5123" in output.err
    assert output.out.splitlines()[-1] == "hello"
    assert "validation epoch 3/8" in output.out
