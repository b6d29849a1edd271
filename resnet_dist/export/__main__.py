"""`resnet-dist export WEIGHTS|RUN --format F`: a network for other programs.

    resnet-dist export runs/mine --format onnx --out mine.onnx
    resnet-dist export runs/mine --format timm --ema

Formats: torchvision (.pth) and timm (.safetensors), state dicts that their networks load;
safetensors, with classes and settings, which this package reads back; onnx, torchscript and
torch_export, whole networks that take normalised images [n, channels, size, size] and give logits.
A model card (.md) lies beside each. What was written is read back by its own reader, and its logits
are compared.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from resnet_dist.errors import UserError, report_error
from resnet_dist.system.output import keep_output_safe

FORMATS = ("torchvision", "timm", "safetensors", "onnx", "torchscript", "torch_export")


def main(argv: Sequence[str] | None = None) -> int:
    """Write one file and its card. Returns 0, or 2 for bad input."""
    keep_output_safe()
    arguments = _parser().parse_intermixed_args(argv)
    try:
        unknown = [word for word in arguments.overrides if "=" not in word]
        if unknown:
            raise UserError(f"argument ({unknown[0]}): is not of the form key=value")
        from resnet_dist.export.write import export  # only now: importing torch takes seconds

        path, card, difference = export(arguments)
    except UserError as error:
        return report_error(error, speaks=True)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, {arguments.format}")
    print(f"{card}: what it is and how to read it")
    print(f"read back: logits differ by {difference:.1g} at most")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="resnet-dist export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("weights", metavar="WEIGHTS", help="a checkpoint, state dict or run folder")
    add("overrides", nargs="*", metavar="key=value", help="settings that win over the file's")
    add("--config", action="append", default=[], metavar="FILE", help="settings, as for train")
    add("--format", choices=FORMATS, required=True)
    add("--out", type=Path, metavar="FILE", help="default: named after the network")
    add("--ema", action="store_true", help="take the moving average of the weights")
    add("--classes", type=Path, metavar="FILE", help="names of the outputs, one a line")
    return parser


if __name__ == "__main__":
    sys.exit(main())
