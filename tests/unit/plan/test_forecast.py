"""The forecast's arithmetic, against numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from resnet_dist.config import Config
from resnet_dist.config.load import load_config
from resnet_dist.plan.__main__ import main
from resnet_dist.plan.forecast import Figures, forecast, limit, lines

TRAIN, VAL = 1_281_167, 50_000


def config_of(*settings: str, name: str = "resnet50") -> Config:
    return load_config([name], list(settings)).config


def test_hours_of_a_standard_run() -> None:
    run = forecast(config_of(), Figures(2500.0), ranks=8, num_train=TRAIN, num_val=VAL)
    images = 1_281_167 // 256 * 256 * 90
    assert (run.steps, run.images) == (images // 256, images)
    assert run.train_s == pytest.approx(images / 20_000)
    assert run.eval_s == pytest.approx(90 * VAL / (3 * 20_000))
    assert run.rank_hours == pytest.approx(8 * run.seconds / 3600)


def test_what_makes_a_run_longer_or_shorter() -> None:
    def seconds(*settings: str, figures: Figures | None = None) -> tuple[float, float]:
        run = forecast(
            config_of(*settings),
            figures or Figures(2500.0, eval_images_per_s=5000.0),
            ranks=8,
            num_train=TRAIN,
            num_val=VAL,
        )
        return run.train_s, run.eval_s

    train, evaluation = seconds()
    assert seconds("train.ema_decay=0.9999", "eval.flip=true")[1] == pytest.approx(4 * evaluation)
    assert seconds("eval.every_epochs=45")[1] == pytest.approx(evaluation / 45)
    assert seconds("train.max_steps=5004")[0] == pytest.approx(train / 90)
    progressive = ["augment.progressive_start_size=160", "augment.progressive_epochs=[0, 1]"]
    sizes = [160.0] + [224.0] * 89
    expected = train * sum(size**2 for size in sizes) / (90 * 160**2)
    assert seconds(*progressive)[0] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("both", "step", "loader", "word"),
    [
        (90.0, 100.0, 95.0, "the loader"),
        (80.0, 100.0, 120.0, "share the same cores"),
        (99.0, 100.0, 300.0, "the step"),
        (99.0, 100.0, None, "not measured"),
    ],
)
def test_the_limit(both: float, step: float, loader: float | None, word: str) -> None:
    figures = Figures(both, step_images_per_s=step, loader_images_per_s=loader)
    assert word in limit(figures)


def test_the_words_fit_80_columns() -> None:
    figures = Figures(2500.0, 2600.0, 9000.0, 8000.0, 650.0, 70.0, 300 << 20)
    config = config_of(name="resnet50_a1")
    run = forecast(config, figures, ranks=512, num_train=TRAIN, num_val=VAL)
    text = lines(config, figures, run, price=2.5)
    assert max(map(len, text)) <= 80
    names = [line.split()[0] for line in text]
    assert {"cost", "energy", "disk", "memory", "limit"} <= set(names)


def test_given_figures_need_no_measurement(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--config", "resnet50", "--gpus", "8", "--images-per-second", "2500"]
    assert main([*command, "--price-per-hour", "2.5"]) == 0
    printed = capsys.readouterr().out
    assert "20,000 images/s on 8 rank(s)" in printed
    assert "cost       32.44" in printed


def test_bad_input_is_one_line_and_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", "resnet50", "--gpus", "3000", "--images-per-second", "1"]) == 2
    assert "3000 ranks" in capsys.readouterr().err
    for wrong in (["--gpus", "0"], ["--images-per-second", "nan"], ["--price-per-hour", "x"]):
        with pytest.raises(SystemExit) as ended:
            main(["--config", "resnet50", *wrong])
        assert ended.value.code == 2


def test_a_short_probe_of_this_machine(
    run_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("resnet_dist.bench.measure.ROUNDS", 1)
    monkeypatch.setattr("resnet_dist.bench.measure.SECONDS", 0.1)
    monkeypatch.setattr("resnet_dist.plan.probe._SECONDS_OF_EVALUATION", 0.1)
    settings = [f"data.root={run_root}", "train.global_batch_size=16", "data.train_size=32"]
    settings += ["data.eval_size=32", "data.eval_resize_size=36", "dist.device=cpu"]
    assert main(["--config", "quickstart", "--gpus", "2", *settings]) == 0
    printed = capsys.readouterr().out
    assert "on 2 rank(s)" in printed
    assert "36 of 16 images, 6 epochs" in printed
    assert "GiB per rank" in printed
    settings = ["data.train_size=32", "data.eval_size=32", "data.eval_resize_size=36"]
    settings += ["model.name=resnet18", "model.width=16", "train.precision=float32"]
    assert main(["--config", "resnet50", "--gpus", "128", *settings, "dist.device=cpu"]) == 0
    printed = capsys.readouterr().out
    assert "450,360 of 256 images" in printed
    assert "the loader is not measured" in printed
