"""Memory of batches is used again, but never while somebody can see it."""

from __future__ import annotations

import torch

from resnet_dist.data.read.buffers import HostBuffers


def test_memory_returns_when_the_last_reference_is_gone() -> None:
    buffers = HostBuffers()
    first = buffers.take(100).fill_(1)
    address = first.data_ptr()
    view = first.view(10, 10)[2:]
    del first
    second = buffers.take(100).fill_(2)
    assert second.data_ptr() != address
    assert (view == 1).all()
    del view
    assert buffers.take(100).data_ptr() == address


def test_memory_that_autograd_holds_stays() -> None:
    buffers = HostBuffers()
    weight = torch.ones(4, requires_grad=True)
    loss = (weight * buffers.take(4).fill_(3)).sum()
    buffers.take(4).fill_(5)
    loss.backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    assert (weight.grad == 3).all()


def test_another_size_gets_memory_of_its_own() -> None:
    buffers = HostBuffers()
    buffers.take(8)
    assert len(buffers.take(5)) == 5
    assert len(buffers.take(8)) == 8
