"""The engine with a network that costs nothing, against copying the same Zarr. Environment: geobatch's own.

Both go block by block in one thread through the same grid, without halo, the same clients for reading and writing and
the same codec, and store the same bytes. The engine's side is `BlockScorer.score_block`, whole, with its receipt; its
network says class 1 where the amplitude is above 0. The copy reads a block, compares it with 0, encodes and stores it:
nothing is prepared, masked, predicted or hashed. A copy of the float32 volume as it is stands beside it.
"""

import dataclasses
import shutil
import time
from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch
from order import Order, answer, order_of_process

from geobatch.blocks import Grid
from geobatch.models.bundle import ClassInfo, load_bundle
from geobatch.preprocess import Chain
from geobatch.score.predictor import Predictor
from geobatch.score.spec import ScorePlan
from geobatch.score.worker import BlockScorer, Task
from geobatch.shards import ArraySpec, Index, create_arrays, encode_shard, shard_key
from geobatch.storage import open_storage
from geobatch.survey import open_survey, survey_info

REPETITIONS = 3
NO_HALO = ((0, 0),) * 3


class Sign(torch.nn.Module):
    """Logits 0 and x: class 1 where x is above 0."""

    def forward(self, x_BC: torch.Tensor) -> torch.Tensor:
        """The logits `(batch, 2, *axes)`."""
        return torch.cat([torch.zeros_like(x_BC), x_BC], dim=1)


class SignScorer(BlockScorer):
    """A worker whose network is `Sign`."""

    @cached_property
    def predictor(self) -> Predictor:
        """The network."""
        return Predictor(Sign(), len(self.plan.classes), batch=self.plan.batch)


def main() -> None:
    """Time both in turn, each several times."""
    order = order_of_process()
    torch.set_num_threads(order.threads)
    plan = _plan(order)
    passes: dict[str, Callable[[str], None]] = {
        "engine": lambda output: _engine(plan, output),
        "copy": lambda output: _copy(plan, output, plan.arrays()[0]),
        "copy_float32": lambda output: _copy(
            plan, output, dataclasses.replace(plan.arrays()[0], name="amplitude", dtype="float32")
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for repetition in range(REPETITIONS + 1):
        for name, run in passes.items():
            output = f"{order.output}-{name}"
            shutil.rmtree(output, ignore_errors=True)
            start = time.perf_counter()
            run(output)
            # The first round warms caches and loads what is loaded once.
            if repetition:
                seconds[name].append(time.perf_counter() - start)
    answer(seconds=seconds, same_bytes=_same_bytes(plan, order.output))


def _plan(order: Order) -> ScorePlan:
    """A plan without halo and preprocessing, whose class map has two classes."""
    identity = str(survey_info(open_survey(order.survey)).get("identity"))
    return ScorePlan(
        survey=order.survey,
        survey_identity=identity,
        bundle=order.bundle,
        bundle_hash=load_bundle(order.bundle).spec.hash,
        statistics="bundle",
        crop=None,
        chain=Chain(),
        grid=Grid(order.shape, order.shard, order.shard, (1, 1, 1), NO_HALO, NO_HALO),
        chunk=order.chunk,
        batch=1,
        threads=order.threads,
        device="cpu",
        probabilities="none",
        classes=(ClassInfo(name="below", color="#000000"), ClassInfo(name="above", color="#ffffff")),
    )


def _engine(plan: ScorePlan, output: str) -> None:
    create_arrays(output, plan.arrays())
    scorer = SignScorer(plan, output)
    for block in range(plan.grid.total):
        scorer.score_block(Task(block))


def _copy(plan: ScorePlan, output: str, spec: ArraySpec) -> None:
    create_arrays(output, [spec])
    volume = open_survey(plan.survey)["amplitude"]
    storage = open_storage(output)
    for index in plan.grid.indices():
        values = volume[plan.grid.block(index).write].values
        data = values if spec.dtype == "float32" else (values > 0).astype(np.uint8)
        storage.put_if_absent(shard_key(spec, index), encode_shard(spec, data))


def _same_bytes(plan: ScorePlan, output: str) -> bool:
    """Whether engine and copy stored the same shards."""
    engine, copy = open_storage(f"{output}-engine"), open_storage(f"{output}-copy")

    def same(index: Index) -> bool:
        key = shard_key(plan.arrays()[0], index)
        return engine.get(key) == copy.get(key)

    return all(same(index) for index in plan.grid.indices())


if __name__ == "__main__":
    main()
