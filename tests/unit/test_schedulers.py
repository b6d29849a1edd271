"""The examples of docs/schedulers.md: YAML that parses, and a command that would start."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from resnet_dist.config.command_line import parse_arguments
from resnet_dist.config.load import load_config

PAGE = (Path(__file__).parents[2] / "docs" / "schedulers.md").read_text()


def examples() -> list[dict[str, Any]]:
    return [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]


def check(words: list[str]) -> None:
    """The settings after `-m resnet_dist.train` are good ones."""
    at = words.index("resnet_dist.train")
    assert words[at - 1] == "-m"
    arguments = parse_arguments(words[at + 1 :], prog="test", description="")
    config = load_config(arguments.files, arguments.overrides).config
    assert config.run.dir == "/shared/runs/a"


def test_skypilot() -> None:
    (task,) = [each for each in examples() if "num_nodes" in each]
    assert task["resources"]["accelerators"] == "H100:8"
    words = shlex.split(task["run"].replace("\\\n", " "))
    assert words[0] == "torchrun"
    assert {"--nnodes=$SKYPILOT_NUM_NODES", "--node_rank=$SKYPILOT_NODE_RANK"} <= set(words)
    check(words)


def test_kubeflow() -> None:
    (job,) = [each for each in examples() if each.get("kind") == "TrainJob"]
    trainer = job["spec"]["trainer"]
    assert job["apiVersion"] == "trainer.kubeflow.org/v1alpha1"
    assert trainer["numProcPerNode"] == trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"]
    check(trainer["command"])
