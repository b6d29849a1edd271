"""What a job asks of a cluster: defaults, rules, and that every option is used."""

from __future__ import annotations

import argparse
import ast
import dataclasses
from pathlib import Path

import pytest

from launch.cluster.option_sources import add_options, load_cluster
from launch.cluster.options import ClusterConfig, option
from resnet_dist.errors import UserError

LAUNCH = Path(__file__).parents[4] / "launch"
FIELDS = [item.name for item in dataclasses.fields(ClusterConfig)]


def test_defaults_and_derived_values() -> None:
    config = load_cluster([], {})
    assert config == ClusterConfig()
    assert (config.num_ranks_per_node, config.world_size, config.time_min) == (1, 1, 1440)
    config = load_cluster([], {"nodes": "4", "gpus_per_node": "8"})
    assert (config.num_ranks_per_node, config.world_size) == (8, 32)
    config = load_cluster([], {"nodes": 3, "ranks_per_node": 2})
    assert config.world_size == 6


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("nodes", 0, "must be at least 1"),
        ("gpus_per_node", -1, "must not be negative"),
        ("ranks_per_node", 0, "must be at least 1"),
        ("cpus_per_gpu", 0, "must be at least 1"),
        ("mem_gb_per_gpu", 0, "must be positive"),
        ("array_parallelism", 0, "must be at least 1"),
        ("max_restarts", -1, "must not be negative"),
        ("max_failures", 0, "must be at least 1"),
        ("signal_delay_s", 0, "must be positive"),
        ("stop_timeout_s", 0, "must be positive"),
        ("rendezvous_timeout_s", -1, "must be positive"),
        ("preflight_timeout_s", 0, "must be positive"),
        ("min_free_disk_gib", -1, "must not be negative"),
        ("min_free_shm_gib", -1, "must not be negative"),
        ("container_mounts", ["/data"], "/data is not SRC:DST"),
        ("env", {"A B": "1"}, "'A B' is no name of a variable"),
    ],
)
def test_each_rule_names_its_option(name: str, value: object, words: str) -> None:
    with pytest.raises(UserError) as caught:
        load_cluster([], {name: value})
    lines = str(caught.value).splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"{option(name)} ({value!r}")
    assert words in lines[0]


def test_ranks_are_one_per_gpu() -> None:
    assert load_cluster([], {"gpus_per_node": 4, "ranks_per_node": 4}).num_ranks_per_node == 4
    with pytest.raises(
        UserError, match=r"--ranks-per-node \(2\): must equal --gpus-per-node \(4\)"
    ):
        load_cluster([], {"gpus_per_node": 4, "ranks_per_node": 2})


def test_the_signal_does_not_come_before_the_start() -> None:
    """Else the run would be stopped and requeued again and again without a step done."""
    with pytest.raises(UserError, match=r"--signal-delay-s \(120\): must be less than --time"):
        load_cluster([], {"time": "2m"})
    assert load_cluster([], {"time": "2m", "signal_delay_s": 119}).time_min == 2


def test_broken_rules_are_told_all_at_once() -> None:
    with pytest.raises(UserError) as caught:
        load_cluster([], {"nodes": 0, "max_failures": 0, "time": "soon"})
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize("name", FIELDS)
def test_each_option_has_a_help_text(name: str) -> None:
    parser = argparse.ArgumentParser()
    add_options(parser)
    action = next(action for action in parser._actions if action.dest == name)
    assert option(name) in action.option_strings
    assert action.help
    assert len(action.help) > 10


def test_each_field_is_read_somewhere() -> None:
    """Outside of the class: as an attribute of something, or by its derived property."""
    read: set[str] = set()
    for path in LAUNCH.rglob("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and node.name == "ClusterConfig":
                checks = [item for item in node.body if isinstance(item, ast.FunctionDef)]
                node.body = [item for item in checks if item.name != "__post_init__"] or [
                    ast.Pass()
                ]
        read |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert set(FIELDS) - read == set()
