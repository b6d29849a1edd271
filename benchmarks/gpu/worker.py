"""The process that measures: one job after the other, each guarded, in order of importance."""

from __future__ import annotations

import argparse
import gc
import platform
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from gpu.measure import (
    Variant,
    build_mode,
    build_rival,
    ceilings,
    check_syncs,
    finish,
    learn,
    profile_of,
    reference_losses,
    take_turns,
)
from gpu.results import Results, relative
from gpu.rivals import RIVALS, Case

from resnet_dist.performance.modes import MODES, PLAIN, Mode, modes_for

POISONED = 86
"""Exit code where the device no longer works for this process."""
WARM_UP = 14
"""Steps: cuDNN's choice, compilation, capture of a graph, which DDP allows after its eleventh."""
REFERENCE_BATCH = 256
REFERENCE, CEILINGS, JPEGS = "float32", "ceilings", "jpegs"


@dataclass(frozen=True)
class Job:
    """One line of a table."""

    case: Case
    variant: str
    is_checked: bool = False
    """Also profile it and compare its loss."""


def cases_of(args: argparse.Namespace) -> list[Case]:
    """One thing changes at a time from the first of every list; then come the combinations."""
    lists = [args.models, args.sizes, args.dtypes, args.batches]
    models, sizes, dtypes, batches = (values.split(",") for values in lists)
    first = Case(models[0], int(sizes[0]), dtypes[0], int(batches[0]), args.width)
    changed = [replace(first, model=model) for model in models[1:]]
    changed += [replace(first, dtype=dtype) for dtype in dtypes[1:]]
    changed += [replace(first, batch=int(batch)) for batch in batches[1:]]
    changed += [replace(first, size=int(size)) for size in sizes[1:]]
    return [first, *changed]


def chosen_modes(args: argparse.Namespace, case: Case) -> list[Mode]:
    """Those asked for (unknown names raise), or all."""
    names = args.modes.split(",") if args.modes else [mode.name for mode in MODES]
    unknown = set(names) - {mode.name for mode in MODES}
    if unknown:
        raise ValueError(
            f"--modes: {', '.join(sorted(unknown))}: not in resnet_dist/performance/modes.py"
        )
    return [mode for mode in modes_for(case.dtype) if mode.name in names]


def jobs(args: argparse.Namespace, results: Results) -> Iterator[Job]:
    """All jobs, the most telling first. Lazy: later ones follow from earlier results."""
    first, *others = cases_of(args)
    yield Job(first, CEILINGS)
    modes = [mode for mode in chosen_modes(args, first) if mode != PLAIN]
    yield Job(first, PLAIN.name, is_checked=True)
    yield from (Job(first, name) for name in RIVALS)
    yield from (Job(first, mode.name, is_checked=True) for mode in modes if not mode.is_slow)
    if args.check_steps:
        yield Job(first, REFERENCE)
    if args.jpegs:
        yield Job(first, JPEGS)
    best = _fastest(results, first, 2)
    for case in others:
        yield from (Job(case, name) for name in (PLAIN.name, *best, *RIVALS))
        yield from (Job(case, m.name) for m in chosen_modes(args, case) if m.precision)
    yield from (Job(first, mode.name, is_checked=True) for mode in modes if mode.is_slow)
    for case in others:
        yield from (Job(case, mode.name) for mode in chosen_modes(args, case) if not mode.is_slow)


def _fastest(results: Results, case: Case, count: int) -> list[str]:
    """Names of our fastest modes so far."""
    rates = {
        r["variant"]: relative(r)
        for r in results.read()
        if r["kind"] == "rate" and r["case"] == case.name and r["variant"] not in RIVALS
    }
    rates.pop(PLAIN.name, None)
    return sorted(rates, key=lambda name: -rates[name])[:count]


