"""`resnet-dist predict WEIGHTS IMAGE|FOLDER ...`: the most probable classes of images.

    resnet-dist predict runs/mine photo.jpg
    resnet-dist predict model.pth /data/photos --format jsonl --out predictions.jsonl

WEIGHTS: a checkpoint, a state dict of torchvision or timm (.pt, .pth, .safetensors), a run folder
(its best checkpoint), or torchvision:resnet50:IMAGENET1K_V2. Folders are searched for JPEGs and
PNGs, and may be large. Files that are no images are named on stderr and skipped; the exit code is
then 1.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from resnet_dist.errors import UserError, printable, report_error
from resnet_dist.predict.answers import FORMATS
from resnet_dist.system.output import keep_output_safe


def main(argv: Sequence[str] | None = None) -> int:
    """Predict and print. Returns 0; 1 if files were skipped; 2 for bad input."""
    keep_output_safe()
    arguments = _parser().parse_intermixed_args(argv)
    words = arguments.words
    overrides = [word for word in words if "=" in word and not Path(word).exists()]
    paths = [word for word in words if word not in overrides]
    try:
        if not paths:
            raise UserError("IMAGES: are missing; give images or folders after the weights")
        with _output(arguments.out) as file:
            from resnet_dist.predict.run import predict  # only now: importing torch takes seconds

            num_images, num_bad = predict(arguments, overrides, paths, file)
    except UserError as error:
        return report_error(error, speaks=True)
    except BrokenPipeError:  # the reader has seen enough
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    if num_bad:
        print(f"{num_images} images; {num_bad} files were skipped", file=sys.stderr)
    return 1 if num_bad else 0


@contextlib.contextmanager
def _output(path: Path | None) -> Iterator[IO[str]]:
    if path is None:
        yield sys.stdout
        sys.stdout.flush()
        return
    try:
        with path.open("w", newline="") as file:
            yield file
    except OSError as error:
        raise UserError(
            f"--out ({printable(str(path))}): cannot be written ({error.strerror}); give another "
            f"file, or make room"
        ) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="resnet-dist predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("weights", metavar="WEIGHTS")
    add("words", nargs="*", metavar="IMAGE|FOLDER|key=value")
    add("--config", action="append", default=[], metavar="FILE", help="settings, as for train")
    add("--format", choices=FORMATS, default="table", help="default: table")
    add("--out", type=Path, metavar="FILE", help="write there instead of to the terminal")
    add("--top", type=_count, default=5, metavar="N", help="classes of each image (default: 5)")
    add("--ema", action="store_true", help="take the moving average of the weights")
    add("--classes", type=Path, metavar="FILE", help="names of the outputs, one a line")
    add("--batch-size", type=_count, default=64, metavar="N", help="default: 64")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
