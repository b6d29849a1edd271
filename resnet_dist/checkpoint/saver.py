"""Saving in the background: the step is held up for a snapshot in host memory only.

Owns the one writer thread and the handling of its errors. Promises that at most one save is in
flight, that saves commit in the order in which they were asked for, and that one that fails leaves
all older checkpoints alone and does not end the training before `checkpoint.max_failures` in a row.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from resnet_dist.checkpoint.files import write_checkpoint
from resnet_dist.checkpoint.manager import CheckpointManager
from resnet_dist.errors import UserError
from resnet_dist.system.failpoints import failpoint

LONGEST_WAIT_S = 60.0
"""Longest time that a step waits for the previous save; after that its own save is left out. A file
system that hangs must not stop the training."""
SLOW_SAVE_S = 20.0
"""torchrun kills a worker 30 s after SIGTERM, so a save must take less than that."""


class Saver(Protocol):
    """Saves checkpoints; on ranks other than the main one it does nothing."""

    def probe(self, payload: dict[str, Any]) -> str:
        """Write a trial checkpoint before the first step, and delete it. Returns a line about its
        size and time. Raises UserError if it cannot be written."""
        ...

    def save(self, payload: dict[str, Any], *, step: int, is_best: bool) -> None:
        """Begin to save. The payload's tensors may change as soon as this returns."""
        ...

    def poll(self) -> None:
        """Check between steps whether the last save is complete, and tell the user if it failed.
        Costs next to nothing."""
        ...

    def read_times(self) -> dict[str, float]:
        """Times of the last save since the last call, empty if there was none: blocked_ms, how long
        the step was held up, and write_s, how long it took in the background to be durable."""
        ...

    @property
    def has_given_up(self) -> bool:
        """Whether so many saves have failed that the run should stop."""
        ...

    def finish(self) -> None:
        """Return when the last save is durable. Raises UserError if it could not be written."""
        ...

    def close(self) -> None:
        """Wait for the writer, whether or not it succeeds."""
        ...


class NullSaver:
    """The saver of ranks that save nothing."""

    has_given_up = False

    def probe(self, payload: dict[str, Any]) -> str:
        del payload
        return ""

    def save(self, payload: dict[str, Any], *, step: int, is_best: bool) -> None: ...

    def poll(self) -> None: ...

    def read_times(self) -> dict[str, float]:
        return {}

    def finish(self) -> None: ...

    def close(self) -> None: ...


