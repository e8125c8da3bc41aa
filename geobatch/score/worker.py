"""The straight line: what happens to one block, from the survey in the bucket to its shards in the bucket."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr

from geobatch.blocks import Block, Grid
from geobatch.errors import IntegrityError, MismatchError, NotFoundError
from geobatch.models.bundle import load_bundle
from geobatch.models.sections import volume_network
from geobatch.preprocess import prepare, read_region
from geobatch.score.predictor import INVALID, Prediction, Predictor, build_predictor
from geobatch.score.receipts import STAGES, Receipt, ShardReceipt
from geobatch.score.spec import ScorePlan
from geobatch.shards import ArraySpec, decode_shard, encode_shard, shard_key
from geobatch.storage import open_storage
from geobatch.survey import open_survey, survey_info, valid_volume

Values = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Task:
    """A block to score.

    Attributes:
        block: Its number.
        look: Its shards may be stored already: look before anything is computed.
        replace: Arrays whose shards are damaged, to be replaced.
        proven: SHA-256 that each array's stored shard must have, empty where anything sound may be adopted.
        reduction: How often batch, then patch, are halved for want of memory.
    """

    block: int
    look: bool = False
    replace: tuple[str, ...] = ()
    proven: tuple[bytes, ...] = ()
    reduction: int = 0


@dataclass
class Fetched:
    """A block's prepared input. Of one without a live trace there are no values."""

    task: Task
    block: Block
    values: Values | None
    origin: tuple[int, ...]
    bytes_read: int
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass
class Predicted:
    """A block's output, before it is written."""

    task: Task
    block: Block
    prediction: Prediction
    bytes_read: int
    seconds: dict[str, float]


