"""The benchmark with short measurements, for tests: `python -m tests.multiprocess.short_bench`.

BUSY_RANK: that rank shares its core with two processes that do nothing else.
"""

from __future__ import annotations

import os
import subprocess
import sys

from resnet_dist.bench import measure
from resnet_dist.bench.__main__ import main

if __name__ == "__main__":
    measure.SECONDS = 1.0
    cores = sorted(os.sched_getaffinity(0))
    rank, busy = int(os.environ.get("RANK", "0")), os.environ.get("BUSY_RANK")
    burners = []
    if busy is not None:
        os.sched_setaffinity(0, {cores[rank]})
        if rank == int(busy):
            burner = [sys.executable, "-c", "while True: pass"]
            burners = [subprocess.Popen(burner) for _ in range(2)]  # on the same core
    try:
        code = main(sys.argv[1:])
    finally:
        for each in burners:
            each.kill()
    sys.exit(code)