class Worker:
    """Keeps the plain step of the current case, with which all others take turns."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.results = Results(args.out)
        self.device = torch.device(args.device)
        self._partner: tuple[Case, Variant] | None = None

    def partner(self, case: Case) -> Variant:
        """Our plain step, warmed up."""
        if self._partner is None or self._partner[0] != case:
            self._partner = None
            self.clean()
            variant = build_mode(case, PLAIN, self.device)
            self._warm_up(variant)
            self._partner = case, variant
        return self._partner[1]

    def run(self, job: Job) -> None:
        """Do a job and record what it gives."""
        case = job.case
        if job.variant == CEILINGS:
            self._record("ceilings", job, lambda: ceilings(self.device))
        elif job.variant == REFERENCE:
            small = replace(case, batch=min(case.batch, REFERENCE_BATCH))
            self._record("reference", job, lambda: {"losses": self._reference(small)})
        elif job.variant == JPEGS:
            from gpu.jpegs import measure_jpegs

            best = _fastest(self.results, case, 1)
            mode = next((mode for mode in MODES if [mode.name] == best), PLAIN)
            measure_jpegs(self.args.jpegs, case, mode, self.device, self.results)
        else:
            self._rate(job)

    def _rate(self, job: Job) -> None:
        """Take turns with the plain step; alone where there is no memory for both."""
        try:
            self._rate_against(job, self.partner(job.case))
        except torch.OutOfMemoryError:
            eager = [
                r["images_per_second"]
                for r in self.results.read()
                if (r["kind"], r["case"], r["variant"]) == ("rate", job.case.name, PLAIN.name)
            ]
            if not eager:
                raise
        else:
            return
        self._partner = None
        self.clean()
        self._rate_against(job, None, eager=statistics.median(eager[0]))

    def _rate_against(self, job: Job, partner: Variant | None, *, eager: float = 0.0) -> None:
        case, device = job.case, self.device
        if device.type == "cuda":
            torch.cuda.empty_cache()  # what the partner has cached
        base = torch.cuda.memory_allocated() if device.type == "cuda" else 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        if job.variant in RIVALS:
            variant = build_rival(case, job.variant, device)
        else:
            mode = next(mode for mode in MODES if mode.name == job.variant)
            variant = build_mode(case, mode, device)
        try:
            self._rate_and_check(job, partner, variant, base, eager)
        finally:
            if variant.ours is not None:
                variant.ours.close()

    def _rate_and_check(
        self, job: Job, partner: Variant | None, variant: Variant, base: int, eager: float
    ) -> None:
        case, device, args = job.case, self.device, self.args
        self._warm_up(variant)
        # A graph's memory is taken when it is captured.
        peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
        steps = (
            max(2, round(args.steps * 256 / case.batch)) if device.type == "cuda" else args.steps
        )
        rates = take_turns(partner, variant, case, device, rounds=args.rounds, steps=steps)
        if partner is None:
            rates["eager"] = [eager] * args.rounds
        rates["peak_bytes"] = max(peak, rates["peak_bytes"]) - base
        rates["bound"] = bound_of(case)
        self.results.add("rate", case.name, job.variant, **rates)
        print(f"{case.name}, {job.variant}: {statistics.median(rates['images_per_second']):,.1f} "
              f"images/s, {relative(rates):.3f} of plain", flush=True)  # fmt: skip
        if variant.ours is None:
            return
        self._record("sync", job, lambda: {"waits": check_syncs(variant, device)})
        if job.is_checked:
            self._record("profile", job, lambda: profile_of(variant, device))
            if args.check_steps:
                self._record("check", job, lambda: {"loss": learn(variant, args.check_steps)})

    def _record(self, kind: str, job: Job, measure: Callable[[], dict[str, Any]]) -> None:
        """A part of a job that may fail on its own."""
        try:
            self.results.add(kind, job.case.name, job.variant, **measure())
        except Exception as error:
            self.fail(job, f"{kind}: {one_line(error)}")

    def _reference(self, case: Case) -> list[float]:
        return reference_losses(case, self.device, self.args.check_steps)

    def _warm_up(self, variant: Variant) -> None:
        for _ in range(WARM_UP if self.device.type == "cuda" else 1):
            variant.step()
        finish(self.device)

    def fail(self, job: Job, message: str) -> None:
        """Note an error; the details go to stderr."""
        traceback.print_exc()
        self.results.add("error", job.case.name, job.variant, message=message)

    def clean(self) -> None:
        """Let go of what is no longer used. Raises where the device is broken."""
        if "torch._dynamo" in sys.modules:
            torch._dynamo.reset()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()

    def drop_partner(self) -> None:
        """After running out of memory."""
        self._partner = None


def bound_of(case: Case) -> dict[str, float] | None:
    """What an eager step moves and computes for an image, from `benchmarks/step_traffic.py`: at 224
    px with 16-bit types; both go with the area."""
    known = {
        "resnet50": (0.484e9, 24.3e9),
        "resnet101": (0.723e9, 46.6e9),
        "resnet152": (1.017e9, 68.8e9),
    }
    if case.model not in known or case.dtype == "float32" or case.width != 64:
        return None
    moved, flops = known[case.model]
    share = (case.size / 224) ** 2
    return {"bytes_per_image": moved * share, "flops_per_image": flops * share}


def one_line(error: BaseException) -> str:
    """An error for a table."""
    text = " ".join(str(error).split()).replace("|", "/")
    return f"{type(error).__name__}: {text}"[:200]


def machine(device: torch.device) -> dict[str, str]:
    """What it was measured on and with."""
    found = {"Python": platform.python_version(), "CUDA": str(torch.version.cuda)}
    names = ("torch", "torchvision", "triton", "timm", "nvidia-dali-cuda130", "nvidia-cudnn-cu13")
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "-"
    if device.type == "cuda":
        found["GPU"] = torch.cuda.get_device_name(device)
    return found


def work(args: argparse.Namespace) -> int:
    """Do what is not begun yet, until `args.until`."""
    results = Results(args.out)
    if not any(r["kind"] == "machine" for r in results.read()):
        results.add("machine", "", "", **{"is": machine(torch.device(args.device))})
    worker = Worker(args)
    for job in jobs(args, results):
        if (job.case.name, job.variant) in results.begun():
            continue
        if time.time() >= args.until:
            return 0
        results.add("begin", job.case.name, job.variant)
        try:
            worker.run(job)
        except Exception as error:
            worker.fail(job, one_line(error))
            if isinstance(error, torch.OutOfMemoryError):
                worker.drop_partner()
        results.add("end", job.case.name, job.variant)
        try:
            worker.clean()
        except RuntimeError:
            traceback.print_exc()
            return POISONED
    return 0
