"""torchrun, with a record of what happened to its workers.

    python -m launch.node.agent RUN_DIR ATTEMPT NODE [torchrun's arguments]

Does what `torchrun` does with the same arguments. Besides, it dies with the process that started
it, ignores the user signals that are meant for its workers, and writes the failures of workers into
the attempt's notes.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.run import parse_args, run

from launch.records.attempt import Attempt, AttemptName
from resnet_dist.system.parent import die_with_parent


class _Notes(logging.Handler):
    """Notes torchrun's own reports of errors, which it makes before it restarts workers."""

    def __init__(self, attempt: Attempt) -> None:
        super().__init__(logging.ERROR)
        self._attempt = attempt

    def emit(self, record: logging.LogRecord) -> None:
        """Notes the first line of a report."""
        try:
            lines = record.getMessage().strip().splitlines()
            if lines:
                self._attempt.note("worker", text=lines[0])
        except OSError:
            self.handleError(record)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, 1 if workers failed for good, or 128 + the signal that ended it."""
    die_with_parent()
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    run_dir, name, node, *arguments = sys.argv[1:] if argv is None else argv
    attempt = Attempt(Path(run_dir), AttemptName.parse(name), int(node))
    logging.getLogger("torch.distributed.elastic").addHandler(_Notes(attempt))
    try:
        run(parse_args(arguments))  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        print(error, file=sys.stderr, flush=True)
        for rank, failure in error.failures.items():
            attempt.note(
                "failure", rank=rank, exit_code=failure.exitcode, message=_message(failure)
            )
        return 1
    except SignalException as error:
        return 128 + error.sigval
    return 0


def _message(failure: ProcessFailure) -> str:
    """The last message of the worker, or how it ended."""
    text: Any = failure.message  # declared as a str, but what `record` writes is a dict
    if isinstance(text, dict):
        text = str(text.get("message", text))
    return str(text).strip()


if __name__ == "__main__":
    sys.exit(main())
