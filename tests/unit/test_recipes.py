"""Every shipped recipe: the arithmetic of its source, its parameter groups, and two steps of it."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import partial

import pytest
import torch

from resnet_dist.__main__ import VERBS
from resnet_dist.build import build_state
from resnet_dist.config import Config
from resnet_dist.config.load import load_config, shipped_configs
from resnet_dist.data import datasets as opened
from resnet_dist.data.index.synthetic import SYNTHETIC_TRAIN, SYNTHETIC_VAL
from resnet_dist.data.loaders.build import build_train_loader
from resnet_dist.data.micro_batches import choose_batch_split
from resnet_dist.optim.ema import EmaSchedule
from resnet_dist.optim.schedules import Schedule, apply_schedule, build_schedule, peak_lr
from resnet_dist.performance.build import sync_build_step
from resnet_dist.recipes.__main__ import completion, head, main
from resnet_dist.recipes.table import Recipe, recipes
from resnet_dist.run.cadence import cadence_of
from resnet_dist.world import World

WORLD = World(0, 1, 0, 1, torch.device("cpu"))
IMAGENET = 1281167

# From the sources: steps per epoch, all steps, rate at the peak, (epoch, rate) elsewhere.
ARITHMETIC = {
    "resnet50": (5004, 450360, 0.1, [(29.9, 0.1), (30.1, 0.01), (60.1, 0.001)]),
    "resnet50_nvidia_50": (625, 31250, 2.048, [(4, 1.024), (29, 1.024)]),
    "resnet50_nvidia_90": (625, 56250, 2.048, [(4, 1.024), (49, 1.024)]),
    "resnet50_nvidia_250": (625, 156250, 2.048, [(4, 1.024), (129, 1.024)]),
    "resnet50_ffcv_16": (312, 4992, 1.7, [(1, 0.85), (9, 0.85), (16, 0.0)]),
    "resnet50_ffcv_88": (312, 27456, 1.7, [(1, 0.85), (45, 0.85), (88, 0.0)]),
    "resnet50_mosaic_mild": (625, 22500, 2.048, [(4, 1.024), (22, 1.024)]),
    "resnet50_mosaic_medium": (625, 84375, 2.048, [(4, 1.024)]),
    "resnet50_mosaic_hot": (625, 168750, 2.048, [(4, 1.024), (139, 1.024)]),
    "resnet50_goyal": (156, 14040, 3.2, [(0, 0.1), (31, 0.32), (61, 0.032), (81, 0.0032)]),
    "resnet50d_bag_of_tricks": (1251, 150120, 0.4, [(62.5, 0.2)]),
    "resnet50_algoperf": (1251, 186399, 1.949 * 0.028, [(149, 0.0)]),
    "resnet50_a1": (625, 375000, 5e-3, [(0, 1e-4), (600, 1e-6)]),
    "resnet50_a2": (625, 187500, 5e-3, [(0, 1e-4), (300, 1e-6)]),
    "resnet50_a3": (625, 62500, 8e-3, [(0, 1e-4), (100, 1e-6)]),
    "resnet50_tv_v2": (1251, 750600, 0.5, [(0, 0.005), (600, 0.0)]),
    "resnet50_mlperf_3200": (400, 14800, 11.0, [(19.5, 11.0 / 4), (37, 1e-4)]),
    "resnet50_mlperf_16384": (78, 3744, 22.0, [(28.5, 22.0 / 4), (48, 1e-4)]),
    "resnet50_mlperf_32256": (39, 2262, 21.2, [(37, 21.2 / 4), (58, 1e-4)]),
}
NAMES = sorted(shipped_configs())


def _schedule(config: Config) -> tuple[int, int, Schedule]:
    cadence = cadence_of(config, IMAGENET)
    rate = build_schedule(
        config.schedule,
        lr=peak_lr(config),
        steps_per_epoch=cadence.steps_per_epoch,
        num_steps=cadence.num_steps,
    )
    return cadence.steps_per_epoch, cadence.num_steps, rate


@pytest.mark.parametrize("name", ARITHMETIC)
def test_steps_and_rates_are_those_of_the_source(name: str) -> None:
    steps_per_epoch, num_steps, peak, points = ARITHMETIC[name]
    config = load_config([name]).config
    found = _schedule(config)
    assert found[:2] == (steps_per_epoch, num_steps)
    rate_of = found[2]
    assert max(map(rate_of, range(0, num_steps, 13))) == pytest.approx(peak, rel=2e-3)
    for epoch, rate in points:
        step = round(epoch * steps_per_epoch)
        assert rate_of(step) == pytest.approx(rate, rel=5e-3, abs=1e-9), epoch


def test_moving_averages_are_those_of_the_source() -> None:
    mosaic = load_config(["resnet50_mosaic_mild"]).config.train
    assert mosaic.ema_decay is not None
    # Half of a weight is left after 100 steps, in five updates.
    assert mosaic.ema_decay**5 == pytest.approx(0.5)
    of = EmaSchedule.of(mosaic, 625)
    assert [step for step in range(1, 61) if of.decay_at(step)] == [20, 40, 60]


def test_mlperf_evaluates_as_its_rules_say() -> None:
    """Every fourth epoch with an offset of 2, epochs counted from 0: after 3, 7, ... 35 epochs."""
    config = load_config(["resnet50_mlperf_3200"]).config
    due = cadence_of(config, IMAGENET)
    assert [epoch for epoch in range(1, 38) if due.evaluates(epoch * 400)] == [*range(3, 36, 4), 37]
    assert due.is_reached(0.7591)
    assert not due.is_reached(0.7589)


@pytest.fixture(scope="module")
def all_recipes() -> dict[str, Recipe]:
    """By name; reading them takes a second."""
    return {each.name: each for each in recipes()}


@pytest.mark.parametrize("name", NAMES)
def test_its_head_names_the_command_and_the_origin(
    name: str, all_recipes: dict[str, Recipe]
) -> None:
    text = head(name)
    assert f"--config {name}" in text
    recipe = all_recipes[name]
    if recipe.top1 is not None and not recipe.is_ours:
        whole = " ".join(text.split())
        assert "not measured by us" in whole
        assert re.search(r"\d\d\.?\d* ?%|\d\d\.\d to", whole)


SMALL = [
    "data.loader=synthetic",
    "train.global_batch_size=8",
    "train.epochs=100",
    "train.precision=float32",
    "train.accumulation_steps=1",
    "schedule.warmup_epochs=1",
]
SMALL_IMAGES = ["data.train_size=32", "data.eval_size=32", "data.eval_resize_size=36"]


@pytest.mark.parametrize("name", NAMES)
def test_two_steps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole step of the recipe, in a narrow network and on small images."""
    monkeypatch.setattr(torch.nn.Module, "compile", partial(pytest.fail, "compiled"))
    shipped = load_config([name]).config
    settings = list(SMALL)
    if shipped.schedule.name == "one_cycle":
        settings.remove("schedule.warmup_epochs=1")
    if shipped.data.train_size > 96:
        settings += SMALL_IMAGES
    if shipped.augment.progressive_start_size is not None:
        settings += ["augment.progressive_start_size=24", "augment.progressive_multiple=4"]
    if shipped.model.weights is not None:
        settings.append("model.weights=null")
    settings.append("model.width=16")
    config = load_config([name], settings).config
    datasets = opened._resolve(config, config.data, SYNTHETIC_TRAIN, SYNTHETIC_VAL)
    state = build_state(config, datasets, WORLD)
    split = choose_batch_split(config.train, 1)
    step = sync_build_step(config, state, split, world=WORLD)
    loader = build_train_loader(
        datasets, config.dali, batch_split=split, rank=0, device=WORLD.device, num_workers=1
    )
    before = [parameter.detach().clone() for parameter in state.model.parameters()]
    batches = loader.batches(0, 2)
    rate_of = _schedule(config)[2]
    for number in range(2):
        apply_schedule(state.optimizer, lr=max(rate_of(number), 1e-6), momentum=None)
        norm = step(batches, step=number)
        assert torch.isfinite(norm)
    changed = [
        not torch.equal(parameter, old)
        for parameter, old in zip(state.model.parameters(), before, strict=True)
    ]
    assert sum(changed) > 0.5 * len(changed)


def test_the_table_comes_by_accuracy_and_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    names = [line.split()[0] for line in lines[3:] if line.split()[:1] != []]
    assert set(NAMES) <= set(names)
    assert names.index("resnet152_tv_v2") < names.index("resnet50_a1") < names.index("resnet50")
    assert main(["--sort", "epochs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    epochs = [int(line.split()[2]) for line in lines[3 : 3 + len(NAMES)]]
    assert epochs == sorted(epochs)


def test_a_misspelt_name_is_answered(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resnet50_a4"]) == 2
    assert "did you mean resnet50_a" in capsys.readouterr().err


def test_bash_completes_names() -> None:
    script = (
        completion(VERBS)
        + """
COMP_WORDS=(resnet-dist train --config resnet50_mo) COMP_CWORD=3
_resnet_dist; echo "${COMPREPLY[@]}"
COMP_WORDS=(resnet-dist ev) COMP_CWORD=1
_resnet_dist; echo "${COMPREPLY[@]}"
"""
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first.split() == [f"resnet50_mosaic_{kind}" for kind in ("hot", "medium", "mild")]
    assert second == "evaluate"


def test_torch_is_not_needed() -> None:
    code = "import sys; from resnet_dist.recipes.__main__ import main; main([]); "
    code += "sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
