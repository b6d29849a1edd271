"""The training step as a CUDA graph: captured once for each form of batch, then replayed.

A replay does what the captured step did, with the same memory: the host launches one thing instead
of some thousand. So everything that differs from step to step is a device tensor that is filled
before the replay: batches (copied into buffers that stay), learning rates, the step's number.

Every call takes one real step. The first ones of a form run eagerly, on the stream of the capture:
kernels are chosen then, and lazily made state comes to its place. Then one is captured, which
executes nothing, and replayed like all that follow. So nothing must be undone.

Not here: what a step computes (`resnet_dist.step`), and the average of the weights, which the loop
updates after the step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from resnet_dist.data.batch import Batch, MixedLabels
from resnet_dist.faults.replica_check import flip_a_bit
from resnet_dist.step import EagerStep
from resnet_dist.system.failpoints import disarmed, failpoint

WARM_UP_STEPS = 3
"""Eager steps of each form of batch before its capture: lazy state, then cuDNN's choice."""

WARM_UP_STEPS_DDP = 11
"""Eager steps of a process before its first capture under DDP, which times its first ten with
events that a capture does not allow (torch's notes on CUDA graphs, "Usage with
DistributedDataParallel")."""


class Graphs(Protocol):
    """What captures and replays. The tests have a mock of it for CPUs."""

    def run(self, function: Callable[[], None]) -> None:
        """Call it as it will be captured, but now."""

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        """Record what the function does to the device, without doing it; returns what does it."""

    def start_over(self) -> None:
        """All that was captured has been given up."""


