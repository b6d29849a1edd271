"""How many bytes a step moves through memory, counted operator by operator, without a GPU.

The real step runs on the CPU with a few images. For each operator of PyTorch's dispatcher the
distinct tensors that it reads and writes are counted; views are free, in-place operators read and
write. Operators of ours (`resnet_dist::...`) count as what they are on a GPU, one kernel. Some
kernels must read a tensor twice, because it does not fit into a cache: see `_SECOND_READS`. Counts
are affine in the batch size, so two small batches give those of any.

Not seen: conversions of layout inside a kernel, work space, what the level-2 cache saves.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gpu.groups import GROUPS, group_of_operator
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

_NOTHING_MOVED = {
    "aten::empty",
    "aten::empty_like",
    "aten::empty_strided",
    "aten::new_empty",
    "aten::new_empty_strided",
    "aten::detach",
    "aten::_local_scalar_dense",
}


def _second_reads(name: str, args: tuple[Any, ...]) -> int:
    """Bytes that a kernel reads once more.

    Batch norm reads its input for the statistics and again to normalise it; backward its input and
    the gradient for two sums and again for the result. A convolution's backward pass reads the
    gradient for that of the input and again for that of the weights.
    """
    if name in (
        "aten::native_batch_norm",
        "aten::cudnn_batch_norm",
        "aten::_native_batch_norm_legit",
    ):
        return int(args[0].nbytes) if args[5] else 0
    if name in ("aten::native_batch_norm_backward", "aten::cudnn_batch_norm_backward"):
        return int(args[0].nbytes + args[1].nbytes)
    if name == "aten::convolution_backward" and args[-1][0] and args[-1][1]:
        return int(args[0].nbytes)
    return 0


@dataclass
class Count:
    """Of one step; floats, because they are extrapolated."""

    bytes: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """By group."""
    operators: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Bytes by operator."""
    flops: float = 0.0
    """Of convolutions and matrix products; a multiplication and an addition are two."""

    @property
    def total(self) -> float:
        """Bytes of all groups."""
        return sum(self.bytes.values())


class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call,unused-ignore]
    """Counts what is executed below it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call,unused-ignore]
        self.count = Count()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func._schema.name
        if func.is_view or name in _NOTHING_MOVED or name.startswith("profiler::"):
            return result
        moved = _moved(func, args, kwargs, result)
        moved += _second_reads(name, args)
        packet = func._overloadpacket
        if packet in flop_registry:
            self.count.flops += flop_registry[packet](*args, **kwargs, out_val=result)
        if moved:
            self.count.bytes[group_of_operator(name)] += moved
            self.count.operators[name] += moved
        return result


def _moved(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    """Bytes read (distinct inputs) and written (results, and inputs that the schema marks)."""
    names = [argument.name for argument in func._schema.arguments]
    given = dict(zip(names, args, strict=False)) | kwargs
    # `out=` and the target of a copy or a fill are written, not read.
    only_written = {"out"} | ({"self"} if func._schema.name in _OVERWRITES else set())
    if func._schema.name == "aten::convolution_backward":
        # The input's gradient needs no input, the weights' no weights.
        wanted = given["output_mask"]
        only_written |= {
            name for name, is_read in zip(_READ_FOR, wanted, strict=False) if not is_read
        }
    reads: dict[Any, int] = {}
    writes: dict[Any, int] = {}
    for argument in func._schema.arguments:
        tensors = [
            leaf for leaf in tree_leaves(given.get(argument.name)) if isinstance(leaf, Tensor)
        ]
        written = argument.alias_info is not None and argument.alias_info.is_write
        for tensor in tensors:
            if argument.name not in only_written:
                reads[_key(tensor)] = _extent(tensor)
            if written:
                writes[_key(tensor)] = _extent(tensor)
    for leaf in tree_leaves(result):
        if isinstance(leaf, Tensor):
            writes[_key(leaf)] = _extent(leaf)
    return sum(reads.values()) + sum(writes.values())


_READ_FOR = ("weight", "input")
"""What a convolution's gradients of input and weights are computed from, besides the result's."""

_OVERWRITES = {"aten::copy_", "aten::zero_", "aten::fill_", "aten::_foreach_copy_"}


def _key(tensor: Tensor) -> tuple[int, int, int]:
    return tensor.untyped_storage()._cdata, int(tensor.storage_offset()), tensor.numel()


def _extent(tensor: Tensor) -> int:
    """Bytes of memory behind a tensor: an expanded one is as small as what it shows again."""
    elements = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        elements *= size if stride else 1
    return (elements if tensor.numel() else 0) * tensor.element_size()


def count(step: Callable[[], object]) -> Count:
    """What one call of `step` moves."""
    counter = Counter()
    with counter:
        step()
    return counter.count


def extrapolate(first: Count, second: Count, batches: tuple[int, int], batch: int) -> Count:
    """The count at another batch size from those at two."""
    factor = (batch - batches[0]) / (batches[1] - batches[0])

    def line(one: float, two: float) -> float:
        return one + factor * (two - one)

    def lines(one: dict[str, float], two: dict[str, float]) -> dict[str, float]:
        return {key: line(one.get(key, 0.0), two.get(key, 0.0)) for key in one | two}

    groups = lines(first.bytes, second.bytes)
    return Count(
        {group: groups.get(group, 0.0) for group in GROUPS},
        lines(first.operators, second.operators),
        line(first.flops, second.flops),
    )
