"""Presets of how a step is executed, and what goes before them."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import get_args, get_type_hints

import pytest

from resnet_dist.config import Config, PerformanceConfig, TrainConfig
from resnet_dist.config.performance import FASTEST, PRESETS, Speed


def test_every_preset_can_be_named_and_auto_is_one_of_them() -> None:
    names = get_args(get_type_hints(PerformanceConfig)["preset"])
    assert set(names) == {"auto", *PRESETS}
    assert set(FASTEST) == {"cpu", "cuda"}
    assert set(FASTEST.values()) <= set(PRESETS)
    for name, speed in PRESETS.items():
        assert PerformanceConfig(preset=name).speed_on("cuda") == speed  # type: ignore[arg-type]


def test_auto_is_what_was_measured_on_the_device() -> None:
    for device_type, name in FASTEST.items():
        assert PerformanceConfig().speed_on(device_type) == PRESETS[name]
    assert PerformanceConfig().is_open
    assert not PerformanceConfig(preset="plain").is_open
    assert not PerformanceConfig(compile=True).is_open


def test_auto_asks_for_nothing_that_another_setting_excludes() -> None:
    Config(train=TrainConfig(channels_last=False))
    PerformanceConfig(compile=True)


@pytest.mark.parametrize("name", [field.name for field in fields(Speed) if field.type == "bool"])
def test_a_setting_that_is_given_goes_before_the_preset(name: str) -> None:
    assert getattr(PerformanceConfig(**{name: True}).speed_on("cuda"), name)  # type: ignore[arg-type]
    preset = next((key for key, speed in PRESETS.items() if getattr(speed, name)), "plain")
    off = PerformanceConfig(preset=preset, **{name: False})  # type: ignore[arg-type]
    assert not getattr(off.speed_on("cuda"), name)


def test_what_a_preset_means_is_checked_as_if_it_was_given() -> None:
    fused = PerformanceConfig(preset="fused")
    with pytest.raises(ValueError, match=r"performance\.fused_norm.*channels_last"):
        Config(performance=fused, train=TrainConfig(channels_last=False))
    with pytest.raises(ValueError, match=r"performance\.fused_norm.*excludes performance\.compile"):
        PerformanceConfig(preset="compiled", fused_norm=True)
    without = replace(fused, fused_norm=False)
    Config(performance=without, train=TrainConfig(channels_last=False))
