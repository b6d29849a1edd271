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
        return [setting.format(precision=precision) for setting in dict.fromkeys(self.settings)]


_PLAIN = ("performance.preset=plain",)
_FUSED = (*_PLAIN, "performance.fused_norm=true")
_GRAPH = (*_PLAIN, "performance.cuda_graph=true")
_COMPILE = (*_PLAIN, "performance.compile=true")
_HALF_INPUT = "data.image_dtype={precision}"
_INPUT = (*_PLAIN, _HALF_INPUT)
_PADDED = (*_INPUT, "data.pad_channels=true")
_BLOCKS = (*_PADDED, "performance.space_to_depth=true")

EAGER = Mode("eager", _PLAIN)
"""What the others are compared with."""

MODES = [
    EAGER,
    Mode("fused", _FUSED),
    Mode("graph", _GRAPH),
    Mode("fused+graph", (*_FUSED, *_GRAPH)),
    Mode("fused+graph+padded", (*_FUSED, *_GRAPH, *_PADDED)),
    Mode("fused+graph+blocks", (*_FUSED, *_GRAPH, *_BLOCKS)),
    Mode("padded", _PADDED),
    Mode("blocks", _BLOCKS),
    Mode("half_input", _INPUT),
    Mode("static_scale", (*_PLAIN, "train.loss_scale=128"), precision="float16"),
    Mode("compile", _COMPILE),
    Mode("compile+graph", (*_COMPILE, *_GRAPH)),
    Mode("compile_overhead", (*_COMPILE, "performance.compile_mode=reduce-overhead"), is_slow=True),
    Mode(
        "compile_autotune+graph",
        (*_COMPILE, "performance.compile_mode=max-autotune-no-cudagraphs", *_GRAPH),
        is_slow=True,
    ),
    Mode("compile_autotune", (*_COMPILE, "performance.compile_mode=max-autotune"), is_slow=True),
]
"""The most telling first."""


def modes_for(precision: str) -> list[Mode]:
    """Those that go with a `train.precision`."""
    half = precision != "float32"
    return [
        mode
        for mode in MODES
        if mode.precision in (None, precision) and (half or _HALF_INPUT not in mode.settings)
    ]
