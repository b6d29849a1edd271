"""`resnet-dist VERB`: what it answers without starting anything."""

from __future__ import annotations

import subprocess
import sys

import pytest

from resnet_dist.__main__ import VERBS, main


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "resnet_dist", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--help"], ["help"]):
        assert main(words) == 0
        out = capsys.readouterr().out
        assert all(verb in out for verb in VERBS)
        assert max(map(len, out.splitlines())) <= 80


def test_a_misspelled_verb_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: trian: no such verb; did you mean train?")
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_help_also_as_a_module(verb: str) -> None:
    assert run(verb, "--help").returncode == 0
    command = [sys.executable, "-m", f"resnet_dist.{verb}", "--help"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0
    assert "usage: " in ended.stdout


@pytest.mark.parametrize("number", ["0", "-1", "two"])
def test_a_wrong_number_of_processes(number: str) -> None:
    ended = run("train", f"--nproc={number}")
    assert ended.returncode == 2
    assert f"'{number}' is not a number of processes" in ended.stderr


def test_one_rank_cannot_start_others() -> None:
    command = [sys.executable, "-m", "resnet_dist.train", "--nproc", "2"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "use `resnet-dist train --nproc 2`, or torchrun" in ended.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["train", "--help"],
        ["train", "--help", "optim.lr"],
        ["train", "batch_size=3"],
        ["train", "--nproc=65", "train.global_batch_size=64"],
        ["train", "--print-config", "--config=resnet50", "--nproc=8"],
    ],
    ids=" ".join,
)
def test_answers_come_before_torch_is_imported(words: list[str]) -> None:
    code = (
        "import sys, contextlib\n"
        "from resnet_dist.__main__ import main\n"
        "with contextlib.suppress(SystemExit):\n"
        f"    main({words!r})\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
