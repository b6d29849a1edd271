"""Entry point: `torchrun --nproc_per_node N -m resnet_dist.train [--config C] [key=value ...]`.

Builds everything in the order of the data flow, config -> index -> loaders -> model -> state ->
loop, and then calls `fit`.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace

import torch
from torch.distributed.elastic.multiprocessing.errors import get_error_handler, record

from resnet_dist import run_summary
from resnet_dist.build import (
    AUTOCAST,
    batch_split_of,
    build_components,
    build_records,
    build_state,
    cadence_of,
    check_device,
    eval_loader,
)
from resnet_dist.checkpoint import rollback
from resnet_dist.checkpoint.manager import CheckpointManager, Loaded
from resnet_dist.checkpoint.restore import fingerprint_of_run, sync_restore
from resnet_dist.config import Config
from resnet_dist.config.load import Resolved, load_config, parse_arguments
from resnet_dist.data.datasets import Datasets, sync_open_datasets
from resnet_dist.data.loaders.choice import start_loader_server
from resnet_dist.data.micro_batches import BatchSplit
from resnet_dist.errors import AgreedError, UserError
from resnet_dist.evaluate import sync_evaluate
from resnet_dist.faults.preemption import stop_at_once_on_signals, stopped_exit_code
from resnet_dist.faults.preflight import sync_preflight
from resnet_dist.faults.watchdog import sync_build_watchdog
from resnet_dist.loop import Outcome, Parts, fit
from resnet_dist.run.folder import prepare_run_folder, run_folder, versions, write_end, write_facts
from resnet_dist.run.lock import sync_own_run_folder
from resnet_dist.state import TrainState
from resnet_dist.world import (
    World,
    start_process_group,
    stop_process_group,
    sync_attempt,
    sync_barrier,
    threads_per_rank,
)

LEAST_WIDTH_FOR_THREADS = 16
"""With 8 channels and an odd batch the backward pass of a 1x1 convolution with stride 2 writes
beyond its memory if it has several threads (torch 2.15, CPU). So small a network needs none."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run. Returns 0: finished; 2: bad input, and 70: a guard stopped it (a sentence on stderr);
    75: stopped by a signal, to be continued (or RESNET_DIST_STOPPED_EXIT_CODE)."""
    rank = int(os.environ.get("RANK", "0"))
    stop_at_once_on_signals()
    try:
        arguments = parse_arguments(argv, prog="resnet_dist.train", description="Train a ResNet.")
        resolved = load_config(arguments.files, arguments.overrides)
        if arguments.print_config:
            return run_summary.print_config(resolved) if rank == 0 else 0
        config = resolved.config
        records = None if config.run.evaluate_only else run_folder(config.run)
        world = start_process_group(config.dist, records)
    except UserError as error:  # the same on every rank, so one speaks
        return _report(error, speaks=rank == 0)
    try:
        code = run(resolved, world)
    except AgreedError as error:
        code = _report(error, speaks=rank == 0)
    except UserError as error:
        return _report(error, speaks=True)
    # The agent ends all ranks as soon as one exits with a code: let rank 0 finish its report, and
    # let each leave with its own code.
    if code != 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sync_barrier(world)
    stop_process_group(world)
    return code


def run(resolved: Resolved, world: World) -> int:
    """Build everything, then train or only evaluate. Returns the exit code."""
    config = resolved.config
    sync_preflight(world)
    configure_torch(config, world)
    start_loader_server(config.data, world.device)
    datasets = sync_open_datasets(config, world)
    batch_split = sync_attempt(world, lambda: batch_split_of(config, world))
    state = sync_attempt(world, lambda: build_state(config, datasets, world))
    fingerprint = fingerprint_of_run(config, datasets, batch_split)
    checkpoints = CheckpointManager(run_folder(config.run) / "checkpoints", config.checkpoint)

    def restore() -> Loaded | None:
        return sync_restore(
            state, checkpoints, config=config, datasets=datasets, current=fingerprint, world=world
        )

    if config.run.evaluate_only:
        restore()
        return evaluate_only(config, state, datasets, world)
    sync_attempt(world, lambda: check_device(config.train, world.device))
    folder = run_folder(config.run)
    watchdog = sync_build_watchdog(config.faults.watchdog_s, folder, world)
    with sync_own_run_folder(folder, world, config.dist.timeout_s), watchdog:
        loaded = restore()
        sync_attempt(world, lambda: prepare_run(resolved, state, checkpoints, datasets, world))
        if world.is_main:
            opening = run_summary.opening_lines(config, datasets, loaded, world)
            print("\n".join(opening), flush=True)
        parts = build_components(
            config, state, datasets, batch_split, watchdog, world=world, fingerprint=fingerprint
        )
        return train(resolved, state, parts, datasets=datasets, batch_split=batch_split)


def train(
    resolved: Resolved,
    state: TrainState,
    parts: Parts,
    *,
    datasets: Datasets,
    batch_split: BatchSplit,
) -> int:
    """Fit, go back once if it diverges, and report. Returns the exit code."""
    config, world = resolved.config, parts.world
    if state.step == 0:
        parts.recorder.text(0, "config", run_summary.as_markdown(resolved))
    outcome = fit_and_close(state, parts)
    checkpoints = CheckpointManager(run_folder(config.run) / "checkpoints", config.checkpoint)
    if outcome is Outcome.DIVERGED:
        diagnosis = rollback.sync_diagnose(state, config, datasets, batch_split, world)
        line = rollback.sync_go_back(state, checkpoints, diagnosis, world)
        recorder, saver = build_records(config, state, datasets, world)
        recorder.message(line)
        outcome = fit_and_close(state, replace(parts, recorder=recorder, saver=saver))
    if outcome is Outcome.DIVERGED:
        diagnosis = rollback.sync_diagnose(state, config, datasets, batch_split, world)
        raise rollback.sync_give_up(checkpoints, diagnosis, world)
    if world.is_main:
        folder = run_folder(config.run)
        run_summary.closing_report(config, folder, outcome, state.step)
        why = parts.stop.reason if outcome is Outcome.STOPPED else None
        write_end(folder, outcome.value, {"step": state.step, "reason": why})
    return stopped_exit_code() if outcome is Outcome.STOPPED else 0


def fit_and_close(state: TrainState, parts: Parts) -> Outcome:
    """See that a checkpoint can be written, then fit; whatever happens, what is being written is
    written to its end."""
    with closing(parts.recorder), closing(parts.saver), closing(parts.step), parts.stop:
        if state.step >= parts.cadence.stop_step:
            return fit(state, parts)  # nothing is left to do, so nothing to save
        trial = state.state_dict()
        parts.recorder.message(sync_attempt(parts.world, lambda: parts.saver.probe(trial)))
        return fit(state, parts)


def prepare_run(
    resolved: Resolved,
    state: TrainState,
    checkpoints: CheckpointManager,
    datasets: Datasets,
    world: World,
) -> None:
    """On rank 0: see that the run folder has room; write what is known before the first step."""
    if not world.is_main:
        return
    folder = run_folder(resolved.config.run)
    # One more than are kept is there while it is written; what is there already takes no more.
    missing = resolved.config.checkpoint.keep_last + 1 - len(checkpoints.steps())
    prepare_run_folder(folder, needed_bytes=state.num_bytes * max(missing, 1))
    checkpoints.open()
    facts = {
        "world_size": world.size,
        "step": state.step,
        "num_steps": cadence_of(resolved.config, len(datasets.train)).stop_step,
        "versions": versions(),
    }
    write_facts(folder, resolved, facts)


def configure_torch(config: Config, world: World) -> None:
    """Process-wide settings of torch."""
    train = config.train
    num_threads = threads_per_rank(world.local_size)
    if world.device.type == "cpu" and config.model.width < LEAST_WIDTH_FOR_THREADS:
        num_threads = 1
    torch.set_num_threads(train.num_threads or num_threads)
    torch.backends.cudnn.benchmark = not train.deterministic
    if train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


def evaluate_only(config: Config, state: TrainState, datasets: Datasets, world: World) -> int:
    """Evaluate the restored model, and its moving average if it has one. Writes no file."""
    models = {"val/": state.model}
    if state.average is not None:
        models["val/ema_"] = state.average.module
    loader = eval_loader(config, datasets, world)
    dtype = AUTOCAST[config.train.precision]
    for prefix, model in models.items():
        result = sync_evaluate(
            model, loader, world=world, autocast_dtype=dtype, flip=config.eval.flip
        )
        if world.is_main:
            print(run_summary.evaluation_line(prefix, state.step, result), flush=True)
    return 0


def _report(error: UserError, *, speaks: bool) -> int:
    get_error_handler().record_exception(error)  # for torchrun's summary, on every rank
    if speaks:
        print("\n".join(f"error: {line}" for line in str(error).splitlines()), file=sys.stderr)
        sys.stderr.flush()
    return error.exit_code


if __name__ == "__main__":
    sys.exit(record(main)())
