"""The report: table, best and final accuracy, curves."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from PIL import Image

from resnet_dist.metrics.jsonl import JsonlRecorder, Record
from resnet_dist.report.__main__ import main
from resnet_dist.report.curves import write_curves
from resnet_dist.report.table import epoch_table, final_lines


def run_records(epochs: int = 3, *, ema: bool = False) -> list[Record]:
    """A run of 10 steps per epoch, recorded every 4 steps and at the end of epochs."""
    records: list[Record] = []
    for step in range(1, 10 * epochs + 1):
        epoch = step / 10
        if step % 4 == 0 or step % 10 == 0:
            record: Record = {"step": step, "epoch": epoch, "train/loss": 4 / step}
            record |= {"train/top1": 1 - 1 / step, "train/lr": 0.1 - step / 1000}
            record |= {"train/images_per_second": 100.0, "train/step_time_ms": 1000.0}
            records.append(record)
        if step % 10 == 0:
            record = {"step": step, "epoch": epoch, "val/loss": 0.5}
            record |= {"val/top1": 0.9 - abs(step - 20) / 100, "val/top5": 0.99}
            records.append(record | ({"val/ema_top1": 0.91} if ema else {}))
    return records


def test_the_table_has_one_row_per_epoch_with_means_over_steps() -> None:
    lines = epoch_table(run_records()).splitlines()
    assert lines[0].split() == ["train", "train", "val", "val", "val"]
    assert lines[1].split() == [
        "epoch",
        "steps",
        "loss",
        "top1",
        "loss",
        "top1",
        "top5",
        "lr",
        "img/s",
        "time",
    ]
    first = (4 * 4 / 4 + 4 * 4 / 8 + 2 * 4 / 10) / 10
    assert lines[3].split()[:3] == ["1", "10", f"{first:.4f}"]
    assert lines[4].split()[4:] == ["0.5000", "90.00%", "99.00%", "0.08", "100", "0:00:10"]
    assert len(lines) == 3 + 3
    assert len({len(line) for line in lines}) == 1


def test_the_table_of_a_long_run_fits_80_columns() -> None:
    long = [
        record | {"step": record["step"] * 15_000, "train/step_time_ms": 4e2}
        for record in run_records(60, ema=True)
    ]
    assert max(len(line) for line in epoch_table(long).splitlines()) <= 80


def test_the_table_of_a_run_that_still_trains_and_of_one_that_began_in_the_middle() -> None:
    records = run_records()
    row = epoch_table(records[:-2]).splitlines()[-1].split()
    assert row[:2] == ["2.8", "28"]
    assert row.count("-") == 3  # not evaluated yet
    started = [record for record in records if record["step"] > 20]
    (row,) = [line.split() for line in epoch_table(started).splitlines()[3:]]
    assert row == epoch_table(records).splitlines()[-1].split()


def test_a_diverged_run_shows_it() -> None:
    records = run_records(1)
    records[0]["train/loss"] = math.nan
    assert "nan" in epoch_table(records)


def test_final_and_best() -> None:
    assert final_lines(run_records()) == [
        "final validation top-1: 80.00% (step 30, epoch 3)",
        "best validation top-1: 90.00% (step 20, epoch 2)",
    ]
    assert "best moving average's validation top-1: 91.00%" in "\n".join(
        final_lines(run_records(ema=True))
    )
    assert "ema" in epoch_table(run_records(ema=True)).splitlines()[0]
    assert final_lines(run_records(), is_finished=False) == [
        "latest validation top-1 so far: 80.00% (step 30, epoch 3)",
        "best validation top-1 so far: 90.00% (step 20, epoch 2)",
    ]
    assert final_lines([]) == ["no validation yet"]


@pytest.mark.parametrize("records", [run_records(), run_records(60, ema=True), run_records()[:1]])
def test_curves_are_a_picture(records: list[Record], tmp_path: Path) -> None:
    write_curves(records, tmp_path / "curves.png", title="a run")
    with Image.open(tmp_path / "curves.png") as picture:
        picture.load()
        assert picture.width > 2 * picture.height > 600
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]


def test_the_command_prints_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorder = JsonlRecorder(tmp_path / "metrics.jsonl", resume_step=0)
    for record in run_records():
        values = {tag: value for tag, value in record.items() if tag != "step"}
        recorder.scalars(int(record["step"]), values)
    recorder.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 31})[:-3])  # a line that is being written
    assert main([str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert "best validation top-1: 90.00% (step 20, epoch 2)" in output
    assert f"curves: {tmp_path / 'curves.png'}" in output
    assert (tmp_path / "curves.png").exists()


def test_a_folder_without_metrics_is_one_sentence_and_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "metrics.jsonl: cannot be read (No such file or directory)" in error
    assert len(error.splitlines()) == 1
    (tmp_path / "metrics.jsonl").write_text("")
    assert main([str(tmp_path)]) == 2
    assert "holds no record yet" in capsys.readouterr().err
    (tmp_path / "metrics.jsonl").write_text("hello\n")
    assert main([str(tmp_path)]) == 2
    assert "line 1" in capsys.readouterr().err
