"""Sums on the device, exact in any order: loss and accuracy of training and evaluation.

All sums are integers (the loss in fixed point), so adding them up over micro-batches, ranks, and
the two parts of an interval that a kill cut in two gives the same record bit for bit. Only
`read_and_reset` and `result` wait for the device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Sync = Callable[[Tensor], Tensor]
"""Sums a tensor over the ranks in place and returns it; all ranks must call it."""

_LOSS_UNIT = 2.0**-32
_LARGEST_LOSS = 2.0**20  # of one micro-batch; beyond it a run has diverged and is treated as such


def count_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """How many labels are among the first and the first five, `[2]` int64.

    logits `[n, classes]`, labels `[n]` int64. An equal logit counts as higher if its class number
    is lower, and a sample with a NaN is wrong, so the result is the same on every device.
    """
    own = logits.gather(1, labels[:, None])
    classes = torch.arange(logits.shape[1], device=logits.device)
    above = (logits > own) | ((logits == own) & (classes < labels[:, None]))
    rank = above.sum(dim=1)
    is_number = ~logits.isnan().any(dim=1)
    return torch.stack([((rank < k) & is_number).sum() for k in (1, 5)])


class TrainMeter:
    """Sums of the current log interval on this rank: one int64 tensor on the device.

    [samples, top-1, top-5, loss in units of 2**-32, micro-batches whose loss is not finite]

    A micro-batch's loss sum of more than 2**20 does not fit and counts as not finite.
    """

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(5, dtype=torch.int64, device=device)

    def update(self, loss_sum: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a micro-batch: the sum of its losses (scalar), `[n, classes]`, `[n]` int64."""
        fits = loss_sum.abs() <= _LARGEST_LOSS  # false for a NaN
        loss = loss_sum.double().nan_to_num(0.0, 0.0, 0.0).clamp(-_LARGEST_LOSS, _LARGEST_LOSS)
        fixed = (loss / _LOSS_UNIT).round().to(torch.int64)
        self._sums[0] += labels.shape[0]
        self._sums[1:3] += count_correct(logits, labels)
        self._sums[3] += fixed
        self._sums[4] += ~fits

    def read_and_reset(self, sync_sum_: Sync) -> dict[str, float]:
        """Mean loss, top1, top5 (shares of 1) and samples over all ranks; begins a new interval.

        The loss is NaN if that of any micro-batch was not finite. At least one sample must have
        been added. All ranks must call it.
        """
        samples, top1, top5, loss, bad = sync_sum_(self._sums.clone()).tolist()
        self._sums.zero_()
        mean = loss * _LOSS_UNIT / samples if not bad else float("nan")
        return {"loss": mean, "top1": top1 / samples, "top5": top5 / samples, "samples": samples}

    def state(self, sync_sum_: Sync) -> Tensor:
        """The sums over all ranks, `[5]` int64 on the device, for a checkpoint; this rank's stay
        as they are. All ranks must call it."""
        return sync_sum_(self._sums.clone())

    def load_state(self, sums: Tensor | None) -> None:
        """Take over `state()` on one rank; the others pass None and begin at zero."""
        if sums is None:
            self._sums.zero_()
        else:
            self._sums.copy_(sums)


class EvalMeter:
    """Sums of one evaluation: integer counts, and the loss of each batch.

    Each batch is computed by one rank, so summing the vector of batch losses over the ranks adds
    zeros only, and the total is the same for any number of ranks.
    """

    def __init__(self, num_batches: int, device: torch.device) -> None:
        self._counts = torch.zeros(3, dtype=torch.int64, device=device)
        self._losses = torch.zeros(num_batches, dtype=torch.float64, device=device)

    def update(self, batch_number: int, loss_sum: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: the sum of its losses (scalar), `[n, classes]`, `[n]` int64."""
        self._counts[0] += labels.shape[0]
        self._counts[1:] += count_correct(logits, labels)
        self._losses[batch_number] = loss_sum.double()

    def result(self, sync_sum_: Sync) -> dict[str, float]:
        """Mean loss, top1, top5 (shares of 1) and samples over all ranks; all must call it."""
        samples, top1, top5 = sync_sum_(self._counts.clone()).tolist()
        loss = sum(sync_sum_(self._losses.clone()).tolist())  # in the order of the batches
        return {
            "loss": loss / samples,
            "top1": top1 / samples,
            "top5": top5 / samples,
            "samples": samples,
        }
