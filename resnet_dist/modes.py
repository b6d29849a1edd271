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
    """`key=value` arguments; `{precision}` stands for `train.precision`."""
    is_slow: bool = False
    """Compiles for minutes."""
    precision: str | None = None
    """The only `train.precision` that it is for."""

    def overrides(self, precision: str) -> list[str]:
        """The settings for a run in that precision."""
        return [setting.format(precision=precision) for setting in self.settings]


_FUSED = ("train.fused_norm=true",)
_GRAPH = ("train.cuda_graph=true",)
_COMPILE = ("train.compile=true",)
_INPUT = ("data.image_dtype={precision}",)
_PADDED = ("data.pad_channels=true", *_INPUT)

EAGER = Mode("eager", ())
"""What the others are compared with."""

MODES = [
    EAGER,
    Mode("fused", _FUSED),
    Mode("graph", _GRAPH),
    Mode("fused+graph", (*_FUSED, *_GRAPH)),
    Mode("fused+graph+padded", (*_FUSED, *_GRAPH, *_PADDED)),
    Mode("padded", _PADDED),
    Mode("half_input", _INPUT),
    Mode("static_scale", ("train.loss_scale=128",), precision="float16"),
    Mode("compile", _COMPILE),
    Mode("compile+graph", (*_COMPILE, *_GRAPH)),
    Mode("compile+fused+graph", (*_COMPILE, *_FUSED, *_GRAPH)),
    Mode("compile_overhead", (*_COMPILE, "train.compile_mode=reduce-overhead"), is_slow=True),
    Mode(
        "compile_autotune+graph",
        (*_COMPILE, "train.compile_mode=max-autotune-no-cudagraphs", *_GRAPH),
        is_slow=True,
    ),
    Mode("compile_autotune", (*_COMPILE, "train.compile_mode=max-autotune"), is_slow=True),
]
"""The most telling first."""


def modes_for(precision: str) -> list[Mode]:
    """Those that go with a `train.precision`."""
    half = precision != "float32"
    return [
        mode
        for mode in MODES
        if mode.precision in (None, precision) and (half or not set(_INPUT) & set(mode.settings))
    ]
