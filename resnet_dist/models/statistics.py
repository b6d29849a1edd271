"""Second forward passes over the same images, which batch norm must not count twice."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from resnet_dist.models.freeze import FrozenBatchNorm2d


@contextmanager
def kept_statistics(module: nn.Module) -> Iterator[None]:
    """Batch norms of `module` use the statistics of the batch, but do not record them: for a pass
    over images that were seen already."""
    with _uncounted(part for part in _norms(module) if part.training) as norms:
        for norm in norms:
            # Not track_running_stats: the second pass must hold the tensors that the first held.
            norm.momentum = 0.0
        yield


@contextmanager
def recomputed_statistics(module: nn.Module) -> Iterator[Callable[[], None]]:
    """Batch norm's running statistics become the means over the batches of the forward passes done
    inside, in training mode; call what is yielded before each pass."""
    was_training, numbers = module.training, itertools.count(1)
    with _uncounted(_norms(module)) as norms:

        def count() -> None:
            momentum = 1.0 / next(numbers)
            for norm in norms:
                norm.momentum = momentum

        module.train()
        try:
            yield count
        finally:
            module.train(was_training)


_Norm = nn.modules.batchnorm._BatchNorm


def _norms(module: nn.Module) -> Iterator[_Norm]:
    """Those whose statistics are not frozen."""
    for part in module.modules():
        if isinstance(part, _Norm) and not isinstance(part, FrozenBatchNorm2d):
            yield part


@contextmanager
def _uncounted(norms: Iterable[_Norm]) -> Iterator[list[_Norm]]:
    """Batch norms that do not count batches; their momentum may be changed inside."""
    chosen = list(norms)
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in chosen]
    for norm in chosen:
        norm.num_batches_tracked = None
    try:
        yield chosen
    finally:
        for norm, (momentum, count) in zip(chosen, kept, strict=True):
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
