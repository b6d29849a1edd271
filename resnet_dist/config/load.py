"""From files and `key=value` arguments to a validated `Config`, with the origin of every value.

Owns reading and merging (OmegaConf), the search for shipped configs, and the report of all errors
at once. Later sources win. Never imports torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from resnet_dist.config import SECTIONS, Config, field_paths, is_optional, is_text, type_hints
from resnet_dist.config.help import aliases
from resnet_dist.config.help.answers import type_in_words
from resnet_dist.config.setting import is_free
from resnet_dist.errors import UserError
from resnet_dist.system.paths import expanded

DEFAULT_CONFIG = "quickstart"
COMMAND_LINE = "command line"
ABOUT = "recipe"
"""Section of a file that holds no settings."""


@dataclass(frozen=True)
class Resolved:
    """A validated config, and where each value came from."""

    config: Config
    sources: dict[str, str]
    """`train.epochs` -> "default", the name of a file, or "command line"."""
    overrides: list[str]


def shipped_configs() -> dict[str, Path]:
    """Names and files of the configs that come with the package or the source tree."""
    folder = Path(__file__).resolve().parents[1] / "configs"
    return {path.stem: path for path in folder.glob("*.yaml")}


def find_config(name: str) -> Path:
    """The file of a path or of a shipped config's bare name. Raises UserError if there is none."""
    path = expanded(name, "--config")
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


def load_config(
    files: Sequence[str],
    overrides: Sequence[str] = (),
    *,
    base: Mapping[str, Any] | None = None,
) -> Resolved:
    """Merge the files, then the overrides, over the typed defaults.

    `base`: values by dotted path below the files, in place of the default config, such as a
    checkpoint's; keys that no longer exist are left out.

    Raises UserError that lists every unknown key, wrong type and broken rule at once.
    """
    errors: list[str] = []
    leaves: dict[str, tuple[Any, str]] = {}
    if base is not None:
        known = field_paths()
        leaves = {key: (value, "the file") for key, value in base.items() if key in known}
    for name in files or ([] if base is not None else [DEFAULT_CONFIG]):
        for key, value in _read_yaml(find_config(name)):
            leaves[key] = (value, str(name))
    for override in overrides:
        for key, value in _read_override(override, errors):
            leaves[key] = (value, COMMAND_LINE)
    config = _build(_typed(leaves, errors), errors)
    if errors:
        raise UserError("\n".join(dict.fromkeys(errors)))
    assert config is not None
    sources = {key: leaves[key][1] if key in leaves else "default" for key in field_paths()}
    return Resolved(config, sources, list(overrides))


