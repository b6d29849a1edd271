"""Sources of a `ClusterConfig`: YAML files and command-line options."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
import inspect
import re
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from launch.cluster.options import ClusterConfig, option
from resnet_dist.config.load import shipped_configs
from resnet_dist.errors import UserError
from resnet_dist.system.paths import expanded


def cluster_files() -> dict[str, Path]:
    """Names and files of the shipped cluster configs."""
    for path in shipped_configs().values():
        return {found.stem: found for found in (path.parent / "cluster").glob("*.yaml")}
    return {}


def load_cluster(
    files: Sequence[str], options: dict[str, Any], base: dict[str, Any] | None = None
) -> ClusterConfig:
    """Merge files, then options, over the defaults (or over the values `base`).

    Raises UserError that names every unknown key, wrong type and broken rule.
    """
    errors: list[str] = []
    merged = OmegaConf.structured(ClusterConfig)
    known = [item.name for item in dataclasses.fields(ClusterConfig)]
    sources: list[tuple[str, dict[str, Any]]] = [("submission", base or {})]
    sources += [(name, _read(name)) for name in files] + [("command line", options)]
    for source, values in sources:
        for key, value in values.items():
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                errors.append(f"{key} (from {source}): unknown key{hint}")
                continue
            try:
                merged = OmegaConf.merge(merged, {key: _literal(value)})
            except (OmegaConfBaseException, TypeError) as error:
                errors.append(f"{key} ({value!r}, from {source}): {str(error).splitlines()[0]}")
    if errors:
        raise UserError("\n".join(errors))
    config = OmegaConf.to_object(merged)
    assert isinstance(config, ClusterConfig)
    return config


def _literal(value: Any) -> Any:
    """The same value with each `${` escaped: it is the shell's, not OmegaConf's."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + "\\${", value)
    if isinstance(value, list):
        return [_literal(item) for item in value]
    if isinstance(value, dict):
        return {key: _literal(item) for key, item in value.items()}
    return value


class _Loader(yaml.SafeLoader):
    """YAML 1.2's integers: `24:00:00` is a text, not 86400, and `0123` no octal number."""


_Loader.yaml_implicit_resolvers = {
    first: [each for each in resolvers if each[0] != "tag:yaml.org,2002:int"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9][0-9]*)$"), list("-+0123456789")
)


def _read(name: str) -> dict[str, Any]:
    path, shipped = expanded(name, "--cluster"), cluster_files()
    if not path.is_file():
        if name not in shipped:
            raise UserError(
                f"--cluster ({name}): no such file, and no shipped cluster config of that name; "
                f"shipped: {', '.join(sorted(shipped))}"
            )
        path = shipped[name]
    try:
        loaded = yaml.load(path.read_text(), Loader=_Loader)
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise UserError(f"--cluster ({path}): cannot be read as YAML: {error}") from error
    if not isinstance(loaded or {}, dict):
        raise UserError(f"--cluster ({path}): must hold keys such as `partition:`, not a list")
    return dict(loaded or {})


def add_options(parser: argparse.ArgumentParser) -> None:
    """One option for each field; those that are not given leave no trace."""
    group = parser.add_argument_group("cluster", "what the job asks for; --cluster FILE holds sets")
    docs = _field_docs()
    hints = typing.get_type_hints(ClusterConfig)
    for item in dataclasses.fields(ClusterConfig):
        kind = _plain(hints[item.name])
        names = [option(item.name)]
        help_text = docs.get(item.name, "").replace("%", "%%")
        common: dict[str, Any] = {
            "dest": item.name,
            "default": argparse.SUPPRESS,
            "help": help_text,
        }
        if kind is bool:
            parser_kind: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
        elif typing.get_origin(kind) is list:
            parser_kind = {"action": "append", "metavar": "VALUE"}
        elif typing.get_origin(kind) is dict:
            parser_kind = {"action": _KeyValue, "metavar": "NAME=VALUE"}
        else:
            parser_kind = {"metavar": "VALUE"}
        group.add_argument(*names, **common, **parser_kind)


class _KeyValue(argparse.Action):
    """Collects NAME=VALUE arguments into a dict."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        name, separator, value = str(values).partition("=")
        if not separator:
            parser.error(f"{option_string} ({values}): is not of the form NAME=VALUE")
        setattr(namespace, self.dest, {**getattr(namespace, self.dest, {}), name: value})


def given_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The cluster options that were on the command line."""
    known = {item.name for item in dataclasses.fields(ClusterConfig)}
    return {name: value for name, value in vars(arguments).items() if name in known}


def _plain(hint: Any) -> Any:
    """A type without its `| None`."""
    if isinstance(hint, types.UnionType):
        return next(part for part in typing.get_args(hint) if part is not type(None))
    return hint


def _field_docs() -> dict[str, str]:
    """The docstring under each field, by its name."""
    try:
        body = ast.parse(inspect.getsource(ClusterConfig)).body[0]
    except (OSError, SyntaxError):  # installed without sources
        return {}
    assert isinstance(body, ast.ClassDef)
    docs: dict[str, str] = {}
    name = ""
    for node in body.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name = node.target.id
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            docs[name] = " ".join(str(node.value.value).split())
    return docs
