"""`prepare` ends with a command that works, and that trains what one expects."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from resnet_dist.config.load import load_config
from resnet_dist.prepare import __main__ as prepare_main
from resnet_dist.train import main as train
from tests.unit.prepare.packing import Prepare


def command_in(said: str) -> list[str]:
    found = re.search(r"^train with: resnet-dist train (.*)$", said, re.MULTILINE)
    assert found is not None, said
    return shlex.split(found[1])


def test_the_numbers_are_the_recipe_s() -> None:
    config = load_config([prepare_main._RECIPE]).config
    assert config.train.global_batch_size == prepare_main._RECIPE_BATCH
    assert config.optim.lr == prepare_main._RECIPE_LR


def test_the_last_command_trains(
    root: Path, prepare: Prepare, capfd: pytest.CaptureFixture[str]
) -> None:
    out = root.parent / "with a space"
    code, said = prepare("folder", str(root), "--out", str(out))
    assert code == 0
    command = command_in(said)
    assert command[:2] == ["--config", "resnet50"]
    assert f"data.root={out}" in command
    assert train([*command, "--print-config"]) == 0
    printed = capfd.readouterr()
    assert "note:" not in printed.out + printed.err


def test_other_names_of_splits(root: Path, prepare: Prepare) -> None:
    (root / "train").rename(root / "fit")
    (root / "val").rename(root / "check")
    code, said = prepare(
        "folder", str(root), "--out", str(root.parent / "out"), "--splits=fit,check"
    )
    assert code == 0
    command = command_in(said)
    assert "data.train_split=fit" in command
    assert "data.val_split=check" in command
    assert train([*command, "--print-config"]) == 0
    code, said = prepare("folder", str(root), "--out", str(root.parent / "one"), "--splits=fit")
    assert code == 0
    assert "training needs a second split" in said
