"""A network that another one learns from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

from resnet_dist.config import DataConfig, LossConfig, ModelConfig
from resnet_dist.errors import UserError
from resnet_dist.loss import distillation_sum
from resnet_dist.models.build import build_model
from resnet_dist.weights.teacher import Teacher, sync_open_teacher
from resnet_dist.world import World
from tests.launch import newest_checkpoint, records, train

WORLD = World(0, 1, 0, 1, torch.device("cpu"))
CLASSES = [f"class{number}" for number in range(4)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A state dict of a narrow ResNet-18 with 4 outputs."""
    path = tmp_path / "teacher.pth"
    model = build_model(ModelConfig(name="resnet18", width=8), num_classes=4, seed=3)
    torch.save(model.state_dict(), path)
    return path


def open_teacher(path: Path, *, num_classes: int = 4, **data: Any) -> Teacher:
    found = sync_open_teacher(
        LossConfig(teacher=str(path), teacher_weight=0.3, teacher_temperature=2.0),
        DataConfig(**data),
        classes=CLASSES[:num_classes],
        num_classes=num_classes,
        world=WORLD,
    )
    assert found is not None
    return found


def test_it_gives_the_outputs_of_its_file(file: Path) -> None:
    teacher = open_teacher(file)
    model = build_model(ModelConfig(name="resnet18", width=8), num_classes=4, seed=3).eval()
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found = teacher.logits(images)
    torch.testing.assert_close(found, model(images).detach(), rtol=1e-4, atol=1e-5)
    assert not found.requires_grad


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": (0.5, 0.5, 0.5)}, r"data\.mean .*set that"),
        ({"num_classes": 3}, r"loss\.teacher .*has 4 outputs"),
    ],
)
def test_one_that_sees_other_images_or_classes_is_refused(
    file: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        open_teacher(file, **changes)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"loss\.teacher"):
        open_teacher(tmp_path / "none.pth")


def test_the_loss_is_hintons() -> None:
    generator = torch.Generator().manual_seed(0)
    own, other = torch.randn(2, 6, 5, generator=generator)
    expected = 4 * kl_div(log_softmax(own / 2, 1), softmax(other / 2, 1), reduction="sum")
    torch.testing.assert_close(distillation_sum(own, other, 2.0), expected)
    # At temperature 1 its gradient is that of the cross-entropy with the teacher's probabilities.
    own.requires_grad_(True)
    (one,) = torch.autograd.grad(distillation_sum(own, other, 1.0), own)
    (two,) = torch.autograd.grad(cross_entropy(own, softmax(other, 1), reduction="sum"), own)
    torch.testing.assert_close(one, two)


@pytest.mark.slow
def test_a_run_learns_from_a_run_on_any_number_of_ranks(run_root: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    train(1, run_root, teacher, "train.max_steps=8")
    settings = [f"loss.teacher={teacher}", "loss.teacher_weight=1.0", "train.max_steps=4"]
    for ranks in (1, 2):
        train(ranks, run_root, tmp_path / str(ranks), *settings)
    one, two = (
        [record["train/loss"] for record in records(tmp_path / name) if "train/loss" in record]
        for name in ("1", "2")
    )
    assert two == pytest.approx(one, rel=1e-4)
    saved = newest_checkpoint(tmp_path / "1")
    assert saved["config"]["loss.teacher"] == str(teacher)
