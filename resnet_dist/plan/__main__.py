"""How long will a run take, and what will it cost?

    resnet-dist plan --config resnet50 --gpus 8 --price-per-hour 2.5 data.root=/data/imagenet
    resnet-dist plan --config resnet50 --gpus 8 --images-per-second 2500       # of one GPU

Measures loader, step and evaluation on this machine for about a minute, with the batch that a
rank will have, and says how long all steps take on --gpus ranks, what they cost, and what the limit
is. Without data.root the loader is left out. --nproc N measures with N processes, and so with
what they lose to each other; beyond these, ranks count as equally fast: the network between
machines is not in the figures.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from resnet_dist.config import Config
from resnet_dist.config.command_line import Arguments, parse_arguments
from resnet_dist.config.load import load_config
from resnet_dist.data.micro_batches import choose_batch_split
from resnet_dist.errors import UserError, report_error
from resnet_dist.plan.forecast import Figures, forecast, lines
from resnet_dist.report.preview import count_train_samples
from resnet_dist.system.ranks import is_first, is_started_by_torchrun, launched_ranks
from resnet_dist.system.torchrun import run_ranks

_VAL_SAMPLES = 50_000
"""ImageNet's, where the data is not there."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print. Returns 0, or 2 for bad input."""
    given = list(sys.argv[1:] if argv is None else argv)
    own = argparse.ArgumentParser(prog="resnet_dist.plan", add_help=False, allow_abbrev=False)
    own.add_argument("--gpus", type=_positive(int))
    own.add_argument("--price-per-hour", type=_positive(float))
    own.add_argument("--images-per-second", type=_positive(float))
    options, rest = own.parse_known_args(given)
    try:
        arguments = parse_arguments(rest, prog="resnet_dist.plan", description=__doc__ or "")
        config = load_config(arguments.files, arguments.overrides).config
        is_rank = is_started_by_torchrun()
        probing = launched_ranks().size if is_rank else arguments.nproc or 1
        ranks = options.gpus or probing
        choose_batch_split(config.train, ranks)
        if options.images_per_second is not None:
            figures = Figures(options.images_per_second)
            num_train, _ = count_train_samples(config.data)
            run = forecast(config, figures, ranks=ranks, num_train=num_train, num_val=_VAL_SAMPLES)
            return _print(config, lines(config, figures, run, price=options.price_per_hour))
        if probing > 1 and not is_rank:
            return run_ranks(probing, "resnet_dist.plan", _words(arguments, options))
        return _probe_and_print(config, ranks, options.price_per_hour)
    except UserError as error:
        return report_error(error, speaks=is_first())


def _probe_and_print(config: Config, ranks: int, price: float | None) -> int:
    # Only now: importing torch takes seconds.
    from dataclasses import replace

    from resnet_dist.plan.probe import scaled, sync_probe
    from resnet_dist.world import start_process_group, stop_process_group

    notes = []
    num_given = config.data.num_train_samples
    if config.data.root is None and num_given is not None:
        config = replace(config, data=replace(config.data, loader="synthetic"))
        notes.append("no data.root: the loader is not measured")
    world = start_process_group(config.dist)
    probed = scaled(config, ranks=ranks, probing=world.size)
    figures, num_train, num_val = sync_probe(probed, world)
    if notes:
        num_train = num_given or num_train
    run = forecast(config, figures, ranks=ranks, num_train=num_train, num_val=num_val)
    if world.is_main:
        _print(config, [*lines(config, figures, run, price=price), *notes])
    stop_process_group(world)
    return 0


def _print(config: Config, text: Sequence[str]) -> int:
    print("\n".join([f"{config.model.name}, {config.train.precision}", *text]), flush=True)
    return 0


def _words(arguments: Arguments, options: argparse.Namespace) -> list[str]:
    """The command line of each rank."""
    words = arguments.words_of_a_rank
    for name, value in vars(options).items():
        if value is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return words


def _positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    def convert(text: str) -> float:
        value = kind(text)
        if not 0 < value < 1e9:
            raise ValueError
        return value

    convert.__name__ = "positive number"
    return convert


if __name__ == "__main__":
    sys.exit(main())
