"""Each source of weights on the validation split, as rows of a table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

from resnet_dist.data.datasets import sync_open_validation
from resnet_dist.data.index.index import Index
from resnet_dist.data.loaders.build import build_eval_loader
from resnet_dist.errors import UserError
from resnet_dist.evaluate.forward import sync_forward
from resnet_dist.evaluate.rows import Row
from resnet_dist.evaluate.tally import Counter
from resnet_dist.step import AUTOCAST_DTYPES
from resnet_dist.weights.subject import Subject, open_subject, with_classes
from resnet_dist.world import (
    World,
    start_process_group,
    stop_process_group,
    sync_attempt,
    threads_per_rank,
)


def sync_evaluate_sources(
    sources: Sequence[str], overrides: Sequence[str], arguments: argparse.Namespace
) -> list[Row] | None:
    """The rows of all sources, on rank 0; None on others. Raises UserError, the same on all."""
    subjects = [_open(source, overrides, arguments) for source in sources]
    world = start_process_group(subjects[0].config.dist)
    torch.set_num_threads(threads_per_rank(world.local_size))
    rows: list[Row] = []
    for subject in subjects:
        rows += sync_evaluate_subject(subject, arguments.which, world)
    stop_process_group(world)
    return rows if world.is_main else None


def _open(source: str, overrides: Sequence[str], arguments: argparse.Namespace) -> Subject:
    subject = open_subject(source, arguments.config, overrides)
    return subject if arguments.classes is None else with_classes(subject, arguments.classes)


def sync_evaluate_subject(subject: Subject, which: str, world: World) -> list[Row]:
    """The row of a network's weights, and of its moving average. All ranks must call it."""
    config = subject.config
    data, val = sync_open_validation(config, world, classes=subject.classes)
    classes = subject.classes
    if classes is None:
        classes = _assumed(subject, list(val.classes))
        if world.is_main:
            print(
                f"note: {subject.weights.path} does not name its {subject.num_classes} outputs: "
                f"the class folders are taken in the order of their names (--classes names them)",
                file=sys.stderr,
            )
    loader = build_eval_loader(
        data,
        val,
        config.dali,
        batch_size=config.eval.batch_size,
        rank=world.rank,
        world_size=world.size,
        device=world.device,
        num_workers=config.data.num_workers or threads_per_rank(world.local_size),
    )
    rows = []
    for average in _which(subject, which):
        model = sync_attempt(world, subject.network, average=average)
        model = model.to(world.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        counter = Counter(loader.num_batches, subject.num_classes, world.device)
        sync_forward(
            model,
            loader,
            world=world,
            autocast_dtype=AUTOCAST_DTYPES[config.train.precision],
            flip=config.eval.flip,
            take=counter.add,
        )
        tally = counter.sync_result(world)
        names = [
            val.path(one.sample_id) if isinstance(val, Index) else str(one.sample_id)
            for one in tally.mistakes
        ]
        kind = "ema" if average else "model"
        rows.append(Row(subject.weights.path, kind, subject.weights.step, tally, classes, names))
    return rows


def _which(subject: Subject, which: str) -> list[bool]:
    if which == "both":
        return [False, True] if subject.has_average else [False]
    return [which == "ema"]


def _assumed(subject: Subject, found: list[str]) -> list[str]:
    if len(found) != subject.num_classes:
        raise UserError(
            f"weights ({subject.weights.path}): do not name their {subject.num_classes} outputs, "
            f"and the data has {len(found)} classes; name them with --classes FILE"
        )
    return found
