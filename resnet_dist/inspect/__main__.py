"""`python -m resnet_dist.inspect DIR|CONFIG [key=value ...]`: a data set and its order.

Prints the classes and sizes of both splits, writes the first augmented images as a PNG, and replays
the order of the samples: for the ranks and restarts given, each is used once. Trains nothing.

    python -m resnet_dist.inspect /data/imagenet
    python -m resnet_dist.inspect resnet50 data.root=/data/imagenet --start 0:64 --start 2000:48
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from resnet_dist.config import Config
from resnet_dist.config.load import load_config
from resnet_dist.data.augment.device_stage import to_uint8
from resnet_dist.data.datasets import Datasets, open_datasets
from resnet_dist.data.index.index import Index, open_index
from resnet_dist.data.loaders.build import build_train_loader
from resnet_dist.data.micro_batches import BatchSplit, choose_batch_split
from resnet_dist.data.order import steps_per_epoch
from resnet_dist.data.replay import Counts, Start, replay_epoch, replay_evaluation
from resnet_dist.errors import UserError

_DIR_CONFIG = "resnet50"
_DEFAULT_RANKS = (8, 3, 5)
_GRID_SIDE = 6
_GAP = 2  # pixels between images


def main(argv: Sequence[str] | None = None) -> int:
    """Inspect and print. Returns 0; 1: a sample is not used as often as it should be; 2: bad input,
    with a sentence on stderr."""
    arguments = _parser().parse_intermixed_args(argv)
    try:
        config, datasets = _open(arguments)
        assert isinstance(datasets.train, Index)
        assert isinstance(datasets.val, Index)
        for name, index in (("training", datasets.train), ("validation", datasets.val)):
            print("\n".join(describe(name, index)))
        _write_grid(config, datasets, arguments.grid)
        print(f"first augmented images: {arguments.grid}")
        starts = _starts(config, len(datasets.train), arguments.start)
        return prove(config, datasets, starts, arguments.epochs)
    except UserError as error:
        print("\n".join(f"error: {line}" for line in str(error).splitlines()), file=sys.stderr)
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="resnet_dist.inspect",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", metavar="DIR|CONFIG", help="folder of a data set, or a config")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument(
        "--start",
        action="append",
        type=_step_and_ranks,
        metavar="STEP:RANKS",
        help="from this step on so many ranks; several are restarts of one run (default: 8 ranks, "
        "then 3, then 5, a third of the epoch each)",
    )
    parser.add_argument("--epochs", type=int, default=1, help="epochs to replay (default: 1)")
    parser.add_argument("--grid", type=Path, default=Path("inspect.png"), help="PNG to write")
    return parser


def _step_and_ranks(text: str) -> tuple[int, int]:
    step, separator, ranks = text.partition(":")
    if not separator or not step.isdigit() or not ranks.isdigit() or int(ranks) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give STEP:RANKS, for example 2000:48")
    return int(step), int(ranks)


def _open(arguments: argparse.Namespace) -> tuple[Config, Datasets]:
    """The config, and both indexes. A folder is inspected as the ImageNet recipes would use it,
    with a smaller batch if it has not enough images for one."""
    overrides = [*arguments.overrides, "data.loader=torch"]
    if not Path(arguments.what).is_dir():
        config = load_config([arguments.what], overrides).config
        return config, open_datasets(config, build=True, show_progress=True)
    config = load_config([_DIR_CONFIG], [f"data.root={arguments.what}", *overrides]).config
    index = open_index(config.data, config.data.train_split, build=True, show_progress=True)
    batch_size = min(config.train.global_batch_size, len(index))
    config = replace(config, train=replace(config.train, global_batch_size=batch_size))
    return config, open_datasets(config, build=True, show_progress=True)


def describe(name: str, index: Index) -> Iterator[str]:
    """A split in words."""
    kind = f"{len(index.shards.names)} shard(s)" if index.shards is not None else "files"
    yield (
        f"{name}: {index.folder}: {len(index)} images of {len(index.own_classes)} classes in "
        f"{kind}, {int(index.lengths.sum()) / 1e9:.4g} GB, fingerprint {index.fingerprint[:12]}"
    )
    each = np.bincount(index.labels, minlength=len(index.classes))
    each = each[[index.classes.index(one) for one in index.own_classes]]
    shorter = np.minimum(index.heights, index.widths)
    longer = np.maximum(index.heights, index.widths)
    for what, values in (
        ("images a class", each),
        ("shorter side, pixels", shorter),
        ("longer side, pixels", longer),
        ("bytes an image", index.lengths),
    ):
        low, middle, high = int(values.min()), float(np.median(values)), int(values.max())
        yield f"  {what}: {low} to {high}, median {middle:g}"


def _write_grid(config: Config, datasets: Datasets, path: Path) -> None:
    """The first images of the first step, augmented as in training."""
    batch_size = config.train.global_batch_size
    num_micro_batches = math.ceil(batch_size / _GRID_SIDE**2)
    loader = build_train_loader(
        datasets,
        config.dali,
        batch_split=BatchSplit(batch_size, 1, num_micro_batches),
        rank=0,
        device=torch.device("cpu"),
        num_workers=0,
    )
    with closing(loader.batches(0, 1)) as batches:
        images = next(batches).images
    pictures = to_uint8(images, datasets.data)
    try:
        make_grid(pictures.permute(0, 2, 3, 1).numpy()).save(path, "PNG")
    except OSError as error:
        raise UserError(
            f"--grid ({path}): cannot be written ({error.strerror or error}); give another file"
        ) from None


def make_grid(images: np.ndarray) -> Image.Image:
    """`[n, size, size, 3]` uint8 in rows of nearly the same number."""
    n, size = images.shape[:2]
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    step = size + _GAP
    canvas = np.full((rows * step - _GAP, columns * step - _GAP, 3), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * step, i % columns * step
        canvas[top : top + size, left : left + size] = image
    return Image.fromarray(canvas)


def _starts(
    config: Config, num_samples: int, given: Sequence[tuple[int, int]] | None
) -> list[Start]:
    train = config.train
    steps = steps_per_epoch(num_samples, train.global_batch_size)
    if given is None:
        ranks = [min(count, train.global_batch_size) for count in _DEFAULT_RANKS]
        given = [(i * steps // 3, count) for i, count in enumerate(ranks) if i == 0 or steps >= 3]
    given = sorted(given)
    if given[0][0] != 0:
        raise UserError(
            f"--start ({given[0][0]}:{given[0][1]}): no start at step 0; add --start 0:N"
        )
    return [Start(step, choose_batch_split(train, ranks)) for step, ranks in given]


def prove(config: Config, datasets: Datasets, starts: list[Start], epochs: int) -> int:
    """Replay and print. Returns 0 if every sample is used as it should be, else 1."""
    batch_size = config.train.global_batch_size
    num_train, num_val = len(datasets.train), len(datasets.val)
    ranks = ", ".join(f"{start.batch_split.world_size} from step {start.step}" for start in starts)
    print(f"order of seed {config.seed}, global batch {batch_size}, ranks: {ranks}")
    is_right = True
    ra_reps = config.augment.ra_reps
    num_used = num_train - num_train % batch_size
    for epoch in range(epochs):
        counts = replay_epoch(datasets.order, epoch, starts)
        never = num_train - math.ceil(num_used / ra_reps)
        is_right &= counts.num_used == num_used
        is_right &= counts.most == ra_reps and counts.never == never
        why = "the tail, dropped" if ra_reps == 1 else f"augment.ra_reps={ra_reps}"
        print(f"  training, epoch {epoch}: {_in_words(counts)} ({why})")
    for world_size in sorted({start.batch_split.world_size for start in starts}):
        counts = replay_evaluation(
            num_val, batch_size=config.eval.batch_size, world_size=world_size
        )
        is_right &= counts == Counts(never=0, once=num_val, more=0, num_used=num_val, most=1)
        print(f"  validation on {world_size} rank(s): {_in_words(counts)}")
    print("each sample is used as it should be" if is_right else "THIS IS WRONG: report it")
    return 0 if is_right else 1


def _in_words(counts: Counts) -> str:
    return f"{counts.once} samples once, {counts.more} more than once, {counts.never} not"


if __name__ == "__main__":
    sys.exit(main())
