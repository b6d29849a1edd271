"""A mock of CUDA graphs for CPUs: a function's tensor operations are recorded and done again.

Like a CUDA graph it executes nothing when it captures (what it must compute for the recording to go
on is undone), and replays the same operations on the same memory, without a line of the function's
Python: whatever the function does not do on tensors is not done again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

WRITES_UNSAID = {torch.ops.aten.native_batch_norm.default: (3, 4)}
"""Arguments that an operation writes without saying so in its schema: the running statistics."""


def written_arguments(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Tensors that a call changes in place."""
    found = [args[i] for i in WRITES_UNSAID.get(func, ())]
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            is_positional = position < len(args)
            found.append(args[position] if is_positional else kwargs.get(argument.name))
    return [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]


def _same_memory(value: Any) -> Any:
    """An alias that autograd knows nothing of."""
    return value.detach() if isinstance(value, Tensor) else value


@dataclass
class Call:
    """One operation, with the tensors that it was called with and gave."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    new: list[tuple[int, Tensor]]
    """Results with memory of their own, by their place among the results."""

    def again(self) -> None:
        """Do it again, into the same memory."""
        results = tree_leaves(self.func(*self.args, **self.kwargs))
        for place, tensor in self.new:
            tensor.copy_(results[place])


class Recording(TorchDispatchMode):
    """Records every operation inside."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self._own: set[int] = set()
        self._outside: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        for tensor in written_arguments(func, args, kwargs):
            self._keep(tensor)
        known = {
            leaf.untyped_storage()._cdata
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, Tensor)
        }
        result = func(*args, **kwargs)
        new = []
        for place, leaf in enumerate(tree_leaves(result)):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in known:
                self._own.add(leaf.untyped_storage()._cdata)
                new.append((place, leaf.detach()))
        plain_args, plain_kwargs = tree_map(_same_memory, (args, kwargs))
        self.calls.append(Call(func, plain_args, plain_kwargs, new))
        return result

    def _keep(self, tensor: Tensor) -> None:
        """Before memory from outside changes for the first time."""
        memory = tensor.untyped_storage()
        if memory._cdata not in self._own and memory._cdata not in self._outside:
            flat = torch.empty(0, dtype=torch.uint8).set_(memory)
            self._outside[memory._cdata] = (flat, flat.clone())

    def undo(self) -> None:
        """Give all memory from outside its bytes back."""
        for flat, before in self._outside.values():
            flat.copy_(before)


class RecordedGraphs:
    """Takes the place of `CudaGraphs`."""

    def __init__(self) -> None:
        self.num_captured = 0
        self.num_replayed = 0

    def run(self, function: Callable[[], None]) -> None:
        """Call it."""
        function()

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        """Record it; nothing has changed after it."""
        with Recording() as recording:
            function()
        recording.undo()
        self.num_captured += 1

        @torch.no_grad()
        def replay() -> None:
            self.num_replayed += 1
            for call in recording.calls:
                call.again()

        return replay

    def start_over(self) -> None:
        """It has no memory of its own."""
