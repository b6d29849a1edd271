"""`python -m launch.submit [--config C] [cluster options] [key=value ...]`: train on a cluster.

    python -m launch.submit --config resnet50 --nodes 4 --gpus-per-node 8 --partition gpu \\
        data.root=/data/imagenet
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import shutil
import sys
from collections.abc import Sequence

from launch import follow, send, slurm
from launch.cluster import (
    ClusterConfig,
    add_options,
    cluster_files,
    given_options,
    load_cluster,
)
from resnet_dist.config.load import Resolved, load_config, shipped_configs
from resnet_dist.errors import UserError
from resnet_dist.run.folder import run_folder


def build_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """The options that submit and resume share."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument(
        "--cluster",
        action="append",
        default=[],
        metavar="FILE",
        help="YAML file of cluster options, or the name of a shipped one "
        f"({', '.join(sorted(cluster_files()))}); several are merged, options win",
    )
    parser.add_argument("--dry-run", action="store_true", help="print sbatch's script and stop")
    parser.add_argument("--local", action="store_true", help="run the same job here, no Slurm")
    parser.add_argument("--wait", action="store_true", help="follow the log until the run ends")
    parser.add_argument("--module", default=None, help="what torchrun runs (resnet_dist.train)")
    add_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Check, submit, say what to do next. Returns 0, or 2 for bad input; with --wait or --local
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
        request = build_request(arguments, cluster)
        return carry_out(request, arguments)
    except UserError as error:
        print("\n".join(f"error: {line}" for line in str(error).splitlines()), file=sys.stderr)
        return error.exit_code


def build_request(arguments: argparse.Namespace, cluster: ClusterConfig) -> send.Request:
    """The runs that the command line describes. Raises UserError."""
    module = arguments.module or "resnet_dist.train"
    base = load_config(arguments.config, arguments.overrides)
    root = run_folder(send.absolute(base).config.run)
    if not arguments.sweep:
        return send.Request(root, [], [send.absolute(base)], cluster, module)
    all_resolved = []
    by_name: dict[str, list[str]] = {}
    for values in combinations(arguments.sweep):
        name = ",".join(values).replace("/", "_")
        if name in by_name:
            raise UserError(
                f"--sweep: {' '.join(by_name[name])} and {' '.join(values)} would have the same "
                f"folder, {name}; submit them one by one, with a run.dir each"
            )
        by_name[name] = values
        resolved = load_config(arguments.config, [*arguments.overrides, *values])
        all_resolved.append(send.absolute(_placed(resolved, base, str(root / name), name)))
    return send.Request(root, list(by_name), all_resolved, cluster, module)


def _placed(resolved: Resolved, base: Resolved, folder: str, name: str) -> Resolved:
    """A run of a sweep, in its own folder."""
    before, after = base.config.run, resolved.config.run
    if (after.name, after.dir) != (before.name, before.dir):
        raise UserError("--sweep (run.name, run.dir): each run has a folder of its own already")
    run = dataclasses.replace(after, dir=folder, name=f"{after.name}/{name}")
    return dataclasses.replace(resolved, config=dataclasses.replace(resolved.config, run=run))


def combinations(axes: Sequence[str]) -> list[list[str]]:
    """`seed=1,2 optim.lr=0.1` gives [[seed=1, optim.lr=0.1], [seed=2, optim.lr=0.1]].

    Commas inside brackets and quotes do not separate. Raises UserError.
    """
    lists: list[list[str]] = []
    for axis in axes:
        key, separator, text = axis.partition("=")
        values = [value for value in split_values(text) if value]
        if not key or not separator or not values:
            raise UserError(f"--sweep ({axis}): is not of the form key=value1,value2")
        if any(other[0].startswith(f"{key}=") for other in lists):
            raise UserError(f"--sweep ({key}): is given twice; put all its values into one")
        if len(set(values)) < len(values):
            raise UserError(f"--sweep ({axis}): has a value twice")
        lists.append([f"{key}={value}" for value in values])
    return [list(values) for values in itertools.product(*lists)]


def split_values(text: str) -> list[str]:
    """Split at the commas outside brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in "[{(":
            depth += 1
        elif character in "]})":
            depth -= 1
        if character == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def carry_out(request: send.Request, arguments: argparse.Namespace) -> int:
    """Show, run or submit a request. Returns the exit code."""
    errors = []
    for resolved in request.resolved:
        try:
            send.check_config(resolved.config, request.cluster)
        except UserError as error:
            errors += str(error).splitlines()
    if errors:
        raise UserError("\n".join(dict.fromkeys(errors)))
    if arguments.dry_run:
        print(send.script_of(request))
        return 0
    has_slurm = shutil.which("squeue") is not None
    if not arguments.local:
        slurm.require_slurm()
    remarks = []
    for run_dir in dict.fromkeys([request.root, *request.run_dirs]):
        try:
            remarks += send.check_folder(run_dir, has_slurm=has_slurm)
        except UserError as error:
            errors += str(error).splitlines()
    if errors:
        raise UserError("\n".join(errors))
    for path in request.run_dirs:
        send.check_writable(path)
    print("\n".join(remarks), end="\n" if remarks else "", flush=True)
    if arguments.local:
        return send.run_here(request)
    print(send.check_with_slurm(request), flush=True)
    submitted = send.send(request)
    _announce(request, [submission.job_id or "" for submission in submitted])
    return follow.until_ended(submitted) if arguments.wait else 0


def _announce(request: send.Request, job_ids: Sequence[str]) -> None:
    what = f"{len(job_ids)} runs as jobs" if len(job_ids) > 1 else "job"
    numbers = job_ids[0] if len(job_ids) == 1 else f"{job_ids[0]} to {job_ids[-1]}"
    print(f"submitted {what} {numbers}; run folder {request.root}")
    for verb, effect in (
        ("status", "how it goes"),
        ("logs", "what it prints (-f: follow)"),
        ("cancel", "stop it with a checkpoint"),
        ("resume", "submit it again, also on other nodes"),
    ):
        print(f"  python -m launch.{verb} {request.root}   # {effect}")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