class Snapshots:
    """Takes snapshots of trees (dict, list, tuple) of tensors and plain values, one at a time.

    Owns the host memory, which is allocated once and used again by every copy: a fresh allocation
    of hundreds of MB costs more than the copy.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: dict[tuple[Any, ...], Tensor] = {}
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._copied: torch.cuda.Event | None = None

    def take(self, tree: dict[str, Any]) -> dict[str, Any]:
        """The tree with copies of its tensors on the CPU, in the same memory layout.

        They may be read after `wait`, until the next call. The host does not wait: on a GPU the
        copies run on a stream of their own, behind the kernels that are on their way; what is
        launched next on the current stream begins when the copies are done, for it changes the
        tensors.
        """
        if self._stream is None:
            return {key: self._copy(value, (key,)) for key, value in tree.items()}
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = {key: self._copy(value, (key,)) for key, value in tree.items()}
            self._copied = self._stream.record_event()
        current.wait_event(self._copied)
        return result

    def wait(self) -> None:
        """Return when the copies of the last `take` are there. Any thread may call it."""
        if self._copied is not None:
            self._copied.synchronize()

    def _copy(self, node: Any, path: tuple[Any, ...]) -> Any:
        if isinstance(node, Tensor):
            return self._buffer(node, path).copy_(node.detach(), non_blocking=True)
        if isinstance(node, dict):
            return {key: self._copy(value, (*path, key)) for key, value in node.items()}
        if isinstance(node, (list, tuple)):
            return type(node)(self._copy(value, (*path, i)) for i, value in enumerate(node))
        return node

    def _buffer(self, tensor: Tensor, path: tuple[Any, ...]) -> Tensor:
        buffer = self._buffers.get(path)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = torch.empty_like(tensor, device="cpu", pin_memory=self._stream is not None)
            self._buffers[path] = buffer
        return buffer


class BackgroundSaver:
    """Saves of one run folder, on the main rank."""

    def __init__(
        self,
        manager: CheckpointManager,
        *,
        device: torch.device,
        max_failures: int,
        flush_records: Callable[[], None],
        describe_next_batch: Callable[[int], dict[str, Any]],
        tell: Callable[[str], None],
    ) -> None:
        """`flush_records` makes the records durable, which must come before the checkpoint that
        promises them; `describe_next_batch(step)` gives what a checkpoint says about the steps
        after it. Both run in the background. `tell` shows a line to the user."""
        self._manager = manager
        self._max_failures = max_failures
        self._flush_records = flush_records
        self._describe_next = describe_next_batch
        self._tell = tell
        self._snapshots = Snapshots(device)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint-writer")
        self._in_flight: tuple[int, bool, float, Future[float]] | None = None
        """(step, is_best, blocked_ms, seconds of the write)"""
        self._failures = 0
        self._times: dict[str, float] = {}
        self._last_error: tuple[int, OSError] | None = None
        """(step, error) of the newest save, if it failed."""

    def probe(self, payload: dict[str, Any]) -> str:
        path = self._manager.folder / f".trial.{os.getpid()}.tmp"
        start = time.monotonic()
        snapshot = self._snapshots.take(payload)  # allocates the host memory as well
        try:
            size = self._pool.submit(self._write_trial, path, snapshot).result()
        except OSError as error:
            raise UserError(
                f"run.dir ({self._manager.folder}): a trial checkpoint cannot be written "
                f"({error.strerror or error}); {_remedy(error)} or give another run.dir"
            ) from error
        seconds = time.monotonic() - start
        line = f"checkpoints: {size / 2**20:.1f} MiB, written in {seconds:.2f} s in the background"
        if seconds > SLOW_SAVE_S:
            line += (
                f"\nwarning: torchrun leaves a worker 30 s after SIGTERM, so a stop may lose the "
                f"steps after the last checkpoint; give a faster run.dir ({self._manager.folder})"
            )
        return line

    def _write_trial(self, path: Path, snapshot: dict[str, Any]) -> int:
        self._snapshots.wait()
        try:
            write_checkpoint(path, snapshot, is_trial=True)
            return path.stat().st_size
        finally:
            path.unlink(missing_ok=True)

    def save(self, payload: dict[str, Any], *, step: int, is_best: bool) -> None:
        start = time.monotonic()
        if self._in_flight is not None:
            wait([self._in_flight[-1]], timeout=LONGEST_WAIT_S)
            self.poll()
        if self._in_flight is not None:
            self._tell(
                f"warning: no checkpoint of step {step}: the one of step {self._in_flight[0]} is "
                f"still being written; check whether {self._manager.folder} hangs, or save less "
                f"often"
            )
            return
        failpoint("checkpoint.before_snapshot")
        snapshot = self._snapshots.take(payload)
        failpoint("checkpoint.after_snapshot")
        future = self._pool.submit(self._write, snapshot, step, is_best)
        self._in_flight = (step, is_best, 1e3 * (time.monotonic() - start), future)

    def _write(self, snapshot: dict[str, Any], step: int, is_best: bool) -> float:
        start = time.monotonic()
        self._snapshots.wait()
        self._flush_records()
        self._manager.save({**snapshot, **self._describe_next(step)}, step=step, is_best=is_best)
        return time.monotonic() - start

    def poll(self) -> None:
        if self._in_flight is None or not self._in_flight[-1].done():
            return
        step, is_best, blocked_ms, future = self._in_flight
        self._in_flight = None
        try:
            seconds = future.result()
        except OSError as error:
            self._fail(step, is_best, error)
            return
        self._failures, self._last_error = 0, None
        self._times = {"blocked_ms": blocked_ms, "write_s": seconds}

    def read_times(self) -> dict[str, float]:
        times, self._times = self._times, {}
        return times

    @property
    def has_given_up(self) -> bool:
        return self._failures >= self._max_failures

    def _fail(self, step: int, is_best: bool, error: OSError) -> None:
        self._failures += 1
        self._last_error = (step, error)
        folder = self._manager.folder
        best = ", and best.pt stays as it was" if is_best else ""
        then = "training continues and tries again when the next one is due"
        if self.has_given_up:
            then = "that is as many as checkpoint.max_failures allows, so the run stops"
        self._tell(
            f"warning: checkpoint of step {step} cannot be written ({error.strerror or error}) to "
            f"{folder}; the older ones are untouched{best}; {then} ({self._failures} of "
            f"{self._max_failures} failures in a row); {_remedy(error)} ({_free(folder)} free)"
        )

    def finish(self) -> None:
        if self._in_flight is not None:
            wait([self._in_flight[-1]])
            self.poll()
        if self._last_error is not None:
            step, error = self._last_error
            raise UserError(
                f"checkpoint of step {step}, the last one, cannot be written "
                f"({error.strerror or error}) to {self._manager.folder}; {_remedy(error)} and "
                f"start the same command again: it resumes from step "
                f"{max(self._manager.steps(), default=0)}"
            )

    def close(self) -> None:
        self._pool.shutdown(wait=True)
        if self._in_flight is not None and self._in_flight[-1].exception() is not None:
            # On the way out with another error: that one is raised, this one must not be lost.
            step, _, _, future = self._in_flight
            print(f"warning: checkpoint of step {step}: {future.exception()}", file=sys.stderr)


def _remedy(error: OSError) -> str:
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return "free some space there" if is_full else "check that file system"


def _free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 2**30:.2f} GiB"
    except OSError:
        return "unknown space"
