"""One start of a training: build everything in the order of the data flow, fit, report.

config -> datasets -> model and state -> checkpoint -> loaders and loop. What each component is made
of is `resnet_dist.build`'s, what happens at which step `resnet_dist.loop`'s.
"""

from __future__ import annotations

import os
import signal
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch.distributed.elastic.multiprocessing.errors import record

from resnet_dist.build import (
    build_components,
    build_records,
    build_state,
    fingerprint_of,
    sync_begin,
)
from resnet_dist.checkpoint.manager import CheckpointManager
from resnet_dist.checkpoint.restore import sync_restore
from resnet_dist.checkpoint.rollback import sync_give_up, sync_go_back
from resnet_dist.config import Config
from resnet_dist.config.load import Resolved
from resnet_dist.data.datasets import Datasets, sync_open_datasets
from resnet_dist.data.loaders.choice import start_loader_server
from resnet_dist.data.micro_batches import BatchSplit, choose_batch_split
from resnet_dist.errors import AgreedError, UserError, report_error
from resnet_dist.evaluator import sync_evaluate_checkpoint
from resnet_dist.faults.diagnosis import sync_diagnose
from resnet_dist.faults.preflight import sync_preflight
from resnet_dist.faults.watchdog import sync_build_watchdog
from resnet_dist.loop import Components, fit
from resnet_dist.performance import memory_fit
from resnet_dist.performance.build import choose_preset
from resnet_dist.report import run_summary
from resnet_dist.run.cadence import cadence_of
from resnet_dist.run.folder import prepare_run_folder, run_folder, write_end, write_facts
from resnet_dist.run.lock import sync_own_run_folder
from resnet_dist.run.outcome import Outcome
from resnet_dist.run.versions import versions
from resnet_dist.state import TrainState
from resnet_dist.system.ranks import is_started_by_torchrun
from resnet_dist.system.signals import stopped_exit_code
from resnet_dist.world import (
    World,
    start_process_group,
    stop_process_group,
    sync_attempt,
    sync_barrier,
    threads_per_rank,
)

MIN_WIDTH_FOR_THREADS = 16
"""With 8 channels and an odd batch the backward pass of a 1x1 convolution with stride 2 writes
beyond its memory if it has several threads (torch 2.15, CPU). So small a network needs none."""


def train(resolved: Resolved) -> int:
    """Train, or only evaluate, with settings that were checked. Returns the exit code."""
    if not is_started_by_torchrun():
        return _train(resolved)
    code = record(_train)(resolved)  # notes what is raised for torchrun's summary
    assert code is not None
    return code


def _train(resolved: Resolved) -> int:
    config = resolved.config
    try:
        records = None if config.run.evaluate_only else run_folder(config.run)
        world = start_process_group(config.dist, records)
    except UserError as error:  # the same on every rank, so one speaks
        return report_error(error, speaks=os.environ.get("RANK", "0") == "0")
    try:
        code = run(resolved, world)
    except AgreedError as error:
        code = report_error(error, speaks=world.is_main)
    except UserError as error:
        return report_error(error, speaks=True)
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
    if config.run.evaluate_only:
        return sync_evaluate_checkpoint(config, world)
    datasets = sync_open_datasets(config, world)
    state = sync_attempt(world, build_state, config, datasets, world)
    folder = run_folder(config.run)
    config, found = sync_fit_to_memory(config, state.model, folder, world)
    batch_split = choose_batch_split(config.train, world.size)
    checkpoints = CheckpointManager(folder, config.checkpoint)
    fingerprint = fingerprint_of(config, datasets, batch_split)
    restore = partial(
        sync_restore,
        state,
        checkpoints,
        config=config,
        fingerprint=fingerprint,
        describe_next_batch=datasets.describe_next_batch,
        world=world,
    )
    config, remarks = sync_attempt(world, choose_preset, config, world)
    watchdog = sync_build_watchdog(config.faults.watchdog_s, folder, world)
    with sync_own_run_folder(folder, world, config.dist.timeout_s) as ownership, watchdog:
        checkpoints.ownership = ownership
        loaded = restore()
        remarks += found + sync_begin(config, state, datasets, world, is_new=loaded is None)
        sync_attempt(world, prepare_run, resolved, state, checkpoints, datasets, world)
        if found and world.is_main:
            memory_fit.write(folder, config, world, batch_split.accumulation_steps)
        if world.is_main:
            lines = run_summary.opening_lines(resolved, datasets, loaded, state.model, world)
            print("\n".join([*lines, *remarks]), flush=True)
        use = build_components(
            config, state, datasets, checkpoints, watchdog, world=world, fingerprint=fingerprint
        )
        if state.step == 0:
            use.recorder.text(0, "config", run_summary.as_markdown(resolved))
            use.recorder.settings(run_summary.chosen_settings(resolved))
        with watchdog.explaining(config.dist.timeout_s):
            outcome = fit_or_go_back(config, state, use, datasets, batch_split, checkpoints)
        if world.is_main:
            checkpoints.check_owned()
            why = use.stop.reason if outcome is Outcome.STOPPED else None
            write_end(folder, outcome, {"step": state.step, "reason": why})
            run_summary.closing_report(config, folder, outcome, state.step, why)
    return stopped_exit_code() if outcome is Outcome.STOPPED else 0


