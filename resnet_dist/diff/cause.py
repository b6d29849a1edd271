"""Why two runs part: what is known to differ between them, the likeliest first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from resnet_dist.config.load import exact_differences, to_flat
from resnet_dist.diff.parting import world_sizes
from resnet_dist.report.facts import RunFacts

_MAY_ROUND = ("performance.", "dist.", "dali.", "data.loader", "data.num_workers")
"""Settings that do not change the mathematics, but perhaps the order of sums."""


@dataclass(frozen=True)
class Cause:
    """Something that differs, and in what."""

    what: str
    details: tuple[str, ...] = ()


def causes(
    runs: tuple[RunFacts, RunFacts],
    step: int,
    facts: tuple[Mapping[str, Any], Mapping[str, Any]],
    *,
    may_be_rounding: bool,
) -> list[Cause]:
    """What may have made the runs part at `step`. `facts`: what checkpoints say of data, samples
    and versions."""
    found = [*_settings(runs), *_data(facts)]
    sizes = [world_sizes(run.starts, step) for run in runs]
    ranks = Cause("number of ranks", (_versus(sizes[0], sizes[1]),))
    if sizes[0] != sizes[1] and may_be_rounding:
        found.insert(0, ranks)  # sums in another order: just what is seen
    elif sizes[0] != sizes[1]:
        found.append(ranks)
    skipped = [_skipped(run, step) for run in runs]
    if skipped[0] != skipped[1]:
        found.append(Cause("steps that were skipped", (_versus(*skipped),)))
    return [*found, *_versions(runs), *_free_settings(runs)] or [
        Cause(
            "nothing known differs",
            ("settings, data, ranks and versions are equal: look at kernels and threads",)
            if may_be_rounding
            else ("a host or GPU may have computed wrongly; repeat both on another one",),
        )
    ]


def _settings(runs: tuple[RunFacts, RunFacts]) -> list[Cause]:
    if runs[0].config is None or runs[1].config is None:
        return []
    differences = exact_differences(to_flat(runs[0].config), runs[1].config)
    details = tuple(f"{each.key}: {each.before!r} and {each.now!r}" for each in differences)
    return [Cause("settings", details)] if details else []


def _free_settings(runs: tuple[RunFacts, RunFacts]) -> list[Cause]:
    if runs[0].config is None or runs[1].config is None:
        return []
    one, two = to_flat(runs[0].config), to_flat(runs[1].config)
    details = tuple(
        f"{key}: {one[key]!r} and {two[key]!r}"
        for key in one
        if key.startswith(_MAY_ROUND) and one[key] != two[key]
    )
    return [Cause("settings that change rounding at most", details)] if details else []


def _data(facts: tuple[Mapping[str, Any], Mapping[str, Any]]) -> list[Cause]:
    one, two = facts
    if one.get("data") != two.get("data"):
        return [Cause("data", ("the fingerprints of the data sets differ",))]
    if one.get("next_batch") != two.get("next_batch"):
        return [Cause("samples", ("the next batch has other samples, crops or augmentations",))]
    return []


def _versions(runs: tuple[RunFacts, RunFacts]) -> list[Cause]:
    one, two = (dict(run.starts[-1].get("versions") or {}) if run.starts else {} for run in runs)
    details = tuple(
        f"{name}: {one.get(name)} and {two.get(name)}"
        for name in dict.fromkeys([*one, *two])
        if one.get(name) != two.get(name)
    )
    return [Cause("versions", details)] if details else []


def _skipped(run: RunFacts, step: int) -> float:
    values = [r["train/skipped_steps"] for r in run.records if "train/skipped_steps" in r]
    steps = [r["step"] for r in run.records if "train/skipped_steps" in r]
    return max((v for v, s in zip(values, steps, strict=True) if s <= step), default=0.0)


def _versus(one: Sequence[int] | float, two: Sequence[int] | float) -> str:
    words = [
        ", then ".join(map(str, each)) if isinstance(each, Sequence) else f"{each:g}"
        for each in (one, two)
    ]
    return " and ".join(words)
