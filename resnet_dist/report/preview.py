"""What follows from a config, without starting anything: steps, batches per rank, learning rates.

Owns `--print-config`. Never imports torch, and NumPy only to read an index of the data.

The number of training samples is that of the data where it is indexed, else
`data.num_train_samples`, which the recipes in configs/ give for their data set; where neither is
known, the folder that `data.root` names is indexed now; without one it is the embedded data set.
"""

from __future__ import annotations

import os
import textwrap

from resnet_dist.config import AugmentConfig, Config, DataConfig
from resnet_dist.config.command_line import Arguments
from resnet_dist.config.help.listing import describe
from resnet_dist.config.load import Resolved, load_config
from resnet_dist.data.augment.progressive import train_size
from resnet_dist.data.micro_batches import BatchSplit, choose_batch_split
from resnet_dist.errors import UserError
from resnet_dist.optim.schedules import build_schedule, peak_lr

_COLUMNS = 78
"""With "# " in front still within 80."""


def answer(arguments: Arguments) -> int | None:
    """Answer `--print-config`. Returns the exit code; None if a run is to be started instead.

    Raises UserError for what is wrong with the settings.
    """
    if not arguments.print_config:
        return None
    resolved = load_config(arguments.files, arguments.overrides)
    if int(os.environ.get("RANK", "0")) != 0:
        return 0
    return print_config(resolved, arguments.nproc or int(os.environ.get("WORLD_SIZE", "1")))


def print_config(resolved: Resolved, world_size: int) -> int:
    """Show every value with its origin, then what follows from them. Returns the exit code."""
    print(describe(resolved))
    print("\n# derived")
    try:
        num_samples, notes = count_train_samples(resolved.config.data)
        lines = [*notes, *derived_lines(resolved.config, num_samples, world_size)]
    except UserError as error:
        print(f"# cannot be derived: {error}")
        return error.exit_code
    print("\n".join(f"# {line}" for line in lines))
    return 0


def count_train_samples(data: DataConfig) -> tuple[int, list[str]]:
    """The number of training samples, and what is to be said about it.

    Raises UserError if it is not known and cannot be counted.
    """
    given = data.num_train_samples
    if given is not None and (data.root is None or data.loader == "synthetic"):
        return given, ["planned for data.num_train_samples"]
    if data.loader == "synthetic":
        raise UserError(
            "data.num_train_samples (null): give it, for data.loader=synthetic has none"
        )
    if data.root is None:
        from resnet_dist.data.quickstart.render import SPLIT_SIZES  # NumPy, as below

        return SPLIT_SIZES["train"], ["no data.root: the embedded data set"]
    from resnet_dist.data.index.index import open_index  # NumPy, so only where it is needed

    try:
        index = open_index(data, data.train_split, build=given is None, show_progress=True)
    except UserError as error:
        if given is None:
            raise
        return given, [
            f"note: planned for data.num_train_samples, for the data is not there: {error}"
        ]
    return len(index), difference_notes(data, len(index))


def difference_notes(data: DataConfig, num_samples: int) -> list[str]:
    """What is said where the data has another size than `data.num_train_samples`."""
    if data.num_train_samples in (None, num_samples):
        return []
    return [
        f"note: the data has {num_samples} training samples, not the {data.num_train_samples} of "
        f"data.num_train_samples"
    ]


def derived_lines(config: Config, num_samples: int, world_size: int) -> list[str]:
    """Steps, batches and learning rates as they follow from the config, the data and the ranks."""
    train = config.train
    batch_split = choose_batch_split(train, world_size)
    steps = num_samples // train.global_batch_size
    if steps == 0:
        raise UserError(
            f"train.global_batch_size ({train.global_batch_size}): exceeds the {num_samples} "
            f"training samples; lower it to at most {num_samples}"
        )
    total, left_out = steps * train.epochs, num_samples % train.global_batch_size
    lr_of = build_schedule(
        config.schedule, lr=peak_lr(config), steps_per_epoch=steps, num_steps=total
    )
    marks = sorted({0, min(steps, total - 1), total // 4, total // 2, 3 * total // 4, total - 1})
    rates = ", ".join(f"{lr_of(step):.4g} at step {step}" for step in marks)
    return [
        f"training samples: {num_samples} ({left_out} left out of each epoch, others each time)",
        f"steps: {steps} per epoch, {total} in all",
        *_batch_lines(batch_split),
        *_sample_lines(
            config.augment, config.data.train_size, steps * train.global_batch_size, train.epochs
        ),
        *_wrapped(f"learning rate: {rates}"),
    ]


def _sample_lines(augment: AugmentConfig, full_size: int, samples: int, epochs: int) -> list[str]:
    """What is unusual about the training images; `samples` are those of an epoch."""
    lines = []
    if augment.ra_reps > 1:
        distinct = -(-samples // augment.ra_reps)
        lines.append(
            f"repeated augmentation: {distinct} different samples per epoch, {augment.ra_reps} "
            f"times each"
        )
    if augment.progressive_start_size is not None:
        sizes = [train_size(augment, full_size, epoch) for epoch in range(epochs)]
        changes = [i for i in range(epochs) if i == 0 or sizes[i] != sizes[i - 1]]
        steps = ", ".join(f"{sizes[epoch]} from epoch {epoch}" for epoch in changes)
        lines += _wrapped(f"image size, px: {steps}")
    return lines


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _COLUMNS, subsequent_indent="    ")


def _batch_lines(split: BatchSplit) -> list[str]:
    local = sorted({split.local_batch_size(rank) for rank in range(split.world_size)})
    sizes = " or ".join(str(size) for size in local)
    return [
        f"global batch: {split.global_batch_size} = {split.world_size} rank(s) of {sizes}",
        f"micro-batches: {split.accumulation_steps} per step, at most {split.largest_micro_batch} "
        f"samples each",
    ]
