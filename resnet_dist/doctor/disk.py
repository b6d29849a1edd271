"""Checks of the run folder's file system, and of the data set."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from os import getpid
from pathlib import Path

import numpy as np
import torch

from resnet_dist.checkpoint.files import read_verified, write_checkpoint
from resnet_dist.config import Config
from resnet_dist.data.index import packed, scan
from resnet_dist.data.index.places import split_folder
from resnet_dist.data.read.decode import decode_checked
from resnet_dist.doctor.finding import Finding, fail, ok, warn
from resnet_dist.errors import UserError
from resnet_dist.models.build import build_model
from resnet_dist.system.files import locked

_TRIAL_BYTES = 256 * 2**20
"""A larger checkpoint's time is estimated from this much."""
_SLOW_SAVE_S = 60.0
_SKEW_S = 2.0
_CLASSES, _FILES_PER_CLASS = 8, 8
_MIB = 2**20


@contextmanager
def probe_folder(folder: Path) -> Iterator[Path]:
    """A folder for trials on the file system where the run folder is, or will be."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    own = place / f".doctor.{getpid()}"
    own.mkdir()
    try:
        yield own
    finally:
        shutil.rmtree(own, ignore_errors=True)


def disk_findings(config: Config, probe: Path) -> list[Finding]:
    """Room, locks, clock, and a trial save on the file system of the run folder."""
    try:
        needed = state_bytes(config)
    except UserError as error:
        return [fail("model", str(error))]
    kept = needed * config.checkpoint.most_files
    free = shutil.disk_usage(probe).free
    what = f"{free / 2**30:.2f} GiB free, {kept / 2**30:.2f} GiB for checkpoints"
    found = [ok("disk", what)]
    if free < kept:
        found = [fail("disk", what, "free some, lower checkpoint.keep_last, or set run.dir")]
    return [*found, *_trial_save(probe, needed), *_lock(probe), *_file_clock(probe)]


def state_bytes(config: Config) -> int:
    """Size of a checkpoint: weights, the optimizer's moments, a moving average."""
    model = build_model(config.model, num_classes=config.model.num_classes or 1000, seed=0)
    weights = sum(int(each.numel()) for each in model.state_dict().values())
    moments = 2 if config.optim.name in ("adam", "adamw", "lamb") else 1
    return 4 * weights * (1 + moments + (config.train.ema_decay is not None))


def _trial_save(probe: Path, num_bytes: int) -> list[Finding]:
    """Write a checkpoint, and read it back."""
    trial = min(num_bytes, _TRIAL_BYTES)
    path = probe / "trial.pt"
    try:
        start = time.perf_counter()
        write_checkpoint(path, {"trial": torch.arange(trial // 4)}, is_trial=True)
        seconds = (time.perf_counter() - start) * num_bytes / trial
        read_verified(path)
    except (OSError, UserError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return [fail("trial save", f"{probe.parent}: {reason}", "make room, or set run.dir")]
    finally:
        path.unlink(missing_ok=True)
    what = f"a checkpoint of {num_bytes / _MIB:.0f} MiB takes {seconds:.1f} s in the background"
    if seconds > _SLOW_SAVE_S:
        remedy = "a faster disk for run.dir, or saves further apart (checkpoint.every_steps)"
        return [warn("trial save", what, remedy)]
    return [ok("trial save", what)]


def _lock(probe: Path) -> list[Finding]:
    """Whether a lock keeps a second holder out."""
    path, remedy = probe / "lock", "never start a run twice there; or set run.dir elsewhere"
    try:
        with locked(path, must=True):
            try:
                with locked(path, wait=False, must=True):
                    return [fail("locks", f"{probe.parent}: two hold one lock", remedy)]
            except BlockingIOError:
                return [ok("locks", "a second process is kept out of a run folder")]
    except OSError as error:
        return [fail("locks", f"{probe.parent}: none ({error.strerror})", remedy)]


def _file_clock(probe: Path) -> list[Finding]:
    """Whether the file server has the time of this host."""
    path = probe / "clock"
    path.write_bytes(b"x")
    skew = path.stat().st_mtime - time.time()
    if abs(skew) > _SKEW_S:
        what = f"that of {probe.parent} is {abs(skew):.1f} s {'ahead' if skew > 0 else 'behind'}"
        return [warn("file clock", what, "set the clocks by NTP")]
    return []


def data_findings(config: Config) -> list[Finding]:
    """Whether both splits are there, and some of their images can be decoded."""
    if config.data.loader == "synthetic":
        return [ok("data", "synthetic")]
    if config.data.root is None:
        return [ok("data", "the built-in data set (no data.root)")]
    try:
        return [
            _split(split_folder(config.data, name), name)
            for name in (config.data.train_split, config.data.val_split)
        ]
    except UserError as error:
        return [fail("data", str(error), "give data.root, data.train_split and data.val_split")]


def _split(folder: Path, name: str) -> Finding:
    if packed.is_packed(folder):
        manifest = packed.read_manifest(folder)
        packed.check_columns(folder, manifest, check_content=False)
        missing = [each.name for each in manifest.shards if not (folder / each.name).is_file()]
        if missing:
            what = f"{folder}: {len(missing)} shard(s) missing, such as {missing[0]}"
            return fail(f"data {name}", what, "copy them again")
        return ok(
            f"data {name}", f"{manifest.num_samples} samples in {len(manifest.shards)} shards"
        )
    classes = scan.list_classes(folder)
    chosen = classes[:: max(1, len(classes) // _CLASSES)][:_CLASSES]
    files = [
        folder / each for one in chosen for each in _some_files(scan.list_class(folder, one).files)
    ]
    start, bad = time.perf_counter(), []
    for path in files:
        try:
            decode_checked(np.fromfile(path, dtype=np.uint8))
        except (OSError, RuntimeError, ValueError):
            bad.append(path)
    rate = len(files) / max(time.perf_counter() - start, 1e-9)
    if bad:
        what = f"{len(bad)} of {len(files)} images cannot be decoded, such as {bad[0]}"
        return warn(f"data {name}", what, "remove or replace them")
    what = f"{len(classes)} classes; {len(files)} images decoded, {rate:.0f} per second and core"
    return ok(f"data {name}", what)


def _some_files(files: list[str]) -> list[str]:
    return files[:: max(1, len(files) // _FILES_PER_CLASS)][:_FILES_PER_CLASS]
