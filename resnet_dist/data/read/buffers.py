"""Host memory for batches that is used again, and the way from there to the device.

Owns blocks of float32. Fresh memory of a batch's size comes from the kernel page by page, each
cleared first: that takes three times as long as the arithmetic that fills it.
"""

from __future__ import annotations

import weakref

import numpy as np
import torch
from numpy.typing import NDArray


class HostBuffers:
    """Gives out tensors, and takes their memory back once no tensor refers to it any more.

    Whoever keeps a batch (a list, a graph of autograd) keeps its memory too: as many blocks exist
    as were ever in use together. Only the size asked for last is kept.
    """

    def __init__(self) -> None:
        self._free: list[NDArray[np.float32]] = []

    def take(self, numel: int) -> torch.Tensor:
        """`[numel]` float32 on the host, of any content."""
        block = self._free.pop() if self._free else None
        if block is None or len(block) != numel:
            self._free.clear()
            block = np.empty(numel, dtype=np.float32)
        # The tensor's storage holds this view and nothing else does: its end is the storage's.
        view = block[:]
        weakref.finalize(view, self._free.append, block).atexit = False
        return torch.from_numpy(view)


def to_device(array: NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """A tensor of an array on the device; the host does not wait for the copy. On the CPU it may
    share the array's memory."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor
