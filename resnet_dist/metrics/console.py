"""Progress on the console: a bar on a terminal, one line per record otherwise.

80 columns suffice: what else is recorded is in the run folder.
Log files of schedulers grow by one line per record and hold no control characters.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Literal

from tqdm import tqdm

from resnet_dist.metrics.null import NullRecorder, is_validation

_SHOWN_WAIT = 0.05
"""Share of the time that the step waits for data, from which on it is shown."""


class _Bar(tqdm):  # type: ignore[type-arg]
    """A bar without a monitor thread: it is redrawn at each record anyway, and loaders fork."""

    monitor_interval = 0


class LineConsole(NullRecorder):
    """Prints one plain line per record on stdout, at once."""

    def __init__(self, *, num_steps: int, steps_per_epoch: int) -> None:
        self._num_steps = num_steps
        self._steps_per_epoch = steps_per_epoch

    def scalars(self, step: int, values: Mapping[str, float | int]) -> None:
        """Print a line; that of an evaluation begins with `validation`."""
        position = describe_position(step, self._num_steps, self._steps_per_epoch)
        if is_validation(values):
            self.message("\n".join(validation_lines(position, values)))
            return
        words = [position, *describe_training(values)]
        if "train/step_time_ms" in values:
            seconds = (self._num_steps - step) * values["train/step_time_ms"] / 1e3
            words.append(f"eta {timedelta(seconds=round(seconds))}")
        self.message(" ".join(words))

    def message(self, text: str) -> None:
        """Print a line."""
        print(text, flush=True)


class BarConsole(NullRecorder):
    """A bar over the steps of the run on stderr; evaluations and messages scroll above it."""

    def __init__(self, *, resume_step: int, num_steps: int, steps_per_epoch: int) -> None:
        self._num_steps = num_steps
        self._steps_per_epoch = steps_per_epoch
        self._bar = _Bar(
            total=num_steps,
            initial=resume_step,
            unit="step",
            dynamic_ncols=True,
            miniters=1,
            bar_format="{desc} {n_fmt}/{total_fmt} |{bar}| {remaining}{postfix}",
            file=sys.stderr,
        )

    def scalars(self, step: int, values: Mapping[str, float | int]) -> None:
        """Move the bar, or print a line above it for an evaluation."""
        position = describe_position(step, self._num_steps, self._steps_per_epoch)
        if is_validation(values):
            self.message("\n".join(validation_lines(position, values)))
            return
        self._bar.set_postfix_str(" ".join(describe_training(values)), refresh=False)
        self._show(step)
        self._bar.refresh()

    def advance(self, step: int) -> None:
        """Move the bar, which is drawn ten times a second at most."""
        self._show(step)

    def _show(self, step: int) -> None:
        position = describe_position(step, self._num_steps, self._steps_per_epoch)
        self._bar.set_description_str(position.partition(" step")[0], refresh=False)
        self._bar.update(step - self._bar.n)

    def message(self, text: str) -> None:
        """Print a line on stdout above the bar."""
        self._bar.write(text, file=sys.stdout)
        sys.stdout.flush()

    def close(self) -> None:
        """Leave the bar as it is and go to the next line."""
        self._bar.close()


def build_console(
    progress: Literal["auto", "bar", "lines"],
    *,
    resume_step: int,
    num_steps: int,
    steps_per_epoch: int,
) -> LineConsole | BarConsole:
    """The console of `log.progress`.

    `auto` is a bar if both stdout and stderr are a terminal, so that no log file gets one.
    """
    sizes: dict[str, Any] = {"num_steps": num_steps, "steps_per_epoch": steps_per_epoch}
    is_terminal = sys.stdout.isatty() and sys.stderr.isatty()
    if progress == "bar" or (progress == "auto" and is_terminal):
        return BarConsole(resume_step=resume_step, **sizes)
    return LineConsole(**sizes)


def describe_position(step: int, num_steps: int, steps_per_epoch: int) -> str:
    """`epoch 3/8 step 150/400`: the epoch that the last completed step lies in."""
    epochs = max(1, num_steps // steps_per_epoch)
    epoch = min(epochs, max(0, step - 1) // steps_per_epoch + 1)
    return f"epoch {epoch}/{epochs} step {step}/{num_steps}"


def describe_training(values: Mapping[str, float | int]) -> list[str]:
    """The words of a training record, for the tags that it has."""
    words = []
    if "train/loss" in values:
        words.append(f"loss {values['train/loss']:.4f}")
    if "train/top1" in values:
        words.append(f"top1 {values['train/top1']:.1%}")
    if "train/images_per_second" in values:
        words.append(f"{values['train/images_per_second']:.0f} img/s")
    if values.get("train/data_wait_share", 0.0) >= _SHOWN_WAIT:
        words.append(f"data {values['train/data_wait_share']:.0%}")
    if values.get("train/skipped_steps"):
        words.append(f"skipped {values['train/skipped_steps']:.0f}")
    return words


def validation_lines(position: str, values: Mapping[str, float | int]) -> list[str]:
    """An evaluation's record, and that of the moving average if there is one, a line each."""
    lines = []
    for prefix, name in (("val/", "validation"), ("val/ema_", "validation (ema)")):
        words = [name, position]
        if f"{prefix}loss" in values:
            words.append(f"loss {values[f'{prefix}loss']:.4f}")
        words += [
            f"{top} {values[prefix + top]:.2%}"
            for top in ("top1", "top5")
            if prefix + top in values
        ]
        if len(words) > 2:
            lines.append(" ".join(words))
    return lines
