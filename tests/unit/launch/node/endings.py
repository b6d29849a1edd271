"""Every way in which an attempt ends, as its nodes write it down. Each returns srun's exit code."""

from __future__ import annotations

from tests.unit.launch.node.story import Story


def finished(story: Story) -> int:
    story.begin().says("finished")
    story.end(0)
    return 0


def limited(story: Story) -> int:
    story.begin().says("limited")
    story.end(0)
    return 0


def finished_and_then_killed(story: Story) -> int:
    """A node is lost, a signal comes, workers start again, after the last step was saved."""
    story.begin().says("finished")
    story.says("stopped")
    story.signal("SIGTERM", 0)
    story.end(-9, 0)
    return 137


def time_limit(story: Story) -> int:
    story.begin().signal("SIGUSR2", left_s=118)
    story.says("stopped")
    story.end(0)
    return 0


def time_limit_and_too_slow(story: Story) -> int:
    """Slurm's SIGTERM at the limit, before the tasks had ended."""
    story.begin().signal("SIGUSR2", left_s=118)
    story.signal("SIGTERM", left_s=0)
    return 137


def time_limit_before_training(story: Story) -> int:
    """During the preflight: nobody asked torchrun, no trainer said anything."""
    story.begin().signal("SIGUSR2", left_s=100)
    story.end(0)
    return 0


def preempted_with_warning(story: Story) -> int:
    story.begin().signal("SIGUSR2")
    story.says("stopped")
    story.end(0)
    return 0


def preempted_with_both(story: Story) -> int:
    """GraceTime=0: all signals at once, and Slurm requeues."""
    story.begin().signal("SIGUSR2")
    story.signal("SIGTERM")
    story.says("stopped")
    story.end(0)
    return 0


def preempted_and_killed(story: Story) -> int:
    story.begin().signal("SIGUSR2")
    story.signal("SIGTERM")
    return 137


def operator_requeue(story: Story) -> int:
    story.begin().signal("SIGTERM")
    story.says("stopped")
    story.end(0)
    return 0


def operator_requeue_kills_torchrun(story: Story) -> int:
    """KillWait is over before the workers are."""
    story.begin().signal("SIGTERM")
    story.end(-9)
    return 137


def cancelled_by_scancel_while_starting(story: Story) -> int:
    """Workers that are still importing die of the signal, and torchrun says so at once."""
    story.begin().signal("SIGTERM")
    story.fail(0, 0, -15, "Signal 15 (SIGTERM) received by PID 12")
    story.end(1)
    return 1


def cancelled(story: Story) -> int:
    story.is_cancelled = True
    story.begin().signal("SIGUSR1")
    story.says("stopped")
    story.end(0)
    return 0


def cancelled_and_it_failed(story: Story) -> int:
    story.is_cancelled = True
    story.begin().signal("SIGUSR1")
    story.end(1)
    return 1


def worker_signalled(story: Story) -> int:
    story.begin().says("stopped")
    story.end(0)
    return 0


def user_signal(story: Story) -> int:
    """scancel --signal=USR1 by hand."""
    story.begin().signal("SIGUSR1")
    story.says("stopped")
    story.end(0)
    return 0


def torchrun_killed(story: Story) -> int:
    """The other node's task is ended by srun because of it."""
    story.begin().end(-9, 1)
    story.signal("SIGTERM", 0)
    story.end(143, 0, after_s=3)
    return 137


def torchrun_killed_by_an_odd_signal(story: Story) -> int:
    story.begin().end(-40, 0)
    story.end(0, 1)
    return 1


def rank_failed(story: Story) -> int:
    """Rank 3 found the fault; rank 2 was ended by torchrun, ranks 0 and 1 lost their peers."""
    story.begin().fail(1, 2, -15, "Signal 15 (SIGTERM) received by PID 12")
    story.fail(1, 3, 1, "Traceback ...\nOSError: disk on fire")
    story.end(1, 1)
    story.fail(0, 0, 1, "RuntimeError: Connection closed by peer")
    story.end(1, 0)
    return 1


def rank_killed(story: Story) -> int:
    """Once too often."""
    story.begin().fail(0, 1, -9, "Signal 9 (SIGKILL) received by PID 12")
    story.end(1, 0)
    return 1


def bad_input(story: Story) -> int:
    story.begin().fail(0, 0, 2, "optim.lr (-1): must be positive")
    story.end(1)
    return 1


def bad_node(story: Story) -> int:
    story.begin().preflight(("node2", "/dev/shm: 0.01 GiB are free, 0.25 GiB are needed"))
    story.end(1)
    return 1


def nowhere_the_data(story: Story) -> int:
    """No node is to blame: left out one after the other, none would be left."""
    what = "/data/train: cannot be listed (No such file or directory)"
    story.begin().preflight(("node1", what), ("node2", what))
    story.end(1)
    return 1


def silent_task(story: Story) -> int:
    story.begin().signal("SIGTERM", 0)  # by srun, as the other was killed
    story.end(143, 0, after_s=5)
    return 137


def cancelled_and_killed_before_it_was_noted(story: Story) -> int:
    """Only the batch script lived long enough to hear SIGTERM."""
    story.begin().was_ended = True
    return 137


def limit_without_a_warning(story: Story) -> int:
    """Slurm itself does not requeue after that."""
    story.begin().signal("SIGTERM", left_s=0)
    story.was_ended = True
    story.end(0)
    return 0


def before_any_node(story: Story) -> int:
    del story
    return 213


def slow_to_stop(story: Story) -> int:
    """torchrun is told to end what did not save in time."""
    story.begin().signal("SIGUSR2", left_s=118)
    story.end(143)
    return 1


def wordless(story: Story) -> int:
    story.begin().end(0)
    return 0


def srun_failed(story: Story) -> int:
    story.begin().end(0)
    return 9
