"""Which checkpoints a run folder holds, by their names."""

from __future__ import annotations

from pathlib import Path

from resnet_dist.run.checkpoint_files import checkpoint_path, checkpoint_steps, newest_step


def test_the_newest_step_is_that_of_whole_checkpoints(tmp_path: Path) -> None:
    assert newest_step(tmp_path) == 0
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for step in (5, 40, 300):
        (folder / f"step_{step:09d}.pt").touch()
    for name in ("best.pt", "step_abc.pt", ".step_000000900.pt.12.tmp", "step_000000900.pt.bad"):
        (folder / name).touch()
    assert newest_step(tmp_path) == 300
    checkpoint_path(tmp_path, 123_456_789).touch()
    assert checkpoint_steps(tmp_path) == [5, 40, 300, 123_456_789]
