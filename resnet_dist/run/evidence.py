"""What in a folder shows that it holds a run, checkpoints or not. Does not import torch."""

from __future__ import annotations

from pathlib import Path

from resnet_dist.run.checkpoint_files import BEST, checkpoint_folder, checkpoint_steps
from resnet_dist.system.json_files import read_lines


def evidence_of_a_run(run_dir: Path, *, is_strict: bool) -> str | None:
    """In words, what shows that a run was here whose progress a new one would overwrite; None if
    nothing does.

    A run that was killed before its first checkpoint has nothing to lose but records, and starts
    again; with `is_strict` records are enough.
    """
    checkpoints = checkpoint_folder(run_dir)
    if steps := checkpoint_steps(run_dir):
        return f"checkpoints up to step {steps[-1]}"
    if (checkpoints / BEST).exists():
        return f"{checkpoints.name}/{BEST}"
    aside = sorted(path.name for path in checkpoints.glob("*.pt.*"))
    if aside:
        return f"{checkpoints.name}/{aside[0]}"
    for end in reversed(read_lines(run_dir / "ends.jsonl")):
        step = end.get("step")
        if isinstance(step, int) and step > 0:
            return f"ends.jsonl: {end.get('outcome')} at step {step}"
    for record in reversed(read_lines(run_dir / "metrics.jsonl")):
        if is_strict or "checkpoint/write_s" in record:
            return f"metrics.jsonl: records up to step {record.get('step')}"
    return None