class BlockScorer:
    """A worker with its network loaded and its survey open, which scores blocks of one plan.

    The three stages may run in three threads, so that one block is read while another is computed and a third written.

    Args:
        plan: The plan of the run.
        output_url: Where the shards go.

    Raises:
        MismatchError: the survey or the bundle are no longer those of the plan.
    """

    def __init__(self, plan: ScorePlan, output_url: str) -> None:
        self.plan = plan
        self.grid = plan.grid
        self.output = open_storage(output_url)
        self.arrays = plan.arrays()
        self.worker = f"{socket.gethostname()}:{os.getpid()}"

    @cached_property
    def volume(self) -> xr.DataArray:
        """The whole survey, lazy."""
        dataset = open_survey(self.plan.survey)
        _require_same("survey", self.plan.survey, survey_info(dataset).get("identity"), self.plan.survey_identity)
        volume = self.plan.chain.crop(valid_volume(dataset, self.plan.survey))
        # Coordinates of the map are one chunk each, and would be loaded whole with every block.
        return volume.drop_vars([name for name in volume.coords if name not in (*volume.dims, "live_mask")])

    @cached_property
    def predictor(self) -> Predictor:
        """The network on its device."""
        bundle = load_bundle(self.plan.bundle)
        _require_same("bundle", self.plan.bundle, bundle.spec.hash, self.plan.bundle_hash)
        network, _ = volume_network(bundle, self.plan.sections, self.plan.combine)
        return build_predictor(self.plan, network)

    def load(self) -> None:
        """Open the survey and load the network now, so that what ails them is one error and not one for each block."""
        _ = self.volume, self.predictor

    def warm_up(self) -> None:
        """Run the network once on a patch of zeros, so that no block pays for what is set up at its first use."""
        torch.set_num_threads(self.plan.threads)
        shape = tuple(map(min, self.grid.patch, self.grid.shape))
        # What fails here fails with the first block too, whose error has a class (C3): with less memory, say.
        with contextlib.suppress(RuntimeError, MemoryError):
            self.predictor.warm_up(shape)

    def score_block(self, task: Task) -> Receipt:
        """Score one block: read, preprocess, predict, trim, write, receipt."""
        return self.adopt(task) or self.write(self.predict(self.read(task)))

    def adopt(self, task: Task) -> Receipt | None:
        """The receipt of a block that an earlier worker stored whole, when the task says to look for it."""
        if not task.look or task.replace:
            return None
        start = time.perf_counter()
        index = self.grid.index(task.block)
        try:
            stored = [self._stored(spec, index, task) for spec in self.arrays]
        except NotFoundError:
            return None
        class_map = decode_shard(self.arrays[0], stored[0])
        block = self.grid.block(index)
        own = class_map[tuple(slice(0, cells.stop - cells.start) for cells in block.write)]
        seconds = {"read": time.perf_counter() - start}
        shards = tuple(_shard_receipt(encoded) for encoded in stored)
        return self._receipt(task, own, shards, adopted=True, bytes_read=0, seconds=seconds)

    def read(self, task: Task) -> Fetched:
        """Read and preprocess what the block's patches see."""
        grid, _ = self.layout(task.reduction)
        block = grid.block(grid.index(task.block))
        seen = grid.seen(block.write)
        fetched = Fetched(task, block, None, tuple(cells.start for cells in seen), 0)
        if self._all_dead(block):
            return fetched
        with _timed(fetched.seconds, "read"):
            raw = read_region(self.volume, self.plan.chain, seen)
        with _timed(fetched.seconds, "preprocess"):
            fetched.values = prepare(raw, self.plan.chain)
        fetched.bytes_read = raw.values.nbytes
        return fetched

    def predict(self, fetched: Fetched) -> Predicted:
        """Classes and probabilities of the block's own cells; one without a valid sample costs no inference."""
        # Ray limits OpenMP to one thread, and the limit is kept per thread: set it where the work is done.
        torch.set_num_threads(self.plan.threads)
        block, values, origin = fetched.block, fetched.values, fetched.origin
        grid, batch = self.layout(fetched.task.reduction)
        own = tuple(slice(c.start - o, c.stop - o) for c, o in zip(block.write, origin, strict=True))
        with _timed(fetched.seconds, "predict"):
            if values is None or not _any_valid(values[own]):
                prediction = self._nothing_valid(tuple(cells.stop - cells.start for cells in own))
            else:
                self.predictor.batch = batch
                prediction = self.predictor.predict(values, grid.patches(block.write), origin)
        return Predicted(fetched.task, block, prediction, fetched.bytes_read, fetched.seconds)

    def write(self, predicted: Predicted) -> Receipt:
        """Store each array's shard, first writer wins, and return the proof."""
        shards, adopted = [], False
        with _timed(predicted.seconds, "write"):
            for spec in self.arrays:
                data = predicted.prediction.class_map if spec.name == "class_map" else predicted.prediction.probability
                stored = self._store(spec, predicted, encode_shard(spec, np.asarray(data)))
                adopted |= stored[1]
                shards.append(_shard_receipt(stored[0]))
        return self._receipt(
            predicted.task,
            predicted.prediction.class_map,
            tuple(shards),
            adopted=adopted,
            bytes_read=predicted.bytes_read,
            seconds=predicted.seconds,
        )

    def layout(self, reduction: int) -> tuple[Grid, int]:
        """Grid and batch with memory reduced: the batch is halved down to 1, then the longest side of the patch.

        Raises:
            UsageError: nothing is left to reduce.
        """
        grid, batch = self.grid, self.plan.batch
        for _ in range(reduction):
            if batch > 1:
                batch //= 2
            else:
                grid = grid.with_smaller_patch()
        return grid, batch

    def _all_dead(self, block: Block) -> bool:
        """True when no trace is live in anything the block reads: then there is nothing to read."""
        if "live_mask" not in self.volume.coords:
            return False
        return not bool(self.volume["live_mask"].values[block.read[:2]].any())

    def _store(self, spec: ArraySpec, predicted: Predicted, encoded: bytes) -> tuple[bytes, bool]:
        """What is stored in the end, and whether an earlier worker stored it."""
        index, task = predicted.block.index, predicted.task
        key = shard_object(spec, index)
        if spec.name in task.replace:
            self._replace(key, encoded)
            return encoded, False
        if self.output.put_if_absent(key, encoded):
            return encoded, False
        return self._stored(spec, index, task), True

    def _replace(self, key: str, encoded: bytes) -> None:
        """Put `encoded` in the place of a damaged shard, unless another repair was faster."""
        try:
            version = self._version(key)
        except NotFoundError:
            done: object = self.output.put_if_absent(key, encoded)
        else:
            done = self.output.put_if_match(key, encoded, version)
        if not done and self.output.get(key) != encoded:
            raise IntegrityError("a shard changed while it was repaired", where=f"{self.output.url}/{key}")

    def _version(self, key: str) -> str:
        try:
            return self.output.read(key)[1]
        except IntegrityError:
            # Its bytes are not those whose checksum S3 keeps; its name for them is all that is needed.
            return self.output.version(key)

    def _stored(self, spec: ArraySpec, index: tuple[int, ...], task: Task) -> bytes:
        """The shard that is stored already, once its checksums hold and it is what an earlier receipt says."""
        key = shard_object(spec, index)
        stored = self.output.get(key)
        proven = task.proven[self.arrays.index(spec)] if task.proven else b""
        try:
            decode_shard(spec, stored)
            if proven and hashlib.sha256(stored).digest() != proven:
                raise ValueError(f"{spec.name}: SHA-256 differs from the receipt")
        except ValueError as error:
            raise IntegrityError(
                "a damaged shard is in the way",
                where=f"{self.output.url}/{key}",
                measured=str(error),
                remedy="geobatch repair of this output replaces it.",
            ) from error
        return stored

    def _nothing_valid(self, shape: tuple[int, ...]) -> Prediction:
        class_map = np.full(shape, INVALID, np.uint8)
        if self.plan.probabilities == "none":
            return Prediction(class_map, None)
        spec = self.arrays[1]
        return Prediction(class_map, np.full((len(self.plan.classes), *shape), spec.fill_value, spec.dtype))

    def _receipt(
        self,
        task: Task,
        class_map: npt.NDArray[np.uint8],
        shards: tuple[ShardReceipt, ...],
        *,
        adopted: bool,
        bytes_read: int,
        seconds: dict[str, float],
    ) -> Receipt:
        return Receipt(
            block=task.block,
            shards=shards,
            voxels=class_map.size,
            valid=int(np.count_nonzero(class_map != INVALID)),
            adopted=adopted,
            reduction=task.reduction,
            seconds=tuple(seconds.get(stage, 0.0) for stage in STAGES),
            bytes_read=bytes_read,
            worker=self.worker,
        )


