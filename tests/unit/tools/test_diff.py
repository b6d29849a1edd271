"""Where two runs part: on made-up records, the first step, tag and cause."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from resnet_dist.checkpoint.files import write_checkpoint
from resnet_dist.config.help.listing import describe
from resnet_dist.config.load import load_config
from resnet_dist.diff.__main__ import main
from resnet_dist.diff.parting import compare, world_sizes

VERSIONS = {"torch": "2.15.0", "git": "abc"}


def records(*, until: int = 40, every: int = 10, part_at: int = 99, by: float = 1e-3) -> list[Any]:
    found: list[Any] = []
    for step in range(every, until + 1, every):
        loss = 1.0 / step + (by if step >= part_at else 0.0)
        record = {"step": step, "epoch": step / 20, "train/loss": loss, "train/lr": 0.1}
        record |= {"train/images_per_second": loss * 7, "train/step_time_ms": step + by}
        found.append(record | {"train/energy_kj": by, "train/skipped_steps": 0, "time": by})
    return found


def run(
    folder: Path,
    *overrides: str,
    ranks: int = 2,
    versions: dict[str, str] | None = None,
    data: str = "same",
    batch: str = "same",
    weights: tuple[float, ...] = (1.0, 1.0),
    **changes: Any,
) -> Path:
    """A run folder with records and checkpoints of steps 20 and 40."""
    folder.mkdir()
    (folder / "config.yaml").write_text(
        describe(load_config(["quickstart"], list(overrides))) + "\n"
    )
    lines = "".join(json.dumps(record) + "\n" for record in records(**changes))
    (folder / "metrics.jsonl").write_text(lines)
    start = {"time": "2026-11-27T10:00:00+0000", "world_size": ranks, "step": 0}
    (folder / "starts.jsonl").write_text(
        json.dumps(start | {"versions": versions or VERSIONS}) + "\n"
    )
    (folder / "checkpoints").mkdir()
    for step, weight in zip((20, 40), weights, strict=True):
        state = {"model": {"conv1.weight": torch.full((3,), weight), "fc.bias": torch.zeros(2)}}
        facts = {"data": {"train": data}, "next_batch": batch, "step": step}
        write_checkpoint(folder / "checkpoints" / f"step_{step:08d}.pt", state | facts)
    return folder


@pytest.fixture
def one(tmp_path: Path) -> Path:
    return run(tmp_path / "one")


def said(one: Path, two: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = main([str(one), str(two)])
    return code, capsys.readouterr().out


def test_equal_runs_are_one_line(
    one: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, printed = said(one, run(tmp_path / "two", "run.name=two", by=5.0), capsys)
    assert code == 0
    assert printed == "equal up to step 40: 4 recorded steps and 2 checkpoint(s), bit for bit\n"


def test_the_first_step_and_tensor_are_named(
    one: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two = run(tmp_path / "two", "optim.lr=0.3", part_at=30, weights=(1.0, 1.5))
    code, printed = said(one, two, capsys)
    assert code == 1
    assert "records: equal up to step 20, different at step 30" in printed
    assert "more than rounding" in printed
    assert "checkpoints: equal at 20; different at 40" in printed
    assert "model.conv1.weight: by 0.5 at most (the first of 1" in printed
    assert "likely cause: settings\n  optim.lr: 0.2 and 0.3" in printed


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"ranks": 4, "by": 1e-8}, "number of ranks\n  2 and 4"),
        ({"data": "other"}, "data\n"),
        ({"batch": "other"}, "samples\n"),
        ({"versions": {**VERSIONS, "torch": "2.16.0"}}, "versions\n  torch: 2.15.0 and 2.16.0"),
        ({"by": 1e-8}, "nothing known differs\n  settings, data, ranks"),
        ({}, "nothing known differs\n  a host or GPU may have computed wrongly"),
    ],
)
def test_the_cause(
    changes: dict[str, Any],
    cause: str,
    one: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, printed = said(one, run(tmp_path / "two", part_at=10, **changes), capsys)
    assert code == 1
    assert f"likely cause: {cause}" in printed


def test_other_threads_are_a_setting_that_rounds(
    one: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two = run(tmp_path / "two", "performance.num_threads=1", part_at=10, by=1e-9)
    assert (
        "likely cause: settings that change rounding at most\n  performance.num_threads"
        in said(one, two, capsys)[1]
    )


def test_other_intervals_compare_what_can_be_compared() -> None:
    found = compare(records(), records(every=20, part_at=20))
    assert found.intervals_differ
    assert found.parting is None
    assert found.steps == 2


def test_nan_is_nan_and_not_a_number() -> None:
    one, two = records(), records()
    one[1]["train/loss"] = two[1]["train/loss"] = math.nan
    assert compare(one, two).parting is None
    two[1]["train/loss"] = 0.5
    parting = compare(one, two).parting
    assert parting is not None
    assert (parting.step, parting.may_be_rounding) == (20, False)


def test_ranks_of_the_starts_that_lead_to_a_step() -> None:
    starts = [{"step": 0, "world_size": 2}, {"step": 30, "world_size": 4}]
    assert world_sizes(starts, 30) == [2]
    assert world_sizes(starts, 31) == [2, 4]


def test_bad_input_is_2(one: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(one), str(tmp_path / "none")]) == 2
    assert "cannot be read" in capsys.readouterr().err
