"""`python -m launch.preflight [--config C] [--gpus-per-node N] [key=value ...]`: is this node fit?

What every node of a job is examined for at the start of each attempt, on this machine alone.
"""

from __future__ import annotations

import argparse
import socket
import sys
from collections.abc import Sequence

from launch.cluster.option_sources import add_options, given_options, load_cluster
from launch.node.preflight import examine
from launch.reports.text import print_error
from resnet_dist.config.load import load_config
from resnet_dist.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Print what is wrong with this machine. Returns 0, 1 if something is, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="launch.preflight", description="Is this node fit?")
    parser.add_argument("--config", action="append", default=[], metavar="FILE")
    parser.add_argument("--cluster", action="append", default=[], metavar="FILE")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    add_options(parser)
    arguments = parser.parse_intermixed_args(argv)
    try:
        config = load_config(arguments.config, arguments.overrides).config
        cluster = load_cluster(arguments.cluster, given_options(arguments))
        findings = examine(cluster, config)
    except UserError as error:
        return print_error(error)
    host = socket.gethostname()
    for note in findings.notes:
        print(f"{host}: note: {note}")
    for problem in findings.problems:
        print(f"{host}: {problem}")
    if not findings.problems:
        gpus = f", GPUs {', '.join(findings.gpus)}" if findings.gpus else ""
        print(f"{host}: fit{gpus}")
    return 1 if findings.problems else 0


if __name__ == "__main__":
    sys.exit(main())
