"""The verdict on every way in which an attempt ends."""

from __future__ import annotations

from collections.abc import Callable

from launch.records.ending import Cause
from tests.unit.launch.node.endings import (
    bad_input,
    bad_node,
    before_any_node,
    cancelled,
    cancelled_and_it_failed,
    cancelled_and_killed_before_it_was_noted,
    cancelled_by_scancel_while_starting,
    finished,
    finished_and_then_killed,
    limit_without_a_warning,
    limited,
    nowhere_the_data,
    operator_requeue,
    operator_requeue_kills_torchrun,
    preempted_and_killed,
    preempted_with_both,
    preempted_with_warning,
    rank_failed,
    rank_killed,
    silent_task,
    slow_to_stop,
    srun_failed,
    time_limit,
    time_limit_and_too_slow,
    time_limit_before_training,
    torchrun_killed,
    torchrun_killed_by_an_odd_signal,
    user_signal,
    wordless,
    worker_signalled,
)
from tests.unit.launch.node.story import Story

Scenario = Callable[[Story], int]


SCENARIOS: list[tuple[Scenario, str, Cause, str, bool, tuple[str, ...]]] = [
    (finished, "finished", Cause.TRAINING_DONE, "finished at step 20", False, ()),
    (limited, "finished", Cause.TRAINING_DONE, "finished at step 20", False, ()),
    (finished_and_then_killed, "finished", Cause.TRAINING_DONE, "finished at step 20", False, ()),
    (time_limit, "stopped", Cause.TIME_LIMIT_NEAR, "the time limit was near (SIGUSR2)", True, ()),
    (
        time_limit_and_too_slow,
        "stopped",
        Cause.TIME_LIMIT_NEAR,
        "the time limit was near (SIGUSR2)",
        True,
        (),
    ),
    (
        time_limit_before_training,
        "stopped",
        Cause.TIME_LIMIT_NEAR,
        "the time limit was near (SIGUSR2)",
        True,
        (),
    ),
    (preempted_with_warning, "stopped", Cause.PREEMPTED, "preempted (SIGUSR2)", True, ()),
    (preempted_with_both, "stopped", Cause.PREEMPTED, "preempted (SIGUSR2)", False, ()),
    (preempted_and_killed, "stopped", Cause.PREEMPTED, "preempted (SIGUSR2)", False, ()),
    (operator_requeue, "stopped", Cause.ENDED_BY_SLURM, "Slurm ended it (SIGTERM)", False, ()),
    (
        operator_requeue_kills_torchrun,
        "stopped",
        Cause.ENDED_BY_SLURM,
        "Slurm ended it (SIGTERM)",
        False,
        (),
    ),
    (
        cancelled_by_scancel_while_starting,
        "stopped",
        Cause.ENDED_BY_SLURM,
        "Slurm ended it (SIGTERM)",
        False,
        (),
    ),
    (
        cancelled_and_killed_before_it_was_noted,
        "stopped",
        Cause.ENDED_BY_SLURM,
        "Slurm ended it (SIGTERM)",
        False,
        (),
    ),
    (
        limit_without_a_warning,
        "stopped",
        Cause.TIME_LIMIT_REACHED,
        "the time limit was reached (SIGTERM)",
        True,
        (),
    ),
    (
        cancelled,
        "cancelled",
        Cause.USER_CANCELLED,
        "stopped by the user (launch.cancel)",
        False,
        (),
    ),
    (
        cancelled_and_it_failed,
        "cancelled",
        Cause.USER_CANCELLED,
        "stopped by the user (launch.cancel)",
        False,
        (),
    ),
    (worker_signalled, "stopped", Cause.SIGNALLED, "stopped by a signal to a worker", True, ()),
    (user_signal, "stopped", Cause.SIGNALLED, "stopped by SIGUSR1", True, ()),
    (
        torchrun_killed,
        "failed",
        Cause.AGENT_KILLED,
        "torchrun on node2 was killed by SIGKILL",
        True,
        (),
    ),
    (
        torchrun_killed_by_an_odd_signal,
        "failed",
        Cause.AGENT_KILLED,
        "was killed by signal 40",
        True,
        (),
    ),
    (rank_failed, "failed", Cause.RANK_FAILED, "rank 3 on node2: OSError: disk on fire", True, ()),
    (rank_killed, "failed", Cause.RANK_FAILED, "rank 1 on node1: Signal 9 (SIGKILL)", True, ()),
    (
        bad_input,
        "refused",
        Cause.BAD_INPUT,
        "rank 0 on node1: optim.lr (-1): must be positive",
        False,
        (),
    ),
    (
        bad_node,
        "failed",
        Cause.PREFLIGHT_FAILED,
        "preflight: node2: /dev/shm: 0.01 GiB are",
        True,
        ("node2",),
    ),
    (
        nowhere_the_data,
        "failed",
        Cause.PREFLIGHT_FAILED,
        "preflight: node1: /data/train: cannot be",
        True,
        (),
    ),
    (
        silent_task,
        "failed",
        Cause.TASK_LOST,
        "the task on node2 left no record of its end",
        True,
        (),
    ),
    (
        before_any_node,
        "failed",
        Cause.NEVER_BEGAN,
        "srun ended with code 213 before any node began",
        True,
        (),
    ),
    (
        slow_to_stop,
        "failed",
        Cause.SLOW_STOP,
        "on node1 did not stop in time after SIGUSR2",
        True,
        (),
    ),
    (
        wordless,
        "failed",
        Cause.NO_OUTCOME,
        "ended well, but the training wrote no outcome",
        True,
        (),
    ),
    (srun_failed, "failed", Cause.SRUN_FAILED, "srun ended with code 9", True, ()),
]


CODES = {"finished": 0, "stopped": 0, "cancelled": 0, "failed": 1, "refused": 2}


# Whatever happens without progress again and again comes to an end by itself, unless somebody
# outside does it: preempts, requeues, signals.
ENDLESS = {
    preempted_with_warning,
    preempted_with_both,
    preempted_and_killed,
    operator_requeue,
    operator_requeue_kills_torchrun,
    worker_signalled,
    user_signal,
}
