"""`python -m launch.resume RUN [cluster options] [key=value ...]`: submit a run again.

With the code, the settings and the cluster options of its last submission, except for what is given
here: other nodes, more time, another number of them. It goes on from its newest checkpoint.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from launch import runs, send
from launch.cluster import given_options, load_cluster
from launch.submit import build_parser, carry_out
from resnet_dist.config.load import Resolved, exact_differences, load_config, to_flat
from resnet_dist.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Submit again. Returns as `launch.submit` does."""
    parser = build_parser("launch.resume", "Submit a run again; it goes on where it stopped.")
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder, or a sweep's folder")
    parser.add_argument("--new-code", action="store_true", help="run the code of now, not the old")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changed settings")
    arguments = parser.parse_intermixed_args(argv)
    try:
        worst = 0
        for run_dir in _unfinished(arguments.run.expanduser()):
            last = _last_submission(run_dir)
            options = given_options(arguments)
            cluster = load_cluster(arguments.cluster, options, base=last.cluster)
            request = send.Request(
                root=Path(last.run_dir),
                names=[],
                resolved=[_resolve(last, arguments.overrides)],
                cluster=cluster,
                module=arguments.module or last.module,
                code=None if arguments.new_code else last.code,
            )
            worst = worst or carry_out(request, arguments)
        return worst
    except UserError as error:
        print("\n".join(f"error: {line}" for line in str(error).splitlines()), file=sys.stderr)
        return error.exit_code


def _unfinished(folder: Path) -> list[Path]:
    """The run, or those of a sweep that are not done. Raises UserError."""
    folders = runs.expand(folder)
    if folders == [folder]:
        return folders
    left = [path for path in folders if runs.last_outcome(path) != "finished"]
    if not left:
        raise UserError(f"run ({folder}): all {len(folders)} runs of this sweep are finished")
    return left


def _last_submission(run_dir: Path) -> runs.Submission:
    submitted = runs.submissions(run_dir)
    if not submitted:
        raise UserError(
            f"run ({run_dir}): was not submitted by launch.submit; use that with "
            f"run.dir={run_dir} and the run's config, it goes on from the checkpoints there"
        )
    return submitted[-1]


def _resolve(last: runs.Submission, overrides: Sequence[str]) -> Resolved:
    """The settings of the last submission, changed. Raises UserError."""
    before = load_config([str(last.config)])
    after = load_config([str(last.config)], overrides)
    if after.config.run.dir != before.config.run.dir:
        raise UserError("run.dir: a resumed run stays in its folder; use launch.submit for another")
    differences = exact_differences(to_flat(before.config), after.config)
    if differences and not after.config.run.allow_config_change:
        listed = "\n".join(f"{line} (these change the mathematics)" for line in differences)
        raise UserError(f"{listed}\nrun.allow_config_change=true goes on all the same")
    if after.config.run.resume == "never":  # of the first submission; now there is a run
        run = dataclasses.replace(after.config.run, resume="auto")
        after = dataclasses.replace(after, config=dataclasses.replace(after.config, run=run))
    return send.absolute(after)


if __name__ == "__main__":
    sys.exit(main())
