"""From files and `key=value` arguments to a validated `Config`, with the origin of every value.

Owns reading and merging (OmegaConf), the search for shipped configs, and the report of all errors
at once. Later sources win. Never imports torch.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from resnet_dist.config import Config
from resnet_dist.errors import UserError

DEFAULT_CONFIG = "quickstart"


@dataclass(frozen=True)
class Arguments:
    """The command line of an entry point."""

    files: list[str]
    overrides: list[str]
    print_config: bool


@dataclass(frozen=True)
class Resolved:
    """A validated config, and where each value came from."""

    config: Config
    sources: dict[str, str]
    """`train.epochs` -> "default", the name of a file, or "command line"."""
    overrides: list[str]


def parse_arguments(argv: Sequence[str] | None, *, prog: str, description: str) -> Arguments:
    """Read `--config FILE ... --print-config key=value ...`."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog="Every setting is a key=value argument, for example train.epochs=10; "
        "--print-config lists them all.",
    )
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="FILE",
        help="YAML file, or the name of a shipped config; several are merged, the later wins "
        f"(default: {DEFAULT_CONFIG}; shipped: {', '.join(sorted(shipped_configs()))})",
    )
    parser.add_argument("--print-config", action="store_true", help="show every value and stop")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args(argv)
    return Arguments(arguments.config, arguments.overrides, arguments.print_config)


def shipped_configs() -> dict[str, Path]:
    """Names and files of the configs that come with the package or the source tree."""
    folder = Path(__file__).resolve().parents[1] / "configs"
    return {path.stem: path for path in folder.glob("*.yaml")}


def find_config(name: str) -> Path:
    """The file of a path or of a shipped config's bare name. Raises UserError if there is none."""
    path = Path(name).expanduser()
    if path.is_file():
        return path
    shipped = shipped_configs()
    bare = name.removesuffix(".yaml").removesuffix(".yml").removeprefix("configs/")
    if bare in shipped:
        return shipped[bare]
    raise UserError(
        f"--config ({name}): no such file, and no shipped config of that name"
        f"{_near(bare, shipped)}; shipped: {', '.join(sorted(shipped))}"
    )


def load_config(files: Sequence[str], overrides: Sequence[str] = ()) -> Resolved:
    """Merge the files, then the overrides, over the typed defaults.

    Raises UserError that lists every unknown key, wrong type and broken rule at once.
    """
    errors: list[str] = []
    leaves: dict[str, tuple[Any, str]] = {}
    for name in files or [DEFAULT_CONFIG]:
        path = find_config(name)
        for key, value in _read_yaml(path):
            leaves[key] = (value, str(name))
    for override in overrides:
        key, separator, _ = override.partition("=")
        if not separator:
            errors.append(f"argument ({override}): is not of the form key=value")
            continue
        try:
            parsed = OmegaConf.to_container(OmegaConf.from_dotlist([override]))
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            errors.append(f"{key}: cannot read the value: {_first_line(error)}")
            continue
        for leaf, value in _flatten(parsed):
            leaves[leaf] = (value, "command line")
    merged = _merge(leaves, errors)
    config = _validate(merged, errors)
    if errors:
        raise UserError("\n".join(dict.fromkeys(errors)))
    assert config is not None
    sources = {key: leaves[key][1] if key in leaves else "default" for key in field_paths()}
    return Resolved(config, sources, list(overrides))


