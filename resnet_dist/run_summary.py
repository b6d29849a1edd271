"""What a run tells its user before and after: derived figures, the first lines, the last table."""

from __future__ import annotations

import sys
from pathlib import Path

from resnet_dist.checkpoint.manager import Loaded
from resnet_dist.config import AugmentConfig, Config
from resnet_dist.config.load import Resolved, describe
from resnet_dist.data.augment.crop import train_size
from resnet_dist.data.datasets import Datasets, open_datasets
from resnet_dist.data.index.index import Index
from resnet_dist.data.loaders.memory_backend import decoded_bytes
from resnet_dist.data.micro_batches import BatchSplit, choose_batch_split
from resnet_dist.errors import UserError
from resnet_dist.loop import Outcome
from resnet_dist.metrics.jsonl import read_records
from resnet_dist.optim.schedules import build_schedule
from resnet_dist.report.__main__ import epoch_table, final_lines, write_curves
from resnet_dist.run.folder import run_folder
from resnet_dist.world import World, launched_ranks

IMAGENET_COMMAND = (
    "torchrun --nproc_per_node 8 -m resnet_dist.train --config resnet50 data.root=/data/imagenet"
)


def print_config(resolved: Resolved) -> int:
    """Show every value with its origin, then what follows from them. Returns the exit code."""
    print(describe(resolved))
    print("\n# derived")
    try:
        datasets = open_datasets(resolved.config, build=True, show_progress=True)
        lines = derived_lines(resolved.config, len(datasets.train), launched_ranks()[1])
    except UserError as error:
        print(f"# cannot be derived: {error}")
        return 2
    print("\n".join(f"# {line}" for line in lines))
    return 0


def derived_lines(config: Config, num_samples: int, world_size: int) -> list[str]:
    """Steps, batches and learning rates as they follow from the config, the data and the ranks."""
    train = config.train
    batch_split = choose_batch_split(
        train.global_batch_size,
        world_size,
        max_micro_batch_size=train.max_micro_batch_size,
        accumulation_steps=train.accumulation_steps,
    )
    steps = num_samples // train.global_batch_size
    total = steps * train.epochs
    lr_of = build_schedule(
        config.schedule, lr=config.optim.lr, steps_per_epoch=steps, num_steps=total
    )
    marks = sorted({0, min(steps, total - 1), total // 4, total // 2, 3 * total // 4, total - 1})
    rates = ", ".join(f"{lr_of(step):.4g} at step {step}" for step in marks)
    return [
        f"training samples: {num_samples} ({num_samples % train.global_batch_size} dropped "
        f"each epoch, others in another epoch)",
        f"steps: {steps} an epoch, {total} in all",
        *_batch_lines(batch_split),
        *_sample_lines(
            config.augment, config.data.train_size, steps * train.global_batch_size, train.epochs
        ),
        f"learning rate: {rates}",
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
        lines.append(f"image size, px: {steps}")
    return lines


def _batch_lines(split: BatchSplit) -> list[str]:
    local = sorted({split.local_batch_size(rank) for rank in range(split.world_size)})
    sizes = " or ".join(str(size) for size in local)
    return [
        f"global batch: {split.global_batch_size} = {split.world_size} rank(s) of {sizes}",
        f"micro-batches: {split.accumulation_steps} per step, at most {split.largest_micro_batch} "
        f"samples each",
    ]


def opening_lines(
    config: Config, datasets: Datasets, loaded: Loaded | None, world: World
) -> list[str]:
    """The first lines of a run."""
    lines = []
    if datasets.is_embedded:
        lines += [
            f"no data.root given: training on the embedded data set in {datasets.data.root}",
            f"for ImageNet (a folder with train/ and val/): {IMAGENET_COMMAND}",
        ]
    lines.append(
        f"{config.model.name}, {datasets.num_classes} classes, {len(datasets.train)} training and "
        f"{len(datasets.val)} validation images, {world.size} rank(s) on {world.device.type}, "
        f"{config.train.precision}, run folder {run_folder(config.run)}"
    )
    lines += derived_lines(config, len(datasets.train), world.size)[1:]
    if config.data.loader == "memory":
        lines.append(_held_line(datasets))
    if loaded is not None:
        lines += [f"note: {note}" for note in loaded.notes]
        lines.append(f"resuming from {loaded.path} at step {loaded.payload['step']}")
    return lines


def _held_line(datasets: Datasets) -> str:
    """What the memory loader takes."""
    sizes = [
        f"{decoded_bytes(index) / 2**30:.2f} GiB of {split} images"
        for split, index in (("training", datasets.train), ("validation", datasets.val))
        if isinstance(index, Index)
    ]
    return f"held by each rank's device: {', '.join(sizes)}"


def as_markdown(resolved: Resolved) -> str:
    """The resolved config for TensorBoard's text panel."""
    return "\n".join(f"    {line}" for line in describe(resolved).splitlines())


def evaluation_line(prefix: str, step: int, result: dict[str, float]) -> str:
    """One evaluation in words."""
    what = "moving average" if "ema" in prefix else "model"
    return (
        f"{what} at step {step}: top1 {result['top1']:.4%}  top5 {result['top5']:.4%}  "
        f"loss {result['loss']:.6f}  ({int(result['samples'])} images)"
    )


def closing_report(config: Config, folder: Path, outcome: Outcome, step: int) -> None:
    """Print the table of epochs, write curves.png, and name the commands to try next.

    No curves for a run that a signal stopped: it is to make room quickly, or will be killed.
    """
    records = read_records(folder / "metrics.jsonl")
    if records:
        print(epoch_table(records))
        print("\n".join(final_lines(records)))
        if outcome is not Outcome.STOPPED:
            curves = folder / "curves.png"
            write_curves(records, curves, title=config.run.name)
            print(f"curves: {curves}")
    if outcome is Outcome.FINISHED:
        print(f"finished at step {step}; next:\n  tensorboard --logdir {folder}")
        print(f"  {IMAGENET_COMMAND}")
    else:
        why = "train.max_steps" if outcome is Outcome.LIMITED else "a signal"
        print(f"stopped at step {step} by {why}; the same command goes on from here exactly")
    sys.stdout.flush()