class CudaGraphs:
    """CUDA graphs that share one pool of memory, so that many take as much as the largest. They
    must be replayed one after the other, on one stream, and leave nothing in the pool."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def side_stream(self) -> Iterator[None]:
        """The stream of the captures, behind what is on its way, and before what comes next.

        DDP must be built, and run for the first time, in it: autograd's nodes that accumulate
        gradients remember their stream, and a capture may not wait for another one.
        """
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            yield
        current.wait_stream(self._stream)

    def run(self, function: Callable[[], None]) -> None:
        """Call the function on the stream of the captures."""
        with self.side_stream():
            function()

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        """Record the function; returns its replay. Waits for the device."""
        graph = torch.cuda.CUDAGraph()
        # Other threads (the loader's, DALI's, the checkpoint writer) go on allocating and waiting
        # for events, which only this mode allows them.
        mode = "thread_local"
        with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode=mode):
            function()
        return graph.replay

    def start_over(self) -> None:
        """Take another pool: one without graphs may be gone."""
        self._pool = torch.cuda.graph_pool_handle()


@dataclass
class _Program:
    """Steps of one form."""

    batches: tuple[Batch, ...]
    """The micro-batches that it reads, in memory that stays."""
    eager_steps: int = 0
    replay: Callable[[], None] | None = None
    """None: not captured yet."""
    gradients: list[Tensor | None] = field(default_factory=list)
    """Gradients of the parameters after a replay, where the update is not captured."""


class GraphedStep:
    """An `EagerStep` that is captured and replayed. Called in the same way, it does the same."""

    def __init__(self, eager: EagerStep, graphs: Graphs, *, warm_up_steps: int) -> None:
        """`warm_up_steps`: fewest eager steps before the first capture."""
        self._eager = eager
        self._graphs = graphs
        self._warm_up_steps = warm_up_steps
        self._eager_steps = 0
        self._programs: dict[Any, _Program] = {}
        self._buffers: dict[Any, Batch] = {}
        self._optimizer_state = eager.optimizer.state
        device = next(eager.network.parameters()).device
        self._step = torch.zeros((), dtype=torch.int64, device=device)
        self._grad_norm = torch.zeros((), device=device)
        # The fused kernels take the rate of each group as a float32 tensor.
        self._lrs = torch.zeros(len(eager.optimizer.param_groups), device=device).unbind()

    @property
    def network(self) -> nn.Module:
        """The model as it is called in training."""
        return self._eager.network

    def __call__(self, batches: Iterator[Batch], *, step: int) -> Tensor:
        """Take a step, as `Step` says. The result is overwritten by the next call."""
        if self._eager.optimizer.state is not self._optimizer_state:
            self.close()  # a checkpoint was loaded: the optimizer has other tensors now
        program = self._program(batches)
        self._step.fill_(step)
        for lr, group in zip(self._lrs, self._eager.optimizer.param_groups, strict=True):
            lr.fill_(group["lr"])
        if program.replay is None and self._is_warm(program):
            with disarmed():
                self._capture(program)
        if program.replay is not None:
            self._replay(program, program.replay)
        else:
            self._run(program)
            program.eager_steps += 1
            self._eager_steps += 1
        return self._grad_norm

    def close(self) -> None:
        """Give up the graphs, which must not outlive the process group; the next call starts over
        with eager steps."""
        self._programs.clear()
        self._buffers.clear()
        self._graphs.start_over()
        self._eager_steps = 0
        self._optimizer_state = self._eager.optimizer.state

    def _is_warm(self, program: _Program) -> bool:
        return self._eager_steps >= self._warm_up_steps and program.eager_steps >= WARM_UP_STEPS

    def _program(self, batches: Iterator[Batch]) -> _Program:
        """Take a step's micro-batches into the memory that their form's program reads.

        Each is copied before the next is asked for: a loader may use its memory again.
        """
        forms: list[tuple[Any, ...]] = []
        for micro_batch in range(self._eager.settings.accumulation_steps):
            batch = next(batches)
            forms.append((micro_batch, *_form(batch)))
            if forms[-1] not in self._buffers:
                self._buffers[forms[-1]] = _empty_like(batch)
            _copy_into(self._buffers[forms[-1]], batch)
        if tuple(forms) not in self._programs:
            own = tuple(self._buffers[form] for form in forms)
            self._programs[tuple(forms)] = _Program(own)
        return self._programs[tuple(forms)]

    def _take(self, batches: tuple[Batch, ...]) -> None:
        self._grad_norm.copy_(self._eager(iter(batches), step=self._step))

    def _run(self, program: _Program) -> None:
        """A step as it will be captured."""
        with self._rates_on_device(captures=False):
            self._graphs.run(partial(self._take, program.batches))

    def _capture(self, program: _Program) -> None:
        with self._rates_on_device(captures=True):
            program.replay = self._graphs.capture(partial(self._take, program.batches))

    def _replay(self, program: _Program, replay: Callable[[], None]) -> None:
        """Take a captured step. The host comes to none of its failpoints, so pass them here."""
        _spoil(program.batches)
        failpoint("step.before_optimizer")
        replay()
        failpoint("step.after_optimizer")
        if failpoint("step.parameters"):
            flip_a_bit(self._eager.network)

    @contextmanager
    def _rates_on_device(self, *, captures: bool) -> Iterator[None]:
        """The optimizer reads its learning rates from the device; outside, and in checkpoints, they
        are numbers. Eager steps do it too, so that they have the bits of replayed ones."""
        groups = self._eager.optimizer.param_groups
        kept = [dict(group) for group in groups]
        for group, lr in zip(groups, self._lrs, strict=True):
            group["lr"] = lr
            if captures and "capturable" in group:
                group["capturable"] = True  # Adam asks for it, also where it is fused
        try:
            yield
        finally:
            for group, before in zip(groups, kept, strict=True):
                group.update(before)


class GraphedGradients(GraphedStep):
    """Captures the forward and backward passes alone; clipping and the update run eagerly.

    For schedules that move the momentum: the kernels take that as a number, not from the device.
    """

    def _run(self, program: _Program) -> None:
        self._graphs.run(partial(self._take, program.batches))

    def _capture(self, program: _Program) -> None:
        batches = program.batches

        def passes() -> None:
            self._eager.guard.begin()
            self._eager.add_gradients(iter(batches))

        program.replay = self._graphs.capture(passes)
        # While they are held, no other graph of the pool takes their memory.
        program.gradients = [parameter.grad for parameter in self._eager.network.parameters()]
        self._eager.optimizer.zero_grad(set_to_none=True)

    def _replay(self, program: _Program, replay: Callable[[], None]) -> None:
        _spoil(program.batches)
        replay()
        parameters = self._eager.network.parameters()
        for parameter, gradient in zip(parameters, program.gradients, strict=True):
            parameter.grad = gradient
        self._grad_norm.copy_(self._eager.update(step=self._step))


def _spoil(batches: tuple[Batch, ...]) -> None:
    """Pass the failpoints up to the loss, which NaNs in the images spoil."""
    failpoint("step.begin")
    for batch in batches:
        if failpoint("step.loss"):
            batch.images.fill_(float("nan"))


def _tensors(batch: Batch) -> list[Tensor]:
    mixed = [] if batch.mixed is None else [batch.mixed.paired, batch.mixed.lam]
    kept = [] if batch.kept is None else [batch.kept]
    return [batch.images, batch.labels, *mixed, *kept]


def _form(batch: Batch) -> tuple[Any, ...]:
    """What batches must have in common to be computed by one graph."""
    return tuple((tensor.shape, tensor.dtype, tensor.stride()) for tensor in _tensors(batch))


def _empty_like(batch: Batch) -> Batch:
    own = torch.empty_like
    mixed = batch.mixed
    return replace(
        batch,
        images=own(batch.images),
        labels=own(batch.labels),
        mixed=None if mixed is None else MixedLabels(own(mixed.paired), own(mixed.lam)),
        kept=None if batch.kept is None else own(batch.kept),
    )


def _copy_into(own: Batch, given: Batch) -> None:
    for mine, tensor in zip(_tensors(own), _tensors(given), strict=True):
        mine.copy_(tensor, non_blocking=True)
