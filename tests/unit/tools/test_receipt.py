"""The receipt of a run that was killed once and ran on other ranks then."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest

from resnet_dist.config.help.listing import describe
from resnet_dist.config.load import load_config
from resnet_dist.report.__main__ import main
from resnet_dist.report.facts import read_run
from resnet_dist.report.receipt import receipt, receipt_lines, write_receipt

BEGIN = 1_760_000_000


def run_folder(folder: Path) -> Path:
    """100 steps of 64 images in an hour on 2 ranks; half an hour later 100 more on 4."""
    folder.mkdir(parents=True)
    resolved = load_config(["quickstart"], ["log.price_per_hour=2"])
    (folder / "config.yaml").write_text(describe(resolved) + "\n")
    records, starts = [], []
    for begin, ranks, first in ((BEGIN, 2, 0), (BEGIN + 5400, 4, 100)):
        when = datetime.fromtimestamp(begin).astimezone().strftime("%Y-%m-%dT%H:%M:%S%z")
        starts.append({"time": when, "world_size": ranks, "step": first})
        for step in (first + 50, first + 100):
            record = {"step": step, "epoch": step / 62, "train/step_time_ms": 36_000.0}
            record |= {"train/data_wait_share": 0.5, "train/energy_kj": 1800.0, "train/loss": 1.0}
            records.append(record | {"time": begin + 36.0 * (step - first)})
    for name, lines in (("metrics.jsonl", records), ("starts.jsonl", starts)):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_the_figures(tmp_path: Path) -> None:
    assert receipt(read_run(run_folder(tmp_path / "run"))) == {
        "wall_s": 9000.0,
        "steps_s": 3600.0,
        "data_wait_s": 3600.0,
        "stopped_s": 1800.0,
        "goodput": 0.4,
        "rank_hours": 6.0,
        "images": 200 * 64,
        "restarts": 1,
        "energy_kwh": 2.0,
        "cost": 12.0,
    }


def test_the_words_fit_80_columns_and_the_file_is_kept(tmp_path: Path) -> None:
    run = read_run(run_folder(tmp_path / "run"))
    lines = receipt_lines(run)
    assert lines == [
        "receipt: 2:30:00 in all, 40% of it in steps that count, 6 rank hours",
        "  12,800 images, 1 restart(s), 0:30:00 stopped or repeated, 2 kWh, cost 12.00",
    ]
    assert max(map(len, lines)) <= 80
    assert json.loads(write_receipt(run).read_text()) == receipt(run)


def test_a_copy_of_the_records_alone_has_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_folder(tmp_path / "run")
    for name in ("config.yaml", "starts.jsonl"):
        (folder / name).unlink()
    assert main([str(folder)]) == 0
    assert "receipt" not in capsys.readouterr().out
