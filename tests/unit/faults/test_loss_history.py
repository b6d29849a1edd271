"""The first loss after a restart is judged by those before it."""

from __future__ import annotations

import math

from resnet_dist.faults.loss_history import RECORDED, LossHistory


def restarted(losses: list[float]) -> LossHistory:
    record, other = LossHistory(), LossHistory()
    for loss in losses:
        assert record.add(loss) is None
    other.load_state_dict(record.state_dict())
    return other


def test_a_jump_after_a_restart_is_named_once() -> None:
    record = restarted([2.0, 2.1, 1.9, 2.0, 2.05])
    message = record.add(6.9)
    assert message is not None
    assert "is 6.9, and the last 5 before it were 1.9 to 2.1" in message
    assert record.add(6.9) is None


def test_a_loss_like_those_before_is_not() -> None:
    assert restarted([2.0, 2.1, 1.9, 2.0]).add(2.2) is None
    assert restarted([7.0, 6.0, 5.0, 4.0]).add(3.0) is None, "falling is what losses do"
    assert restarted([2.0, 2.1]).add(6.9) is None, "too few to judge by"
    assert restarted([2.0, math.nan, 2.1, 2.0]).add(2.0) is None
    assert restarted([2.0, 2.1, 2.0]).add(math.nan) is not None


def test_only_the_latest_are_kept() -> None:
    record = restarted([float(i) for i in range(100)])
    assert record.state_dict() == [float(i) for i in range(100 - RECORDED, 100)]
