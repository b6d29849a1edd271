"""The backend on NVIDIA DALI: its threads and the GPU's decoder, fed by specs.

Owns the thread that reads ahead and the life of the pipeline; both end with the iterator. Does not
choose samples or augmentations: see `resnet_dist.data.specs`.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import torch

from resnet_dist.config import DaliConfig
from resnet_dist.data.augment.device_stage import DeviceStage
from resnet_dist.data.batch import Batch, BatchSlice, BatchSpec, Done
from resnet_dist.data.index.index import Index
from resnet_dist.data.loaders.dali_pipeline import Feed, Graph, make_feed
from resnet_dist.data.loaders.hand_over import one_ahead
from resnet_dist.data.read import decode
from resnet_dist.data.read.store import Store, open_store
from resnet_dist.data.specs import Specs
from resnet_dist.errors import UserError


def _read_nothing(_slice: BatchSlice) -> Feed:
    raise AssertionError("closed")


class _ReadAhead:
    """The pipeline's source: feeds in order, read by a thread while earlier ones are decoded."""

    def __init__(
        self, read: Callable[[BatchSlice], Feed], slices: Iterable[BatchSlice], *, depth: int
    ) -> None:
        self._read = read
        self._slices = iter(slices)
        # One thread: the store itself keeps several requests in flight.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        self._waiting: deque[Future[Feed]] = deque()
        self.in_flight: deque[Feed] = deque()
        """Given to the pipeline, not yet returned by it; DALI reads their memory in place."""
        self.failure: BaseException | None = None
        """What ended the reading early; to be raised after the batches before it."""
        for _ in range(depth):
            self._submit()

    def __call__(self) -> tuple[Any, ...]:
        """Inputs of the next batch; called by DALI in the trainer's thread."""
        if not self._waiting:
            raise StopIteration
        future = self._waiting.popleft()
        # Not raised from here: a traceback through DALI's frames would keep the pipeline alive.
        self.failure = future.exception()
        if self.failure is not None:
            self.close()
            raise StopIteration
        feed = future.result()
        self._submit()
        self.in_flight.append(feed)
        return feed.inputs

    @property
    def has_more(self) -> bool:
        """Whether an output, or the failure in its place, is still to come."""
        return bool(self._waiting or self.in_flight) or self.failure is not None

    def close(self) -> None:
        """Stop reading; returns when the thread is gone. What was given can still be decoded."""
        self._waiting.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)
        # DALI's graph holds this object until the next garbage collection: let go of the store,
        # with its own threads, now.
        self._read = _read_nothing

    def _submit(self) -> None:
        batch = next(self._slices, None)
        if batch is not None:
            self._waiting.append(self._pool.submit(self._read, batch))


class _Stream:
    """One iteration over some slices: a pipeline, and the thread that reads ahead of it."""

    def __init__(self, graph: Graph, source: _ReadAhead, *, prefetch: int) -> None:
        self._graph = graph
        self._source = source
        self._pipeline: Any = graph.build(source, prefetch=prefetch)

    def turns(self) -> Iterator[None]:
        """One for each output."""
        while self._source.has_more:
            yield None

    def next_output(self, index: Index) -> tuple[BatchSpec, torch.Tensor]:
        """The next spec, and its `[n, size, size, 3]` on the pipeline's device.

        Raises UserError if a file cannot be read or decoded; `index` names it.
        """
        is_gpu = self._graph.device.type == "cuda"
        message = ""
        stream = torch.cuda.current_stream(self._graph.device) if is_gpu else None
        try:
            (output,) = self._pipeline.run(stream)
        except StopIteration:
            output = None
        except RuntimeError as error:
            output, message = None, str(error)
        # Errors are raised out of reach of DALI's: a pipeline that is kept alive by a traceback
        # ends processes that are forked later, as soon as they collect it as garbage.
        if output is None:
            self._pipeline = None
            if self._source.failure is not None and not message:
                raise self._source.failure
            self._raise_culprit(index)
            raise RuntimeError(message)
        images = _take(output.as_tensor(), self._graph.device, stream)
        return self._source.in_flight.popleft().spec, images

    def close(self) -> None:
        """End the pipeline and the reading, and with them all threads."""
        self._pipeline = None
        self._source.close()

    def _raise_culprit(self, index: Index) -> None:
        """After a failure of DALI: raise a UserError that names a file, if one is the reason."""
        for feed in self._source.in_flight:
            for row, sample_id in enumerate(feed.spec.sample_ids.tolist()):
                if not decode.is_ppm(feed.encoded[row]):
                    decode.decode_rgb(feed.encoded[row], index, sample_id)
                if not self._decodes_alone(feed, row):
                    raise UserError(
                        f"data.root ({index.path(sample_id)}): DALI cannot decode this image; "
                        f"replace or remove the file, or set data.loader=torch"
                    )

    def _decodes_alone(self, feed: Feed, row: int) -> bool:
        inputs = tuple(values[row : row + 1] for values in feed.inputs)
        pipeline = self._graph.build(lambda: inputs, prefetch=1)
        try:
            pipeline.run()
        except RuntimeError:
            return False
        return True


