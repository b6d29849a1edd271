"""The losses of hard and mixed labels against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot

from resnet_dist.config import LossConfig
from resnet_dist.data.batch import Batch, MixedLabels
from resnet_dist.loss import loss_sum, main_labels

CLASSES = 5


@pytest.fixture
def logits() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(6, CLASSES, requires_grad=True)


LABELS = torch.tensor([0, 1, 2, 3, 4, 0])
MIXED = MixedLabels(torch.tensor([1, 0, 2, 4, 3, 0]), torch.tensor([0.3, 0.3, 0.8, 0.5, 0.5, 1.0]))


def targets(mixed: MixedLabels | None, smoothing: float) -> torch.Tensor:
    """timm's `mixup_target`, and its one-hot with smoothing."""
    off = smoothing / CLASSES

    def spread(labels: torch.Tensor) -> torch.Tensor:
        return torch.full((6, CLASSES), off).scatter_(1, labels[:, None], 1 - smoothing + off)

    if mixed is None:
        return spread(LABELS)
    lam = mixed.lam[:, None]
    return spread(LABELS) * lam + spread(mixed.paired) * (1 - lam)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mixed", [None, MIXED])
def test_cross_entropy_is_that_of_soft_targets(
    logits: torch.Tensor, mixed: MixedLabels | None, smoothing: float
) -> None:
    loss = loss_sum(logits, LABELS, mixed, LossConfig(label_smoothing=smoothing))
    expected = cross_entropy(logits, targets(mixed, smoothing), reduction="sum")
    torch.testing.assert_close(loss, expected)
    (grad,) = torch.autograd.grad(loss, logits)
    (expected_grad,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(grad, expected_grad)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("threshold", [None, 0.2])
@pytest.mark.parametrize("mixed", [None, MIXED])
def test_binary_cross_entropy_is_timms(
    logits: torch.Tensor, mixed: MixedLabels | None, threshold: float | None, smoothing: float
) -> None:
    wanted = targets(mixed, smoothing)
    if threshold is not None:
        wanted = wanted.gt(threshold).float()
    for sums in (False, True):
        settings = LossConfig(
            name="binary_cross_entropy",
            label_smoothing=smoothing,
            bce_sum_classes=sums,
            bce_target_threshold=threshold,
        )
        loss = loss_sum(logits.bfloat16(), LABELS, mixed, settings)
        expected = binary_cross_entropy_with_logits(logits.bfloat16().float(), wanted)
        if sums:
            expected = expected * CLASSES
        torch.testing.assert_close(loss, expected * len(LABELS))  # ours is a sum over samples
        assert loss.dtype == torch.float32


def test_one_share_of_one_is_the_plain_loss(logits: torch.Tensor) -> None:
    whole = MixedLabels(MIXED.paired, torch.ones(6))
    for name in ("cross_entropy", "binary_cross_entropy"):
        settings = LossConfig(name=name)  # type: ignore[arg-type]
        torch.testing.assert_close(
            loss_sum(logits, LABELS, whole, settings), loss_sum(logits, LABELS, None, settings)
        )


def test_accuracy_counts_the_label_with_the_larger_share() -> None:
    batch = Batch(0, torch.zeros(6, 3, 2, 2), LABELS, np.arange(6))
    assert main_labels(batch) is LABELS
    batch = Batch(0, torch.zeros(6, 3, 2, 2), LABELS, np.arange(6), MIXED)
    assert main_labels(batch).tolist() == [1, 0, 2, 3, 4, 0]
    sure = one_hot(LABELS) * MIXED.lam[:, None] + one_hot(MIXED.paired, 5) * (
        1 - MIXED.lam[:, None]
    )
    has_winner = MIXED.lam != 0.5
    assert torch.equal(sure.argmax(1)[has_winner], main_labels(batch)[has_winner])
