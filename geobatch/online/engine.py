"""The network of a served bundle: arrays in, predictions out, tiled or batched as their size asks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr

from geobatch.blocks import Grid, Patch, covering_patch
from geobatch.errors import UsageError
from geobatch.models.bundle import Bundle, BundleSpec
from geobatch.models.inference import for_inference
from geobatch.online.memory import Budget, fit_patch
from geobatch.plan import activation_bytes_per_cell
from geobatch.preprocess import prepare, read_region
from geobatch.score.predictor import Prediction, Predictor, Probabilities, build_predictor
from geobatch.score.spec import ScorePlan
from geobatch.survey import VOLUME_AXES

Values = npt.NDArray[np.float32]
NO_REACH = ((0, 0),) * 3
MOST_TOGETHER = 8
SMALL_CELLS = 64**3
"""Arrays up to this size may share a forward pass: larger ones fill the device alone."""
GPU_SHARE = 0.8


@dataclass(frozen=True)
class ArrayRequest:
    """One array to predict.

    Attributes:
        values: `(inline, crossline, sample)` float32.
        prepared: True when the bundle's preprocessing was applied already.
        probabilities: Which probabilities are wanted.
    """

    values: Values
    prepared: bool
    probabilities: Probabilities


def require_servable(spec: BundleSpec) -> None:
    """Refuse a network whose answer to an array would depend on how the array is cut.

    Raises:
        UsageError: it is a network of sections, or sees the whole of its patch.
    """
    if spec.axes == VOLUME_AXES and not spec.reach.unbounded:
        return
    unbounded = ", ".join(spec.axes[axis] for axis in spec.reach.unbounded)
    raise UsageError(
        "network cannot be served online",
        where=f"bundle {spec.name}",
        measured=f"axes {', '.join(spec.axes)}" + (f", of which {unbounded} must be seen whole" if unbounded else ""),
        limit=f"axes {', '.join(VOLUME_AXES)} and a bounded reach along each",
        remedy="Score surveys with it by geobatch run.",
    )


class Engine:
    """A bundle's network on its device. Not thread-safe: one thread computes.

    Args:
        bundle: The bundle.
        budget: What fits in memory.
        device: Torch device.
        threads: Torch threads.
    """

    def __init__(self, bundle: Bundle, budget: Budget, *, device: str, threads: int) -> None:
        self.spec, self.device, self.threads = bundle.spec, device, threads
        self.network = for_inference(bundle.network(), device).to(device)
        self._predictors: dict[tuple[Probabilities, int], Predictor] = {}
        self.network_cells = min(budget.network_cells, _device_cells(bundle, device))

    def batch_key(self, request: ArrayRequest) -> tuple[object, ...] | None:
        """What requests must have in common to share a forward pass; None for one that shares none."""
        shape = request.values.shape
        small = math.prod(shape) <= min(SMALL_CELLS, self.network_cells // MOST_TOGETHER)
        return (shape, request.probabilities) if small else None

    def predict_arrays(self, requests: Sequence[ArrayRequest]) -> list[Prediction]:
        """What the network says of each array, its edges treated as a survey's; all share one `batch_key`."""
        # Ray limits OpenMP to one thread, and the limit is kept per thread: set it where the work is done.
        torch.set_num_threads(self.threads)
        volumes = [r.values if r.prepared else self._prepared(r.values) for r in requests]
        probabilities = requests[0].probabilities
        if len(volumes) == 1:
            return [self._predict_tiled(volumes[0], probabilities)]
        return self._predict_together(volumes, probabilities)

    def predictor(self, probabilities: Probabilities, batch: int = 1) -> Predictor:
        """The predictor of the bulk path around the network."""
        key = (probabilities, batch)
        if key not in self._predictors:
            self._predictors[key] = Predictor(
                self.network, len(self.spec.classes), probabilities=probabilities, batch=batch, device=self.device
            )
        return self._predictors[key]

    def plan_predictor(self, plan: ScorePlan, probabilities: Probabilities) -> Predictor:
        """The predictor of a bulk run's plan around the network, on this device."""
        update = {"probabilities": probabilities, "device": self.device}
        return build_predictor(plan.model_copy(update=update), self.network)

    def grid(self, shape: tuple[int, ...], part: tuple[int, ...]) -> Grid:
        """The grid of a volume of `shape` predicted in parts, its patch as large as a part needs and memory allows."""
        reach = self.spec.reach
        covering = covering_patch(shape, part, reach.stride, reach.halo)
        patch = fit_patch(covering, shape, reach.stride, reach.halo, self.network_cells)
        return Grid(shape, part, patch, reach.stride, reach.halo, NO_REACH)

    def _prepared(self, values: Values) -> Values:
        """The array after the bundle's preprocessing, with the statistics of the bundle."""
        volume = xr.DataArray(values, dims=VOLUME_AXES)
        return prepare(read_region(volume, self.spec.chain, [slice(0, n) for n in values.shape]), self.spec.chain)

    def _predict_tiled(self, values: Values, probabilities: Probabilities) -> Prediction:
        """One array, in as many patches as memory asks for."""
        whole = tuple(slice(0, n) for n in values.shape)
        patches = self.grid(values.shape, values.shape).patches(whole)
        return self.predictor(probabilities).predict(values, patches, (0, 0, 0))

    def _predict_together(self, volumes: Sequence[Values], probabilities: Probabilities) -> list[Prediction]:
        """Arrays of one shape, each a patch of its own, in one forward pass."""
        length, *rest = volumes[0].shape
        others = [slice(0, n) for n in rest]
        places = [slice(i * length, (i + 1) * length) for i in range(len(volumes))]
        regions = [(place, *others) for place in places]
        patches = [Patch(region, region) for region in regions]
        # Laid end to end the arrays are one volume to the predictor; no patch sees two of them.
        end_to_end = np.concatenate(volumes)
        predicted = self.predictor(probabilities, len(volumes)).predict(end_to_end, patches, (0, 0, 0))
        return [
            Prediction(
                predicted.class_map[place],
                None if predicted.probability is None else predicted.probability[:, place],
            )
            for place in places
        ]


def _device_cells(bundle: Bundle, device: str) -> int:
    """Cells of a forward pass that the device's own memory holds."""
    free, _ = torch.cuda.mem_get_info() if device == "cuda" else (2**63 - 1, 0)
    spec = bundle.spec
    return int(free * GPU_SHARE / activation_bytes_per_cell(bundle.network(), spec.in_channels, spec.reach.stride))
