"""What one replica does, without HTTP: arrays and regions in, predictions out, one thread that computes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from geobatch.models.bundle import load_bundle
from geobatch.online.batcher import Batcher
from geobatch.online.engine import MOST_TOGETHER, ArrayRequest, Engine
from geobatch.online.memory import share_memory
from geobatch.online.regions import RegionRequest, Regions, RegionWork
from geobatch.online.spec import ServeSettings
from geobatch.score.predictor import Prediction, Probabilities

HEADER_BYTES = 65536
"""What a body may hold beside its voxels."""


class Service:
    """A served bundle in one replica, its network loaded.

    Args:
        settings: What the server was started with.
    """

    def __init__(self, settings: ServeSettings) -> None:
        bundle = load_bundle(settings.bundle)
        budget = share_memory(bundle, settings.memory_bytes, settings.max_voxels)
        device = "cuda" if settings.gpus else "cpu"
        self.spec, self.max_voxels = bundle.spec, budget.max_voxels
        self.engine = Engine(bundle, budget, device=device, threads=settings.threads)
        self._regions = Regions(self.engine, settings.allow, budget.max_voxels)
        self._batcher: Batcher[ArrayRequest | RegionWork, Prediction] = Batcher(self._compute, MOST_TOGETHER)

    @property
    def max_body_bytes(self) -> int:
        """The longest body: the voxels in float32 and a header."""
        return self.max_voxels * 4 + HEADER_BYTES

    @property
    def ready(self) -> bool:
        """True while requests are computed."""
        return self._batcher.alive

    async def predict(self, request: ArrayRequest) -> Prediction:
        """The prediction of an array; a small one may share its forward pass with others of its shape."""
        return await asyncio.wrap_future(self._batcher.submit(request, self.engine.batch_key(request)))

    async def plan_region(self, request: RegionRequest, probabilities: Probabilities) -> RegionWork:
        """The work of a region, found right; raises as `Regions.plan`."""
        return await asyncio.to_thread(self._regions.plan, request, probabilities)

    async def predict_region(self, work: RegionWork) -> Prediction:
        """The prediction of a region."""
        return await asyncio.wrap_future(self._batcher.submit(work))

    def _compute(self, items: Sequence[ArrayRequest | RegionWork]) -> list[Prediction]:
        first = items[0]
        if isinstance(first, RegionWork):
            return [self._regions.predict(first)]
        return self.engine.predict_arrays([item for item in items if isinstance(item, ArrayRequest)])
