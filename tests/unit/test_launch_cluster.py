"""What a job asks of a cluster: durations, files, options, rules; the shipped cluster configs."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launch.cluster import (
    ClusterConfig,
    add_options,
    cluster_files,
    given_options,
    load_cluster,
    option,
)
from launch.duration import minutes
from resnet_dist.errors import UserError

ROOT = Path(__file__).parents[2]
FIELDS = [item.name for item in dataclasses.fields(ClusterConfig)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("24h", 1440),
        ("90m", 90),
        ("2d12h", 3600),
        ("1d2h3m4s", 1440 + 120 + 4),
        ("1.5h", 90),
        ("30", 30),
        (" 30 ", 30),
        ("24H", 1440),
        ("61s", 2),
        ("45:00", 45),
        ("45:01", 46),
        ("01:30:00", 90),
        ("100:00:00", 6000),
        ("1-12", 36 * 60),
        ("0-01", 60),
        ("2-12:30", 60 * 60 + 30),
        ("0-00:30", 30),
        ("2-12:00:00", 3600),
        ("1-00:00:01", 1441),
    ],
)
def test_durations(text: str, expected: int) -> None:
    assert minutes(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "soon",
        "h",
        "0",
        "0h",
        "-5",
        "24x",
        "24h soon",
        "1:2:3:4",
        "1-",
        "-1-2",
        "1-2-3",
        "1h 30",
    ],
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(UserError, match="is not a duration; write 24h"):
        minutes(text)
    with pytest.raises(UserError, match=r"--time \(soon\): is not a duration"):
        load_cluster([], {"time": "soon"})


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


def test_ranks_are_one_a_gpu() -> None:
    assert load_cluster([], {"gpus_per_node": 4, "ranks_per_node": 4}).num_ranks_per_node == 4
    with pytest.raises(
        UserError, match=r"--ranks-per-node \(2\): must equal --gpus-per-node \(4\)"
    ):
        load_cluster([], {"gpus_per_node": 4, "ranks_per_node": 2})


def test_the_signal_does_not_come_before_the_start() -> None:
    """Else the run would be stopped and requeued for ever, without a step done."""
    with pytest.raises(UserError, match=r"--signal-delay-s \(120\): must be less than --time"):
        load_cluster([], {"time": "2m"})
    assert load_cluster([], {"time": "2m", "signal_delay_s": 119}).time_min == 2


def test_broken_rules_are_told_all_at_once() -> None:
    with pytest.raises(UserError) as caught:
        load_cluster([], {"nodes": 0, "max_failures": 0, "time": "soon"})
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("name", "near"), [("node", "nodes"), ("gpu_per_node", "gpus_per_node"), ("sbatch_arg", "s")]
)
def test_unknown_keys_get_a_near_name(tmp_path: Path, name: str, near: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"{name}: 1\npartition: gpu\n")
    with pytest.raises(UserError) as caught:
        load_cluster([str(path)], {})
    assert f"{name} (from {path}): unknown key; did you mean {near}" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("nodes", "two"),
        ("nodes", 1.5),
        ("nodes", None),
        ("container_runtime", "docker"),
        ("setup", "module load cuda"),
        ("env", ["A=1"]),
        ("sbatch_args", {"comment": None}),
        ("exclusive", "perhaps"),
    ],
)
def test_wrong_types_name_key_value_and_source(name: str, value: object) -> None:
    with pytest.raises(UserError) as caught:
        load_cluster([], {name: value})
    assert str(caught.value).startswith(f"{name} ({value!r}, from command line): ")


def test_files_are_merged_in_their_order_and_options_win(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("nodes: 2\ngpus_per_node: 4\npartition: a\nenv: {A: '1', B: 1}\nsetup: [x, y]")
    second.write_text("gpus_per_node: 8\nqos: high\nenv: {B: '2'}\nsetup: [z]\naccount: 0123\n")
    base = {"nodes": 7, "reservation": "old"}
    merged = load_cluster([str(first), str(second)], {"qos": "low", "env": {"C": "3"}}, base)
    assert (merged.nodes, merged.gpus_per_node, merged.partition, merged.qos) == (2, 8, "a", "low")
    assert merged.env == {"A": "1", "B": "2", "C": "3"}
    assert merged.setup == ["z"]
    assert (merged.account, merged.reservation) == ("0123", "old")


def test_what_was_submitted_is_read_back_the_same() -> None:
    given: dict[str, Any] = {"setup": [r"export A=${B} \${C} \\${D}"], "env": {"X": "$Y ${Z}"}}
    config = load_cluster([], {**given, "mem_gb_per_gpu": 2.5, "container_mounts": ["/a:/b:ro"]})
    assert config.setup == given["setup"]  # the shell's dollars are not OmegaConf's
    assert config.env == given["env"]
    assert load_cluster([], {}, dataclasses.asdict(config)) == config


def test_a_clock_in_a_file_is_no_sexagesimal_number(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("time: 24:00:00\nnodes: 3\n")  # YAML 1.1 reads 86400
    config = load_cluster([str(path)], {})
    assert (config.time_min, config.nodes) == (1440, 3)


@pytest.mark.parametrize(
    ("content", "words"),
    [("- a\n", "must hold keys"), ("a: [", "cannot be read as YAML"), ("\x00", "cannot be read")],
)
def test_files_that_are_no_options(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=words):
        load_cluster([str(path)], {})
    path.write_text("")
    assert load_cluster([str(path)], {}) == ClusterConfig()


def test_a_missing_file_names_the_shipped_ones() -> None:
    with pytest.raises(UserError, match=r"--cluster \(gpu9\): no such file.*shipped: .*gpu8"):
        load_cluster(["gpu9"], {})


def test_shipped_cluster_configs_load() -> None:
    assert set(cluster_files()) == {"gpu8", "pyxis", "apptainer", "cpu"}
    for name, path in cluster_files().items():
        config = load_cluster([name], {})
        assert config != ClusterConfig()
        header = [line for line in path.read_text().splitlines() if line.startswith("#")]
        assert any("To change:" in line for line in header), name
        assert any(f"--cluster {name}" in line for line in header), name
    both = load_cluster(["gpu8", "pyxis"], {"nodes": 4})
    assert (both.world_size, both.exclusive, both.container_runtime) == (32, True, "pyxis")
    assert load_cluster(["gpu8", "apptainer"], {}).container_runtime == "apptainer"
    assert load_cluster(["cpu"], {}).gpus_per_node == 0


def test_what_is_commented_out_in_shipped_configs_would_load(tmp_path: Path) -> None:
    for name, path in cluster_files().items():
        head, _, body = path.read_text().rpartition("\n#\n")
        assert head, name
        lines = body.splitlines()
        first = next(i for i, line in enumerate(lines) if not line.startswith("#"))
        copy = tmp_path / path.name
        copy.write_text("\n".join(line.removeprefix("# ") for line in lines[first:]))
        load_cluster([str(copy)], {})


def test_submit_takes_a_shipped_name(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "launch.submit", "--cluster", "gpu8", "--cluster", "pyxis"]
    ended = subprocess.run(
        [*command, "--nodes=2", "--dry-run", "--config=resnet50", f"run.dir={tmp_path / 'run'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for line in ("--gpus-per-node=8", "--cpus-per-task=96", "--exclusive", "--nodes=2"):
        assert f"#SBATCH {line}\n" in ended.stdout
    assert "--container-image=/images/resnet_dist.sqsh" in ended.stdout
    assert not (tmp_path / "run").exists()


def parse(*arguments: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    add_options(parser)
    return given_options(parser.parse_args(arguments))


def test_options_leave_a_trace_only_where_they_are_given() -> None:
    assert parse() == {}
    given = parse("--nodes=2", "--no-exclusive", "--setup=a", "--setup=b", "--env", "A=x=y",
                  "--env=B=", "--max-restarts", "0")  # fmt: skip
    assert given == {
        "nodes": "2",
        "exclusive": False,
        "setup": ["a", "b"],
        "env": {"A": "x=y", "B": ""},
        "max_restarts": "0",
    }
    assert load_cluster([], given).env == {"A": "x=y", "B": ""}


def test_a_pair_without_a_value(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--env", "A")
    assert "--env (A): is not of the form NAME=VALUE" in capsys.readouterr().err


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
    for path in (ROOT / "launch").glob("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and node.name == "ClusterConfig":
                checks = [item for item in node.body if isinstance(item, ast.FunctionDef)]
                node.body = [item for item in checks if item.name != "__post_init__"] or [
                    ast.Pass()
                ]
        read |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert set(FIELDS) - read == set()
