"""The loader on NVIDIA DALI: its threads and the GPU's decoder, fed by specs.

Owns the thread that reads ahead and the life of the pipeline; both end with the iterator. Does not
choose samples or augmentations: see `resnet_dist.data.order`.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import torch

from resnet_dist.config import DataConfig
from resnet_dist.data import order
from resnet_dist.data.augment.device_stage import DeviceStage, one_ahead
from resnet_dist.data.batch import Batch, BatchSpec
from resnet_dist.data.blocked_order import shards_ahead
from resnet_dist.data.index.index import Index
from resnet_dist.data.loaders.dali_pipeline import Feed, Graph, make_feed
from resnet_dist.data.micro_batches import BatchSplit
from resnet_dist.data.read import decode
from resnet_dist.data.read.store import Store, open_store
from resnet_dist.errors import UserError


def _read_nothing(_item: int) -> Feed:
    raise AssertionError("closed")


class _ReadAhead:
    """The pipeline's source: feeds in order, read by a thread while earlier ones are decoded."""

    def __init__(self, read: Callable[[int], Feed], items: range, *, depth: int) -> None:
        self._read = read
        self._items = iter(items)
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
        """Datasets of the next batch; called by DALI in the trainer's thread."""
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

    def close(self) -> None:
        """Stop reading; returns when the thread is gone. What was given can still be decoded."""
        self._waiting.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)
        # DALI's graph holds this object until the next garbage collection: let go of the store,
        # with its own threads, now.
        self._read = _read_nothing

    def _submit(self) -> None:
        item = next(self._items, None)
        if item is not None:
            self._waiting.append(self._pool.submit(self._read, item))


class _Stream:
    """One iteration over some items: a pipeline, and the thread that reads ahead of it."""

    def __init__(self, graph: Graph, source: _ReadAhead, *, prefetch: int) -> None:
        self._graph = graph
        self._source = source
        self._pipeline: Any = graph.build(source, prefetch=prefetch)

    def next_output(self, index: Index) -> tuple[BatchSpec, torch.Tensor]:
        """The next spec, and its `[n, size, size, 3]` in DALI's memory, which lives as long as the
        tensor does. Raises UserError if a file cannot be read or decoded; `index` names it."""
        is_gpu = self._graph.device.type == "cuda"
        message = ""
        try:
            stream = torch.cuda.current_stream(self._graph.device) if is_gpu else None
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
        images: torch.Tensor = torch.utils.dlpack.from_dlpack(output.as_tensor())
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
        datasets = tuple(values[row : row + 1] for values in feed.inputs)
        pipeline = self._graph.build(lambda: datasets, prefetch=1)
        try:
            pipeline.run()
        except RuntimeError:
            return False
        return True


