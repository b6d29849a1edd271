"""Helper processes that cannot hang at birth, outlive their trainer, or take its signals.

They are forked from multiprocessing's fork server, a process that only imports modules. Forking the
trainer itself would copy the locks that its other threads (gloo's, autograd's, the data loader's)
hold at that moment, and a child that needs one of them never returns.

A signal sent to a whole process group (Ctrl-C, Slurm's warning) must reach the trainer alone: it
decides when to stop and still needs its readers.
"""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext

from resnet_dist.system.processes import die_with_parent
from resnet_dist.system.signals import STOP_SIGNALS


def start_server() -> None:
    """Begin to start the fork server, which imports torch meanwhile; returns at once.

    Called early, so that the seconds this takes are over when the first helper is needed. If a
    parent process has a server, that one is used.
    """
    # Each child runs the main module's body again (as __mp_main__): quick if all that it imports is
    # there. The main module itself must not be, or runpy warns.
    main = getattr(sys.modules["__main__"].__spec__, "name", None)
    ours = [name for name in sys.modules if name.startswith("resnet_dist.") and name != main]
    multiprocessing.set_forkserver_preload(ours)
    # Starting it unblocks SIGINT and SIGTERM (Python 3.11), and the server would start it first.
    with _signals_held_back():
        resource_tracker.ensure_running()
    with _signals_held_back():
        forkserver.ensure_running()


def context() -> ForkServerContext:
    """Where helpers are started from."""
    start_server()
    return multiprocessing.get_context("forkserver")


def process_pool(
    num_processes: int, set_up: Callable[[], object] | None = None
) -> ProcessPoolExecutor:
    """A pool of helpers, each of which calls `set_up` (of a module's top level) first."""
    return ProcessPoolExecutor(
        num_processes,
        mp_context=context(),
        initializer=_start,
        initargs=(os.getpid(), set_up),
    )


def _start(trainer_pid: int, set_up: Callable[[], object] | None) -> None:
    isolate(trainer_pid)
    if set_up is not None:
        set_up()


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """The server inherits the blocked signals, and so do its children until `isolate`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def isolate(trainer_pid: int) -> None:
    """First call in a helper: leave signals to the trainer, and die when it or the server dies."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    die_with_parent()  # the server
    try:
        trainer = os.pidfd_open(trainer_pid)
    except ProcessLookupError:
        os._exit(1)
    threading.Thread(target=_die_with, args=(trainer,), daemon=True).start()


def _die_with(process_descriptor: int) -> None:
    poll = select.poll()
    poll.register(process_descriptor, select.POLLIN)
    poll.poll()
    os._exit(1)
