"""Steps of real runs, done again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from resnet_dist.replay.__main__ import main
from tests.launch import records


def test_a_step_is_done_again_bit_for_bit(
    uninterrupted: Callable[[int, str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the checkpoint of step 16, on two ranks; one rank takes it apart."""
    run = uninterrupted(2, "torch")
    assert main([str(run), "--step", "18", "--nproc", "2", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "from the checkpoint of step 16 to step 18, on 2 rank(s)" in said
    assert "equal to the run, bit for bit: 2 recorded step(s) and 0 checkpoint(s)" in said
    assert not (run / "replay").exists()
    record = next(each for each in records(run) if each["step"] == 18)
    found = json.loads((tmp_path / "step_18.json").read_text())
    losses = [sample["loss"] for sample in found["samples"]]
    assert len(losses) == 26
    assert losses == sorted(losses, reverse=True)
    assert sum(losses) / 26 == pytest.approx(record["train/loss"], rel=1e-4)
    norm = sum(value**2 for value in found["gradient_norms"].values()) ** 0.5
    assert norm == pytest.approx(record["train/grad_norm"], rel=1e-4)
    with Image.open(tmp_path / "step_18.png") as picture:
        assert picture.width > 6 * 96


def test_what_is_not_equal_is_said(
    uninterrupted: Callable[[int, str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A record that somebody changed; the first step of all; the last one, with its checkpoint."""
    run = tmp_path / "copy"
    shutil.copytree(uninterrupted(2, "torch"), run)
    assert main([str(run), "--step", "20", "--nproc", "2", "--out", str(tmp_path)]) == 0
    assert "1 checkpoint(s)" in capsys.readouterr().out
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines()
    first = json.loads(lines[0])
    assert first["step"] == 1
    first["train/loss"] += 0.5
    path.write_text("\n".join([json.dumps(first), *lines[1:]]) + "\n")
    for checkpoint in (run / "checkpoints").glob("*.pt"):
        checkpoint.unlink()
    assert main([str(run), "--step", "1", "--nproc", "2", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "from the start to step 1" in said
    assert "NOT equal to the run: train/loss of step 1" in said


def test_the_history_of_a_sample(
    uninterrupted: Callable[[int, str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = uninterrupted(1, "torch")
    assert main([str(run), "--sample", "3"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("sample 3: ")
    uses = [line for line in said if line.startswith("  epoch ")]
    assert 1 <= len(uses) <= 5  # the tail of an epoch is dropped
    assert said[-1] == f"used {len(uses)} time(s) up to step 20, {len(uses)} in 5 epochs"
    name = said[0].split()[2]
    assert main([str(run), "--sample", "/".join(name.split("/")[-2:])]) == 0
    assert capsys.readouterr().out.splitlines() == said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--step", "21"], "give a step from 1 to 20"),
        (["--step", "0"], "give a step from 1 to 20"),
        (["--step", "3", "--nproc", "0"], "give 1 or more"),
        (["--sample", "999999"], "no training image is that"),
        (["--sample", ".jpg"], "training images end so"),
    ],
)
def test_bad_input_is_one_sentence(
    uninterrupted: Callable[[int, str], Path],
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    assert main([str(uninterrupted(1, "torch")), *arguments]) == 2
    assert words in capsys.readouterr().err
