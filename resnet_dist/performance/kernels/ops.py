"""The operators `torch.ops.resnet_dist.batch_norm_*`; importing this file registers them.

As operators of PyTorch's dispatcher they show up under their names in profiles, in graphs of
torch.compile and under dispatch modes, and run on tensors without data. They have no gradients of
their own. What they mean is written in `batch_norm_twins`. Triton is imported with the first
tensor on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from resnet_dist.performance.kernels import batch_norm_reference as reference

_LIBRARY: Any = torch.library.Library("resnet_dist", "DEF")  # type: ignore[no-untyped-call]

_SCHEMAS = {
    "moments": "(Tensor x) -> Tensor",
    "merge": "(Tensor parts) -> Tensor",
    "finish": (
        "(Tensor parts, Tensor(a!) running_mean, Tensor(b!) running_var, float momentum, "
        "float eps) -> Tensor"
    ),
    "apply": (
        "(Tensor x, Tensor statistics, Tensor weight, Tensor bias, Tensor? residual, bool relu) "
        "-> (Tensor, Tensor)"
    ),
    "backward_sums": (
        "(Tensor grad, Tensor? other, Tensor signs, Tensor x, Tensor statistics, bool keep) "
        "-> (Tensor, Tensor)"
    ),
    "backward_apply": (
        "(Tensor grad, Tensor signs, Tensor x, Tensor statistics, Tensor weight, Tensor sums) "
        "-> Tensor"
    ),
    "apply_pool": ("(Tensor x, Tensor statistics, Tensor weight, Tensor bias) -> (Tensor, Tensor)"),
    "backward_sums_pool": ("(Tensor grad, Tensor winners, Tensor x, Tensor statistics) -> Tensor"),
    "backward_apply_pool": (
        "(Tensor grad, Tensor winners, Tensor x, Tensor statistics, Tensor weight, Tensor sums) "
        "-> Tensor"
    ),
}


def _register() -> None:
    for name, schema in _SCHEMAS.items():
        _LIBRARY.define(f"batch_norm_{name}{schema}")
        _LIBRARY.impl(f"batch_norm_{name}", getattr(reference, name), "CPU")
        # Shapes, types and memory layouts of the results are the reference implementation's.
        _LIBRARY.impl(f"batch_norm_{name}", getattr(reference, name), "Meta")
        _LIBRARY.impl(f"batch_norm_{name}", _on_gpu(name), "CUDA")


def _on_gpu(name: str) -> Callable[..., Any]:
    def launch(*arguments: Any) -> Any:
        from resnet_dist.performance.kernels import batch_norm_triton

        return getattr(batch_norm_triton, name)(*arguments)

    return launch


_register()
