"""--print-config: what follows from a config, with and without the data, and without torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from resnet_dist.config.command_line import Arguments
from resnet_dist.config.load import load_config, shipped_configs
from resnet_dist.errors import UserError
from resnet_dist.report.preview import (
    answer,
    count_train_samples,
    derived_lines,
    difference_notes,
)

IMAGENET = 1_281_167


def lines_of(
    capsys: pytest.CaptureFixture[str], *overrides: str, files: tuple[str, ...] = (), nproc: int = 1
) -> tuple[int | None, str]:
    code = answer(Arguments(list(files), list(overrides), print_config=True, nproc=nproc))
    return code, capsys.readouterr().out


def test_without_the_option_there_is_no_answer() -> None:
    assert answer(Arguments([], [], print_config=False)) is None


def test_a_recipe_plans_for_its_own_data_set(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = lines_of(capsys, files=("resnet50",), nproc=8)
    assert code == 0
    assert f"# training samples: {IMAGENET} (143 left out" in text
    assert "# steps: 5004 per epoch, 450360 in all" in text
    assert "# global batch: 256 = 8 rank(s) of 32" in text
    assert "0.1 at step 0" in text


def test_what_is_printed_reads_back(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    _, text = lines_of(capsys, files=("resnet50",))
    (tmp_path / "printed.yaml").write_text(text)
    assert load_config([str(tmp_path / "printed.yaml")]).config == load_config(["resnet50"]).config
    assert next(iter(yaml.safe_load(text)["data"])) is not None


def test_a_given_number_is_planned_for(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = lines_of(capsys, "data.num_train_samples=1000")
    assert code == 0
    assert "# steps: 15 per epoch" in text


def test_without_data_and_number_it_is_the_embedded_data_set() -> None:
    assert count_train_samples(load_config([]).config.data)[0] == 4000


def test_data_that_is_not_there_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = lines_of(capsys, "data.root=/nowhere")
    assert code == 2
    assert "cannot be derived: data.root (/nowhere): does not exist" in text
    code, text = lines_of(capsys, "data.root=/nowhere", "data.num_train_samples=1000")
    assert code == 0
    assert "note: planned for data.num_train_samples" in text


def test_the_count_of_data_that_is_there_wins(run_root: Path) -> None:
    data = load_config([], [f"data.root={run_root}"]).config.data
    count, notes = count_train_samples(data)
    assert notes == []
    given = load_config([], [f"data.root={run_root}", "data.num_train_samples=5"]).config.data
    assert count_train_samples(given) == (count, difference_notes(given, count))
    assert f"the data has {count} training samples, not the 5" in difference_notes(given, count)[0]


def test_a_batch_above_the_data_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = lines_of(capsys, "data.num_train_samples=10")
    assert code == 2
    assert "train.global_batch_size (64): exceeds the 10 training samples" in text


def test_the_ranks_are_those_that_were_started(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert answer(Arguments(["resnet50"], [], print_config=True)) == 0
    assert "256 = 4 rank(s) of 64" in capsys.readouterr().out
    monkeypatch.setenv("RANK", "1")
    assert answer(Arguments(["resnet50"], [], print_config=True)) == 0
    assert capsys.readouterr().out == ""


def test_wrong_settings_are_an_error() -> None:
    with pytest.raises(UserError, match=r"optim\.lr"):
        answer(Arguments([], ["optim.lr=0"], print_config=True))


@pytest.mark.parametrize("config", ["resnet50", "resnet50_tv_v2"])
def test_neither_torch_nor_numpy_is_imported(config: str) -> None:
    code = (
        "import sys\nfrom resnet_dist.config.command_line import Arguments\n"
        "from resnet_dist.report.preview import answer\n"
        f"assert answer(Arguments([{config!r}], [], print_config=True)) == 0\n"
        "print([m for m in ('torch', 'numpy') if m in sys.modules])"
    )
    environment = {key: value for key, value in os.environ.items() if key != "RANK"}
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    )
    assert ended.stdout.endswith("[]\n")


@pytest.mark.parametrize("name", shipped_configs())
def test_what_follows_fits_80_columns(name: str) -> None:
    for nproc in (1, 8):
        lines = derived_lines(load_config([name]).config, IMAGENET, nproc)
        assert max(map(len, lines)) <= 78, lines
