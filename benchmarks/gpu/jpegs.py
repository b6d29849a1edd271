"""From JPEGs through DALI, in our order: the loader alone, then step and loader together."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from gpu.measure import PROFILED_STEPS, finish, overrides_of, profile_steps
from gpu.ours import Ours, build_ours
from gpu.results import Results
from gpu.rivals import Case

from resnet_dist.data.batch import Batch
from resnet_dist.errors import UserError
from resnet_dist.performance.modes import Mode

WARM_UP_STEPS = 4
LOADER_STEPS = 40
SPARE_STEPS = 4 * PROFILED_STEPS
"""For the profile."""
STEPS = 40
ROUNDS = 4
GRID: dict[str, list[Any]] = {
    "data.num_workers": [16, 8],
    "dali.fancy_upsampling": ["true", "false"],
    "dali.hw_decoder_load": [0.65, 0.9, 0.4],
    "data.prefetch_batches": [2, 3],
}
"""One setting is tried after the other, with the best of those before; the first is the start."""


@contextmanager
def repeated(images: Path, *, at_least: int) -> Iterator[Path]:
    """A root whose train/ and val/ list the class folders of `images` as often as it takes."""
    classes = sorted(path for path in images.resolve().iterdir() if path.is_dir())
    count = sum(len(list(path.iterdir())) for path in classes)
    if not count:
        raise UserError(f"--jpegs ({images}): holds no class folders with images")
    with tempfile.TemporaryDirectory() as folder:
        for split, turns in (("train", -(-at_least // count)), ("val", 1)):
            (Path(folder) / split).mkdir()
            for path in classes:
                target = Path(folder) / split / path.name
                target.mkdir()
                for turn in range(turns):
                    for file in path.iterdir():
                        (target / f"{turn:04d}_{file.name}").symlink_to(file)
        yield Path(folder)


def measure_jpegs(
    images: Path, case: Case, mode: Mode, device: torch.device, results: Results
) -> None:
    """The decoder's limit for some settings, then the step with the best of them."""
    steps = WARM_UP_STEPS + max(LOADER_STEPS, ROUNDS * STEPS) + SPARE_STEPS
    with repeated(images, at_least=case.batch * (steps + 16)) as root:
        common = [
            *overrides_of(case, mode, device),
            "data.loader=dali",
            f"data.root={root}",
            f"data.cache_dir={root / 'cache'}",
            "model.num_classes=1000",
        ]
        best: dict[str, Any] = {key: values[0] for key, values in GRID.items()}
        limit = _try(common, best, case, results)
        for key, values in GRID.items():
            if key.startswith("dali.") and device.type != "cuda":
                continue
            for value in values[1:]:
                rate = _try(common, {**best, key: value}, case, results)
                if rate > limit:
                    best, limit = {**best, key: value}, rate
        lines = [f"{key}={value}" for key, value in best.items()]
        results.add("advice", case.name, "jpegs", lines=[*lines, *mode.settings])
        _together(build_ours([*common, *lines]), case, mode, results)


def _try(common: list[str], settings: dict[str, Any], case: Case, results: Results) -> float:
    """Images/s of the loader alone; 0 if it fails."""
    text = " ".join(f"{key}={value}" for key, value in settings.items())
    try:
        ours = build_ours([*common, *text.split()])
        rate = _loader_rate(ours, case)
    except (UserError, RuntimeError) as error:
        message = " ".join(str(error).split())[:200]
        results.add("error", case.name, f"loader {text}", message=message)
        return 0.0
    results.add(
        "jpegs", case.name, "loader", what="loader alone", images_per_second=rate, settings=text
    )
    return rate


def _loader_rate(ours: Ours, case: Case) -> float:
    loader = ours.build_loader()
    with closing(loader.batches(0, WARM_UP_STEPS + LOADER_STEPS)) as batches:
        for _ in range(WARM_UP_STEPS):
            next(batches)
        finish(ours.world.device)
        start = time.perf_counter()
        for _ in range(LOADER_STEPS):
            next(batches)
        finish(ours.world.device)
        return LOADER_STEPS * case.batch / (time.perf_counter() - start)


def _together(ours: Ours, case: Case, mode: Mode, results: Results) -> None:
    """The step on batches as they come, and on one that stays, in turn."""
    fixed: Iterator[Batch] = repeat(ours.fixed_batches()[0])
    loader = ours.build_loader()
    rates: dict[str, list[float]] = {"step on a fixed batch": [], "loader and step": []}
    all_steps = WARM_UP_STEPS + ROUNDS * STEPS + SPARE_STEPS
    with closing(loader.batches(0, all_steps)) as loaded:
        for batches in (fixed, loaded):
            _steps(ours, batches, WARM_UP_STEPS)
        for _ in range(ROUNDS):
            for name, batches in zip(rates, (fixed, loaded), strict=True):
                rates[name].append(STEPS * case.batch / _steps(ours, batches, STEPS))
        # What a loader's kernels take of the step's time shows in the difference.
        for name, batches in zip(rates, (fixed, loaded), strict=True):
            shares = profile_steps(partial(ours.step, batches, 0), ours.world.device)
            results.add("profile", case.name, name, **shares)
    for name, values in rates.items():
        results.add(
            "jpegs",
            case.name,
            name,
            what=name,
            images_per_second=statistics.median(values),
            settings=f"mode {mode.name}; {min(values):,.1f} to {max(values):,.1f}",
        )


def _steps(ours: Ours, batches: Iterator[Batch], count: int) -> float:
    finish(ours.world.device)
    start = time.perf_counter()
    for _ in range(count):
        ours.step(batches, 0)
    finish(ours.world.device)
    return time.perf_counter() - start
