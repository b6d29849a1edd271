"""Records of what was measured, a JSON object a line, and the tables made of them."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpu.groups import GROUPS

Record = dict[str, Any]


class Results:
    """A file of records that grows; several processes may write to it, one after the other."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, kind: str, case: str, variant: str, **values: Any) -> None:
        """Append a record, at once."""
        record = {"kind": kind, "case": case, "variant": variant, **values}
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def read(self) -> list[Record]:
        """All records; a line that a kill has cut is left out."""
        records = []
        for line in self.path.read_text().splitlines() if self.path.exists() else []:
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return records

    def begun(self) -> set[tuple[str, str]]:
        """(case, variant) of all that were begun, and not cut off by the end of the budget: none of
        them is begun twice."""
        counts = self._counts("begin")
        counts.subtract(self._counts("cut"))
        return {key for key, number in counts.items() if number > 0}

    def unfinished(self) -> list[tuple[str, str]]:
        """Begun, and not ended in any way."""
        counts = self._counts("begin")
        counts.subtract(self._counts("end", "cut", "crash"))
        return [key for key, number in counts.items() if number > 0]

    def _counts(self, *kinds: str) -> Counter[tuple[str, str]]:
        return Counter(_key(r) for r in self.read() if r["kind"] in kinds)


def _key(record: Record) -> tuple[str, str]:
    return record["case"], record["variant"]


def relative(record: Record) -> float:
    """How many times as fast as our plain step: the median over pairs of rounds."""
    pairs = zip(record["images_per_second"], record["eager"], strict=True)
    return float(statistics.median(one / two for one, two in pairs))


def tables(records: Sequence[Record]) -> str:
    """Everything that is known, as Markdown."""
    lines: list[str] = [
        f"{key}: {value}"
        for r in records
        if r["kind"] == "machine"
        for key, value in r["is"].items()
    ]
    for r in records:
        if r["kind"] == "ceilings":
            lines.append(
                f"copy {r['copy_bytes_s'] / 1e12:.3f} TB/s, bfloat16 matrix product "
                f"{r['matmul_flops'] / 1e12:.0f} TFLOP/s"
            )
    cases = list(dict.fromkeys(r["case"] for r in records if r["kind"] in ("rate", "error")))
    for case in cases:
        lines += _rates(case, [r for r in records if r["case"] == case], records)
    lines += _profiles(records)
    lines += _jpegs(records)
    return "\n".join(lines)


def _rates(case: str, mine: Sequence[Record], records: Sequence[Record]) -> list[str]:
    found = {(r["kind"], r["variant"]): r for r in mine}
    rival = found.get(("rate", "torchvision"))
    lines = [
        f"\n{case}\n",
        "| variant | images/s, median | lowest | highest | rounds | x plain | x torchvision "
        "| of the eager bound | peak GiB | host waits for | loss after 50 steps |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---|---|",
    ]
    for variant in dict.fromkeys(r["variant"] for r in mine):
        rate, error = found.get(("rate", variant)), found.get(("error", variant))
        if rate is not None:
            values = rate["images_per_second"]
            times = relative(rate)
            against = f"{times / relative(rival):.3f}" if rival else "-"
            sync = found.get(("sync", variant), {}).get("waits", "-")
            lines.append(
                f"| {variant} | {statistics.median(values):,.1f} | {min(values):,.1f} "
                f"| {max(values):,.1f} | {len(values)} | {times:.3f} | {against} "
                f"| {_roofline(rate, records)} | {rate['peak_bytes'] / 2**30:.1f} | {sync} "
                f"| {_verdict(found, variant)} |"
            )
        if error is not None:
            lines.append(f"| {variant} | error: {error['message']} |" + " |" * 9)
    return lines


def _roofline(rate: Record, records: Sequence[Record]) -> str:
    """Share of the speed that the measured ceilings allow to what an eager step moves."""
    ceilings = next((r for r in records if r["kind"] == "ceilings"), None)
    bound = rate.get("bound")
    if ceilings is None or not bound:
        return "-"
    memory = bound["bytes_per_image"] / ceilings["copy_bytes_s"]
    compute = bound["flops_per_image"] / ceilings["matmul_flops"]
    return f"{statistics.median(rate['images_per_second']) * max(memory, compute):.0%}"


def _verdict(found: dict[tuple[str, str], Record], variant: str) -> str:
    """Whether a mode has learnt what float32 has."""
    check, reference = found.get(("check", variant)), found.get(("reference", "float32"))
    if check is None:
        return "-"
    if reference is None:
        return f"{check['loss']:.4f} (no reference)"
    losses = reference["losses"]
    spread, out = max(losses) - min(losses), abs(check["loss"] - losses[0])
    verdict = "within" if out <= spread else f"OUT by {out - spread:.4f}"
    return f"{check['loss']:.4f} (float32 {losses[0]:.4f}, seeds {spread:.4f}): {verdict}"


def _profiles(records: Sequence[Record]) -> list[str]:
    found = [r for r in records if r["kind"] == "profile"]
    if not found:
        return []
    lines = [
        f"\n| share of the step's time | ms | {' | '.join(GROUPS)} | idle |",
        f"|---|---:|{'---:|' * (len(GROUPS) + 1)}",
    ]
    for r in found:
        cells = [f"{r['shares'].get(group, 0.0):.1%}" for group in GROUPS]
        name = f"{r['case']}, {r['variant']}"
        lines.append(f"| {name} | {r['step_ms']:.2f} | {' | '.join(cells)} | {r['idle']:.1%} |")
    return lines


def _jpegs(records: Sequence[Record]) -> list[str]:
    lines = []
    for r in records:
        if r["kind"] == "jpegs":
            lines.append(f"{r['what']}: {r['images_per_second']:,.1f} images/s ({r['settings']})")
        elif r["kind"] == "advice":
            lines += ["\nbest settings of the loader:", *(f"    {line}" for line in r["lines"])]
    return ["\nJPEGs\n", *lines] if lines else []
