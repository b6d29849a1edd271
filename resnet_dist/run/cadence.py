"""What is due after which step: pure functions of the number of completed steps."""

from __future__ import annotations

from dataclasses import dataclass

from resnet_dist.config import CheckpointConfig, Config, EvalConfig, FaultsConfig, LogConfig
from resnet_dist.run.outcome import Outcome


@dataclass(frozen=True)
class Cadence:
    """What is due after which step: pure functions of the number of completed steps."""

    steps_per_epoch: int
    num_steps: int
    """Steps of all epochs."""
    stop_step: int
    """The last step to do now."""
    target_top1: float | None
    """Accuracy after which the run ends, of 1."""
    log: LogConfig
    eval: EvalConfig
    checkpoint: CheckpointConfig
    faults: FaultsConfig

    def is_reached(self, top1: float) -> bool:
        """Whether an accuracy ends the run."""
        return self.target_top1 is not None and top1 >= self.target_top1

    def end_of(self, step: int) -> Outcome:
        """How a start ends that came to its last step."""
        if step < self.stop_step:
            return Outcome.REACHED
        return Outcome.FINISHED if step == self.num_steps else Outcome.LIMITED

    def logs(self, step: int) -> bool:
        """Every `log.every_steps`, and at the end of each epoch."""
        return step % self.log.every_steps == 0 or step % self.steps_per_epoch == 0

    def evaluates(self, step: int) -> bool:
        """Every `eval.every_epochs` from `eval.first_epoch` on, and after the last step."""
        every = self.eval.every_epochs
        first = every if self.eval.first_epoch is None else self.eval.first_epoch
        since_first = step - first * self.steps_per_epoch
        is_due = since_first >= 0 and since_first % (every * self.steps_per_epoch) == 0
        return is_due or step == self.num_steps

    def saves(self, step: int) -> bool:
        """Every `checkpoint.every_steps`, every `checkpoint.every_epochs`, and at the end."""
        every = self.checkpoint.every_steps
        return (
            step == self.stop_step
            or (every is not None and step % every == 0)
            or self._ends_epochs(step, self.checkpoint.every_epochs)
        )

    def checks_replicas(self, step: int) -> bool:
        """Every `faults.replica_check_every_steps`, and before the save at the end of an epoch."""
        every = self.faults.replica_check_every_steps
        return every is not None and (step % every == 0 or self._ends_epochs(step, 1))

    def _ends_epochs(self, step: int, epochs: int) -> bool:
        return step % (epochs * self.steps_per_epoch) == 0 or step == self.num_steps


def cadence_of(config: Config, num_samples: int) -> Cadence:
    """What is due when."""
    steps_per_epoch = num_samples // config.train.global_batch_size
    num_steps = steps_per_epoch * config.train.epochs
    return Cadence(
        steps_per_epoch=steps_per_epoch,
        num_steps=num_steps,
        target_top1=config.train.stop_at_top1,
        stop_step=min(num_steps, config.train.max_steps or num_steps),
        log=config.log,
        eval=config.eval,
        checkpoint=config.checkpoint,
        faults=config.faults,
    )
