"""The shipped configs: what they reach, what they cost, where they come from.

    resnet-dist recipes                      # by accuracy
    resnet-dist recipes --sort epochs
    resnet-dist recipes resnet50_a3          # one, with its source and what differs from it

`eval "$(resnet-dist --completion)"` lets bash complete verbs, and these names after --config.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence

from resnet_dist.config.load import find_config, shipped_configs
from resnet_dist.errors import UserError, report_error
from resnet_dist.recipes.table import Recipe, recipes

_SORTS = {
    "accuracy": lambda each: (-(each.top1 or 0.0), each.name),
    "epochs": lambda each: (each.epochs, each.name),
    "passes": lambda each: (each.passes or 0.0, each.name),
    "name": lambda each: each.name,
}

_COMPLETION = """\
_resnet_dist() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}"
  if [ "$before" = --config ]; then
    COMPREPLY=($(compgen -W "{names}" -- "$word") $(compgen -f -X '!*.y?(a)ml' -- "$word"))
  elif [ "$COMP_CWORD" = 1 ]; then
    COMPREPLY=($(compgen -W "{verbs}" -- "$word"))
  fi
}}
complete -o default -F _resnet_dist resnet-dist
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, or one recipe. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="resnet-dist recipes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", help="one recipe (or a file): its head")
    parser.add_argument("--sort", choices=tuple(_SORTS), default="accuracy")
    parser.add_argument("--markdown", action="store_true", help="docs/recipes.md")
    arguments = parser.parse_args(argv)
    try:
        if arguments.name is not None:
            print(head(arguments.name))
        elif arguments.markdown:
            print(page(), end="")
        else:
            print(table(sorted(recipes(), key=_SORTS[arguments.sort])))
    except UserError as error:
        return report_error(error, speaks=True)
    return 0


def table(chosen: Sequence[Recipe]) -> str:
    """A line for each, within 80 columns."""
    lines = [
        f"{'--config':<25}{'top-1':>6} {'epochs':>6}{'images':>7}{'work':>6}  origin",
        f"{'':<25}{'%':>6} {'':>6}{'x 1e6':>7}",
        "-" * 80,
    ]
    for each in chosen:
        start = f"{each.name:<25}{_figure(each):>6}{each.epochs:>7}"
        lines.append(f"{start}{_millions(each.passes):>7}{_millions(each.work):>6}  {each.origin}")
    lines += [
        "",
        "top-1: as published by the origin, not measured by us; but for *, which is ours.",
        "work: images, each counted by its pixels (224 x 224: 1).",
        "One of them: resnet-dist recipes NAME",
    ]
    return "\n".join(lines)


def _figure(recipe: Recipe) -> str:
    if recipe.top1 is None:
        return "-"
    return f"{recipe.top1:.2f}{'*' if recipe.is_ours else ' '}"


def _millions(number: float | None) -> str:
    if number is None:
        return "-"
    return f"{number:.0f}" if number >= 10 else f"{number:.2f}"


def head(name: str) -> str:
    """The comment at the head of a config. Raises UserError if there is no such config."""
    lines = []
    for line in find_config(name).read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").removeprefix(" "))
    return "\n".join(lines)


def completion(verbs: Iterable[str]) -> str:
    """A function for bash that completes verbs, and names after --config."""
    return _COMPLETION.format(names=" ".join(sorted(shipped_configs())), verbs=" ".join(verbs))


def page() -> str:
    """docs/recipes.md."""
    lines = [
        "# Recipes",
        "",
        "Generated from the files in `configs/` by `make docs`; do not edit.",
        "",
        "`--config NAME` takes one, from any directory; `resnet-dist recipes` prints this table,",
        "and `resnet-dist recipes NAME` the source of one and what differs from it. Top-1 is the",
        "figure that the origin published, not measured by us; but for *, which is ours. Images",
        "are those of the whole training; work counts each by its pixels (224 x 224: 1).",
        "",
        "| config | top-1, % | epochs | batch | images, million | work | origin | its hardware |",
        "|---|---:|---:|---:|---:|---:|---|---|",
    ]
    for each in sorted(recipes(), key=_SORTS["accuracy"]):
        cells = [
            f"`{each.name}`",
            _figure(each).strip().replace("*", r"\*"),
            str(each.epochs),
            str(each.config.train.global_batch_size),
            _millions(each.passes),
            _millions(each.work),
            each.origin,
            each.hardware,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
