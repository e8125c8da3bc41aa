"""The straight line: what happens to one block, from the survey in the bucket to its shards in the bucket."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import time
from collections.abc import Iterator
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr

from geobatch.blocks import Block
from geobatch.errors import IntegrityError, MismatchError
from geobatch.models.bundle import load_bundle
from geobatch.models.sections import volume_network
from geobatch.preprocess import prepare, read_region
from geobatch.score.predictor import INVALID, Prediction, Predictor
from geobatch.score.receipts import Receipt, ShardReceipt
from geobatch.score.spec import ScorePlan
from geobatch.shards import ArraySpec, Index, decode_shard, encode_shard, shard_key
from geobatch.storage import open_storage
from geobatch.survey import open_survey, survey_info, valid_volume

Values = npt.NDArray[np.float32]


class BlockScorer:
    """A worker with its network loaded and its survey open, which scores blocks of one plan.

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
        return self.plan.chain.crop(valid_volume(dataset, self.plan.survey))

    @cached_property
    def predictor(self) -> Predictor:
        """The network on its device."""
        bundle = load_bundle(self.plan.bundle)
        _require_same("bundle", self.plan.bundle, bundle.spec.hash, self.plan.bundle_hash)
        network, _ = volume_network(bundle, self.plan.sections, self.plan.combine)
        return Predictor(
            network,
            len(self.plan.classes),
            probabilities=self.plan.probabilities,
            batch=self.plan.batch,
            device=self.plan.device,
        )

    def load(self) -> None:
        """Open the survey and load the network now, so that what ails them is one error and not one for each block."""
        _ = self.volume, self.predictor

    def score_block(self, index: Index) -> Receipt:
        """Score one block: read, preprocess, predict, trim, write, receipt."""
        # Ray limits OpenMP to one thread, and the limit is kept per thread: set it where the work is done.
        torch.set_num_threads(self.plan.threads)
        block = self.grid.block(index)
        seconds: dict[str, float] = {}
        with _timed(seconds, "read"):
            raw = read_region(self.volume, self.plan.chain, self.grid.seen(block.write))
        with _timed(seconds, "preprocess"):
            values = prepare(raw, self.plan.chain)
        with _timed(seconds, "predict"):
            prediction = self.predict_and_trim(values, block)
        with _timed(seconds, "write"):
            shards, adopted = self.write(prediction, index)
        return Receipt(
            block=block.key,
            plan=self.plan.hash,
            bundle=self.plan.bundle_hash,
            shards=shards,
            voxels=prediction.class_map.size,
            valid=int(np.count_nonzero(prediction.class_map != INVALID)),
            adopted=adopted,
            seconds=seconds,
            bytes_read=raw.values.nbytes,
            worker=self.worker,
        )

    def predict_and_trim(self, values: Values, block: Block) -> Prediction:
        """Classes and probabilities of the block's own cells; one without a valid sample costs no inference."""
        origin = [cells.start for cells in self.grid.seen(block.write)]
        own = tuple(slice(c.start - o, c.stop - o) for c, o in zip(block.write, origin, strict=True))
        if not np.isfinite(values[own]).any():
            return self._nothing_valid(values[own].shape)
        return self.predictor.predict(values, self.grid.patches(block.write), origin)

    def write(self, prediction: Prediction, index: Index) -> tuple[tuple[ShardReceipt, ...], bool]:
        """Store each array's shard, first writer wins; the receipts and whether an earlier writer was adopted."""
        receipts, adopted = [], False
        for spec in self.arrays:
            data = prediction.class_map if spec.name == "class_map" else prediction.probability
            position = index if spec.name == "class_map" else (0, *index)
            encoded = encode_shard(spec, np.asarray(data))
            key = shard_key(spec, position)
            if not self.output.put_if_absent(key, encoded):
                encoded = self._adopt(spec, key)
                adopted = True
            receipts.append(ShardReceipt(key=key, size=len(encoded), sha256=hashlib.sha256(encoded).hexdigest()))
        return tuple(receipts), adopted

    def _adopt(self, spec: ArraySpec, key: str) -> bytes:
        """The shard that is stored already, once its checksums hold."""
        stored = self.output.get(key)
        try:
            decode_shard(spec, stored)
        except ValueError as error:
            raise IntegrityError(
                "a damaged shard is in the way",
                where=f"{self.output.url}/{key}",
                measured=str(error),
                remedy="Delete that object and run the job again.",
            ) from error
        return stored

    def _nothing_valid(self, shape: tuple[int, ...]) -> Prediction:
        class_map = np.full(shape, INVALID, np.uint8)
        if self.plan.probabilities == "none":
            return Prediction(class_map, None)
        spec = self.arrays[1]
        return Prediction(class_map, np.full((len(self.plan.classes), *shape), spec.fill_value, spec.dtype))


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
