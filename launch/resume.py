"""`python -m launch.resume RUN [cluster options] [key=value ...]`: submit a run again.

With the code, the settings and the cluster options of its last submission, except for what is given
here: other nodes, more time, another number of them. It resumes from its newest checkpoint.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from launch.cluster.option_sources import given_options, load_cluster
from launch.records.progress import last_outcome
from launch.records.submissions import Submission, expand, last_submission
from launch.reports.text import print_error
from launch.submission.command_line import build_parser, carry_out
from launch.submission.request import Request, absolute
from resnet_dist.config.load import Resolved, exact_differences, load_config, to_flat
from resnet_dist.errors import UserError
from resnet_dist.run.outcome import Outcome
from resnet_dist.system.paths import expanded


def main(argv: Sequence[str] | None = None) -> int:
    """Submit again. Returns as `launch.submit` does."""
    parser = build_parser("launch.resume", "Submit a run again; it resumes where it stopped.")
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder, or a sweep's folder")
    parser.add_argument("--new-code", action="store_true", help="run the code of now, not the old")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changed settings")
    arguments = parser.parse_intermixed_args(argv)
    try:
        worst = 0
        for run_dir in _unfinished(expanded(arguments.run, "RUN")):
            last = _last_submission(run_dir)
            options = given_options(arguments)
            request = Request(
                root=run_dir.absolute(),
                names=[],
                resolved=[_resolve(last, arguments.overrides)],
                cluster=load_cluster(arguments.cluster, options, base=last.cluster),
                module=arguments.module or last.module,
                code=None if arguments.new_code else last.code,
            )
            worst = worst or carry_out(request, arguments)
        return worst
    except UserError as error:
        return print_error(error)


def _unfinished(folder: Path) -> list[Path]:
    """The run, or those of a sweep that are not done. Raises UserError."""
    folders = expand(folder)
    if folders == [folder]:
        return folders
    finished = (Outcome.FINISHED, Outcome.REACHED)
    left = [path for path in folders if last_outcome(path) not in finished]
    if not left:
        raise UserError(f"run ({folder}): all {len(folders)} runs of this sweep are finished")
    return left


def _last_submission(run_dir: Path) -> Submission:
    last = last_submission(run_dir)
    if last is None:
        raise UserError(
            f"run ({run_dir}): was not submitted by launch.submit; use that with "
            f"run.dir={run_dir} and the run's config, it resumes from the checkpoints there"
        )
    return last


def _resolve(last: Submission, overrides: Sequence[str]) -> Resolved:
    """The settings of the last submission, changed. Raises UserError."""
    place = f"run.dir={last.run_dir.absolute()}"  # the folder may have moved since
    before = load_config([str(last.config)], [place])
    after = load_config([str(last.config)], [place, *overrides])
    if after.config.run.dir != before.config.run.dir:
        raise UserError("run.dir: a resumed run stays in its folder; use launch.submit for another")
    differences = exact_differences(to_flat(before.config), after.config)
    if differences and not after.config.run.allow_config_change:
        listed = "\n".join(
            f"{each.key} ({each.before!r} -> {each.now!r}): changes the mathematics"
            for each in differences
        )
        raise UserError(f"{listed}\nrun.allow_config_change=true resumes all the same")
    if after.config.run.resume == "never":  # of the first submission; now there is a run
        run = dataclasses.replace(after.config.run, resume="auto")
        after = dataclasses.replace(after, config=dataclasses.replace(after.config, run=run))
    return absolute(after)


if __name__ == "__main__":
    sys.exit(main())
