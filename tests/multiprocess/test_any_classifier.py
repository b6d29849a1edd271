"""Networks of others on several ranks: killed and resumed bit for bit, random numbers included."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.launch import assert_same_run, train

SETTINGS = ["model.width=64", "model.stem=standard", "checkpoint.every_steps=3"]
KILLED = {"RESNET_DIST_FAILPOINT": "step.begin@9=kill"}


@pytest.mark.parametrize(
    ("name", "nproc"),
    [
        ("tests.user_networks:small", 1),
        ("tests.user_networks:small", 2),
        pytest.param("torchvision:resnext50_32x4d", 2, marks=pytest.mark.slow),
        pytest.param("tests.user_networks:timm_with_dropout", 2, marks=pytest.mark.slow),
    ],
)
def test_killed_and_resumed_is_the_run(
    name: str, nproc: int, run_root: Path, tmp_path: Path
) -> None:
    settings = [*SETTINGS, f"model.name={name}"]
    train(nproc, run_root, tmp_path / "whole", *settings)
    ended = train(nproc, run_root, tmp_path / "cut", *settings, environment=KILLED, check=False)
    assert -9 in ended.codes, ended.output
    train(nproc, run_root, tmp_path / "cut", *settings)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
