"""Which folders the settings stand for: the data of a split, and where indexes are kept."""

from __future__ import annotations

import os
from pathlib import Path

from resnet_dist.config import DataConfig
from resnet_dist.errors import UserError
from resnet_dist.system.paths import expanded


def cache_root(data: DataConfig) -> Path:
    """Where indexes and the embedded data set are kept: `data.cache_dir`, else
    $RESNET_DIST_CACHE, else ~/.cache/resnet_dist."""
    chosen = data.cache_dir or os.environ.get("RESNET_DIST_CACHE") or "~/.cache/resnet_dist"
    return Path(os.path.abspath(expanded(chosen, "data.cache_dir")))  # noqa: PTH100 (keeps links)


def split_folder(data: DataConfig, split_name: str) -> Path:
    """`<data.root>/<split_name>`. Raises UserError, with what is there, if it does not exist."""
    if data.root is None:
        raise UserError("data.root (null): no data set to index; give the folder of a data set")
    root = Path(os.path.abspath(expanded(data.root, "data.root")))  # noqa: PTH100 (keeps links)
    hint = "give a folder with one folder per split (ImageNet's has train/ and val/)"
    try:
        there = sorted(e.name for e in root.iterdir() if e.name[0] != "." and e.is_dir())
    except FileNotFoundError:
        raise UserError(f"data.root ({root}): does not exist; {hint}") from None
    except NotADirectoryError:
        raise UserError(f"data.root ({root}): is not a folder; {hint}") from None
    except PermissionError:
        raise UserError(f"data.root ({root}): no permission to read it; mend its mode") from None
    if not (root / split_name).exists():
        found = f"has the folders {', '.join(there[:10])}" if there else "has no folders"
        if len(there) > 10:
            found += f" and {len(there) - 10} more"
        raise UserError(f"data.root ({root}): lacks the split {split_name!r} and {found}; {hint}")
    return root / split_name
