"""The training loss of a micro-batch, also of mixed labels. Only tensors.

With one label a sample, label smoothing e and K classes, the target of class c is t_c(label) =
(1 - e) [c = label] + e / K; of mixed labels it is lam * t(label) + (1 - lam) * t(paired).

    cross_entropy         - sum_c t_c log softmax(logits)_c        (linear in t, so of mixed labels
                          it is lam * CE(label) + (1 - lam) * CE(paired))
    binary_cross_entropy  mean (or sum) over c of - t_c log s_c - (1 - t_c) log(1 - s_c) with
                          s = sigmoid(logits), after t = [t > threshold] if one is given (timm's
                          BinaryCrossEntropy; Wightman et al. 2021, arXiv:2110.00476)

Both are summed over the samples.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    kl_div,
    log_softmax,
)

from resnet_dist.config import LossConfig
from resnet_dist.data.batch import Batch, MixedLabels

PLAIN = LossConfig()
"""The cross-entropy that validation reports."""


def loss_sum(
    logits: Tensor, labels: Tensor, mixed: MixedLabels | None, config: LossConfig
) -> Tensor:
    """The loss summed over a batch, scalar, from `[n, classes]` and `[n]` int64; float32, or
    float64 if the logits are."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if config.name == "binary_cross_entropy":
        targets = soft_targets(labels, mixed, logits.shape[1], config.label_smoothing)
        if config.bce_target_threshold is not None:
            targets = targets > config.bce_target_threshold
        targets = targets.to(logits.dtype)
        total = binary_cross_entropy_with_logits(logits, targets, reduction="sum")
        return total if config.bce_sum_classes else total / logits.shape[1]
    smoothing = config.label_smoothing
    if mixed is None:
        return cross_entropy(logits, labels, label_smoothing=smoothing, reduction="sum")
    own, others = (
        cross_entropy(logits, target, label_smoothing=smoothing, reduction="none")
        for target in (labels, mixed.paired)
    )
    return (mixed.lam * own + (1.0 - mixed.lam) * others).sum()


def distillation_sum(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """temperature ** 2 * KL(teacher || network), both softened, summed over a batch: scalar from
    `[n, classes]` each (Hinton et al. 2015, arXiv:1503.02531, section 2)."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    own, wanted = (log_softmax(each.to(wide) / temperature, dim=1) for each in (logits, teacher))
    return kl_div(own, wanted, reduction="sum", log_target=True) * temperature**2


def soft_targets(
    labels: Tensor, mixed: MixedLabels | None, num_classes: int, label_smoothing: float
) -> Tensor:
    """`[n, num_classes]` float32; rows add up to 1."""
    classes = torch.arange(num_classes, device=labels.device)
    targets = (labels[:, None] == classes).float()
    if mixed is not None:
        lam = mixed.lam[:, None]
        others = (mixed.paired[:, None] == classes).float()
        targets = lam * targets + (1.0 - lam) * others
    return targets * (1.0 - label_smoothing) + label_smoothing / num_classes


def main_labels(batch: Batch) -> Tensor:
    """`[n]` int64: of each image the label with the larger weight, by which training accuracy is
    counted (torchvision's references take the largest target, which is the same)."""
    if batch.mixed is None:
        return batch.labels
    return torch.where(batch.mixed.lam >= 0.5, batch.labels, batch.mixed.paired)
