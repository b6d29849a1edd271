"""Performance settings that are worth comparing on a GPU: names for lists of `key=value`.

None of them changes the mathematics but for rounding. Which of them pays depends on the GPU, the
model and the batch: `python -m resnet_dist.bench --modes` and `benchmarks/gpu_step.py` time them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mode:
    """A way to compute the same step."""

    name: str
    settings: tuple[str, ...]
    """`key=value` arguments."""
    is_slow: bool = False
    """Compiles for minutes."""
    precision: str | None = None
    """The only `train.precision` that it is for."""


PLAIN = Mode("plain", ("performance.preset=plain",))
"""What the others are compared with."""

MODES = [
    PLAIN,
    Mode("graphed", ("performance.preset=graphed",)),
    Mode("fused", ("performance.preset=fused",)),
    Mode("plain+graph", ("performance.preset=plain", "performance.cuda_graph=true")),
    Mode("static_scale", ("performance.preset=plain", "train.loss_scale=128"), precision="float16"),
    Mode("compiled", ("performance.preset=compiled",)),
    Mode(
        "compiled, max-autotune",
        ("performance.preset=compiled", "performance.compile_mode=max-autotune"),
        is_slow=True,
    ),
]
"""The most telling first."""


def modes_for(precision: str) -> list[Mode]:
    """Those that go with a `train.precision`."""
    return [mode for mode in MODES if mode.precision in (None, precision)]
