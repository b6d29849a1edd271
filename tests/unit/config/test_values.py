"""How values are read: text as it is, numbers strictly, and one clear error for the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from resnet_dist.config import is_text, type_hints
from resnet_dist.config.help.listing import describe
from resnet_dist.config.load import Resolved, load_config
from resnet_dist.errors import UserError

TEXTS = [
    "[a]",
    "{a: 1}",
    "1e3",
    "007",
    "2024-01-01",
    "true",
    "a: b",
    "a #b",
    "${oc.env:HOME}",
    "${",
    "???",
    "'quoted'",
    '"double"',
    "/x=y",
    " leading",
    "trailing ",
    "*star",
    "&anchor",
    "!tag",
    "%percent",
    "back\\slash",
    "",
    "~",
    "- item",
    "two\nlines",
    "caf\u00e9",
]


def read_back(resolved: Resolved, folder: Path) -> Resolved:
    path = folder / "config.yaml"
    path.write_text(describe(resolved))
    return load_config([str(path)])


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_taken_as_it_is_and_reads_back(text: str, tmp_path: Path) -> None:
    resolved = load_config([], [f"run.name={text}", f"data.root={text}"])
    assert (resolved.config.run.name, resolved.config.data.root) == (text, text)
    assert read_back(resolved, tmp_path).config == resolved.config


def test_null_is_a_value_of_text_that_may_be_null() -> None:
    config = load_config([], ["run.name=null", "data.root=null", "run.dir=null"]).config
    assert (config.run.name, config.data.root, config.run.dir) == ("null", None, None)


@pytest.mark.parametrize("text", ["2024", "1e3", "007", "1_000", "0x10", "true", "12:30", "2.50"])
def test_text_in_a_file_is_what_is_written(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"run:\n  name: {text}\n")
    resolved = load_config([str(path)])
    assert resolved.config.run.name == text
    assert read_back(resolved, tmp_path).config == resolved.config


@pytest.mark.parametrize("written", ["[a]", "{a: 1}", "null"])
def test_what_is_not_text_in_a_file_is_refused(written: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"run:\n  name: {written}\n")
    with pytest.raises(UserError, match=r"run\.name"):
        load_config([str(path)])


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("train.epochs=${x}", "references to other values are not resolved"),
        ("optim.lr=${oc.env:HOME}", "references to other values are not resolved"),
        ("optim.betas=['${x}',0.9]", "references to other values are not resolved"),
        ("train.loss_scale=???", "references to other values are not resolved"),
        ("train.epochs=1e20", "could not be converted to Integer"),
        ("train.epochs=99999999999", "must be at most 2147483647"),
        ("train.epochs=inf", "could not be converted to Integer"),
        ("train.epochs=3.5", "could not be converted to Integer"),
        ("train.epochs=true", "could not be converted to Integer"),
        ("train.epochs=[3]", "train.epochs"),
        ("train.epochs=null", "train.epochs"),
        ("train.epochs=", "train.epochs"),
        ("dist.timeout_s=1e20", "must lie in (0, 10000000)"),
        ("optim.lr=inf", "must be positive and finite"),
        ("optim.lr=.inf", "must be positive and finite"),
        ("optim.lr=nan", "must be positive and finite"),
        ("optim.lr=.nan", "must be positive and finite"),
        ("optim.lr=true", "could not be converted to Float"),
        ("optim.betas=[nan,0.9]", "must lie in [0, 1) and finite"),
        ("optim.betas=[0.9]", "must be [number, number]"),
        ("optim.betas={}", "must be [number, number], not keys"),
        ("optim.betas=[[0.9, 0.9], [0.9]]", "not keys or a list of lists"),
        ("optim.lr={}", "must be number, not keys"),
        ("optim.betas=0.9", "optim.betas"),
        ("optim.betas=[a,0.9]", "must be [number, number]"),
        ("optim.betas=[0.9", "cannot read the value"),
        ("optim.nesterov=perhaps", "optim.nesterov"),
        ("train={epochs: [", "cannot read the value"),
        ("[=1", "[ (from command line): unknown key"),
        ("=1", "unknown key"),
        ("train.precision=fp16", "did you mean float16?"),
        ("train.precision=bf16", "did you mean bfloat16?"),
        ("schedule.name=one-cycle", "did you mean one_cycle?"),
        ("model.name=ResNet-50", "did you mean resnet50?"),
    ],
)
def test_what_cannot_be_a_value_ends_in_one_clear_line(override: str, part: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config([], [override])
    assert part in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_numbers_as_they_are_typed() -> None:
    config = load_config(
        [],
        [
            "optim.lr=1e-3",
            "optim.weight_decay=5E-5",
            "optim.betas=[.8, 1e-1]",
            "train.epochs=007",
            "optim.nesterov=True",
            "schedule={warmup_epochs: 2, milestones: [3, 4]}",
            "train.clip_grad_norm=~",
        ],
    ).config
    assert (config.optim.lr, config.optim.weight_decay) == (1e-3, 5e-5)
    assert (config.optim.betas, config.train.epochs) == ((0.8, 0.1), 7)
    assert config.optim.nesterov
    assert (config.schedule.warmup_epochs, config.schedule.milestones) == (2.0, (3.0, 4.0))
    assert config.train.clip_grad_norm is None


def test_which_settings_are_text() -> None:
    assert {"run.name", "run.dir", "run.resume", "data.root"} <= {
        key for key, hint in type_hints().items() if is_text(hint)
    }
