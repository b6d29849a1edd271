"""`python -m resnet_dist.prepare imagenet|folder|tars|idx|verify`: pack a data set into tar shards.

    python -m resnet_dist.prepare imagenet --train-tar ILSVRC2012_img_train.tar \\
        --val-tar ILSVRC2012_img_val.tar --devkit ILSVRC2012_devkit_t12.tar.gz --out DIR
    python -m resnet_dist.prepare folder SRC --out DIR      (also what Kaggle's archive unpacks to)
    python -m resnet_dist.prepare tars --train A.tar B.tar --val C.tar --out DIR
    python -m resnet_dist.prepare idx --train-images F --train-labels F --val-images F \\
        --val-labels F --out DIR                            (MNIST and its relatives: class folders)
    python -m resnet_dist.prepare verify DIR

Then train with the command that is printed at the end. A command that was killed resumes when it is
given again.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from resnet_dist.data.index.scan import left_out_note
from resnet_dist.errors import UserError, printable, report_error
from resnet_dist.prepare.samples import Split
from resnet_dist.prepare.sources import Expected, read_folder, read_imagenet
from resnet_dist.prepare.tars import read_tars
from resnet_dist.prepare.verify import find_splits, verify_split

if TYPE_CHECKING:
    from resnet_dist.data.index.packed import Manifest
    from resnet_dist.prepare.pack import Packed

_RECIPE, _RECIPE_BATCH, _RECIPE_LR = "resnet50", 256, 0.1


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns 0, or 2 with an error message on stderr for each problem."""
    arguments = _parser().parse_args(argv)
    try:
        match arguments.command:
            case "verify":
                return _verify(arguments.dir)
            case "idx":
                return _write_class_folders(arguments)
        return _pack(arguments)
    except UserError as error:
        return report_error(error, speaks=True)
    except KeyboardInterrupt:
        print("interrupted; the same command resumes from here", file=sys.stderr)
        return 128 + signal.SIGINT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="resnet_dist.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    imagenet = commands.add_parser("imagenet", help="pack ImageNet's archives, read where they are")
    for name in ("train-tar", "val-tar", "devkit"):
        imagenet.add_argument(f"--{name}", type=Path, required=True)
    for name, count in vars(Expected()).items():
        imagenet.add_argument(
            f"--expect-{name}", type=int, default=count, metavar="N", help=f"default: {count}"
        )
    folder = commands.add_parser("folder", help="pack a folder with one folder per split")
    folder.add_argument("src", type=Path, metavar="SRC")
    folder.add_argument("--splits", default="train,val", help="default: train,val")
    folder.add_argument(
        "--val-labels",
        type=Path,
        metavar="CSV",
        help="classes of a split without class folders (default: Kaggle's LOC_val_solution.csv)",
    )
    tars = commands.add_parser(
        "tars", help="pack WebDataset shards of others, or flat archives as on Hugging Face"
    )
    for name in ("train", "val"):
        tars.add_argument(f"--{name}", type=Path, nargs="+", required=True, metavar="TAR")
    for command in (imagenet, folder, tars):
        _add_options(command)
    idx = commands.add_parser("idx", help="write IDX files (Fashion-MNIST) as class folders")
    for name in ("train", "val"):
        for what in ("images", "labels"):
            idx.add_argument(f"--{name}-{what}", type=Path, required=True, metavar="FILE")
    idx.add_argument("--out", type=Path, required=True, metavar="DIR")
    idx.add_argument("--classes", metavar="A,B,...", help="names by number (default: the numbers)")
    verify = commands.add_parser("verify", help="read everything again and compare")
    verify.add_argument("dir", type=Path, metavar="DIR")
    return parser


