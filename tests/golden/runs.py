"""The golden runs: what they train on, with which settings, and what of them is kept."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from resnet_dist.config.load import load_config
from resnet_dist.data.datasets import open_datasets
from resnet_dist.data.specs import digest_of_step
from tests.launch import records
from tests.small_runs import overrides, run, write_pictures

FOLDER = Path(__file__).parent
NUM_STEPS = 20
DIGESTS_OF = (0, 9, 19)
"""Steps: the first of the run, and the last of each epoch."""
BOUND = 1e-4
"""Of a loss, relative above 1 and absolute below."""

SHORT = [
    "train.global_batch_size=16",
    "train.epochs=2",
    "data.train_size=32",
    "data.eval_size=32",
    "data.eval_resize_size=36",
]
CONFIGS = {
    "resnet18": ("quickstart", [*SHORT, "optim.lr=0.005", "schedule.warmup_epochs=0.5"]),
    "resnet50": (
        "resnet50",
        [*SHORT, "optim.lr=3e-5", "schedule.milestones=[1]", "model.zero_init_last_gamma=true"],
    ),
    "resnet9": (
        "cifar10_resnet9",
        [*SHORT, "optim.lr=1e-6", "optim.eps=1e-4", "data.val_split=val"],
    ),
}
"""Shipped configs at rates so low that rounding does not grow from step to step. At the configs'
own rates it grows about threefold per step in ResNet-50 and ResNet-9 (batch norm over few pixels),
and without zero_init_last_gamma the second loss already differs by 3e-2 between machines."""

Golden = dict[str, Any]


def golden_data(root: Path) -> None:
    """10 steps of 16 an epoch, and 4 samples that are dropped."""
    write_pictures(root, num_classes=4, train=41, val=6)


def measure(
    name: str,
    root: Path,
    run_dir: Path,
    settings: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Golden:
    """Train, and collect what is compared."""
    config, own = CONFIGS[name]
    all_settings = [*own, *settings]
    run(config, root, run_dir, all_settings, environment)
    lines = records(run_dir)
    steps = [line for line in lines if "train/loss" in line]
    return {
        "losses": [line["train/loss"] for line in steps],
        "learning_rates": [line["train/lr"] for line in steps],
        "val_losses": [line["val/loss"] for line in lines if "val/loss" in line],
        "batches": digests(config, root, all_settings),
    }


def digests(config: str, root: Path, settings: Sequence[str]) -> dict[str, str]:
    """Of three global batches: which samples, and what is done to each."""
    resolved = load_config([config], overrides(root, settings)).config
    datasets = open_datasets(resolved, build=True, show_progress=False)
    return {
        f"step {step}": digest_of_step(datasets.train_specs, datasets.order, step)
        for step in DIGESTS_OF
    }


def read(name: str) -> Golden:
    """What is in the repository."""
    return dict(json.loads((FOLDER / f"{name}.json").read_text()))


def write(name: str, golden: Golden) -> None:
    """Replace what is in the repository; one number a line, so that a diff can be read."""
    (FOLDER / f"{name}.json").write_text(json.dumps(golden, indent=1) + "\n")


def differences(want: Golden, got: Golden) -> list[str]:
    """One line for each number that is not as it was, in the order of the run."""
    lines = []
    for key in ("batches", "learning_rates", "losses", "val_losses"):
        lines += _differences_of(key, _numbered(want[key]), _numbered(got[key]))
    return lines


def _differences_of(key: str, want: dict[str, Any], got: dict[str, Any]) -> list[str]:
    lines = []
    for where in sorted(want.keys() | got.keys(), key=lambda text: int(text.split()[1])):
        old, new = want.get(where), got.get(where)
        if not _is_equal(key, old, new):
            size = f" ({new - old:+.2e})" if isinstance(old, float) and new is not None else ""
            lines.append(f"{key}, {where}: want {old}, got {new}{size}")
    return lines


def _numbered(values: Any) -> dict[str, Any]:
    if isinstance(values, dict):
        return values
    return {f"step {number}": value for number, value in enumerate(values)}


def _is_equal(key: str, old: Any, new: Any) -> bool:
    if not isinstance(old, float) or not isinstance(new, float):
        return bool(old == new)
    bound = 1e-12 if key == "learning_rates" else BOUND
    return abs(new - old) <= bound * max(1.0, abs(old))
