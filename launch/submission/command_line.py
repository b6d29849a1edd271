"""Common part of `launch.submit` and `launch.resume`: options, and carrying a request out."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from launch.cluster import slurm
from launch.cluster.option_sources import add_options, cluster_files
from launch.reports import follow
from launch.submission.checks import check_config, check_folder, check_writable
from launch.submission.local import run_here
from launch.submission.request import Request, check_with_slurm, submit
from launch.submission.sbatch import check_names
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


def carry_out(request: Request, arguments: argparse.Namespace) -> int:
    """Show, run or submit a request. Returns the exit code. Raises UserError."""
    _check_configs(request)
    if arguments.dry_run:
        for remark in _missing_data(request):
            print(remark, file=sys.stderr)
        print(request.numbered().script())
        return 0
    if not arguments.local:
        slurm.require_slurm()
    remarks = _check_folders(request)
    for path in request.run_dirs:
        check_writable(path)
    for remark in remarks:
        print(remark, flush=True)
    if arguments.local:
        return run_here(request)
    print("\n".join(check_with_slurm(request)), flush=True)
    submitted = submit(request)
    _announce(request, [submission.job_id or "" for submission in submitted])
    return follow.until_ended(submitted) if arguments.wait else 0


def _check_configs(request: Request) -> None:
    """Raises UserError with what is wrong in any of the runs."""
    errors: list[str] = []
    for resolved in request.resolved:
        try:
            check_config(resolved.config, request.cluster)
            check_names(resolved.config.run.name, run_folder(resolved.config.run))
        except UserError as error:
            errors.append(str(error))
    if errors:
        raise UserError("\n".join(dict.fromkeys(errors)))


def _missing_data(request: Request) -> list[str]:
    """A note for each data folder that this machine does not see."""
    roots = dict.fromkeys(each.config.data.root for each in request.resolved)
    return [
        f"note: data.root ({root}) is not on this machine; every node must see it"
        for root in roots
        if root is not None and not Path(root).is_dir()
    ]


def _check_folders(request: Request) -> list[str]:
    """Remarks for the user. Raises UserError with what is wrong in any of the folders."""
    has_slurm = shutil.which("squeue") is not None
    may_change = all(each.config.run.allow_config_change for each in request.resolved)
    remarks: list[str] = []
    errors: list[str] = []
    for run_dir in dict.fromkeys([request.root, *request.run_dirs]):
        try:
            remarks += check_folder(run_dir, has_slurm=has_slurm, may_change=may_change)
        except UserError as error:
            errors.append(str(error))
    if errors:
        raise UserError("\n".join(errors))
    return remarks


def _announce(request: Request, job_ids: Sequence[str]) -> None:
    what = f"{len(job_ids)} runs as jobs" if len(job_ids) > 1 else "job"
    numbers = job_ids[0] if len(job_ids) == 1 else f"{job_ids[0]} to {job_ids[-1]}"
    print(f"submitted {what} {numbers}; run folder {request.root}")
    for verb, effect in (
        ("status", "its state and progress"),
        ("logs", "what it prints (-f: follow)"),
        ("cancel", "stop it with a checkpoint"),
        ("resume", "submit it again, also on other nodes"),
    ):
        print(f"  python -m launch.{verb} {request.root}   # {effect}")
    sys.stdout.flush()
