"""A copy of the training state in host memory, so that training goes on while it is written.

Owns the host memory, which is allocated once and used again by every copy: a fresh allocation of
hundreds of MB costs more than the copy. One snapshot at a time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Snapshots:
    """Takes snapshots of trees (dict, list, tuple) of tensors and plain values."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: dict[tuple[Any, ...], Tensor] = {}
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._copied: torch.cuda.Event | None = None

    def take(self, tree: dict[str, Any]) -> dict[str, Any]:
        """The tree with copies of its tensors on the CPU, in the same memory layout.

        They may be read after `wait`, until the next call. The host does not wait: on a GPU the
        copies run on a stream of their own, behind the kernels that are on their way; what is
        launched next on the current stream begins when the copies are done, for it changes the
        tensors.
        """
        if self._stream is None:
            return {key: self._copy(value, (key,)) for key, value in tree.items()}
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = {key: self._copy(value, (key,)) for key, value in tree.items()}
            self._copied = self._stream.record_event()
        current.wait_event(self._copied)
        return result

    def wait(self) -> None:
        """Return when the copies of the last `take` are there. Any thread may call it."""
        if self._copied is not None:
            self._copied.synchronize()

    def _copy(self, node: Any, path: tuple[Any, ...]) -> Any:
        if isinstance(node, Tensor):
            return self._buffer(node, path).copy_(node.detach(), non_blocking=True)
        if isinstance(node, dict):
            return {key: self._copy(value, (*path, key)) for key, value in node.items()}
        if isinstance(node, (list, tuple)):
            return type(node)(self._copy(value, (*path, i)) for i, value in enumerate(node))
        return node

    def _buffer(self, tensor: Tensor, path: tuple[Any, ...]) -> Tensor:
        buffer = self._buffers.get(path)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = torch.empty_like(tensor, device="cpu", pin_memory=self._stream is not None)
            self._buffers[path] = buffer
        return buffer