def _take(output: Any, device: torch.device, stream: torch.cuda.Stream | None) -> torch.Tensor:
    """DALI's result: on a GPU a copy of its bytes, on the stream; on a CPU DALI's own memory.

    A tensor that shares DALI's GPU memory makes a thread of DALI wait for the whole device when it
    is dropped, which can end the capture of a CUDA graph (DALI's pull request 6259). The copy of a
    batch of 256 takes 0.03 ms.
    """
    if stream is None:
        shared: torch.Tensor = torch.utils.dlpack.from_dlpack(output)
        return shared
    # The next use of DALI's memory is behind the copy: both are on the stream given to `run`.
    images = torch.empty(output.shape(), dtype=torch.uint8, device=device)
    output.copy_to_external(
        ctypes.c_void_p(images.data_ptr()), ctypes.c_void_p(stream.cuda_stream), non_blocking=True
    )
    return images


class DaliBackend:
    """Runs slices through DALI and finishes their batches on the device."""

    def __init__(
        self,
        index: Index,
        specs: Specs,
        dali: DaliConfig,
        *,
        most: int,
        device: torch.device,
        num_workers: int,
    ) -> None:
        """Batches have `most` samples at most."""
        self._index = index
        self._specs = specs
        self._device = device
        self._stage = DeviceStage(specs.data, device)
        # On CPU DALI's threads are the faster place to normalise, and their memory is used again,
        # while 40 MB of fresh pages a batch cost torch three times the arithmetic. What changes
        # uint8 images comes first, and a GPU normalises for nothing.
        normalises = device.type == "cpu" and not specs.changes_uint8
        self._graph = Graph(
            data=specs.data,
            dali=dali,
            device=device,
            num_threads=max(1, num_workers),
            batch_size=most,
            max_height=int(index.heights.max()),
            max_width=int(index.widths.max()),
            goes_to=Done.NORMALISED if normalises else Done.FLIPPED,
        )

    def batches(self, slices: Iterable[BatchSlice]) -> Generator[Batch, None, None]:
        """The batches of the slices, in their order."""
        prefetch = self._specs.data.prefetch_batches
        # No variable for the store: an error's traceback would keep it, and with it its threads.
        source = _ReadAhead(partial(self._read, self._open_store()), slices, depth=prefetch + 1)
        with contextlib.closing(_Stream(self._graph, source, prefetch=prefetch)) as stream:
            # Outputs are fetched in `finish`: on a GPU, on the stream that it works on.
            finish = partial(self._finish, stream)
            with contextlib.closing(one_ahead(stream.turns(), finish, self._device)) as batches:
                yield from batches

    def _open_store(self) -> Store:
        # As many requests in flight as there are decoders: in the page cache, more of them only
        # fight for the interpreter's lock.
        return open_store(
            self._index,
            self._specs.data,
            num_threads=max(2, self._graph.num_threads),
            shards_ahead=self._specs.shards_ahead,
        )

    def _read(self, store: Store, batch: BatchSlice) -> Feed:
        spec = self._specs(batch)
        encoded = store.read(spec.sample_ids)
        ids = spec.sample_ids.tolist()
        plain = [
            decode.make_plain(one, self._index, sample_id)
            for one, sample_id in zip(encoded, ids, strict=True)
        ]
        return make_feed(spec, plain)

    def _finish(self, stream: _Stream, _turn: None) -> Batch:
        spec, images = stream.next_output(self._index)
        return self._stage(images, spec, self._graph.goes_to)
