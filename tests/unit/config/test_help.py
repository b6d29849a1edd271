"""What a user is told about settings: words of other trainers, --help, the generated page."""

from __future__ import annotations

from pathlib import Path

import pytest

from resnet_dist.config import SECTIONS, field_paths, type_hints
from resnet_dist.config.command_line import parse_arguments
from resnet_dist.config.help.aliases import KEYS, TELLS, VALUES, answer_to, key_of
from resnet_dist.config.help.answers import explain, overview, type_in_words
from resnet_dist.config.help.docstrings import first_sentence, section_docs, setting_docs
from resnet_dist.config.help.listing import describe
from resnet_dist.config.help.page import page
from resnet_dist.config.load import load_config
from resnet_dist.errors import UserError

ROOT = Path(__file__).parents[3]
TYPED_BY_EVERYBODY = """
    batch_size batch bs lr learning_rate wd weight_decay momentum amp fp16 bf16 precision
    epochs num_epochs workers num_workers arch model pretrained weights resume checkpoint
    seed gpus nproc data data_dir dataset output_dir out name label_smoothing mixup cutmix
    ema clip clip_grad img_size image_size input_size max_steps log_interval optimizer opt
    scheduler warmup warmup_epochs drop_path compile channels_last sync_bn local_rank
"""


def test_each_alias_leads_to_a_key_that_exists() -> None:
    assert set(KEYS) <= set(field_paths())


def test_no_word_is_given_twice() -> None:
    words = " ".join([*KEYS.values(), *TELLS]).split()
    assert sorted(words) == sorted(set(words))


def test_each_value_alias_is_a_value_of_some_setting() -> None:
    allowed = {str(hint) for hint in type_hints().values()}
    assert all(any(f"'{value}'" in hint for hint in allowed) for value in VALUES.values())


@pytest.mark.parametrize("word", TYPED_BY_EVERYBODY.split())
def test_what_everybody_types_is_answered_and_never_accepted(word: str) -> None:
    if word == "seed":
        assert load_config([], ["seed=1"]).config.seed == 1
        return
    for key in (word, f"train.{word}", f"--{word.replace('_', '-')}"):
        if key in field_paths():
            continue
        with pytest.raises(UserError) as caught:
            load_config([], [f"{key}=1"])
        message = str(caught.value)
        if key in SECTIONS:
            assert "is a section; set its keys" in message
        else:
            assert f"{key} (from command line): unknown key; " in message
            assert answer_to(word) is not None


def test_the_batch_size_is_not_the_one_of_evaluation() -> None:
    with pytest.raises(UserError, match=r"did you mean train\.global_batch_size\?"):
        load_config([], ["batch_size=256"])
    assert key_of("train.batch_size") == "train.global_batch_size"


def test_every_section_and_setting_has_a_docstring() -> None:
    assert set(setting_docs()) == set(field_paths())
    assert all(setting_docs().values())
    assert all(section_docs()[name] for name in SECTIONS)


def test_help_of_a_setting() -> None:
    text = explain("optim.lr")
    for part in ("optim.lr", "Peak learning rate", "default: 0.1", "type: number", "allowed: > 0"):
        assert part in text
    assert "may a resumed run change it: no" in text
    assert "may a resumed run change it: yes" in explain("log.every_steps")
    assert "allowed: float32, bfloat16, float16" in explain("train.precision")


def test_help_of_a_section_a_word_and_nothing() -> None:
    section = explain("optim")
    assert all(key in section for key in field_paths() if key.startswith("optim."))
    assert explain("lr") == explain("optim.lr")
    assert "--nproc" in explain("gpus")
    with pytest.raises(UserError, match=r"did you mean optim\.momentum"):
        explain("optim.momentun")


def test_every_key_can_be_explained() -> None:
    for name in (*field_paths(), *SECTIONS):
        assert name in explain(name)


def test_help_lists_the_sections() -> None:
    assert all(f"\n  {name} " in overview() for name in SECTIONS)


@pytest.mark.parametrize(
    ("argv", "code", "part"),
    [
        (["--help"], 0, "--help SECTION"),
        (["--help", "optim.lr"], 0, "Peak learning rate"),
        (["--help", "optim.lr=3"], 0, "Peak learning rate"),
        (["train.epochs=3", "--help", "optim"], 0, "optim.momentum"),
        (["--nproc", "0"], 2, "'0' is not a number of processes"),
        (["--help", "no_such_thing"], 2, "error: --help (no_such_thing)"),
    ],
)
def test_the_option(
    argv: list[str], code: int, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_arguments(argv, prog="p", description="")
    assert caught.value.code == code
    assert part in "".join(capsys.readouterr())


def test_first_sentence() -> None:
    assert first_sentence("One. Two.") == "One"
    assert (
        first_sentence("By Goyal et al. 2017, all of it. More.")
        == "By Goyal et al. 2017, all of it"
    )
    assert first_sentence("word " * 40).endswith(" ...")
    assert len(first_sentence("word " * 40)) <= 100


def test_types_in_words() -> None:
    hints = type_hints()
    assert type_in_words(hints["optim.betas"]) == "[number, number]"
    assert type_in_words(hints["schedule.milestones"]) == "[number, ...]"
    assert type_in_words(hints["run.dir"]) == "text or null"
    assert type_in_words(hints["performance.compile"]) == "true or false or null"


def test_the_page_is_current() -> None:
    written = (ROOT / "docs" / "configuration.md").read_text()
    assert written == page(), "run `make docs`"


def test_a_config_whose_values_all_come_from_a_long_path_reads_back(tmp_path: Path) -> None:
    """As a submitted run that is resumed: every value's origin is its config.yaml."""
    before = load_config(["resnet50"], ["run.name=a"])
    path = tmp_path / "a_folder_with_a_name_of_some_length" / "config.yaml"
    path.parent.mkdir()
    path.write_text(describe(before))
    again = load_config([str(path)])
    assert again.config == before.config
    path.write_text(describe(again))
    assert load_config([str(path)]).config == before.config
