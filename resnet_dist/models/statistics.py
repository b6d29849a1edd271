"""Second forward passes over the same images, which batch norm must not count twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def kept_statistics(module: nn.Module) -> Iterator[None]:
    """Batch norms of `module` use the statistics of the batch, but do not record them: for a pass
    over images that were seen already."""
    kinds = nn.modules.batchnorm._BatchNorm
    norms = [part for part in module.modules() if isinstance(part, kinds) and part.training]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        # Not track_running_stats: the second pass must hold the tensors that the first one held.
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


def run_twice(block: nn.Module, *inputs: Tensor | None) -> Tensor:
    """`block(*inputs)`, of which the backward pass computes the inner tensors a second time instead
    of holding them (Chen et al. 2016, arXiv:1604.06174)."""
    result: Tensor = checkpoint(
        block,
        *inputs,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), kept_statistics(block)),
    )
    return result
