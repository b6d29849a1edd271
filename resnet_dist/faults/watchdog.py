"""Watchdog: after `faults.watchdog_s` without progress, report where each rank is and end the run.

The loop beats, which costs one assignment; a thread checks about every second. When the beats stop,
the rank writes `stalls/<time>_rank<r>.txt` in the run folder with all its Python stacks. When
one rank stalls, all do, so the ranks' files appear at about the same time; they are compared, the
rank that is behind is named, and the process ends, so that its agent starts it again.

Should the thread itself not run (something holds the interpreter lock, or the file system hangs),
faulthandler ends the process later with code 1 and the stacks on stderr.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
import uuid
from collections.abc import Generator
from contextlib import closing, contextmanager
from enum import Enum
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from resnet_dist.errors import SuspendedError
from resnet_dist.faults.hosts import sync_host_names
from resnet_dist.faults.preemption import STALLED_EXIT_CODE
from resnet_dist.faults.stall_report import Position, Report, describe_culprit, read_reports
from resnet_dist.world import World, sync_broadcast_object

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

FOLDER = "stalls"

TICK_S = 1.0
"""Time between two checks; a tenth of the limit where that is shorter."""

JUMP_TICKS = 5
"""The thread did not run for as many ticks: the whole process was stopped or the machine asleep."""

COMPARE_S = 10.0
"""Longest wait for the files of the other ranks; the limit itself where that is shorter. Folder
listings of network file systems are seconds old."""

BACKSTOP_FACTOR = 2.0
BACKSTOP_MARGIN_S = 10.0
"""faulthandler ends the process this much after the limit. Its clock runs on while the process is
stopped by a signal: one that was stopped for longer than this ends when it is continued."""

_STDERR = 2
"""The descriptor: `sys.stderr` may be no file, and a stalled thread may hold its lock."""


class Phase(Enum):
    """What a rank is doing, in the order in which it comes after a completed step."""

    START_UP = "start-up"
    LOG = "log"
    CHECK = "comparison of the replicas"
    EVALUATION = "evaluation"
    EVALUATED = "end of the evaluation"
    CHECKPOINT = "checkpoint"
    BEGIN = "beginning of the next step"
    DATA = "waiting for data"
    STEP = "training step"


_ORDER = {phase: position for position, phase in enumerate(Phase)}


class BatchSource(Protocol[T_co]):
    """A loader of batches for evaluation."""

    @property
    def num_batches(self) -> int:
        """Batches over all ranks."""
        ...

    def batches(self) -> Generator[T_co, None, None]:
        """This rank's batches."""
        ...


