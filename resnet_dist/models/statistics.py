"""Second forward passes over the same images, which batch norm must not count twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from resnet_dist.models.freeze import FrozenBatchNorm2d


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


@contextmanager
def recomputed_statistics(module: nn.Module) -> Iterator[Callable[[], None]]:
    """Batch norm's running statistics become the means over the batches of the forward passes done
    inside, in training mode; call what is yielded before each pass."""
    kinds = nn.modules.batchnorm._BatchNorm
    found = [part for part in module.modules() if isinstance(part, kinds)]
    norms = [part for part in found if not isinstance(part, FrozenBatchNorm2d)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    was_training, done = module.training, 0

    def count() -> None:
        nonlocal done
        done += 1
        for norm in norms:
            norm.momentum = 1.0 / done

    for norm in norms:
        norm.num_batches_tracked = None
    module.train()
    try:
        yield count
    finally:
        module.train(was_training)
        for norm, (momentum, tracked) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, tracked


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
