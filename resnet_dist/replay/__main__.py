"""What happened in a step of a run, or to a sample?

    resnet-dist replay runs/a --step 1000      # the step, done again from the nearest checkpoint
    resnet-dist replay runs/a --sample 17      # when a sample is used, and what is done to it
    resnet-dist replay runs/a --sample n01440764/n01440764_10026.JPEG

--step trains again, in a temporary folder, from the newest checkpoint before the step, and compares
records and checkpoints with the run's: on the same number of ranks, kind of hardware and versions
they are equal bit for bit. Then it shows the step: the loss of each sample, the gradient of each
layer, and the samples with the largest losses as a picture.
Exit codes: 0 equal, 1 not equal, 2 bad input.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from resnet_dist.errors import UserError, printable, report_error
from resnet_dist.report.facts import RunFacts, read_run

if TYPE_CHECKING:
    from resnet_dist.config import Config
    from resnet_dist.replay.again import Again
    from resnet_dist.replay.anatomy import Anatomy

_SHOWN = 8


def main(argv: Sequence[str] | None = None) -> int:
    """Replay and print. Returns the exit code."""
    arguments = _parser().parse_intermixed_args(argv)
    try:
        run = read_run(arguments.run)
        if run.config is None:
            raise UserError(f"{arguments.run}: has no config.yaml; give the folder of a run")
        config = _config(run, arguments.overrides)
        if arguments.sample is not None:
            return _show_sample(run, config, arguments.sample)
        return _show_step(run, config, arguments)
    except UserError as error:
        return report_error(error, speaks=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="resnet_dist.replay",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as data.root=DIR")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--step", type=int, help="a step, counted from 1, as in the records")
    what.add_argument("--sample", help="number of a training sample, or the end of its path")
    parser.add_argument(
        "--nproc",
        type=int,
        help="ranks (default: those of the run, or as many as this machine has GPUs or else cores)",
    )
    parser.add_argument(
        "--out", type=Path, help="folder for step_N.png and step_N.json (default: RUN/replay)"
    )
    return parser


def _config(run: RunFacts, overrides: Sequence[str]) -> Config:
    from resnet_dist.config.load import load_config

    return load_config([str(run.folder / "config.yaml")], overrides).config


def _show_step(run: RunFacts, config: Config, arguments: argparse.Namespace) -> int:
    from resnet_dist.data.datasets import sync_open_datasets
    from resnet_dist.replay.again import checkpoint_before, train_again
    from resnet_dist.replay.anatomy import take_apart
    from resnet_dist.system.torchrun import count_gpus
    from resnet_dist.world import start_process_group

    step, last = arguments.step, int(run.records[-1]["step"])
    if not 1 <= step <= last:
        raise UserError(f"--step ({step}): give a step from 1 to {last}, which the run has done")
    if arguments.nproc is not None and arguments.nproc < 1:
        raise UserError(f"--nproc ({arguments.nproc}): give 1 or more")
    nproc = arguments.nproc or min(run.world_size or 1, count_gpus() or os.cpu_count() or 1)
    with tempfile.TemporaryDirectory(prefix="resnet_dist_replay_") as temporary:
        folder = Path(temporary) / "run"
        again = train_again(run, step, folder, nproc=nproc, given=arguments.overrides)
        print("\n".join(_comparison(again, step, nproc)), flush=True)
        world = start_process_group(config.dist)
        datasets = sync_open_datasets(config, world)
        before = checkpoint_before(run, again, step)
        anatomy = take_apart(config, datasets, step, before, world)
    print("\n".join(printable(line) for line in _anatomy(anatomy)))
    out = arguments.out or run.folder / "replay"
    try:
        out.mkdir(parents=True, exist_ok=True)
        anatomy.write_pictures(out / f"step_{step}.png")
        (out / f"step_{step}.json").write_text(json.dumps(anatomy.as_json(), indent=1))
    except OSError as error:
        raise UserError(
            f"--out ({out}): cannot be written ({error.strerror}); give another folder"
        ) from None
    print(printable(f"pictures and all samples: {out / f'step_{step}'}.png and .json"))
    return 0 if again.is_equal else 1


def _comparison(again: Again, step: int, nproc: int) -> list[str]:
    begin = f"from the checkpoint of step {again.begun_at}" if again.begun_at else "from the start"
    lines = [f"trained again {begin} to step {step}, on {nproc} rank(s)"]
    records, saved = again.records, again.saved
    parting = records.parting
    if again.is_equal and not records.steps and not saved.equal:
        lines.append("nothing to compare: the run has no record and no checkpoint of these steps")
        return lines
    if again.is_equal:
        common = f"{records.steps} recorded step(s) and {len(saved.equal)} checkpoint(s)"
        lines.append(f"equal to the run, bit for bit: {common} in common")
    elif parting is not None:
        lines.append(
            f"NOT equal to the run: {parting.tag} of step {parting.step} is {parting.second!r}, "
            f"and was {parting.first!r} ({parting.size})"
        )
    else:
        where = saved.differences[0].where
        lines.append(f"NOT equal to the run: {where} in the checkpoint of step {saved.first_step}")
    if not again.is_equal:
        lines.append("(other hardware, versions, threads or number of ranks round differently)")
    return lines


def _anatomy(anatomy: Anatomy) -> list[str]:
    lines = [f"gradient norm {anatomy.gradient_norm:.6g}; by part of the network:"]
    lines += [f"  {part:12s} {norm:.4g}" for part, norm in anatomy.by_part().items()]
    lines.append("samples with the largest losses:")
    for each in anatomy.samples[:_SHOWN]:
        lines.append(f"  {each.loss:8.4f}  {each.label}, seen as {each.prediction}")
        lines.append(f"            {each.use.sample_id}: {each.use.path}")
        lines.append(f"            {each.use.in_words()}")
    return lines


def _show_sample(run: RunFacts, config: Config, text: str) -> int:
    from resnet_dist.data.datasets import sync_open_datasets
    from resnet_dist.replay.uses import find_sample, uses_of
    from resnet_dist.world import start_process_group

    datasets = sync_open_datasets(config, start_process_group(config.dist))
    sample_id, last = find_sample(datasets, text), int(run.records[-1]["step"])
    epochs, count, done = config.train.epochs, 0, 0
    for use in uses_of(datasets, sample_id, epochs):
        if count == 0:
            label = datasets.train.classes[use.labels[0]]
            print(printable(f"sample {sample_id}: {use.path} ({label})"))
        when = "was" if use.step <= last else "will be"
        count, done = count + 1, done + (use.step <= last)
        print(f"  epoch {use.epoch}, step {use.step} ({when}): {use.in_words()}")
    print(f"used {done} time(s) up to step {last}, {count} in {epochs} epochs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
