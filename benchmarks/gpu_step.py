"""Images per second of a training step on one GPU: ours in every mode, torchvision's, timm's.

    python benchmarks/gpu_step.py --out results.jsonl [--budget-s 540] [--jpegs FOLDER]

Every variant takes turns with our plain step, round by round, in one process. The most telling come
first; what the time does not reach is left out, and the tables are printed whatever happens. A
variant that fails, crashes or hangs costs a line: a second process (this one) watches the first,
starts it again where it ends early, and never begins a variant twice. Given the same --out again
it continues with what is missing. In miniature, on a CPU:

    python benchmarks/gpu_step.py --device cpu --models resnet18 --width 16 --batches 8 \\
        --sizes 32 --dtypes bfloat16 --modes plain,fused --steps 2 --rounds 2 --check-steps 12
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from gpu.results import Results, tables

POLL_S = 0.2
MOST_STARTS = 12
CUT = "the budget was over"


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    lists = {
        "models": "resnet50,resnet101,resnet152",
        "sizes": "224,176,160",
        "dtypes": "bfloat16,float16",
        "batches": "256,512,1024",
        "modes": "",
    }
    for name, default in lists.items():
        parser.add_argument(f"--{name}", default=default, help=f"with commas; default {default!r}")
    parser.add_argument("--width", type=int, default=64, help="of ours; others have 64")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="of a round, at batch 256")
    parser.add_argument("--check-steps", type=int, default=50, help="at least 11; 0: no checks")
    parser.add_argument("--budget-s", type=float, default=540.0)
    parser.add_argument("--variant-s", type=float, default=180.0, help="limit of one variant")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--jpegs", type=Path, help="class folders of JPEGs: times the loader too")
    parser.add_argument("--out", type=Path, help="JSON lines, appended to")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, default=0.0, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def watch(results: Results, argv: Sequence[str], args: argparse.Namespace) -> None:
    """Run workers until one has nothing left to do, or the time is over."""
    until = time.time() + args.budget_s
    for _ in range(MOST_STARTS):
        command = [sys.executable, __file__, *argv, "--worker", f"--until={until}"]
        command += [f"--out={results.path}"]
        begun = len(results.begun())
        worker = subprocess.Popen(command)
        try:
            reason = _wait(worker, results, until, args.variant_s)
        finally:
            if worker.poll() is None:
                worker.kill()
                worker.wait()
        for case, variant in results.unfinished():
            if reason == CUT:
                results.add("cut", case, variant)
                continue
            reason = reason or f"the process ended with code {worker.returncode}"
            results.add("crash", case, variant)
            results.add("error", case, variant, message=reason)
        if worker.returncode == 0 or time.time() >= until:
            return
        if len(results.begun()) == begun:
            print("the worker ended before it began to measure: see above", file=sys.stderr)
            return


def _wait(worker: subprocess.Popen[bytes], results: Results, until: float, limit: float) -> str:
    """Until it ends or must be ended; why it must be, or an empty string."""
    current: list[tuple[str, str]] = []
    since = time.time()
    while worker.poll() is None:
        if results.unfinished() != current:
            current, since = results.unfinished(), time.time()
        if time.time() >= until:
            return CUT
        if current and time.time() - since > limit:
            return f"took longer than {limit:.0f} s"
        time.sleep(POLL_S)
    return ""


def main(argv: Sequence[str] | None = None) -> int:
    """Watch, or work. Returns 0: the tables say the rest."""
    argv = sys.argv[1:] if argv is None else list(argv)
    args = parse_arguments(argv)
    if args.worker:
        from gpu.worker import work  # imports torch, which the watching process does not need

        return work(args)
    path = args.out or Path(tempfile.mkdtemp()) / "gpu_step.jsonl"
    results = Results(path)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # also then the tables are printed
    try:
        watch(results, argv, args)
    finally:
        print(f"\n{tables(results.read())}\n\nrecords: {path}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
