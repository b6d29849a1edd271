"""Durations as users and Slurm write them."""

from __future__ import annotations

import pytest

from launch.cluster.duration import minutes
from launch.cluster.option_sources import load_cluster
from resnet_dist.errors import UserError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("24h", 1440),
        ("90m", 90),
        ("2d12h", 3600),
        ("1d2h3m4s", 1440 + 120 + 4),
        ("1.5h", 90),
        ("30", 30),
        (" 30 ", 30),
        ("24H", 1440),
        ("61s", 2),
        ("45:00", 45),
        ("45:01", 46),
        ("01:30:00", 90),
        ("100:00:00", 6000),
        ("1-12", 36 * 60),
        ("0-01", 60),
        ("2-12:30", 60 * 60 + 30),
        ("0-00:30", 30),
        ("2-12:00:00", 3600),
        ("1-00:00:01", 1441),
    ],
)
def test_durations(text: str, expected: int) -> None:
    assert minutes(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "soon",
        "h",
        "0",
        "0h",
        "-5",
        "24x",
        "24h soon",
        "1:2:3:4",
        "1-",
        "-1-2",
        "1-2-3",
        "1h 30",
    ],
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(UserError, match="is not a duration; write 24h"):
        minutes(text)
    with pytest.raises(UserError, match=r"--time \(soon\): is not a duration"):
        load_cluster([], {"time": "soon"})
