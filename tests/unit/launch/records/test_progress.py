"""How far a run has come, from whatever its records hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launch.records import progress
from launch.records.progress import Progress, last_outcome, newest_step, read_progress


def write_records(run_dir: Path, *records: dict[str, Any], end: str = "") -> None:
    run_dir.mkdir(exist_ok=True)
    text = "".join(json.dumps(record) + "\n" for record in records)
    (run_dir / "metrics.jsonl").write_text(text + end)


def record(step: int, **values: Any) -> dict[str, Any]:
    named = {key.replace("__", "/"): value for key, value in values.items()}
    return {"step": step, "epoch": step / 100, **named, "time": 1e9 + step}


def test_progress_is_the_last_value_of_each(tmp_path: Path) -> None:
    train: dict[str, Any] = {"train__images_per_second": 100.0, "train__step_time_ms": 500.0}
    write_records(
        tmp_path,
        record(100, train__loss=3.0, **train),
        record(100, val__top1=0.25),
        record(150, train__loss=2.5, **train),
        end='{"step": 200, "train/lo',
    )
    (tmp_path / "starts.jsonl").write_text('{"num_steps": 900}\n{"num_steps": 1000}\n{"num_st')
    found = read_progress(tmp_path)
    assert found == Progress(150, 1000, 1.5, 2.5, 0.25, 100.0, 0.5, 1e9 + 150)
    assert found.left_s == 425
    assert Progress(step=5, num_steps=4, step_time_s=1.0).left_s == 0


def test_progress_of_nothing(tmp_path: Path) -> None:
    assert read_progress(tmp_path) == Progress()
    assert Progress().left_s is None
    (tmp_path / "metrics.jsonl").write_text('{"step"')
    assert read_progress(tmp_path) == Progress()


def test_progress_beside_damage(tmp_path: Path) -> None:
    write_records(tmp_path, record(1, train__loss=1.0), end='\x00\x00\n7\n[1]\n{"a": \n')
    assert read_progress(tmp_path).step == 1


def test_a_loss_that_is_no_number(tmp_path: Path) -> None:
    """JSON has none: the recorder writes texts."""
    write_records(tmp_path, record(1, train__loss="NaN", train__images_per_second="Infinity"))
    found = read_progress(tmp_path)
    assert f"{found.loss:.4f} {found.images_per_second:.0f}" == "nan inf"


def test_an_evaluation_long_ago_is_found(tmp_path: Path) -> None:
    """ImageNet: 5,000 steps an epoch, a record every 10."""
    tags = {f"train__value{i}": 0.123456789 for i in range(8)}
    many = [record(step, train__loss=0.123456789, **tags) for step in range(100, 7000, 10)]
    write_records(tmp_path, record(90, val__top1=0.5), *many)
    found = read_progress(tmp_path)
    assert (found.step, found.top1) == (6990, 0.5)


def test_only_the_end_of_a_long_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_TAIL_BYTES", 200)
    write_records(tmp_path, record(1, val__top1=0.5), *(record(step) for step in range(2, 50)))
    found = read_progress(tmp_path)
    assert (found.step, found.top1) == (49, None)


def test_the_last_outcome(tmp_path: Path) -> None:
    assert last_outcome(tmp_path) is None
    path = tmp_path / "ends.jsonl"
    path.write_text('{"outcome": "stopped"}\n{"outcome": "finished"}\n{"outcome": "div')
    assert last_outcome(tmp_path) == "finished"


def test_the_newest_step_is_that_of_whole_checkpoints(tmp_path: Path) -> None:
    assert newest_step(tmp_path) == 0
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for step in (5, 40, 300):
        (folder / f"step_{step:09d}.pt").touch()
    for name in ("best.pt", "step_abc.pt", ".step_000000900.pt.12.tmp", "step_000000900.pt.bad"):
        (folder / name).touch()
    assert newest_step(tmp_path) == 300
