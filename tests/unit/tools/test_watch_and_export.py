"""The live view, on a real terminal too, and records for other programs."""

from __future__ import annotations

import csv
import json
import math
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest

from resnet_dist.report.__main__ import main
from resnet_dist.report.facts import read_run
from resnet_dist.report.watch import view
from tests.unit.tools.test_receipt import BEGIN, run_folder


def test_the_view_fits_and_says_what_matters(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    starts = [json.loads(line) for line in (folder / "starts.jsonl").read_text().splitlines()]
    text = [json.dumps(start | {"num_steps": 400}) + "\n" for start in starts]
    (folder / "starts.jsonl").write_text("".join(text))
    run = read_run(folder)
    lines = view(run, width=80, now=BEGIN + 9010)
    assert lines[0].split("  ") == ["run", "resnet18", "4 rank(s)", "running", "1 restart(s)"]
    assert "step 200/400  50%  eta 2:00:00" in lines[1]
    assert max(map(len, lines)) <= 80
    assert "silent for 1:00:00" in view(run, width=80, now=BEGIN + 9000 + 3600)[0]
    assert max(map(len, view(run, width=30, now=0.0))) <= 30


def test_a_loss_that_is_not_finite_is_shown(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    records = [{"step": n, "epoch": n / 10, "train/loss": 1.0} for n in range(1, 4)]
    lines = [json.dumps(r) for r in records] + ['{"step": 4, "epoch": 0.4, "train/loss": "NaN"}']
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    shown = [line for line in view(read_run(folder), width=80, now=0.0) if "train loss" in line]
    assert shown[0].endswith("▁▁▁! nan")


def test_without_a_terminal_it_is_drawn_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_folder(tmp_path / "run")
    assert main([str(folder), "--watch"]) == 0
    assert "\x1b" not in capsys.readouterr().out
    assert main([str(folder), str(folder), "--watch"]) == 2


def test_on_a_terminal_it_waits_for_the_first_record_and_ends_with_the_run(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    content = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").unlink()
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "resnet_dist.report", str(folder), "--watch"]
    with subprocess.Popen(command, stdout=slave, stderr=slave) as process:
        os.close(slave)
        assert "waiting for the first record" in read_until(master, "waiting for")
        (folder / "metrics.jsonl").write_text(content)
        assert "Ctrl-C ends" in read_until(master, "Ctrl-C ends")
        end = {"time": time.time(), "outcome": "finished"}
        (folder / "ends.jsonl").write_text(json.dumps(end) + "\n")
        assert process.wait(timeout=30) == 0
    os.close(master)


def read_until(master: int, words: str) -> str:
    found = ""
    while words not in found:
        found += os.read(master, 4096).decode()
    return found


def test_csv_has_a_row_per_record_and_reads_back(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    assert main([str(folder), "--export", "csv"]) == 0
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    records = read_run(folder).records
    assert len(rows) == len(records)
    for row, record in zip(rows, records, strict=True):
        assert {tag: float(value) for tag, value in row.items() if value} == record


def test_what_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_folder(tmp_path / "run")
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main([str(folder), "--export", "wandb"]) == 2
    assert "pip install wandb" in capsys.readouterr().err


def test_mlflow_holds_the_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = run_folder(tmp_path / "run")
    assert main([str(folder), "--export", "mlflow"]) == 0
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'resnet_dist'")
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [point.step for point in history] == [50, 100, 150, 200]
    assert run.data.params["optim.lr"] == "0.2"


def test_trackio_holds_the_curves(tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    folder = run_folder(tmp_path / "run")
    command = [sys.executable, "-m", "resnet_dist.report", str(folder), "--export", "trackio"]
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio")}
    subprocess.run(command, check=True, env=environment, timeout=120)
    assert any(path.stat().st_size for path in (tmp_path / "trackio").rglob("*.db"))


def test_wandb_is_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    folder = run_folder(tmp_path / "run")
    command = [sys.executable, "-m", "resnet_dist.report", str(folder), "--export", "wandb"]
    subprocess.run(command, check=True, timeout=120)
    assert list(folder.glob("wandb/offline-run-*/*.wandb"))


def test_numbers_that_are_not_finite_stay_out_of_other_programs() -> None:
    from resnet_dist.report.export import _metrics

    assert _metrics({"step": 1, "train/loss": math.nan, "train/lr": 0.1}) == {"train/lr": 0.1}
