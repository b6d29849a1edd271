"""Configuration: merging, origins, and every kind of bad input at once."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from resnet_dist.config import Config, field_paths
from resnet_dist.config.command_line import parse_arguments
from resnet_dist.config.help.listing import describe
from resnet_dist.config.load import (
    exact_differences,
    find_config,
    load_config,
    shipped_configs,
    to_flat,
)
from resnet_dist.errors import UserError

PACKAGE = Path(__file__).parents[3] / "resnet_dist"


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_later_sources_win_and_are_named(tmp_path: Path) -> None:
    first = write(tmp_path / "a.yaml", "train:\n  epochs: 3\n  global_batch_size: 8\n")
    second = write(tmp_path / "b.yaml", "train:\n  epochs: 4\noptim:\n")
    resolved = load_config([first, second], ["loss.label_smoothing=0.1"])
    train, smoothing = resolved.config.train, resolved.config.loss.label_smoothing
    assert (train.epochs, train.global_batch_size, smoothing) == (4, 8, 0.1)
    assert resolved.sources["train.epochs"] == second
    assert resolved.sources["train.global_batch_size"] == first
    assert resolved.sources["loss.label_smoothing"] == "command line"
    assert resolved.sources["optim.lr"] == "default"


def test_all_errors_at_once_with_near_names(tmp_path: Path) -> None:
    text = "train:\n  epoch: 3\n  precision: fp16\nmodle:\n  name: x\noptim: 3\nseed: -1\n"
    path = write(tmp_path / "bad.yaml", text)
    with pytest.raises(UserError) as caught:
        load_config([path], ["train.epochs=0", "lr=3", "foo", "train.clip_grad_norm=abc"])
    message = str(caught.value)
    for part in (
        "train.epoch (from",
        "did you mean train.epochs?",
        "expected one of ['float32', 'bfloat16', 'float16']",
        "did you mean model.name?",
        "optim (from",
        "train.epochs (0): must be at least 1",
        "did you mean optim.lr?",
        "argument (foo): is not of the form key=value",
        "train.clip_grad_norm ('abc', from command line)",
    ):
        assert part in message, part
    assert "Traceback" not in message


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("data.eval_size=300", "must not exceed data.eval_resize_size"),
        ("augment.crop_scale=[0.5,0.1]", "needs low <= high"),
        ("data.std=[0,1,1]", "must be positive"),
        ("augment.flip_probability=1.5", "must lie in [0, 1]"),
        ("augment.mixup_alpha=-1", "must lie in [0, 100]"),
        ("augment.cutmix_alpha=101", "must lie in [0, 100]"),
        ("augment.mix_probability=2", "must lie in [0, 1]"),
        ("augment.erase_probability=-0.1", "must lie in [0, 1]"),
        ("augment.erase_scale=[0,0.3]", "must lie in (0, 1]"),
        ("augment.erase_ratio=[3,0.3]", "needs low <= high"),
        ("augment.ra_magnitude=31", "must lie in [0, 30]"),
        ("augment.ra_num_ops=0", "at least 1"),
        ("augment.color_jitter=[0,0,0,0.6]", "must not have a hue above 0.5"),
        ("augment.ra_reps=0", "at least 1"),
        ("augment.progressive_multiple=0", "at least 1"),
        ("augment.progressive_epochs=[3,1]", "needs low <= high"),
        ("dali.hw_decoder_load=1.5", "must lie in [0, 1]"),
        ("dali.max_preallocated_side=-1", "must not be negative"),
        ("loss.bce_sum_classes=true", "needs loss.name=binary_cross_entropy"),
        ("loss.bce_target_threshold=0.2", "needs loss.name=binary_cross_entropy"),
        (
            "loss.name=binary_cross_entropy loss.bce_target_threshold=1",
            "bce_target_threshold (1.0): must lie in [0, 1)",
        ),
        ("model.width=1", "at least 8"),
        ("optim.lr=-1", "must be positive"),
        ("optim.nesterov=true optim.momentum=0", "needs optim.momentum > 0"),
        ("optim.name=lamb optim.decay_norm_and_bias=true", "does not go with optim.name=lamb"),
        ("optim.name=lars optim.weight_decay=0", "must be positive for optim.name=lars"),
        ("train.clip_grad_norm=1 train.clip_grad_value=1", "excludes train.clip_grad_value"),
        ("performance.compile_mode=max-autotune", "needs performance.compile=true"),
        (
            "performance.cuda_graph=true performance.compile=true "
            "performance.compile_mode=reduce-overhead",
            "makes CUDA graphs of its own",
        ),
        ("train.precision=bfloat16 train.loss_scale=128", "needs train.precision=float16"),
        ("train.precision=float16 train.loss_scale=0", "must be positive"),
        ("train.precision=float16 train.loss_scale=.inf", "must be positive"),
        ("schedule.name=one_cycle schedule.warmup_epochs=1", "does not go with"),
        ("schedule.milestones=[3,1]", "must rise"),
        ("checkpoint.keep_last=0", "at least 1"),
        ("dist.timeout_s=0", "must lie in (0, 10000000)"),
        ("eval.batch_size=0", "at least 1"),
        ("log.every_steps=0", "at least 1"),
    ],
)
def test_each_rule_names_path_value_and_remedy(override: str, part: str) -> None:
    with pytest.raises(UserError, match=re.escape(part)) as caught:
        load_config([], override.split())
    assert "; " in str(caught.value)


def test_settings_of_speed_that_go_together() -> None:
    overrides = [
        "performance.cuda_graph=true",
        "performance.compile=true",
        "performance.compile_mode=max-autotune-no-cudagraphs",
        "train.precision=float16",
        "train.loss_scale=128",
    ]
    assert load_config([], overrides).config.train.loss_scale == 128.0


def test_two_broken_rules_of_one_section_are_both_told() -> None:
    with pytest.raises(UserError) as caught:
        load_config([], ["optim.lr=0", "optim.weight_decay=-1"])
    assert "optim.lr" in str(caught.value)
    assert "optim.weight_decay" in str(caught.value)


def test_malformed_yaml_names_the_file(tmp_path: Path) -> None:
    for text in ("train: [", "- 1\n- 2\n", "train:\n  epochs: 1\n  epochs: 2\n"):
        path = write(tmp_path / "broken.yaml", text)
        with pytest.raises(UserError, match=r"broken\.yaml"):
            load_config([path])


def test_shipped_configs_are_found_by_bare_name_and_valid() -> None:
    assert {"quickstart", "resnet50", "cifar10_resnet9"} <= set(shipped_configs())
    for name, path in shipped_configs().items():
        assert find_config(name) == path
        assert find_config(f"configs/{name}.yaml").samefile(path)
        assert load_config([name]).config.run.name == name
    with pytest.raises(UserError, match=re.escape("did you mean resnet50?")):
        find_config("resnt50")


def test_no_config_means_the_quickstart() -> None:
    assert load_config([]).config == load_config(["quickstart"]).config


def test_print_config_shows_every_value_and_its_origin() -> None:
    text = describe(load_config(["resnet50"], ["seed=3"]))
    assert re.search(r"^seed: 3 +# command line  Everything random is a function", text, re.M)
    assert re.search(r"^  milestones: \[30\.0, 60\.0\] +# resnet50 +Epochs at which", text, re.M)
    for path in field_paths():
        name = path.rpartition(".")[2]
        assert re.search(rf"^ *{name}: .*# (default|resnet50|command line) +\S", text, re.M), path


@pytest.mark.parametrize(
    "run_dir",
    ["runs/a", "a folder: with # odd - names", *(f"/scratch/{'x' * n}" for n in range(20, 90, 7))],
)
def test_described_config_reads_back_equal(tmp_path: Path, run_dir: str) -> None:
    resolved = load_config(["resnet50"], ["seed=3", f"run.dir={run_dir}"])
    path = write(tmp_path / "config.yaml", describe(resolved))
    assert load_config([path]).config == resolved.config
    assert resolved.config.run.dir == run_dir


def test_exact_differences_ignore_what_does_not_change_the_mathematics() -> None:
    saved = to_flat(load_config([]).config)
    harmless = load_config([], ["log.every_steps=7", "run.dir=/elsewhere", "data.loader=dali"])
    assert exact_differences(saved, harmless.config) == []
    changed = load_config([], ["optim.lr=0.123", "train.epochs=77"])
    assert [each.key for each in exact_differences(saved, changed.config)] == [
        "train.epochs",
        "optim.lr",
    ]
    del saved["optim.nesterov"]  # an older checkpoint: the default is meant
    expected = load_config([]).config.optim.nesterov != Config().optim.nesterov
    assert bool(exact_differences(saved, load_config([]).config)) == expected


def test_arguments() -> None:
    arguments = parse_arguments(
        ["a.b=1", "--config", "x", "--config", "y", "c=2", "--print-config"],
        prog="p",
        description="",
    )
    assert arguments.files == ["x", "y"]
    assert arguments.overrides == ["a.b=1", "c=2"]
    assert arguments.print_config


def test_every_setting_is_read_somewhere() -> None:
    sources = "\n".join(
        path.read_text()
        for path in PACKAGE.rglob("*.py")
        if path.relative_to(PACKAGE).parts[0] not in ("config",)
    )
    unread = [
        path
        for path in field_paths()
        if not re.search(rf"\.{re.escape(path.rpartition('.')[2])}\b", sources)
    ]
    assert unread == []


def test_config_and_preview_import_neither_torch_nor_numpy() -> None:
    code = (
        "import sys, resnet_dist.config.load, resnet_dist.config.help.page\n"
        "import resnet_dist.report.preview\n"
        "print([m for m in ('torch', 'numpy', 'PIL', 'torchvision') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert out.stdout == "[]\n"
