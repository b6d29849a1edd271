"""Whole runs under torchrun: any number of ranks, killed and resumed, stopped by a signal."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.launch import (
    TINY,
    assert_same_run,
    losses,
    newest_checkpoint,
    records,
    torchrun,
    train,
)

SAVE_EVERY = "checkpoint.every_steps=4"


@pytest.mark.parametrize("nproc", [2, 3, pytest.param(4, marks=pytest.mark.slow)])
def test_the_number_of_ranks_does_not_change_the_curve(
    nproc: int, uninterrupted: Callable[[int, str], Path]
) -> None:
    one, many = uninterrupted(1, "torch"), uninterrupted(nproc, "torch")
    assert len(losses(one)) == 20
    assert losses(many) == pytest.approx(losses(one), rel=1e-4)
    final_one, final_many = (records(run)[-1] for run in (one, many))
    assert final_many["val/loss"] == pytest.approx(final_one["val/loss"], rel=1e-3)


@pytest.mark.parametrize("loader", ["torch", pytest.param("dali", marks=pytest.mark.slow)])
def test_killed_with_sigkill_and_resumed_is_the_run(
    loader: str,
    uninterrupted: Callable[[int, str], Path],
    run_root: Path,
    tmp_path: Path,
) -> None:
    """All ranks die at a random step in the middle of an epoch; the rest is bit for bit equal."""
    whole = uninterrupted(2, loader)
    step = random.Random(os.environ.get("PYTEST_RANDOM", time.time_ns())).randint(9, 19)
    run_dir = tmp_path / "killed"
    train(
        2,
        run_root,
        run_dir,
        f"data.loader={loader}",
        SAVE_EVERY,
        environment={"RESNET_DIST_FAILPOINT": f"step.after_optimizer@{step}"},
        check=False,
    )
    due = (step - 1) // 4 * 4
    # A save right before the kill may not be durable yet.
    assert newest_checkpoint(run_dir)["step"] in (due, due - 4)
    train(2, run_root, run_dir, f"data.loader={loader}", SAVE_EVERY)
    assert_same_run(whole, run_dir)


def test_what_is_recorded_is_in_the_documentation(
    uninterrupted: Callable[[int, str], Path],
) -> None:
    """Every key of a record of two ranks is in the table of docs/run_folder.md."""
    page = (Path(__file__).parents[2] / "docs" / "run_folder.md").read_text()
    explained = [re.compile(name.replace("*", ".*")) for name in re.findall(r"`([\w/*]+)`", page)]
    found = {key for record in records(uninterrupted(2, "torch")) for key in record}
    assert len(found) > 15
    assert [key for key in sorted(found) if not any(p.fullmatch(key) for p in explained)] == []


def test_three_ranks_resume_bit_for_bit(
    uninterrupted: Callable[[int, str], Path], run_root: Path, tmp_path: Path
) -> None:
    """With three ranks the order of summation shows in the last bit."""
    run_dir = tmp_path / "killed"
    kill = {"RESNET_DIST_FAILPOINT": "step.before_optimizer@7"}
    train(3, run_root, run_dir, SAVE_EVERY, environment=kill, check=False)
    train(3, run_root, run_dir, SAVE_EVERY)
    assert_same_run(uninterrupted(3, "torch"), run_dir)


def test_resumed_on_another_number_of_ranks(
    uninterrupted: Callable[[int, str], Path], run_root: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "elastic"
    train(2, run_root, run_dir, SAVE_EVERY, "train.max_steps=7")
    train(3, run_root, run_dir, SAVE_EVERY, "train.max_steps=11")
    train(1, run_root, run_dir, SAVE_EVERY)
    whole = uninterrupted(1, "torch")
    assert losses(run_dir) == pytest.approx(losses(whole), rel=1e-4)
    assert [r["step"] for r in records(run_dir)] == [r["step"] for r in records(whole)]


@pytest.mark.slow
def test_accumulation_clipping_average_and_interval_resume_exactly(
    run_root: Path, tmp_path: Path
) -> None:
    """Everything stateful at once, saved in the middle of a log interval."""
    settings = [
        "train.max_micro_batch_size=3",
        "train.ema_decay=0.9",
        "train.clip_grad_norm=1.0",
        "loss.label_smoothing=0.1",
        "train.sync_batch_norm=false",
        "optim.name=adamw",
        "optim.lr=0.001",
        "schedule.name=one_cycle",
        "schedule.warmup_epochs=0",
        "log.every_steps=5",
        "checkpoint.every_steps=3",
    ]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(2, run_root, whole, *settings)
    train(2, run_root, parts, *settings, "train.max_steps=8")
    train(2, run_root, parts, *settings)
    assert_same_run(whole, parts)
    assert newest_checkpoint(whole)["average"] is not None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lars", "lamb"])
def test_layerwise_optimizers_resume_exactly(name: str, run_root: Path, tmp_path: Path) -> None:
    settings = [f"optim.name={name}", "optim.lr=0.01", "optim.momentum=0.9", SAVE_EVERY]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(2, run_root, whole, *settings)
    kill = {"RESNET_DIST_FAILPOINT": "step.after_optimizer@11"}
    train(2, run_root, parts, *settings, environment=kill, check=False)
    train(2, run_root, parts, *settings)
    assert_same_run(whole, parts)


def test_a_signal_to_one_rank_stops_all_at_the_same_step(
    uninterrupted: Callable[[int, str], Path], run_root: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "stopped"
    arguments = [*TINY, f"data.root={run_root}", f"run.dir={run_dir}", SAVE_EVERY]
    # Slow enough for the ranks, who agree every two seconds, to do so before the last step.
    environment = {**os.environ, "RESNET_DIST_FAILPOINT": "step.begin@1-=sleep:0.3"}
    command = torchrun(2, arguments)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "step 2/" in line:
                break
        children = ["ps", "-o", "pid=", "--ppid", str(process.pid)]
        workers = subprocess.run(children, capture_output=True, text=True, check=True).stdout
        os.kill(int(workers.split()[-1]), signal.SIGUSR1)
        output = process.stdout.read()
    assert process.returncode != 0  # torchrun reports the ranks' code 75 as a failure
    stopped_at = newest_checkpoint(run_dir)["step"]
    assert f"stopped at step {stopped_at} by a signal" in output
    assert 2 <= stopped_at < newest_checkpoint(uninterrupted(2, "torch"))["step"]
    train(2, run_root, run_dir, SAVE_EVERY)
    assert_same_run(uninterrupted(2, "torch"), run_dir)


def test_a_finished_run_started_again_changes_nothing(
    uninterrupted: Callable[[int, str], Path], run_root: Path
) -> None:
    run_dir = uninterrupted(2, "torch")
    before = (run_dir / "metrics.jsonl").read_bytes()
    result = train(2, run_root, run_dir, SAVE_EVERY)
    assert "finished" in result.output
    assert (run_dir / "metrics.jsonl").read_bytes() == before


def test_evaluate_only_gives_the_recorded_figures_on_any_number_of_ranks(
    uninterrupted: Callable[[int, str], Path], run_root: Path
) -> None:
    run_dir = uninterrupted(2, "torch")
    recorded = records(run_dir)[-1]
    lines = set()
    for nproc in (1, 3):
        result = train(nproc, run_root, run_dir, "run.evaluate_only=true")
        lines |= {line for line in result.output.splitlines() if "top1" in line}
    assert len(lines) == 1, lines
    assert f"top1 {recorded['val/top1']:.4%}" in lines.pop()


def test_a_narrow_network_with_an_odd_batch_does_not_corrupt_memory(
    tmp_path: Path, run_root: Path
) -> None:
    """One process would have several threads, with which a kernel of torch 2.15 writes too far."""
    settings = ["data.loader=synthetic", "train.global_batch_size=9", "train.max_steps=20"]
    train(1, run_root, tmp_path / "run", *settings)


@pytest.mark.slow
def test_fused_batch_norm_is_the_same_curve_for_any_number_of_ranks_and_resumes_exactly(
    uninterrupted: Callable[[int, str], Path], run_root: Path, tmp_path: Path
) -> None:
    fused = [SAVE_EVERY, "performance.fused_norm=true"]
    one, two, killed = (tmp_path / name for name in ("one", "two", "killed"))
    train(1, run_root, one, *fused)
    train(2, run_root, two, *fused)
    expected = losses(uninterrupted(1, "torch"))
    assert losses(one) == pytest.approx(expected, rel=1e-4)
    assert losses(two) == pytest.approx(expected, rel=1e-4)
    kill = {"RESNET_DIST_FAILPOINT": "step.after_optimizer@11"}
    train(2, run_root, killed, *fused, environment=kill, check=False)
    train(2, run_root, killed, *fused)
    assert_same_run(two, killed)


def test_the_first_lines_fit_80_columns(run_root: Path, tmp_path: Path) -> None:
    """But for those that name a file."""
    run_dir = tmp_path / "run"
    said = train(1, run_root, run_dir, "train.max_steps=1").output.splitlines()
    first = said[: said.index(f"run folder: {run_dir}")]
    assert any("million parameters" in line for line in first)
    assert [line for line in first if len(line) > 80 and "/" not in line] == []
