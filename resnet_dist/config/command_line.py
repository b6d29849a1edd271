"""The command line of an entry point: config files, `key=value`, and questions about settings."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from resnet_dist.config.help.answers import explain, overview
from resnet_dist.config.load import DEFAULT_CONFIG, shipped_configs
from resnet_dist.errors import UserError


@dataclass(frozen=True)
class Arguments:
    """The command line of an entry point."""

    files: list[str]
    overrides: list[str]
    print_config: bool
    nproc: int | None = None
    """Ranks to start, or to plan for; None: not given."""

    @property
    def words_of_a_rank(self) -> list[str]:
        """The command line of each rank: without --nproc, which torchrun would take for its own."""
        files = [word for file in self.files for word in ("--config", file)]
        return [*files, *self.overrides]


class _Help(argparse.Action):
    """`--help`, `--help SECTION` and `--help KEY`."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        _namespace: argparse.Namespace,
        values: Any,
        _option: str | None = None,
    ) -> None:
        if values is None:
            parser.print_help()
            parser.exit()
        try:
            print(explain(values.partition("=")[0]))
        except UserError as error:
            parser.exit(error.exit_code, f"error: {error}\n")
        parser.exit()


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of processes")
    return int(text)


def parse_arguments(argv: Sequence[str] | None, *, prog: str, description: str) -> Arguments:
    """Read `--config FILE ... --print-config --nproc N key=value ...`; answers `--help [KEY]`."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=overview(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    parser.add_argument(
        "-h",
        "--help",
        nargs="?",
        action=_Help,
        metavar="KEY",
        help="show this, or what is known about a section or a setting, and stop",
    )
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="FILE",
        help="YAML file, or the name of a shipped config; several are merged, the later wins "
        f"(default: {DEFAULT_CONFIG}; shipped: {', '.join(sorted(shipped_configs()))})",
    )
    parser.add_argument(
        "--print-config",
        action="store_true",
        help="show every value, its origin, and what follows from them, and stop",
    )
    parser.add_argument(
        "--nproc",
        type=_count,
        metavar="N",
        help="processes that `resnet-dist train` starts (default: one per GPU, else one), and that "
        "--print-config plans for",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args(argv)
    return Arguments(arguments.config, arguments.overrides, arguments.print_config, arguments.nproc)
