"""`python -m launch.submit [--config C] [cluster options] [key=value ...]`: train on a cluster.

    python -m launch.submit --config resnet50 --nodes 4 --gpus-per-node 8 --partition gpu \\
        data.root=/data/imagenet
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence

from launch.cluster.option_sources import given_options, load_cluster
from launch.cluster.options import ClusterConfig
from launch.reports.text import print_error
from launch.submission.command_line import build_parser, carry_out
from launch.submission.request import Request, absolute
from launch.submission.sweep import divide, named_combinations
from resnet_dist.config.load import Resolved, load_config, shipped_configs
from resnet_dist.errors import UserError
from resnet_dist.run.folder import run_folder


def main(argv: Sequence[str] | None = None) -> int:
    """Check, submit, print what to do next. Returns 0, or 2 for bad input; with --wait or --local
    what became of the run."""
    parser = build_parser("launch.submit", "Submit a training to Slurm.")
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="FILE",
        help=f"YAML file, or the name of a shipped config: {', '.join(sorted(shipped_configs()))}",
    )
    parser.add_argument(
        "--sweep",
        action="extend",
        nargs="+",
        default=[],
        metavar="KEY=V1,V2",
        help="every combination of these values, as one job array, a run folder each",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of the run")
    arguments = parser.parse_intermixed_args(argv)
    try:
        cluster = load_cluster(arguments.cluster, given_options(arguments))
        return carry_out(build_request(arguments, cluster), arguments)
    except UserError as error:
        return print_error(error)


def build_request(arguments: argparse.Namespace, cluster: ClusterConfig) -> Request:
    """The runs that the command line describes. Raises UserError."""
    module = arguments.module or "resnet_dist.train"
    axes, settings = divide(arguments.sweep)
    overrides = [*arguments.overrides, *settings]
    base = load_config(arguments.config, overrides)
    root = run_folder(absolute(base).config.run)
    if not axes:
        return Request(root, [], [absolute(base)], cluster, module)
    combinations = named_combinations(axes)
    all_resolved = []
    for name, values in combinations.items():
        resolved = load_config(arguments.config, [*overrides, *values])
        all_resolved.append(absolute(_placed(resolved, base, str(root / name), name)))
    return Request(root, list(combinations), all_resolved, cluster, module)


def _placed(resolved: Resolved, base: Resolved, folder: str, name: str) -> Resolved:
    """A run of a sweep, in its own folder."""
    before, after = base.config.run, resolved.config.run
    if (after.name, after.dir) != (before.name, before.dir):
        raise UserError("--sweep (run.name, run.dir): each run has a folder of its own already")
    run = dataclasses.replace(after, dir=folder, name=f"{after.name}/{name}")
    return dataclasses.replace(resolved, config=dataclasses.replace(resolved.config, run=run))


if __name__ == "__main__":
    sys.exit(main())
