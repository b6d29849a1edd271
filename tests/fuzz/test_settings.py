"""Any value of any setting is taken or rejected with a sentence; none ends in a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from resnet_dist import train
from resnet_dist.config import field_paths
from tests.fuzz.starts import Tally, judge, start
from tests.launch import TINY

pytestmark = pytest.mark.slow

VALUES = [
    *("", " ", "0", "1", "2", "3", "-1", "-0.0", "0.5", "1.0", "1.5", "-0.5", "1e-300", "1e20"),
    *("-1e20", "1e309", "inf", "-inf", "nan", "NaN", ".inf", ".nan", "9" * 30, "1_000", "0x10"),
    *("1e3", "null", "~", "true", "false", "yes", "no", "on", "[]", "[1", "[=1", "[1,2]", "]"),
    *("[0.1,0.2,0.3]", "[nan,1,1]", "[0,0,0]", "[1.0,0.3]", "[a,b]", "[[1]]", "{}", "{a: 1}"),
    *("{a", "${x}", "${oc.env:HOME}", "${train.epochs}", "${", "$x", "a b", "a=b", "=", ":"),
    *("- 1", "&a", "*a", "!!python/object:os", "%s", "%d", "#", "'", '"', "'1", "\\", "\t"),
    *("a\nb", "\x1b[31m", "\x7f", "ü", "中", "auto", "none", "best", "last", "default", "x" * 5000),
    *("/", "/dev/null", "/proc/self", "/no/such/folder", "~nobody-here/x", ".", "..", "a/b"),
]
"""What people type, and what nobody should."""
UNBOUNDED = (
    *("train.global_batch_size", "train.accumulation_steps", "model.width", "model.num_classes"),
    *("data.train_size", "data.eval_size", "data.eval_resize_size", "augment.progressive_start"),
    *("data.num_workers", "dali.num_threads", "performance.num_threads", "eval.batch_size"),
)
"""Settings whose large values only ask for more memory than this machine has."""
MINIATURE = [
    *(*TINY, "data.loader=synthetic", "data.num_train_samples=60", "model.num_classes=3"),
    *("train.max_steps=2", "log.tensorboard=false"),
]


def plan(capsys: pytest.CaptureFixture[str], overrides: list[str]) -> str:
    """How `--print-config` answers."""
    code = train.main(["--print-config", *MINIATURE, *overrides])
    error = capsys.readouterr().err
    assert code in (0, 2), overrides
    assert "Traceback" not in error
    assert code == 0 or "error:" in error or not error
    return "planned" if code == 0 else "rejected"


def test_every_value_is_planned_or_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    """Every setting with every value: thousands of configs, nothing started."""
    tally = Tally("settings, planned")
    keys = list(field_paths())
    for _ in tally.numbers():
        key, value = tally.random.choice(keys), tally.random.choice(VALUES)
        try:
            tally.counts[plan(capsys, [f"{key}={value}"])] += 1
        except Exception as error:
            raise AssertionError(f"{key}={value!r}") from error


def test_every_value_trains_or_is_rejected(tmp_path: Path) -> None:
    """Two settings at a time, really started: two steps."""
    tally = Tally("settings, started")
    keys = [key for key in field_paths() if not key.startswith(UNBOUNDED)]
    for number in tally.numbers():
        chosen = [
            f"{tally.random.choice(keys)}={tally.random.choice(VALUES)}"
            for _ in range(tally.random.choice([1, 1, 2]))
        ]
        run = f"run.dir={tmp_path / 'runs' / str(number)}"
        ended = start([*MINIATURE, run, *chosen], tmp_path / "log")
        tally.counts[judge(ended, str(chosen))] += 1
