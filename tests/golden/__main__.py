"""`python -m tests.golden` (`make golden`): rewrite the golden files, and say what changed.

The diff is to be reviewed: each line of it is a change of what is trained.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.golden.runs import (
    AUGMENTED,
    BOUND,
    BOUNDS,
    CONFIGS,
    Golden,
    differences,
    digests,
    golden_data,
    measure,
    read,
    write,
)


def main() -> None:
    """Train each run again, say what changed, and keep it."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "data"
        golden_data(root)
        for name in CONFIGS:
            _replace(name, measure(name, root, Path(folder) / name))
        for name, settings in AUGMENTED.items():
            _replace(name, {"batches": digests(name, root, settings)})


def _replace(name: str, got: Golden) -> None:
    try:
        changed = differences(read(name), got, BOUNDS.get(name, BOUND))
    except FileNotFoundError:
        changed = ["new"]
    print(f"{name}: {len(changed)} of its numbers changed", *changed, sep="\n  ")
    write(name, got)


if __name__ == "__main__":
    main()