class _Decoder:
    """Runs work items through DALI and finishes them on the device."""

    def __init__(
        self,
        data: DataConfig,
        index: Index,
        *,
        device: torch.device,
        num_workers: int,
        batch_size: int,
        is_plain: bool,
        shards_ahead: int = 0,
    ) -> None:
        """`is_plain`: specs have neither crop_offsets nor operations."""
        self._shards_ahead = shards_ahead
        self._index = index
        self._device = device
        self._prefetch = data.prefetch_batches
        self._stage = DeviceStage(data, device)
        self._graph = Graph(
            data=data,
            device=device,
            num_threads=max(1, num_workers),
            batch_size=batch_size,
            max_height=int(index.heights.max()),
            max_width=int(index.widths.max()),
            # On CPU DALI's threads are the faster place for it, and their memory is used again,
            # while 40 MB of fresh pages a batch cost torch three times the arithmetic. Shifts and
            # operations read uint8, and a GPU normalises for nothing.
            normalises=device.type == "cpu" and is_plain,
        )

    def run(
        self, make_spec: Callable[[int], BatchSpec], items: range
    ) -> Generator[Batch, None, None]:
        """Batches of the items, in order. Closing the generator ends the pipeline and threads."""
        # No variable for the store: an error's traceback would keep it, and with it its threads.
        source = _ReadAhead(
            partial(self._read, make_spec, self._open_store()),
            items,
            depth=self._prefetch + 1,
        )
        with contextlib.closing(_Stream(self._graph, source, prefetch=self._prefetch)) as stream:
            # Outputs are fetched in `finish`: on a GPU, on the stream that it works on.
            finish = partial(self._finish, stream)
            with contextlib.closing(one_ahead(items, finish, self._device)) as batches:
                yield from batches

    def _open_store(self) -> Store:
        # As many requests in flight as there are decoders: in the page cache, more of them only
        # fight for the interpreter's lock.
        return open_store(
            self._index,
            self._graph.data,
            num_threads=max(2, self._graph.num_threads),
            shards_ahead=self._shards_ahead,
        )

    def _read(self, make_spec: Callable[[int], BatchSpec], store: Store, item: int) -> Feed:
        spec = make_spec(item)
        encoded = store.read(spec.sample_ids)
        ids = spec.sample_ids.tolist()
        plain = [
            decode.make_plain(one, self._index, sample_id)
            for one, sample_id in zip(encoded, ids, strict=True)
        ]
        return make_feed(spec, plain)

    def _finish(self, stream: _Stream, _item: int) -> Batch:
        spec, images = stream.next_output(self._index)
        if not self._graph.normalises:
            return self._stage(images, spec, is_flipped=True)
        return self._stage.finish(images.permute(0, 3, 1, 2), spec)


class DaliTrainLoader:
    """Micro-batches of one rank for training, from any step on."""

    name = "dali"

    def __init__(
        self,
        data: DataConfig,
        index: Index,
        *,
        batch_split: BatchSplit,
        seed: int,
        rank: int,
        device: torch.device,
        num_workers: int,
    ) -> None:
        self.steps_per_epoch = order.steps_per_epoch(len(index), batch_split.global_batch_size)
        self._batch_split = batch_split
        self._decoder = _Decoder(
            data,
            index,
            device=device,
            num_workers=num_workers,
            batch_size=order.largest_spec(data, batch_split),
            is_plain=data.crop != "pad_reflect" and not data.has_operations,
            shards_ahead=shards_ahead(data),
        )
        self._train_job = partial(
            order.train_spec, data, index, batch_split=batch_split, seed=seed, rank=rank
        )

    def batches(self, start_step: int, stop_step: int) -> Generator[Batch, None, None]:
        """The micro-batches of steps [start_step, stop_step), in order.

        Raises UserError, naming the file, for one that is damaged, changed or gone.
        """
        num_micro_batches = self._batch_split.accumulation_steps
        return self._decoder.run(
            self._job_of_item, range(start_step * num_micro_batches, stop_step * num_micro_batches)
        )

    def _job_of_item(self, item: int) -> BatchSpec:
        step, micro_batch = divmod(item, self._batch_split.accumulation_steps)
        return self._train_job(step=step, micro_batch=micro_batch)


class DaliEvalLoader:
    """This rank's share of the evaluation batches."""

    name = "dali"

    def __init__(
        self,
        data: DataConfig,
        index: Index,
        *,
        batch_size: int,
        rank: int,
        world_size: int,
        device: torch.device,
        num_workers: int,
    ) -> None:
        self.num_batches = order.num_eval_batches(len(index), batch_size)
        self._items = range(rank, self.num_batches, world_size)
        self._decoder = _Decoder(
            data,
            index,
            device=device,
            num_workers=num_workers,
            batch_size=min(batch_size, len(index)),
            is_plain=True,
        )
        self._eval_job = partial(order.eval_spec, data, index, batch_size=batch_size)

    def batches(self) -> Generator[Batch, None, None]:
        """Batches rank, rank + world_size, ...; every sample is in one batch of one rank."""
        return self._decoder.run(lambda item: self._eval_job(batch=item), self._items)
