"""Bands of several seeds, and the verdict on a run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from resnet_dist.config.load import load_config
from resnet_dist.errors import UserError
from resnet_dist.report import bands
from resnet_dist.report.bands import Band

RUNS = [[0.30, 0.60], [0.32, 0.62], [0.28, 0.61], [0.31, 0.60], [0.29, 0.62]]
BAND = Band("quickstart", 4000, [1, 2], RUNS)


def records(*top1: float) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{"step": 5, "epoch": 0.5, "train/loss": 2.0}]
    for epoch, value in enumerate(top1, start=1):
        found.append({"step": 10 * epoch, "epoch": float(epoch), "val/top1": value})
    return found


def test_the_range_is_that_of_one_more_run() -> None:
    limits = BAND.range_at(1)
    assert limits is not None
    # Mean 0.3, deviation 0.01581, t = 4.604, times sqrt(1 + 1 / 5).
    assert limits == pytest.approx((0.3 - 0.07974, 0.3 + 0.07974), abs=1e-4)
    assert BAND.range_at(3) is None
    assert replace(BAND, runs=RUNS[:2]).range_at(1) is None


def test_a_run_within_is_said_in_one_line() -> None:
    (line,) = bands.verdict(records(0.33, 0.61), BAND, [])
    assert line.startswith("within the band of 5 seeds of quickstart (epoch 2: top-1 61.00%, band")


def test_a_run_outside_names_epochs_and_the_settings_that_differ() -> None:
    config = load_config(["quickstart"], ["optim.lr=0.4", "seed=7", "run.name=mine"]).config
    found = bands.band_of(config, 4000)
    differences = [] if found is None else found[1]
    if found is not None:
        assert [each.key for each in differences] == ["optim.lr"]
    lines = bands.verdict(records(0.33, 0.20), BAND, differences)
    assert "outside the band of 5 seeds of quickstart at epochs 2 (below)" in lines[0]
    assert found is None or "optim.lr" in lines[-1]
    assert "no setting differs" in bands.verdict(records(0.9, 0.61), BAND, [])[1]


def test_before_the_first_evaluation_nothing_is_claimed() -> None:
    assert "no epoch to compare yet" in bands.verdict(records(), BAND, [])[0]


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", json.dumps({"recipe": "a", "num_train_samples": 1, "epochs": [1]})]
)
def test_a_file_that_is_none_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "band.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"band \(.*band\.json\)"):
        bands.read_band(path)


def test_shipped_bands_are_of_shipped_recipes() -> None:
    for band in bands.bands():
        config = load_config([band.recipe]).config
        assert band.epochs[-1] == config.train.epochs
        assert len(band.runs) >= 5
        found = bands.band_of(config, band.num_train_samples)
        assert found is not None
        assert found == (band, [])
        other = load_config([band.recipe], ["model.name=resnet34", "model.stem=standard"]).config
        assert bands.band_of(other, band.num_train_samples) is None
        assert bands.band_of(config, band.num_train_samples + 1) is None