def _add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="where the shards are written")
    add("--samples-per-shard", type=_positive, default=1024, metavar="N", help="default: 1024")
    add("--max-side", type=_positive, metavar="PX", help="shrink so that no side is longer")
    add("--short-side", type=_positive, metavar="PX", help="shrink the shorter side to this")
    add(
        "--quality",
        type=_quality,
        default=95,
        metavar="Q",
        help="of re-encoded JPEGs (default: 95)",
    )
    add(
        "--exact",
        action="store_true",
        help="store CMYK images and PNGs that are called JPEG as they are, not as RGB JPEGs",
    )
    add("--skip-bad", action="store_true", help="leave out images that cannot be used")
    add(
        "--keep-damaged",
        action="store_true",
        help="keep images that are damaged inside but decode to their full size",
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _quality(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 100:
        raise argparse.ArgumentTypeError("must lie in 1 to 100")
    return value


def _pack(arguments: argparse.Namespace) -> int:
    # Only now: importing torch takes seconds.
    from resnet_dist.prepare.check import Options
    from resnet_dist.prepare.pack import pack_split
    from resnet_dist.prepare.shards import Policy

    options = Options(
        samples_per_shard=arguments.samples_per_shard,
        max_side=arguments.max_side,
        short_side=arguments.short_side,
        quality=arguments.quality,
        exact=arguments.exact,
    )
    policy = Policy(skip_bad=arguments.skip_bad, keep_damaged=arguments.keep_damaged)
    done: list[Manifest] = []
    for split in _splits(arguments):
        for line in left_out_note(split.name, split.left_out):
            print(line, flush=True)
        packed = pack_split(split, arguments.out, options, policy)
        done.append(packed.manifest)
        print(printable(_summary(packed)), flush=True)
    print(printable(_next_step(arguments.out, done)))
    return 0


def _write_class_folders(arguments: argparse.Namespace) -> int:
    from resnet_dist.prepare.idx import write_class_folders

    names = None if arguments.classes is None else arguments.classes.split(",")
    for split in ("train", "val"):
        images, labels = (getattr(arguments, f"{split}_{what}") for what in ("images", "labels"))
        count = write_class_folders(images, labels, split, arguments.out / split, names)
        print(f"{split}: {count} images", flush=True)
    settings = shlex.join([f"data.root={arguments.out}"])
    print(f"train with: resnet-dist train --config fashion_resnet18 {settings}")
    return 0


def _next_step(out: Path, splits: list[Manifest]) -> str:
    """The command that trains the ImageNet recipe on what was packed."""
    if len(splits) < 2:
        return "training needs a second split, for validation: prepare it with the same --out"
    train, val = splits[:2]
    settings = [f"data.root={out}"]
    for key, name, default in (("train", train.split, "train"), ("val", val.split, "val")):
        if name != default:
            settings.append(f"data.{key}_split={name}")
    if train.num_samples != Expected().train:
        settings.append(f"data.num_train_samples={train.num_samples}")
    # The recipe's batch, or less where an epoch would have less than 16 steps; the rate with it.
    batch_size = _RECIPE_BATCH
    while batch_size > max(4, train.num_samples // 16):
        batch_size //= 2
    if batch_size != _RECIPE_BATCH:
        settings.append(f"train.global_batch_size={batch_size}")
        settings.append(f"optim.lr={_RECIPE_LR * batch_size / _RECIPE_BATCH:g}")
    return f"train with: resnet-dist train --config {_RECIPE} {shlex.join(settings)}"


def _splits(arguments: argparse.Namespace) -> list[Split]:
    print("listing the samples ...", file=sys.stderr, flush=True)
    if arguments.command == "folder":
        return read_folder(
            arguments.src.absolute(), arguments.splits.split(","), arguments.val_labels
        )
    if arguments.command == "tars":
        paths = (arguments.train, arguments.val)
        return read_tars(*([path.absolute() for path in of_split] for of_split in paths))
    expected = Expected(
        train=arguments.expect_train, val=arguments.expect_val, classes=arguments.expect_classes
    )
    return read_imagenet(
        arguments.train_tar.absolute(),
        arguments.val_tar.absolute(),
        arguments.devkit.absolute(),
        expected,
    )


def _summary(packed: Packed) -> str:
    manifest = packed.manifest
    size = sum(shard.num_bytes for shard in manifest.shards)
    line = (
        f"{manifest.split}: {manifest.num_samples} images of {len(manifest.classes)} classes in "
        f"{len(manifest.shards)} shard(s), {size / 1e9:.3g} GB"
    )
    if packed.was_complete:
        line += "; was complete already"
    else:
        line += f"; {packed.seconds:.1f} s, {packed.num_kept} shard(s) kept from an earlier call"
    for what, samples in (
        ("re-encoded", manifest.reencoded),
        ("damaged inside but kept", manifest.damaged),
        ("left out", manifest.skipped),
    ):
        if samples:
            line += f"; {len(samples)} {what} (named in dataset.json)"
    return line


def _verify(folder: Path) -> int:
    problems = []
    for split in find_splits(folder.absolute()):
        found = verify_split(split)
        problems += found
        result = f"{len(found)} problem(s)" if found else "as it was written"
        print(f"{printable(split.name)}: {result}")
    for problem in problems:
        print(f"error: {printable(problem)}", file=sys.stderr)
    if problems:
        print("restore these files from a copy, or prepare the data again", file=sys.stderr)
    return 2 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
