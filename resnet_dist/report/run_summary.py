"""What a run tells its user before and after: the first lines, the last table."""

from __future__ import annotations

import sys
from pathlib import Path

from torch import nn

from resnet_dist.checkpoint.choice import Loaded
from resnet_dist.config import Config
from resnet_dist.config.help.listing import describe
from resnet_dist.config.load import DEFAULT_CONFIG, Resolved, to_flat
from resnet_dist.data.datasets import Datasets
from resnet_dist.data.index.index import Index
from resnet_dist.data.index.scan import left_out_note
from resnet_dist.data.loaders.choice import choose_loader
from resnet_dist.data.loaders.memory_backend import decoded_bytes
from resnet_dist.data.nvjpeg import fallback_note
from resnet_dist.errors import printable
from resnet_dist.metrics.jsonl import read_records
from resnet_dist.optim.schedules import build_schedule, peak_lr
from resnet_dist.report.curves import write_curves
from resnet_dist.report.facts import ENDED, facts_of
from resnet_dist.report.preview import derived_lines, difference_notes
from resnet_dist.report.receipt import receipt_lines, write_receipt
from resnet_dist.report.table import epoch_table, final_lines
from resnet_dist.run.folder import run_folder
from resnet_dist.run.outcome import Outcome
from resnet_dist.world import World

IMAGENET_COMMAND = "resnet-dist train --config resnet50 data.root=/data/imagenet"


def opening_lines(
    resolved: Resolved,
    datasets: Datasets,
    loaded: Loaded | None,
    model: nn.Module,
    world: World,
) -> list[str]:
    """The first lines of a run, of 80 columns at most but for paths and notes."""
    config = resolved.config
    lines = []
    if datasets.is_embedded:
        lines += [
            f"no data.root given: training on the embedded data set in {datasets.data.root}",
            f"for ImageNet (a folder with train/ and val/): {IMAGENET_COMMAND}",
        ]
    elif DEFAULT_CONFIG in resolved.sources.values():
        lines += [
            f"no --config given: training the small {DEFAULT_CONFIG} network at "
            f"{config.data.train_size} px",
            "for photographs: --config resnet50",
        ]
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    lines += [
        f"{config.model.name}: {num_parameters / 1e6:.2f} million parameters, "
        f"{datasets.num_classes} classes, {config.train.precision}",
        f"{len(datasets.train)} training and {len(datasets.val)} validation images, "
        f"{world.size} rank(s) on {world.device.type}",
    ]
    lines += left_out_notes(datasets)
    lines += difference_notes(config.data, len(datasets.train))
    lines += derived_lines(config, len(datasets.train), world.size)[1:]
    if config.data.loader == "memory":
        lines.append(_held_line(datasets))
    if _decodes_on_gpu(config, world) and (note := fallback_note()):
        lines.append(f"note: {note}")
    if loaded is not None:
        lines += [f"note: {note}" for note in loaded.notes]
        lines.append(f"resuming from {loaded.path} at {_position(config, datasets, loaded)}")
    lines.append(f"run folder: {run_folder(config.run)}")
    return [printable(line) for line in lines]


def left_out_notes(datasets: Datasets) -> list[str]:
    """Files in the data folders that are no samples."""
    both = (("training", datasets.train), ("validation", datasets.val))
    return [
        line
        for name, index in both
        if isinstance(index, Index)
        for line in left_out_note(name, dict(index.left_out))
    ]


def _position(config: Config, datasets: Datasets, loaded: Loaded) -> str:
    """Where in the run as it is now a checkpoint stands."""
    step = loaded.payload["step"]
    per_epoch = len(datasets.train) // config.train.global_batch_size
    total = per_epoch * config.train.epochs
    if step >= total:
        return f"step {step}: all {total} steps of {config.train.epochs} epochs are done"
    lr_of = build_schedule(
        config.schedule, lr=peak_lr(config), steps_per_epoch=per_epoch, num_steps=total
    )
    epoch = f"epoch {step / per_epoch:.4g} of {config.train.epochs}"
    return f"step {step} of {total} ({epoch}, learning rate {lr_of(step):.4g})"


def _decodes_on_gpu(config: Config, world: World) -> bool:
    is_dali = choose_loader(config.data, world.device) == "dali"
    return is_dali and world.device.type == "cuda" and config.dali.fancy_upsampling


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


def chosen_settings(resolved: Resolved) -> dict[str, bool | int | float | str]:
    """The settings that a file or the command line gives, by key; lists as text."""
    given = {key for key, source in resolved.sources.items() if source != "default"}
    return {
        key: value if isinstance(value, bool | int | float | str) else str(value)
        for key, value in to_flat(resolved.config).items()
        if key in given and not key.startswith(("run.", "log."))
    }


def evaluation_line(prefix: str, step: int, result: dict[str, float]) -> str:
    """One evaluation in words."""
    what = "moving average" if "ema" in prefix else "model"
    return (
        f"{what} at step {step}: top1 {result['top1']:.4%}  top5 {result['top5']:.4%}  "
        f"loss {result['loss']:.6f}  ({int(result['samples'])} images)"
    )


def closing_report(
    config: Config, folder: Path, outcome: Outcome, step: int, why: str | None
) -> None:
    """Print the table of epochs and the receipt, write curves.png, and name the commands to try
    next. `why`: what stopped the run.

    Neither curves nor receipt for a run that a signal stopped: it must make room quickly, or it is
    killed.
    """
    records = read_records(folder / "metrics.jsonl")
    if records:
        print(epoch_table(records))
        print("\n".join(final_lines(records, is_finished=outcome in ENDED)))
        if outcome is not Outcome.STOPPED:
            curves = folder / "curves.png"
            write_curves(records, curves, title=config.run.name)
            print(f"curves: {curves}")
            run = facts_of(folder, records)
            write_receipt(run)
            print("\n".join(receipt_lines(run)))
    if outcome is Outcome.FINISHED:
        print(f"finished at step {step}; next:\n  tensorboard --logdir {folder}")
        print(f"  {IMAGENET_COMMAND}")
    elif outcome is Outcome.REACHED:
        target = f"train.stop_at_top1={config.train.stop_at_top1:g}"
        print(f"stopped at step {step}: {target} is reached; null trains to the end")
    elif outcome is Outcome.LIMITED:
        print(f"stopped at step {step} by train.max_steps; raise train.max_steps to go on")
    else:
        print(f"stopped at step {step} by {why}; the same command resumes exactly here")
    sys.stdout.flush()