def _read_yaml(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        loaded = OmegaConf.to_container(OmegaConf.load(path))
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        message = " ".join(str(error).split())
        raise UserError(f"--config ({path}): cannot be read as YAML: {message}") from error
    if loaded and not isinstance(loaded, dict):
        raise UserError(f"--config ({path}): must hold sections such as `train:`, not a list")
    return _flatten(loaded)


def _flatten(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in (tree or {}).items():
        path = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{path}.")
        elif value is not None or path not in SECTIONS:  # an empty `train:` sets nothing
            yield path, value


SECTIONS = {item.name for item in dataclasses.fields(Config) if item.name != "seed"}


def field_paths() -> dict[str, dataclasses.Field[Any]]:
    """Every setting: dotted path -> dataclass field."""
    paths: dict[str, dataclasses.Field[Any]] = {}
    defaults = Config()
    for item in dataclasses.fields(Config):
        if item.name in SECTIONS:
            for leaf in dataclasses.fields(getattr(defaults, item.name)):
                paths[f"{item.name}.{leaf.name}"] = leaf
        else:
            paths[item.name] = item
    return paths


def _near(name: str, known: Mapping[str, Any]) -> str:
    """A hint at the known name that was probably meant."""
    by_leaf = {path.rpartition(".")[2]: path for path in known}
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    leaf = difflib.get_close_matches(name.rpartition(".")[2], list(by_leaf), n=1, cutoff=0.75)
    found = match[0] if match else by_leaf[leaf[0]] if leaf else None
    return f"; did you mean {found}?" if found else ""


def _merge(leaves: Mapping[str, tuple[Any, str]], errors: list[str]) -> Any:
    """Put the values into the typed tree: all at once, or, where one of them does not fit, each on
    its own, so that one error does not hide the next (and takes much longer)."""
    base = OmegaConf.structured(Config)
    known = field_paths()
    fitting: dict[str, Any] = {}
    for key, (value, source) in leaves.items():
        if key not in known:
            what = "is a section; set its keys" if key in SECTIONS else "unknown key"
            errors.append(f"{key} (from {source}): {what}{_near(key, known)}")
        else:
            fitting[key] = value
    try:
        return OmegaConf.merge(base, _nested(fitting))
    except OmegaConfBaseException:
        merged = base
    for key, value in fitting.items():
        try:
            merged = OmegaConf.merge(merged, _nested({key: value}))
        except OmegaConfBaseException as error:
            errors.append(f"{key} ({value!r}, from {leaves[key][1]}): {_first_line(error)}")
    return merged


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"train.epochs": 3, "seed": 1} becomes {"train": {"epochs": 3}, "seed": 1}."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        section, dot, leaf = key.rpartition(".")
        (tree.setdefault(section, {}) if dot else tree)[leaf] = value
    return tree


def _validate(merged: Any, errors: list[str]) -> Config | None:
    for section in sorted(SECTIONS):
        try:
            OmegaConf.to_object(merged[section])
        except UserError as error:
            errors.extend(str(error).splitlines())
    if errors:
        return None
    try:
        config = OmegaConf.to_object(merged)
    except UserError as error:
        errors.extend(str(error).splitlines())
        return None
    assert isinstance(config, Config)
    return config


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def to_flat(config: Config) -> dict[str, Any]:
    """Every value by dotted path, as plain Python (tuples become lists)."""
    flat: dict[str, Any] = {}
    for key in field_paths():
        value: Any = config
        for name in key.split("."):
            value = getattr(value, name)
        flat[key] = list(value) if isinstance(value, tuple) else value
    return flat


@dataclass(frozen=True)
class Difference:
    """A setting that changes the mathematics, and is not what it was."""

    key: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key}: {self.before!r} in the checkpoint, {self.now!r} now"


def exact_differences(saved: Mapping[str, Any], config: Config) -> list[Difference]:
    """What differs from a checkpoint's settings among those that change the mathematics.

    A key that the checkpoint does not know (it is older) is compared with the default.
    """
    current, defaults = to_flat(config), to_flat(Config())
    differences = []
    for key, item in field_paths().items():
        before = saved.get(key, defaults[key])
        if item.metadata.get("exact", True) and before != current[key]:
            differences.append(Difference(key, before, current[key]))
    return differences


def describe(resolved: Resolved) -> str:
    """`--print-config`: YAML of every value, each with its origin as a comment."""
    flat = to_flat(resolved.config)
    lines: list[tuple[str, str]] = []
    section = ""
    for key, value in flat.items():
        head, dot, leaf = key.partition(".")
        if dot and head != section:
            lines.append((f"{head}:", ""))
            section = head
        text = yaml.safe_dump(value, default_flow_style=True, width=1000)
        text = text.removesuffix("\n").removesuffix("\n...").strip()
        lines.append((f"{'  ' + leaf if dot else key}: {text}", resolved.sources[key]))
    width = max(len(text) for text, _ in lines if len(text) < 60) + 1
    # The blank before # is YAML's: without it the note would be part of a long value.
    return "\n".join(f"{text:<{width}} # {note}" if note else text for text, note in lines)
