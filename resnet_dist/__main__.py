"""One command for everything: `resnet-dist VERB ...`, or `python -m resnet_dist VERB ...`.

Each verb is also a module: `python -m resnet_dist.VERB`.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

from resnet_dist import __version__
from resnet_dist.system.output import keep_output_safe

VERBS = {
    "train": ("resnet_dist.train:start_and_train", "train a network on this machine"),
    "recipes": ("resnet_dist.recipes.__main__:main", "the shipped configs, by accuracy or length"),
    "prepare": ("resnet_dist.prepare.__main__:main", "pack a data set into tar shards, once"),
    "inspect": (
        "resnet_dist.inspect.__main__:main",
        "show a data set and the order it is used in",
    ),
    "evaluate": ("resnet_dist.evaluate.__main__:main", "accuracy of any weights, class by class"),
    "predict": ("resnet_dist.predict.__main__:main", "classes of images, from any weights"),
    "export": ("resnet_dist.export.__main__:main", "weights for torchvision, timm, ONNX, ..."),
    "report": ("resnet_dist.report.__main__:main", "the table of epochs and the curves of a run"),
    "diff": ("resnet_dist.diff.__main__:main", "where two runs part, and why"),
    "replay": ("resnet_dist.replay.__main__:main", "any step of a run done again and shown"),
    "bench": ("resnet_dist.bench.__main__:main", "what limits the speed here: loader or step"),
    "plan": ("resnet_dist.plan.__main__:main", "hours, cost, energy and room of a run, beforehand"),
    "doctor": (
        "resnet_dist.doctor.__main__:main",
        "is this machine, or a job's nodes, fit to train",
    ),
    "selftest": ("resnet_dist.selftest.__main__:main", "is a resumed run the run, on this disk"),
}
"""The function of each verb, which takes the rest of the command line, and a line about it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb. Returns its exit code."""
    keep_output_safe()
    verb, *rest = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if verb in ("-h", "--help", "help"):
        print(_help())
        return 0
    if verb == "--version":
        print(f"resnet_dist {__version__}")
        return 0
    if verb == "--completion":
        from resnet_dist.recipes.__main__ import completion

        print(completion(VERBS), end="")
        return 0
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        print(f"error: {verb}: no such verb; {hint}choose {', '.join(VERBS)}", file=sys.stderr)
        return 2
    module, _, function = VERBS[verb][0].partition(":")
    code = getattr(importlib.import_module(module), function)(rest)
    assert isinstance(code, int)
    return code


def _help() -> str:
    lines = [f"  {verb:<10} {about}" for verb, (_, about) in VERBS.items()]
    return "\n".join(
        [
            "usage: resnet-dist VERB ...",
            "",
            *lines,
            "",
            "resnet-dist VERB --help says more; resnet-dist train --help KEY explains a",
            "setting.",
            "On a cluster: python -m launch.submit --help.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
