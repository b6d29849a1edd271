"""One interface for the records of a run: TensorBoard, JSONL and the console.

`step` is always the number of completed updates, so a checkpoint of step s goes with everything
recorded at steps <= s. At a restart from s, the sinks first drop what they hold of later steps (a
killed run had got further), so that no step is in them twice and none is missing. For that, `flush`
must be called before a checkpoint is committed. Which rank records is chosen once, in
`build_recorder`; nothing else here asks for a rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from torch import Tensor

from resnet_dist.config import LogConfig
from resnet_dist.metrics.console import build_console
from resnet_dist.metrics.jsonl import JsonlRecorder
from resnet_dist.metrics.null import NullRecorder

METRICS_FILE = "metrics.jsonl"


class Recorder(Protocol):
    """Takes records in the order of their steps."""

    def scalars(self, step: int, values: Mapping[str, float | int]) -> None:
        """Record numbers by tag: `epoch` (completed epochs, float), `train/...` or `val/...`."""

    def images(self, step: int, tag: str, images: Tensor) -> None:
        """Record images, `[n, 3, H, W]` uint8 on any device, shown as a grid. Nothing where the
        tag has been recorded at this step or later."""

    def text(self, step: int, tag: str, text: str) -> None:
        """Record a text, shown verbatim. Nothing where the tag has been recorded at this step or
        later."""

    def settings(self, values: Mapping[str, bool | int | float | str]) -> None:
        """Record what this run was set to, by key, to compare it with others. Nothing if it has
        been recorded."""

    def advance(self, step: int) -> None:
        """Show that a step is done; not kept. Called after every step."""

    def message(self, text: str) -> None:
        """Show the user a line; it does not break a progress bar, and is not kept."""

    def flush(self) -> None:
        """Return when everything recorded is on the disk. Raises OSError if that is impossible."""

    def close(self) -> None:
        """Flush and close files and threads. Nothing may be recorded after that."""


class MultiRecorder:
    """Hands every record to several recorders, in order."""

    def __init__(self, recorders: Sequence[Recorder]) -> None:
        self._recorders = tuple(recorders)

    def scalars(self, step: int, values: Mapping[str, float | int]) -> None:
        for recorder in self._recorders:
            recorder.scalars(step, values)

    def images(self, step: int, tag: str, images: Tensor) -> None:
        for recorder in self._recorders:
            recorder.images(step, tag, images)

    def text(self, step: int, tag: str, text: str) -> None:
        for recorder in self._recorders:
            recorder.text(step, tag, text)

    def settings(self, values: Mapping[str, bool | int | float | str]) -> None:
        for recorder in self._recorders:
            recorder.settings(values)

    def advance(self, step: int) -> None:
        for recorder in self._recorders:
            recorder.advance(step)

    def message(self, text: str) -> None:
        for recorder in self._recorders:
            recorder.message(text)

    def flush(self) -> None:
        for recorder in self._recorders:
            recorder.flush()

    def close(self) -> None:
        """Close all of them, whether or not one fails."""
        with ExitStack() as stack:
            for recorder in self._recorders:
                stack.callback(recorder.close)


def build_recorder(
    log: LogConfig,
    *,
    run_dir: Path,
    is_main: bool,
    resume_step: int,
    num_steps: int,
    steps_per_epoch: int,
) -> Recorder:
    """The recorder of this rank: everything on the main one, nothing on the others.

    `resume_step` is the step of the checkpoint that the run starts from, 0 for a new run: what the
    run folder holds of later steps is dropped here (at 0: all). Raises UserError for a metrics
    file that is not ours.
    """
    if not is_main:
        return NullRecorder()
    run_dir.mkdir(parents=True, exist_ok=True)
    recorders: list[Recorder] = [JsonlRecorder(run_dir / METRICS_FILE, resume_step=resume_step)]
    if log.tensorboard:
        # Imported here: it takes half a second, and the other ranks do not need it.
        from resnet_dist.metrics.tensorboard import TensorBoardRecorder

        recorders.append(TensorBoardRecorder(run_dir, resume_step=resume_step))
    # The console comes last: a line that the user sees is in the files already.
    recorders.append(
        build_console(
            log.progress,
            resume_step=resume_step,
            num_steps=num_steps,
            steps_per_epoch=steps_per_epoch,
        )
    )
    return MultiRecorder(recorders)
