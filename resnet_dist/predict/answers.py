"""Predictions as a table, JSON lines or CSV, written as they come."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from typing import IO

from resnet_dist.data.imagenet import imagenet_words
from resnet_dist.errors import printable

Answer = Callable[[str, Sequence[tuple[str, float]]], None]
"""Takes the path of an image and its (class, probability), the most probable first."""

FORMATS = ("table", "jsonl", "csv")


def answer_to(file: IO[str], form: str, top: int) -> Answer:
    """What writes answers of a form into a file."""
    match form:
        case "jsonl":

            def answer(path: str, found: Sequence[tuple[str, float]]) -> None:
                classes = [{"class": name, "probability": share} for name, share in found]
                file.write(json.dumps({"image": path, "predictions": classes}) + "\n")

        case "csv":
            writer = csv.writer(file)
            numbers = range(1, top + 1)
            heads = [word for n in numbers for word in (f"class{n}", f"probability{n}")]
            writer.writerow(["image", *heads])

            def answer(path: str, found: Sequence[tuple[str, float]]) -> None:
                values = [value for name, share in found for value in (name, f"{share:.6f}")]
                writer.writerow(
                    [path.encode(errors="surrogateescape").decode(errors="replace"), *values]
                )

        case _:

            def answer(path: str, found: Sequence[tuple[str, float]]) -> None:
                words = [f"{_short(name)} {share:.1%}" for name, share in found]
                file.write(printable(f"{path}: {', '.join(words)}") + "\n")

    return answer


def _short(name: str) -> str:
    """A class in one word or few: ImageNet's by their names, not their ids."""
    return imagenet_words().get(name, name) if len(name) == 9 and name[0] == "n" else name
