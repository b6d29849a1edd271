"""An evaluation for people and programs: a table, JSON, CSV files and a picture."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from resnet_dist.data.imagenet import imagenet_words
from resnet_dist.errors import printable
from resnet_dist.evaluate.tally import NUM_BINS, Tally

_MOST_SHOWN = 5
_ONE = 2**30


@dataclass(frozen=True)
class Row:
    """One network on one data set."""

    path: str
    which: str
    """model, or ema: the moving average."""
    step: int | None
    tally: Tally
    classes: list[str]
    """Names by output."""
    names: list[str]
    """Paths of the samples in `tally.mistakes`."""

    def as_json(self) -> dict[str, Any]:
        """All of it, in plain containers."""
        tally = self.tally
        totals = tally.confusion.sum(1)
        right = np.diag(tally.confusion)
        return {
            "weights": self.path,
            "which": self.which,
            "step": self.step,
            "images": tally.samples,
            "correct": tally.num_correct,
            "top1": tally.top1,
            "top5": tally.top5,
            "loss": tally.loss,
            "ece": tally.calibration_error,
            "per_class": [
                {
                    "class": self.classes[i],
                    "images": int(totals[i]),
                    "top1": int(right[i]) / int(totals[i]),
                    "top5": int(tally.top5_by_class[i]) / int(totals[i]),
                }
                for i in np.flatnonzero(totals)
            ],
            "confusions": [
                {"class": self.classes[a], "taken_for": self.classes[b], "images": count}
                for a, b, count in tally.confusions(50)
            ],
            "mistakes": [
                {
                    "image": name,
                    "class": self.classes[one.label],
                    "taken_for": self.classes[one.predicted],
                    "confidence": one.confidence,
                }
                for name, one in zip(self.names, tally.mistakes, strict=True)
            ],
        }


def table(rows: Sequence[Row]) -> str:
    """All networks side by side, then what each gets wrong."""
    lines = [f"{'top-1':>8} {'top-5':>8} {'loss':>8} {'ECE':>7} {'images':>7}  weights"]
    for row in rows:
        tally = row.tally
        step = "" if row.step is None else f" at step {row.step}"
        lines.append(
            f"{tally.top1:8.2%} {tally.top5:8.2%} {tally.loss:8.4f} {tally.calibration_error:7.2%} "
            f"{tally.samples:7d}  {row.which}{step}, {row.path}"
        )
    for row in rows:
        lines += ["", *_errors(row)]
    return "\n".join(printable(line) for line in lines)


def _errors(row: Row) -> list[str]:
    found = row.as_json()
    worst = sorted(found["per_class"], key=lambda one: (one["top1"], one["class"]))[:_MOST_SHOWN]
    lines = [f"{row.which}, {row.path}:", "  lowest top-1:"]
    lines += [f"    {one['top1']:7.2%} of {one['images']} {said(one['class'])}" for one in worst]
    if found["confusions"]:
        lines.append("  most frequent confusions:")
        for one in found["confusions"][:_MOST_SHOWN]:
            lines.append(
                f"    {one['images']} {said(one['class'])} taken for {said(one['taken_for'])}"
            )
        lines.append("  most confident mistakes:")
        for one in found["mistakes"][:_MOST_SHOWN]:
            lines.append(f"    {one['confidence']:7.2%} {said(one['taken_for'])}: {one['image']}")
    return lines


def said(name: str) -> str:
    """A class as people call it: `n01440764 (tench)`."""
    word = imagenet_words().get(name) if len(name) == 9 and name[0] == "n" else None
    return name if word is None else f"{name} ({word})"


def as_csv(rows: Sequence[Row], file: Any) -> None:
    """One line for each network."""
    writer = csv.writer(file)
    keys = ("weights", "which", "step", "images", "correct", "top1", "top5", "loss", "ece")
    writer.writerow(keys)
    for row in rows:
        found = row.as_json()
        writer.writerow([found[key] for key in keys])


def write_files(rows: Sequence[Row], folder: Path) -> list[Path]:
    """evaluation.json, evaluation.csv, per_class.csv and evaluation.png. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    found = [row.as_json() for row in rows]
    paths = [folder / name for name in ("evaluation.json", "evaluation.csv", "per_class.csv")]
    paths[0].write_text(json.dumps(found, indent=1) + "\n")
    with paths[1].open("w", newline="") as file:
        as_csv(rows, file)
    with paths[2].open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["weights", "which", "class", "images", "top1", "top5"])
        for one in found:
            for each in one["per_class"]:
                writer.writerow([one["weights"], one["which"], *each.values()])
    return [*paths, draw(rows, folder / "evaluation.png")]


def draw(rows: Sequence[Row], path: Path) -> Path:
    """Accuracy by class, calibration and confusions of each network."""
    from matplotlib.figure import Figure  # only here: it takes half a second

    figure = Figure(figsize=(15, 4.6 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), 3, squeeze=False)
    for row, (by_class, calibration, confusion) in zip(rows, axes, strict=True):
        tally = row.tally
        totals = tally.confusion.sum(1)
        has = np.flatnonzero(totals)
        share = np.sort(np.diag(tally.confusion)[has] / totals[has])
        by_class.bar(np.arange(len(has)), 100 * share, width=1.0, edgecolor="white", linewidth=0.3)
        by_class.set(xlabel="classes, worst first", ylabel="top-1 (%)", ylim=(0, 100))
        by_class.set_title(f"{row.which}: top-1 {tally.top1:.2%}, top-5 {tally.top5:.2%}")
        count, correct, confidence = tally.bins.T.astype(float)
        full = count > 0
        calibration.plot([0, 100], [0, 100], color="0.6", linestyle="--", label="calibrated")
        calibration.plot(
            100 * confidence[full] / _ONE / count[full],
            100 * correct[full] / count[full],
            marker="o",
            label=f"ECE {tally.calibration_error:.2%}, {NUM_BINS} bins",
        )
        calibration.set(
            xlabel="confidence (%)", ylabel="accuracy (%)", xlim=(0, 100), ylim=(0, 100)
        )
        calibration.legend(loc="upper left")
        calibration.set_title(Path(row.path).name)
        seen = tally.confusion[np.ix_(has, has)] / totals[has][:, None]
        image = confusion.imshow(100 * seen, cmap="viridis", vmin=0, vmax=100)
        figure.colorbar(image, ax=confusion, label="% of the class")
        confusion.set(xlabel="predicted", ylabel="class")
        if len(has) <= 20:
            names = [row.classes[i] for i in has]
            confusion.set_xticks(range(len(has)), names, rotation=90)
            confusion.set_yticks(range(len(has)), names)
        confusion.set_title("confusions")
    figure.savefig(path, dpi=110)
    return path