def sync_fit_to_memory(
    config: Config, model: torch.nn.Module, folder: Path, world: World
) -> tuple[Config, list[str]]:
    """With `train.auto_micro_batch` the micro-batches that fit, and what to say."""
    if not config.train.auto_micro_batch:
        return config, []
    steps, line = memory_fit.sync_find_accumulation_steps(config, model, folder, world)
    return replace(
        config, train=replace(config.train, accumulation_steps=steps, auto_micro_batch=False)
    ), [line]


def fit_or_go_back(
    config: Config,
    state: TrainState,
    use: Components,
    datasets: Datasets,
    batch_split: BatchSplit,
    checkpoints: CheckpointManager,
) -> Outcome:
    """Fit; if the run diverges, go back to its last good checkpoint once.

    Raises GuardError with the diagnosis if it diverges again.
    """
    world = use.world

    def sync_diagnosis() -> str:
        return sync_diagnose(
            state.guard.read(),
            samples_of=partial(datasets.samples_of, batch_split),
            losses=state.losses.state_dict(),
            precision=config.train.precision,
            loss_scale=state.scaler.get_scale(),
            world=world,
        )

    outcome = fit_and_close(state, use)
    if outcome is Outcome.DIVERGED:
        line = sync_go_back(state, checkpoints, sync_diagnosis(), world)
        recorder, saver = build_records(config, state, datasets, checkpoints, world)
        recorder.message(line)
        outcome = fit_and_close(state, replace(use, recorder=recorder, saver=saver))
    if outcome is Outcome.DIVERGED:
        raise sync_give_up(checkpoints, sync_diagnosis(), world)
    return outcome


def fit_and_close(state: TrainState, use: Components) -> Outcome:
    """Probe that a checkpoint can be written, then fit; whatever happens, a write in progress is
    completed."""
    with (
        closing(use.recorder),
        closing(use.saver),
        closing(use.step),
        closing(use.profiler),
        use.stop,
    ):
        if state.step < use.cadence.stop_step:  # else nothing is left to do, and nothing to save
            use.recorder.message(sync_attempt(use.world, use.saver.probe, state.state_dict()))
        return fit(state, use)


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
        "num_train_samples": len(datasets.train),
        "num_steps": cadence_of(resolved.config, len(datasets.train)).stop_step,
        "versions": versions(),
    }
    write_facts(folder, resolved, facts)


def configure_torch(config: Config, world: World) -> None:
    """Process-wide settings of torch."""
    performance = config.performance
    num_threads = threads_per_rank(world.local_size)
    if world.device.type == "cpu" and config.model.width < MIN_WIDTH_FOR_THREADS:
        num_threads = 1
    torch.set_num_threads(performance.num_threads or num_threads)
    torch.backends.cudnn.benchmark = not performance.deterministic
    if performance.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
