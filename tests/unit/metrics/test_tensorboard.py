"""Event files: what TensorBoard shows, what a kill leaves, what a resume keeps."""

from __future__ import annotations

import io
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from resnet_dist.metrics.tensorboard import TensorBoardRecorder, event_files
from tests.unit.metrics.event_files import (
    accumulated_steps,
    open_accumulator,
    raw_events,
    raw_steps,
)


def record(folder: Path, *, resume_step: int, last: int) -> TensorBoardRecorder:
    """Record the steps after `resume_step` up to `last`, and leave it open like a killed run."""
    recorder = TensorBoardRecorder(folder, resume_step=resume_step)
    for step in range(resume_step + 1, last + 1):
        recorder.scalars(step, {"train/loss": 1 / step, "train/lr": 0.1})
    return recorder


def test_values_images_and_texts_are_what_was_given(tmp_path: Path) -> None:
    recorder = TensorBoardRecorder(tmp_path, resume_step=0)
    recorder.scalars(7, {"train/loss": 0.5, "epoch": 0.25})
    images = torch.randint(256, (5, 3, 16, 24), dtype=torch.uint8)
    recorder.images(7, "images", images)
    recorder.text(7, "config", "a: 1\nb: [2]")
    recorder.flush()
    accumulator = open_accumulator(tmp_path)
    assert [(e.step, e.value) for e in accumulator.Scalars("train/loss")] == [(7, 0.5)]
    (event,) = accumulator.Images("images")
    picture = Image.open(io.BytesIO(event.encoded_image_string))
    assert picture.size == (24 * 5, 16)
    corner = torch.tensor(list(picture.crop((24, 0, 48, 16)).tobytes())).view(16, 24, 3)
    assert torch.equal(corner.permute(2, 0, 1).to(torch.uint8), images[1])
    (event,) = accumulator.Tensors("config/text_summary")
    assert event.tensor_proto.string_val[0] == b"    a: 1\n    b: [2]\n"
    recorder.close()


def test_a_tail_cut_at_any_byte_loses_only_the_cut_record(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    recorder = record(whole, resume_step=0, last=3)
    recorder.flush()
    (path,) = event_files(whole)
    flushed = path.stat().st_size
    recorder.scalars(4, {"train/loss": 9.0})
    recorder.close()
    content = path.read_bytes()
    for cut in range(flushed, len(content)):
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / path.name).write_bytes(content[:cut])
        TensorBoardRecorder(folder, resume_step=4).close()
        assert (folder / path.name).read_bytes() == content[:flushed]
    path.write_bytes(content[:-3] + b"\xff" + content[-2:])  # damaged, not short
    TensorBoardRecorder(whole, resume_step=4).close()
    assert path.read_bytes() == content[:flushed]


def test_dropped_events_are_gone_and_kept_ones_keep_their_times(tmp_path: Path) -> None:
    record(tmp_path, resume_step=0, last=6).close()
    times = {event.step: event.wall_time for event in raw_events(tmp_path)}
    recorder = record(tmp_path, resume_step=4, last=5)
    recorder.close()
    first, second = event_files(tmp_path)
    assert raw_steps(tmp_path)["train/loss"] == [1, 2, 3, 4, 5]
    for event in raw_events(tmp_path):
        if event.HasField("summary") and event.step <= 4:
            assert event.wall_time == times[event.step]
    # A fall back to an older checkpoint empties the second file and shortens the first.
    TensorBoardRecorder(tmp_path, resume_step=2).close()
    assert raw_steps(tmp_path)["train/loss"] == [1, 2]
    assert event_files(tmp_path) == [first, second]  # a running TensorBoard may have it open
    TensorBoardRecorder(tmp_path, resume_step=0).close()
    assert raw_steps(tmp_path) == {}


@pytest.mark.parametrize("resume_step", [0, 3])
def test_a_running_tensorboard_forgets_what_was_dropped(tmp_path: Path, resume_step: int) -> None:
    killed = record(tmp_path, resume_step=0, last=6)
    killed.flush()
    watching = open_accumulator(tmp_path)
    assert accumulated_steps(watching)["train/loss"] == [1, 2, 3, 4, 5, 6]
    record(tmp_path, resume_step=resume_step, last=8).close()
    watching.Reload()
    shown = accumulated_steps(watching)["train/loss"]
    assert shown == [1, 2, 3, 4, 5, 6, 7, 8]
    assert accumulated_steps(tmp_path) == {
        "train/loss": [1, 2, 3, 4, 5, 6, 7, 8],
        "train/lr": [1, 2, 3, 4, 5, 6, 7, 8],
    }
    killed.close()


def test_files_sort_in_order_although_the_clock_goes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    for resume_step, clock in ((0, now), (2, now - 3600), (4, now)):
        monkeypatch.setattr(time, "time", lambda clock=clock: clock)
        record(tmp_path, resume_step=resume_step, last=resume_step + 2).close()
    assert len(event_files(tmp_path)) == 3
    assert raw_steps(tmp_path)["train/loss"] == [1, 2, 3, 4, 5, 6]


def test_texts_and_images_of_a_step_are_kept_once(tmp_path: Path) -> None:
    for resume_step in (0, 4, 4):
        recorder = record(tmp_path, resume_step=resume_step, last=4)
        recorder.text(resume_step, "config", f"from {resume_step}")
        recorder.images(0, "images", torch.zeros(1, 3, 4, 4, dtype=torch.uint8))
        recorder.close()
    assert raw_steps(tmp_path)["config/text_summary"] == [0, 4]
    assert raw_steps(tmp_path)["images"] == [0]


def test_settings_and_layout_are_written_once_and_survive_a_resume(tmp_path: Path) -> None:
    for resume_step in (0, 2):
        recorder = record(tmp_path, resume_step=resume_step, last=resume_step + 3)
        recorder.settings({"optim.lr": 0.1, "model.name": "resnet18", "optim.nesterov": True})
        recorder.close()
    steps = raw_steps(tmp_path)
    tags = ("_hparams_/experiment", "_hparams_/session_start_info", "custom_scalars__config__")
    assert [steps[tag] for tag in tags] == [[0], [0], [0]]


def test_files_of_an_earlier_version_move_up_and_are_kept(tmp_path: Path) -> None:
    """They were in a folder `tensorboard`, which TensorBoard showed in each run's name."""
    record(tmp_path / "tensorboard", resume_step=0, last=5).close()
    record(tmp_path, resume_step=3, last=6).close()
    assert not (tmp_path / "tensorboard").exists()
    assert accumulated_steps(tmp_path)["train/loss"] == [1, 2, 3, 4, 5, 6]
