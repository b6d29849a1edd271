"""The doctor finds each fault that was planted, says what to do, and leaves nothing behind.

What a CPU machine lacks is imitated: a clock and a speed of another host, GPUs, a file system
without locks.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from resnet_dist.config.load import load_config
from resnet_dist.doctor import gpus, machine
from resnet_dist.doctor.__main__ import main
from resnet_dist.doctor.finding import Finding, Verdict, conclusion, fail, ok, table, warn
from resnet_dist.doctor.ranks import Measured, judge

HOST = "node0"


def measured(rank: int, **changes: object) -> Measured:
    fields: dict[str, object] = {"flops": 1e12, "clock": 0.0, "sees_probe": True}
    return Measured(rank=rank, host=f"node{rank}", **{**fields, **changes})  # type: ignore[arg-type]


def verdicts(found: list[Finding]) -> dict[str, Verdict]:
    return {each.check: each.verdict for each in found}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("resnet_dist.doctor.ranks._SECONDS_OF_CONVOLUTION", 0.05)


def test_a_fit_machine_is_fit_and_nothing_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dist.device=cpu"]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1].startswith("fit to train")
    assert list(tmp_path.iterdir()) == []
    assert max(map(len, printed.splitlines())) <= 80


@pytest.mark.parametrize(
    ("settings", "check", "words"),
    [
        (["dist.world_size=4"], "process group", "but 1 processes were started"),
        (["data.root=missing"], "data", "missing): does not exist"),
        (["dist.device=cuda"], "process group", "torch sees no GPU"),
        (["train.global_batch_size=4", "train.accumulation_steps=8"], "batch", "8 micro-batches"),
        (["--config", "finetune", "model.name=timm:no_such_net"], "model", "no_such_net"),
        (["run.dir=/proc/runs"], "run folder", "cannot be written to"),
        (["data.train_size=8192", "train.global_batch_size=4096"], "shared memory", "--shm-size"),
    ],
)
def test_a_planted_fault_is_named(
    settings: list[str], check: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(settings) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert f"FAIL {check}" in printed
    assert words in printed
    assert "failed: mend" in printed


def test_bad_settings_are_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["optim.lr=-1"]) == 2
    assert "optim.lr" in capsys.readouterr().err


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4096k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("needs root and the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk(small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"run.dir={small_disk}/run"]) == 1
    printed = capsys.readouterr().out
    assert "FAIL  disk" in printed
    assert "FAIL  trial save" in printed
    assert "No space left" in " ".join(printed.split())
    assert list(small_disk.iterdir()) == []


def test_a_file_system_without_locks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    assert main(["data.loader=synthetic"]) == 1
    assert "FAIL  locks" in capsys.readouterr().out


def test_locks_that_lock_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    assert main(["data.loader=synthetic"]) == 1
    assert "two hold one lock" in " ".join(capsys.readouterr().out.split())


def test_too_few_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    from resnet_dist.world import World, torch

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    world = World(0, 4, 0, 4, torch.device("cpu"))
    (found,) = machine._cores(load_config([]).config, world)
    assert found.verdict is Verdict.FAIL
    assert "1 core(s) for 4 rank(s)" in found.what


def test_a_name_that_is_not_resolved(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "no-such-host.invalid")
    assert main(["data.loader=synthetic"]) == 0
    assert "warn  host name" in capsys.readouterr().out


def test_a_master_address_that_is_no_host(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    variables = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    for name, value in {**variables, "MASTER_ADDR": "no-such-host.invalid"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", "29400")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setattr("resnet_dist.world.die_with_parent", lambda: None)
    assert main(["data.loader=synthetic", "dist.device=cpu"]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "FAIL process group" in printed
    assert "MASTER_ADDR" in printed


def test_versions_that_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package whose metadata ask for what is not there."""
    folder = tmp_path / "planted-1.0.dist-info"
    folder.mkdir()
    lines = ["Metadata-Version: 2.1", "Name: planted", "Version: 1.0", "Requires-Dist: numpy<1"]
    lines += ["Requires-Dist: nowhere-to-be-found", 'Requires-Dist: absent; extra == "more"']
    (folder / "METADATA").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    first, second = machine.requirement_clashes("planted")
    assert "planted needs numpy<1" in first
    assert "nowhere-to-be-found, which is not installed" in second
    assert machine.requirement_clashes("torchvision") == []


def test_damaged_images_are_counted(
    tmp_path: Path, run_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    for split in ("train", "val"):
        for number, folder in enumerate(sorted((run_root / split).iterdir())):
            target = root / split / folder.name
            target.mkdir(parents=True)
            for path in list(folder.iterdir())[:2]:
                content = path.read_bytes()
                (target / path.name).write_bytes(content[: 200 if number == 0 else None])
    assert main([f"data.root={root}"]) == 0
    assert "images cannot be decoded" in " ".join(capsys.readouterr().out.split())


def test_a_clock_a_slow_rank_and_a_folder_that_is_not_shared() -> None:
    found = judge(
        [
            measured(0),
            measured(1, clock=-90.0),
            measured(2, flops=4e11),
            measured(3, sees_probe=False),
        ]
    )
    assert [(each.check, each.verdict) for each in found] == [
        ("speed", Verdict.WARN),
        ("clocks", Verdict.WARN),
        ("run folder", Verdict.FAIL),
    ]
    slow, clock, blind = (each.what for each in found)
    assert "rank 2 on node2 has 40%" in slow
    assert "node1 is 90.0 s behind" in clock
    assert "node3 does not see" in blind


def test_equal_ranks_are_well() -> None:
    assert set(verdicts(judge([measured(0), measured(1)])).values()) == {Verdict.OK}


@pytest.mark.parametrize(
    ("line", "verdict"),
    [
        ("0, GPU-1, NVIDIA H200, 1980, 1980, 40, 0, 5", Verdict.OK),
        ("0, GPU-1, NVIDIA H200, 1980, 1980, 40, [N/A], 5", Verdict.OK),
        ("0, GPU-1, NVIDIA H200, 1980, 1980, 40, 3, 5", Verdict.WARN),
        ("0, GPU-1, NVIDIA H200, 900, 1980, 91, 0, 5", Verdict.WARN),
        ("0, GPU-1, NVIDIA H200, 1980, 1980, 40, 0, 70000", Verdict.WARN),
    ],
)
def test_what_nvidia_smi_says(line: str, verdict: Verdict) -> None:
    assert gpus.judge(line).verdict is verdict


def test_the_table_names_hosts_only_where_they_differ() -> None:
    found = [("a", ok("cores", "8")), ("b", ok("cores", "8")), ("c", warn("cores", "1", "more"))]
    assert table(found) == ["ok    cores 8 (and 1 more)", "warn  cores c: 1", "            -> more"]
    assert conclusion([fail("a", "b")]) == "1 check(s) failed: mend them before you train"
