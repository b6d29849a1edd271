"""DDP, NCCL and sync batch norm inside a CUDA graph, with one GPU: does a capture hold?

    python benchmarks/ddp_graph.py [--precision bfloat16]

The group has one rank. The step is built as for two, so that the model is wrapped in DDP and the
capture waits for its timing events. Then the step runs where waiting for the device is an error.
Prints a line a preset; the exit code is the number of presets that failed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import traceback
from itertools import repeat

import torch
import torch.distributed as dist

from resnet_dist.bench.step import Timed, sync_build_timed
from resnet_dist.config.load import load_config
from resnet_dist.performance.build import sync_build_step
from resnet_dist.world import World, prepare_nccl

CASES = {
    "plain": ["performance.preset=plain"],
    "fused": ["performance.preset=fused"],
    "graphed": ["performance.preset=graphed"],
    "plain, captured": ["performance.preset=plain", "performance.cuda_graph=true"],
    "graphed, bfloat16 gradients": ["performance.preset=graphed", "dist.gradient_dtype=bfloat16"],
}
STEPS = 20


def run(name: str, settings: list[str], precision: str, device: torch.device) -> None:
    """Build, warm up, capture, and take steps. Raises what goes wrong."""
    common = ["data.loader=synthetic", "train.global_batch_size=64", f"train.precision={precision}"]
    config = load_config(["resnet50"], [*common, *settings]).config
    timed: Timed = sync_build_timed(config, World(0, 1, 0, 1, device))
    step = sync_build_step(config, timed.state, timed.batch_split, world=World(0, 2, 0, 2, device))
    batches = repeat(timed.fixed_batches()[0])
    norms = [float(step(batches, step=number)) for number in range(STEPS)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for number in range(STEPS, STEPS + 4):
            step(batches, step=number)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    shown = " ".join(f"{norm:.3f}" for norm in norms[::4])
    kinds = f"{type(step).__name__}, {type(step.network).__name__}"
    print(f"{name}: {kinds}, norms {shown}, skipped {timed.state.guard.read()}", flush=True)
    step.close()


def main() -> int:
    """All cases; returns how many failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--precision", default="bfloat16")
    args = parser.parse_args()
    device = torch.device("cuda", 0)
    torch.cuda.set_device(device)
    prepare_nccl(load_config(["resnet50"], []).config.dist, None)
    failed = 0
    with tempfile.NamedTemporaryFile() as file:
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
        store = dist.FileStore(file.name, 1)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl", store=store, rank=0, world_size=1, device_id=device
        )
        for name, settings in CASES.items():
            try:
                run(name, settings, args.precision, device)
            except Exception as error:
                traceback.print_exc()
                print(f"{name}: {type(error).__name__}: {str(error).splitlines()[0]}", flush=True)
                failed += 1
        dist.destroy_process_group()
    return failed


if __name__ == "__main__":
    sys.exit(main())
