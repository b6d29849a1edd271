"""docs/configuration.md: `python -m resnet_dist.config.help.page > docs/configuration.md`."""

from __future__ import annotations

from resnet_dist.config import SECTIONS, field_paths, type_hints
from resnet_dist.config.help.answers import allowed, type_in_words, value_in_yaml
from resnet_dist.config.help.docstrings import section_docs, setting_docs
from resnet_dist.config.setting import is_free

HEAD = """# Configuration

Generated from `resnet_dist/config/` by `make docs`; do not edit.

A run is configured by YAML files (`--config FILE`, or the bare name of a file in `configs/`) and by
`key=value` arguments. Later sources win. A setting of type text takes everything after the first
`=` as it is. `--help KEY` shows one of the entries below, `--print-config` all values of a run.

"Resume" says whether a resumed run may change the value without `run.allow_config_change=true`:
"no" stands for what changes the mathematics of a run.
"""


def page() -> str:
    """The whole page."""
    sections = section_docs()
    parts = [
        HEAD,
        "## The run as a whole\n",
        _table([key for key in field_paths() if "." not in key]),
    ]
    for name in SECTIONS:
        keys = [key for key in field_paths() if key.startswith(f"{name}.")]
        parts += [f"## {name}\n", f"{sections[name]}\n", _table(keys)]
    return "\n".join(parts)


def _table(keys: list[str]) -> str:
    docs, paths, hints = setting_docs(), field_paths(), type_hints()
    rows = ["| key | type | default | allowed | resume | meaning |", "|---|---|---|---|---|---|"]
    for key in keys:
        cells = [
            f"`{key}`",
            type_in_words(hints[key]),
            f"`{value_in_yaml(paths[key].default)}`",
            allowed(key),
            "yes" if is_free(paths[key]) else "no",
            docs[key],
        ]
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join([*rows, ""])


if __name__ == "__main__":
    print(page(), end="")
