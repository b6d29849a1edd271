"""The pass of a network over files."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from typing import IO

import torch
from tqdm import tqdm

from resnet_dist.data.augment.device_stage import DeviceStage
from resnet_dist.data.index.scan import say_left_out
from resnet_dist.errors import UserError, printable
from resnet_dist.predict.answers import answer_to
from resnet_dist.predict.images import Found, find_images, read_batches
from resnet_dist.step import AUTOCAST_DTYPES, autocast
from resnet_dist.weights.subject import open_subject, with_classes

_FEW = 3
"""Batches that are not worth reader processes of their own."""


def predict(
    arguments: argparse.Namespace, overrides: Sequence[str], paths: Sequence[str], file: IO[str]
) -> tuple[int, int]:
    """Write the classes of all images. Returns how many there were, and how many files were bad.

    Raises UserError for bad weights or settings, and for paths without any file.
    """
    subject = open_subject(arguments.weights, arguments.config, overrides)
    if arguments.classes is not None:
        subject = with_classes(subject, arguments.classes)
    device = torch.device("cpu")
    if torch.cuda.is_available() and subject.config.dist.device != "cpu":
        device = torch.device("cuda")
    model = subject.network(average=arguments.ema)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    data, top = subject.config.data, min(arguments.top, subject.num_classes)
    names = subject.classes or [str(number) for number in range(subject.num_classes)]
    names += [str(number) for number in range(len(names), subject.num_classes)]
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    is_large = len(paths) > _FEW * arguments.batch_size or any(map(os.path.isdir, paths))
    stage, found = DeviceStage(data, device), Found()
    answer = answer_to(file, arguments.format, top)
    dtype = AUTOCAST_DTYPES[subject.config.train.precision]
    num_images = num_bad = 0
    batches = read_batches(
        find_images(paths, found),
        data,
        batch_size=arguments.batch_size,
        num_workers=(data.num_workers or cores) if is_large else 0,
    )
    shows = sys.stderr.isatty() and file is not sys.stdout
    with closing(batches), torch.inference_mode(), tqdm(unit="img", disable=not shows) as bar:
        for batch in batches:
            for name, why in batch.bad:
                print(printable(f"skipped: {name}: {why}"), file=sys.stderr, flush=True)
            num_bad += len(batch.bad)
            if not batch.names:
                continue
            images = stage.normalise(batch.pixels.to(device, non_blocking=True))
            with autocast(device, dtype):
                logits = model(images)
            shares, classes = logits.float().softmax(1).topk(top, dim=1)
            for name, row, numbers in zip(
                batch.names, shares.tolist(), classes.tolist(), strict=True
            ):
                answer(name, [(names[n], share) for n, share in zip(numbers, row, strict=True)])
            num_images += len(batch.names)
            bar.update(len(batch.names))
    if found.left_out:
        print(f"note: no images by their names: {say_left_out(found.left_out)}", file=sys.stderr)
    if num_images + num_bad == 0:
        raise UserError(f"IMAGES ({', '.join(paths[:3])}): hold no JPEG or PNG")
    return num_images, num_bad
