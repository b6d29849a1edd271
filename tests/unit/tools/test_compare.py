"""Reports of one run and of several, from folders as runs leave them."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from resnet_dist.config.help.listing import describe
from resnet_dist.config.load import load_config
from resnet_dist.report.__main__ import main
from resnet_dist.report.comparison import comparison_lines, differing_settings
from resnet_dist.report.facts import named_apart, read_run
from resnet_dist.report.overlay import loss_kind

BEGIN = 1_700_000_000.0


def make_run(folder: Path, *overrides: str, ceiling: float = 0.8, restart: bool = False) -> Path:
    """Two epochs of ten steps of 2 s, an evaluation of 5 s after each; with `restart`, a pause of
    100 s after step 10."""
    folder.mkdir(parents=True)
    settings = ["train.ema_decay=0.9", f"run.dir={folder}", *overrides]
    (folder / "config.yaml").write_text(describe(load_config(["quickstart"], settings)) + "\n")
    lines: list[dict[str, Any]] = []
    now = BEGIN + 10.0
    starts = [{"time": "2023-11-14T22:13:20+0000", "step": 0}]
    for step in range(1, 21):
        now += 2.0
        train = {
            "train/loss": 2.0 - step * 0.05,
            "train/top1": 0.04 * step,
            "train/lr": 0.1,
            "train/step_time_ms": 2000.0,
            "train/data_wait_share": 0.25,
            "train/images_per_second": 32.0,
            "checkpoint/blocked_ms": 3.0,
        }
        lines.append({"step": step, "epoch": step / 10, "time": now, **train})
        if step % 10 == 0:
            now += 5.0
            top1 = ceiling * (0.5 if step == 10 else 1.0)
            val = {"val/loss": 1.0, "val/top1": top1, "val/ema_top1": top1, "val/ema_loss": 1.0}
            lines.append({"step": step, "epoch": step / 10, "time": now, **val})
        if restart and step == 10:
            now = BEGIN + 135.0
            starts.append({"time": "2023-11-14T22:15:35+0000", "step": 10})
    for start in starts:
        start.update({"world_size": 2, "host": "<b>node</b>", "num_train_samples": 640})
    ends = [{"time": now, "outcome": "finished"}]
    for name, content in (("metrics", lines), ("starts", starts), ("ends", ends)):
        text = "".join(json.dumps(line) + "\n" for line in content)
        (folder / f"{name}.jsonl").write_text(text)
    return folder


def test_where_the_time_went(tmp_path: Path) -> None:
    times = read_run(make_run(tmp_path / "a", restart=True)).times
    assert times.steps == pytest.approx(30.0)
    assert times.data == pytest.approx(10.0)
    # From the evaluation after step 10, 35 s after the start, to the second start.
    assert times.stopped == pytest.approx(100.0)
    assert times.total == pytest.approx(160.0)
    assert times.rest == pytest.approx(20.0)
    assert times.goodput == pytest.approx(30 / 160)
    whole = read_run(make_run(tmp_path / "b")).times
    assert whole.stopped == 0.0


class _Outline(HTMLParser):
    """What a page loads, and whether its tags are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_runs_are_compared_in_one_page_without_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = make_run(tmp_path / "a", restart=True)
    second = make_run(tmp_path / "b & c", "optim.lr=0.4", "loss.label_smoothing=0.1", ceiling=0.7)
    out = tmp_path / "out"
    assert main([str(first), str(second), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines()[:-1])) <= 80
    assert re.search(r"final top-1 +80\.00% +70\.00%", printed)
    assert re.search(r"optim\.lr .* 0\.4", printed)
    assert (out / "report.png").read_bytes().startswith(b"\x89PNG")
    text = (out / "report.html").read_text()
    outline = _Outline()
    outline.feed(text)
    assert outline.open == []
    assert all(source.startswith("data:image/png;base64,") for source in outline.sources)
    assert "http" not in re.sub(r"base64,[^\"]+", "", text)
    assert "b &amp; c" in text
    assert "&lt;b&gt;node" in text
    assert "loss.label_smoothing" in text
    assert "seed" not in [key for key, _ in differing_settings([read_run(first)] * 2)]


def test_losses_that_cannot_be_compared_are_told_apart(tmp_path: Path) -> None:
    plain = read_run(make_run(tmp_path / "a"))
    smooth = read_run(make_run(tmp_path / "b", "loss.label_smoothing=0.1"))
    assert loss_kind(plain) == "cross entropy, smoothing 0.05"
    assert loss_kind(smooth) == "cross entropy, smoothing 0.1"


def test_one_run_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path / "a")
    assert main([str(folder), "--html"]) == 0
    assert "final validation top-1: 80.00%" in capsys.readouterr().out
    assert {"curves.png", "report.html"} <= {path.name for path in folder.iterdir()}


def test_a_copy_of_the_records_alone_is_enough(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = make_run(tmp_path / "whole")
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(whole / "metrics.jsonl", alone)
    assert main([str(whole), str(alone), "--out", str(tmp_path)]) == 0
    assert "no setting differs" in capsys.readouterr().out


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [read_run(make_run(tmp_path / user / "run")) for user in ("ann", "bob")]
    assert named_apart(runs) == ["ann/run", "bob/run"]
    assert len(set(named_apart([runs[0], runs[0]]))) == 2


def test_many_runs_are_printed_in_blocks(tmp_path: Path) -> None:
    runs = [read_run(make_run(tmp_path / (f"{number}" * 9))) for number in range(5)]
    lines = comparison_lines(runs)
    assert max(map(len, lines)) <= 80
    assert all(any(run.name in line for line in lines) for run in runs)


def test_a_folder_without_records_is_answered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(make_run(tmp_path / "a")), str(tmp_path / "none")]) == 2
    assert "metrics.jsonl" in capsys.readouterr().err