def shard_object(spec: ArraySpec, index: tuple[int, ...]) -> str:
    """The object of one block of an array; axes before the survey's, such as class, are not cut."""
    return shard_key(spec, (*(0,) * (len(spec.dims) - len(index)), *index))


def block_of_object(grid: Grid, key: str) -> int | None:
    """The number of the block that a `shard_object` belongs to.

    None of what is no shard, such as the `.nfs…` file of a client that holds a replaced one open.
    """
    places = key.split("/")[-len(grid.shape) :]
    if not all(place.isdecimal() for place in places):
        return None
    index = tuple(map(int, places))
    return grid.number(index) if all(i < n for i, n in zip(index, grid.counts, strict=True)) else None


def _any_valid(values: Values) -> bool:
    """True when a sample is finite; as a rule the first plane has one."""
    return any(np.isfinite(plane).any() for plane in values)


def _shard_receipt(encoded: bytes) -> ShardReceipt:
    return ShardReceipt(len(encoded), hashlib.sha256(encoded).digest())


@contextlib.contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - start, 4)


def _require_same(what: str, where: str, found: object, planned: str) -> None:
    if found != planned:
        raise MismatchError(
            f"the {what} changed since the plan was made",
            where=where,
            measured=found,
            limit=planned,
            remedy="Restore it, or score into another output.",
        )