class _Loader(yaml.SafeLoader):
    """Scalars stay text, but for null: the type of the setting says what they are. A key that is
    given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    problem=f"found duplicate key {key}", problem_mark=node.start_mark
                )
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [each for each in resolvers if each[0].endswith((":null", ":merge"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _read_yaml(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        loaded = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError, OSError, RecursionError) as error:
        message = " ".join(str(error).split())
        raise UserError(f"--config ({path}): cannot be read as YAML: {message}") from error
    if loaded and not isinstance(loaded, dict):
        raise UserError(f"--config ({path}): must hold sections such as `train:`, not a list")
    settings = {key: value for key, value in (loaded or {}).items() if key != ABOUT}
    return _flatten(settings)


def about_of(path: Path) -> dict[str, str]:
    """What a file says about the recipe in it (section `recipe`), which is no setting."""
    found = (yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader) or {}).get(ABOUT)
    return {str(key): str(value) for key, value in (found or {}).items()}


def _read_override(override: str, errors: list[str]) -> Iterator[tuple[str, Any]]:
    """Text settings take all that follows the first `=` as it is, others are read as YAML."""
    key, separator, text = override.partition("=")
    if not separator:
        errors.append(f"argument ({override}): is not of the form key=value")
        return
    hint = type_hints().get(key)
    if hint is not None and is_text(hint):
        yield key, None if text == "null" and is_optional(hint) else text
        return
    if hint is None and key not in SECTIONS:
        yield key, text  # unknown, which is reported with the others
        return
    try:
        yield from _flatten({key: yaml.load(text, Loader=_Loader)})
    except (yaml.YAMLError, RecursionError) as error:
        errors.append(f"{key}: cannot read the value ({text}): {_first_line(error)}")


def _flatten(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in (tree or {}).items():
        path = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{path}.")
        elif value is not None or path not in SECTIONS:  # an empty `train:` sets nothing
            yield path, value


def _near(name: str, known: Mapping[str, Any]) -> str:
    """A hint at the known name that was probably meant."""
    by_leaf = {path.rpartition(".")[2]: path for path in known}
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    leaf = difflib.get_close_matches(name.rpartition(".")[2], list(by_leaf), n=1, cutoff=0.75)
    found = match[0] if match else by_leaf[leaf[0]] if leaf else None
    return f"; did you mean {found}?" if found else ""


def _unknown(key: str) -> str:
    """What is said about a key that does not exist."""
    if key in SECTIONS:
        return "is a section; set its keys"
    known = field_paths()
    close = difflib.get_close_matches(key, list(known), n=1, cutoff=0.85)
    if close:
        return f"unknown key; did you mean {close[0]}?"
    answer = aliases.answer_to(key)
    return f"unknown key; {answer}" if answer else f"unknown key{_near(key, known)}"


def _typed(leaves: Mapping[str, tuple[Any, str]], errors: list[str]) -> dict[str, Any]:
    """The known values, converted to the types of their settings."""
    hints = type_hints()
    typed: dict[str, Any] = {}
    for key, (value, source) in leaves.items():
        if key not in hints:
            errors.append(f"{key} (from {source}): {_unknown(key)}")
            continue
        try:
            typed[key] = _converted(value, key, hints[key])
        except (OmegaConfBaseException, ValueError) as error:
            text, remedy = _first_line(error), _value_hint(value, hints[key])
            if "$VALUE" in text or "TupleConfig" in text:  # OmegaConf's own words for a list
                text = f"must be {type_in_words(hints[key])}"
            errors.append(f"{key} ({value!r}, from {source}): {text}{remedy}")
    return typed


def _converted(value: Any, key: str, hint: Any) -> Any:
    """One value as its setting's type. Raises ValueError or OmegaConf's error."""
    if value is None and is_optional(hint):
        return None
    if is_text(hint):
        if not isinstance(value, str):
            raise ValueError(f"must be text, not {'null' if value is None else 'a list or keys'}")
        return value
    elements = value if isinstance(value, list) else [value]
    if any(isinstance(element, dict | list) for element in elements):
        raise ValueError(f"must be {type_in_words(hint)}, not keys or a list of lists")
    if any("${" in str(element) or element == "???" for element in elements):
        raise ValueError("references to other values are not resolved; give the value itself")
    elements = [_YAML_NUMBERS.get(str(element).lower(), element) for element in elements]
    given = tuple(elements) if isinstance(value, list) else elements[0]
    section, _, leaf = key.rpartition(".")
    return OmegaConf.to_container(OmegaConf.merge(_types_of(section), {leaf: given}))[leaf]  # type: ignore[index,call-overload]


@cache
def _types_of(section: str) -> Any:
    """What OmegaConf converts the values of a section ("": of the root) with."""
    return OmegaConf.structured(SECTIONS[section] if section else Config)


_YAML_NUMBERS = {".inf": "inf", "+.inf": "inf", "-.inf": "-inf", ".nan": "nan"}
"""As YAML spells them, so that their rule rejects them by name."""


def _value_hint(value: Any, hint: Any) -> str:
    """The allowed value that was probably meant."""
    allowed = [word for word in get_args(hint) if isinstance(word, str)]
    word = str(value).lower()
    near = [aliases.VALUES.get(word, word)]
    if near[0] not in allowed:
        near = difflib.get_close_matches(word, allowed, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _build(typed: Mapping[str, Any], errors: list[str]) -> Config | None:
    """The config, if no section's rules and none across sections are broken."""
    parts: dict[str, Any] = {key: value for key, value in typed.items() if "." not in key}
    for name, kind in SECTIONS.items():
        own = f"{name}."
        values = {
            key.removeprefix(own): value for key, value in typed.items() if key.startswith(own)
        }
        try:
            parts[name] = kind(**values)
        except UserError as error:
            errors.extend(str(error).splitlines())
    if errors:
        return None
    try:
        return Config(**parts)
    except UserError as error:
        errors.extend(str(error).splitlines())
        return None


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
        if not is_free(item) and before != current[key]:
            differences.append(Difference(key, before, current[key]))
    return differences