class Watchdog:
    """Ends this process when it makes no progress. Watches while entered."""

    def __init__(
        self, limit_s: float, folder: Path, world: World, *, hosts: tuple[str, ...], start: str
    ) -> None:
        """`folder`: the run's. `start`: the same on all ranks, and different at each start."""
        self._limit_s = limit_s
        self._tick_s = min(TICK_S, limit_s / 10)
        self._folder = folder / FOLDER
        self._world = world
        self._hosts = hosts
        self._start = start
        self._num_batches = 0
        # One assignment of a tuple: the thread never sees the time of one beat and the step of
        # another.
        self._last = (time.monotonic(), 0, Phase.START_UP)
        self._looked = time.monotonic()
        self._longest_gap_s = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        """Begin to watch."""
        self.beat(0, Phase.START_UP)
        self._arm_backstop()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop watching; does not return once the watchdog has fired.

        The first rank to end makes the collectives of the others fail: they too are to end with
        the code and the files of a stall, not with an error that is only its consequence.
        """
        self._done.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def beat(self, step: int, phase: Phase) -> None:
        """Report progress: this rank reached `phase` after `step` completed steps."""
        self._last = (time.monotonic(), step, phase)

    def enter(self, phase: Phase) -> None:
        """Report progress to another phase, after the same number of steps."""
        self.beat(self._last[1], phase)

    def begin_wait(self) -> None:
        """Report that this rank asks for a training batch; waiting is a phase of its own."""
        self._num_batches += 1
        self.enter(Phase.DATA)

    def end_wait(self) -> None:
        """Report that the batch has arrived."""
        self.enter(Phase.STEP)

    def watch_evaluation(self, loader: BatchSource[T]) -> BatchSource[T]:
        """A loader that beats at each batch: a long evaluation is not a stall."""
        return _BeatingLoader(loader, self)

    @property
    def suspended_s(self) -> float:
        """Longest time for which the whole process was stopped (Slurm's suspend, Ctrl-Z, a paused
        container), as far as its thread tells; 0.0: not at all."""
        gap = max(self._longest_gap_s, time.monotonic() - self._looked)
        return gap if gap > JUMP_TICKS * self._tick_s else 0.0

    @contextmanager
    def explaining(self, timeout_s: float) -> Generator[None, None, None]:
        """Raise SuspendedError in place of the error that ranks meet which lost each other while
        they were suspended for longer than `timeout_s`, or than their connections last."""
        try:
            yield
        except RuntimeError as error:
            slept_s = self.suspended_s
            if slept_s == 0 or self._world.size == 1:
                raise
            raise SuspendedError(
                f"this run was suspended for {slept_s:.0f} s, and its ranks lost each other "
                f"(dist.timeout_s={timeout_s:g}); a restart resumes from the last checkpoint"
            ) from error

    def _run(self) -> None:
        self._looked = since = time.monotonic()
        while not self._done.wait(self._tick_s):
            now = time.monotonic()
            self._longest_gap_s = max(self._longest_gap_s, now - self._looked)
            if now - self._looked > JUMP_TICKS * self._tick_s:
                since = now  # nobody could beat meanwhile: everyone gets one more interval
            self._looked = now
            beat_at, step, phase = self._last
            stalled_s = now - max(beat_at, since)
            if stalled_s > self._limit_s:
                self._fire(self._report(now - beat_at, step, phase))
            self._arm_backstop()

    def _arm_backstop(self) -> None:
        timeout = BACKSTOP_FACTOR * self._limit_s + BACKSTOP_MARGIN_S
        faulthandler.dump_traceback_later(timeout, exit=True, file=_STDERR)

    def _report(self, waited_s: float, step: int, phase: Phase) -> Report:
        return Report(
            rank=self._world.rank,
            host=self._hosts[self._world.rank],
            pid=os.getpid(),
            start=self._start,
            position=Position(step, self._num_batches, _ORDER[phase]),
            phase=phase.value,
            waited_s=waited_s,
            where=_main_thread_is_at(),
        )

    def _fire(self, report: Report) -> None:
        """Write the report, compare it with the others', print the result, end the process."""
        path = self._folder / f"{time.strftime('%Y%m%dT%H%M%S')}_rank{report.rank}.txt"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            report.write(path)
            reports = self._wait_for_others()
            culprit = describe_culprit(reports, self._hosts)
            with path.open("a") as file:
                file.write(f"\n{culprit}\n")
            where = f"stacks: {path}"
        except OSError as error:
            culprit, where = f"its file cannot be written ({error})", "stacks: above"
            faulthandler.dump_traceback(file=_STDERR, all_threads=True)
        line = f"watchdog: {report.describe()}; {culprit}; {where}\n"
        os.write(_STDERR, line.encode(errors="replace"))
        os._exit(STALLED_EXIT_CODE)

    def _wait_for_others(self) -> list[Report]:
        deadline = time.monotonic() + min(COMPARE_S, self._limit_s)
        while True:
            reports = read_reports(self._folder, self._start)
            if len(reports) == self._world.size or time.monotonic() > deadline:
                return reports
            time.sleep(self._tick_s / 2)


class NullWatchdog(Watchdog):
    """Watches nothing: starts no thread, and writes no file."""

    suspended_s = 0.0

    def __init__(self) -> None: ...

    def __enter__(self) -> NullWatchdog:
        return self

    def __exit__(self, *_: object) -> None: ...

    def beat(self, step: int, phase: Phase) -> None: ...

    def enter(self, phase: Phase) -> None: ...

    def begin_wait(self) -> None: ...

    def end_wait(self) -> None: ...

    def watch_evaluation(self, loader: BatchSource[T]) -> BatchSource[T]:
        return loader


class _BeatingLoader(Generic[T]):
    """Beats at each batch, and when there are no more: the ranks' numbers of batches differ."""

    def __init__(self, loader: BatchSource[T], watchdog: Watchdog) -> None:
        self.num_batches = loader.num_batches
        self._loader = loader
        self._watchdog = watchdog

    def batches(self) -> Generator[T, None, None]:
        """The loader's."""
        self._watchdog.enter(Phase.EVALUATION)
        with closing(self._loader.batches()) as batches:
            for batch in batches:
                self._watchdog.enter(Phase.EVALUATION)
                yield batch
        self._watchdog.enter(Phase.EVALUATED)


def sync_build_watchdog(limit_s: float | None, folder: Path, world: World) -> Watchdog:
    """The watchdog of this rank, for a run in `folder`; None: one that does nothing.

    All ranks must call it: they learn each other's hosts, to name one that reports nothing.
    """
    if limit_s is None:
        return NullWatchdog()
    start = sync_broadcast_object(uuid.uuid4().hex, world)
    return Watchdog(limit_s, folder, world, hosts=sync_host_names(world), start=start)


def _main_thread_is_at() -> str:
    """File, line and function in which the main thread is."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    if frame is None:
        return "unknown"
    name = "/".join(Path(frame.f_code.co_filename).parts[-3:])
    return f"{name}:{frame.f_lineno} in {frame.f_code.co_name}"
