"""From files and command-line options to a `ClusterConfig`; the shipped cluster configs."""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launch.cluster.option_sources import (
    add_options,
    cluster_files,
    given_options,
    load_cluster,
)
from launch.cluster.options import ClusterConfig
from resnet_dist.errors import UserError

ROOT = Path(__file__).parents[4]


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
