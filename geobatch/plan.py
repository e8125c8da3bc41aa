"""Memory, before anything runs: what a block needs on host and device, and the patch and batch that fit best."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import torch
from torch import nn

from geobatch.blocks import Grid, covering_patch, smallest_patch
from geobatch.errors import UsageError
from geobatch.models.inference import held_bytes

GIB = 2**30
WORKER_BYTES = int(0.7 * GIB)
"""An idle replica with torch, xarray and its network loaded; .55 GiB was seen."""
DEVICE_BYTES = int(0.6 * GIB)
"""A CUDA context with the kernels of cuDNN."""
CALL_CELLS = {"cpu": 2**11, "cuda": 2**17}
"""Cells whose computing takes as long as one forward pass takes beside its arithmetic: about 1 ms."""
PROBE_STRIDES = 16
"""Length of the patch that is tried for the memory of a network, in strides."""


@dataclass(frozen=True)
class Costs:
    """What cells cost in memory.

    Attributes:
        activation_bytes: Intermediate results of the network per cell of a patch.
        classes: Number of classes.
        probability_bytes: Bytes of one class probability in the output, 0 without probabilities.
        device: Where the network runs.
        overlap: A replica reads one block and writes another while it computes a third.
    """

    activation_bytes: float
    classes: int
    probability_bytes: int
    device: str = "cpu"
    overlap: bool = False

    @property
    def output_bytes(self) -> int:
        """Bytes written per cell before compression."""
        return 1 + self.probability_bytes * self.classes


@dataclass(frozen=True)
class Limits:
    """Memory that one replica may use, in bytes; `device` is None where there is none or nothing is known of it."""

    host: int
    device: int | None = None


@dataclass(frozen=True)
class Memory:
    """Projected peak memory of one replica in bytes, by cause; `network` and `reduction` lie where the network runs."""

    worker: int
    values: int
    output: int
    network: int
    reduction: int
    on_device: bool

    @property
    def host(self) -> int:
        """The peak in host memory."""
        return self.worker + self.values + self.output + (0 if self.on_device else self.network + self.reduction)

    @property
    def device(self) -> int:
        """The peak on a device of its own."""
        return DEVICE_BYTES + self.network + self.reduction if self.on_device else 0

    def __str__(self) -> str:
        host = {"worker": self.worker, "prepared input": self.values, "output": self.output}
        computing = {"network": self.network, "reduction": self.reduction}
        if not self.on_device:
            return _gib(host | computing)
        return f"{_gib(host)}; on the device {_gib({'context': DEVICE_BYTES, **computing})}"


def _gib(parts: dict[str, int]) -> str:
    return ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items()) + " GiB"


def activation_bytes_per_cell(
    network: nn.Module, in_channels: int, stride: tuple[int, ...], precision: str = "float32"
) -> float:
    """Bytes that one forward pass of the network, as it is run, holds at once per input cell."""
    shape = [PROBE_STRIDES * s for s in stride]
    return held_bytes(network, (1, in_channels, *shape), getattr(torch, precision)) / math.prod(shape)


def project_memory(grid: Grid, batch: int, costs: Costs) -> Memory:
    """Peak memory of a replica that scores blocks under `grid`."""
    seen = math.prod(grid.longest_read())
    patch = math.prod(min(n, p) for n, p in zip(grid.shape, grid.patch, strict=True))
    causes = _causes(seen, patch * batch, math.prod(grid.shard), costs, blended=grid.blend is not None)
    values, output, network, reduction = (int(size) for size in causes)
    return Memory(WORKER_BYTES, values, output, network, reduction, costs.device == "cuda")


def require_memory(grid: Grid, batch: int, costs: Costs, limits: Limits) -> Memory:
    """The projected memory of a plan that fits.

    Raises:
        UsageError: it does not; the figures are in the message.
    """
    memory = project_memory(grid, batch, costs)
    device_limit = math.inf if limits.device is None else limits.device
    for needed, limit, where, remedy in (
        (memory.host, limits.host, "memory", "Lower shard or replicas, or raise resources.memory_gib."),
        (memory.device, device_limit, "device memory", "Lower patch, batch or shard, or take a larger device."),
    ):
        if needed > limit:
            raise UsageError(
                f"block {grid.shard} in patches of {grid.patch} does not fit in {where}",
                measured=f"{needed / GIB:.2f} GiB projected per replica ({memory})",
                limit=f"at most {limit / GIB:.2f} GiB",
                remedy=remedy,
            )
    return memory


def choose_patch(grid: Grid, costs: Costs, limits: Limits, batches: Sequence[int] = (1,)) -> tuple[Grid, int]:
    """The grid with the patch, and the batch, that score a survey fastest within memory.

    In halo mode the fewest cells are computed, each forward pass counting as some more; of equals, the choice that
    takes less memory. In blend mode the result depends on the patch and a longer one knows more, so that the given
    patch is shortened only as far as memory asks for it.

    Args:
        grid: The grid; its patch counts in blend mode and on whole axes only.
        costs: What cells cost.
        limits: What there is.
        batches: The batches to choose from.

    Raises:
        UsageError: not even the smallest useful patch fits; the figures are in the message.
    """
    axes = [_useful_lengths(grid, axis) for axis in range(len(grid.shape))]
    work, seen, patch = (
        _outer([[getattr(length, name) for length in axis] for axis in axes])[..., None]
        for name in ("work", "seen", "patch")
    )
    cells = patch * np.array(batches, float)
    causes = _causes(seen, cells, math.prod(grid.shard), costs, blended=grid.blend is not None)
    host, device = _sums(causes, costs)
    fits = (host <= limits.host) & (device <= (math.inf if limits.device is None else limits.device))
    calls = 1 + CALL_CELLS[costs.device] / cells
    time = calls * (1 / patch if grid.blend else work)
    order = np.lexsort(((host + device).ravel(), np.where(fits, time, math.inf).ravel()))
    place = order[0] if fits.any() else np.argmin(host + device)
    *indices, b = np.unravel_index(int(place), cells.shape)
    best = dataclasses.replace(grid, patch=tuple(axis[int(i)].length for axis, i in zip(axes, indices, strict=True)))
    require_memory(best, batches[int(b)], costs, limits)
    return best, batches[int(b)]


@dataclass(frozen=True)
class _Length:
    """One patch length along one axis: cells computed per cell written, and the cells a block and a patch hold."""

    length: int
    work: float
    seen: int
    patch: int


def _useful_lengths(grid: Grid, axis: int) -> list[_Length]:
    """Patch lengths along one axis, ascending; in halo mode each computes fewer cells than every shorter one."""
    n, stride, halo = grid.shape[axis], grid.stride[axis], grid.halo[axis]
    useful: list[_Length] = []
    for length in _lengths(grid, axis):
        if not grid.blend and length < n and length < smallest_patch(stride, halo):
            continue
        line = Grid((n,), (grid.shard[axis],), (length,), (stride,), (halo,), (grid.reach[axis],), grid.blend)
        work = line.redundancy()
        if grid.blend or not useful or work < useful[-1].work:
            useful.append(_Length(length, work, line.longest_read()[0], min(n, length)))
    return useful


def _lengths(grid: Grid, axis: int) -> Sequence[int]:
    """The patch lengths to choose from along one axis."""
    n, stride, given = grid.shape[axis], grid.stride[axis], grid.patch[axis]
    if axis in grid.whole:
        return [given]
    if grid.blend:
        longest = min(given, -(-n // stride) * stride)
        return range(min(4 * stride, longest), longest + 1, stride)
    (longest,) = covering_patch((n,), (grid.shard[axis],), (stride,), (grid.halo[axis],))
    return range(min(smallest_patch(stride, grid.halo[axis]), longest), longest + 1, stride)


def _outer(axes: Sequence[Sequence[float]]) -> npt.NDArray[np.float64]:
    """The products of all combinations, one dimension per axis."""
    product = np.ones((1,) * len(axes))
    for axis, values in enumerate(axes):
        product = product * np.asarray(values, float).reshape([-1 if a == axis else 1 for a in range(len(axes))])
    return product


def _causes(seen: Any, cells: Any, write: int, costs: Costs, *, blended: bool) -> tuple[Any, ...]:
    """Bytes of prepared input, output, network and reduction, for numbers or arrays of cells seen and in a batch."""
    # Read, masked and prepared copies of the input, and one more for a moment in each step; a shard is padded to its
    # full size, held as the prediction, the padded copy and the encoded bytes. With overlap one more of each waits.
    waiting = 1 if costs.overlap else 0
    values = seen * 4 * (4 + waiting)
    output = write * costs.output_bytes * (3 + waiting)
    network = cells * costs.activation_bytes
    # Logits on their way to probabilities; sums, weights and mean of blended patches.
    reduction = cells * 0 + (write * 4 * (1 + 4 * costs.classes) if blended else 0)
    if costs.device == "cuda":
        reduction = reduction + seen * 9 + write * costs.output_bytes
    return values, output, network, reduction


def _sums(causes: tuple[Any, ...], costs: Costs) -> tuple[Any, Any]:
    """Host and device memory of `_causes`, with what does not depend on them."""
    values, output, network, reduction = causes
    memory = Memory(WORKER_BYTES, values, output, network, reduction, costs.device == "cuda")
    return memory.host + 0 * network, memory.device + 0 * network


def free_memory_bytes(replicas: int) -> int:
    """What one replica may use on this machine: its share of 80 % of the memory that is free now."""
    return int(psutil.virtual_memory().available * 0.8 / replicas)


def free_device_bytes(share: float) -> int | None:
    """What a replica may use of the device that this process sees: 80 % of its share; None where none is seen."""
    if not torch.cuda.is_available():
        return None
    free, _ = torch.cuda.mem_get_info()
    return int(free * 0.8 * min(share, 1.0))
