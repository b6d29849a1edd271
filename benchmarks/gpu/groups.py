"""What a kernel, or an operator, is for: a pure function of its name.

The groups are the same for kernels (measured, `kernel_time`) and operators (predicted, `traffic`).
A 1x1 convolution that cuDNN computes as a plain matrix product counts as that.
"""

from __future__ import annotations

import re

GROUPS = (
    "convolution",
    "batch norm",
    "elementwise",
    "layout",
    "matrix product",
    "optimizer",
    "memcpy",
    "communication",
    "other",
)

_KERNELS = [
    ("communication", r"nccl|rccl|all_?reduce|all_?gather"),
    ("memcpy", r"^mem(cpy|set)"),
    ("batch norm", r"resnet_dist|batch_?norm|\bbn_[fb]w|welford"),
    ("layout", r"nchwtonhwc|nhwctonchw|nchw_?to|nhwc_?to|tensortransform|transpose|permute"),
    ("optimizer", r"multi_tensor_apply|fused_?(sgd|adam)|foreach"),
    # cuDNN's matrix kernels: sm90_xmma_fprop_implicit_gemm_..., cutlass_tensorop_s16816wgrad_...
    ("convolution", r"fprop|dgrad|wgrad|conv|winograd|implicit_gemm|cudnn"),
    ("matrix product", r"gemm|gemv|cublas|nvjet|cutlass|splitk|triton_tem|_mm_"),
    ("other", r"pool"),
    (
        "elementwise",
        r"elementwise|triton_(poi|red|per|for)|reduce_kernel|softmax|nll_loss|fill|copy_kernel"
        r"|catarray|index|scatter|gather|threshold|relu|where|sort|topk",
    ),
]

_OPERATORS = [
    ("communication", r"c10d|all_?reduce|all_?gather"),
    ("batch norm", r"resnet_dist|batch_?norm"),
    ("convolution", r"convolution|::conv\dd"),
    ("matrix product", r"aten::(mm|addmm|bmm|linear|matmul)"),
    ("optimizer", r"_fused_(sgd|adam)|_foreach"),
    ("memcpy", r"aten::copy_"),
    ("other", r"pool|aten::mean|softmax|nll_loss|gather|sort|topk"),
]


def group_of_kernel(name: str) -> str:
    """The group of a GPU kernel by its (demangled) name."""
    return _first_match(_KERNELS, name, "other")


def group_of_operator(name: str) -> str:
    """The group of a dispatcher's operator, as `aten::add_`."""
    return _first_match(_OPERATORS, name, "elementwise")


def _first_match(patterns: list[tuple[str, str]], name: str, default: str) -> str:
    lowered = name.lower()
    return next((group for group, pattern in patterns if re.search(pattern, lowered)), default)
