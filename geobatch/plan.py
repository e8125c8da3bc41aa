"""Memory, before anything runs: what a block needs, and the largest patch that fits."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import psutil
import torch
from torch import nn

from geobatch.blocks import Grid, Halo, covering_patch, smallest_patch
from geobatch.errors import UsageError

GIB = 2**30
WORKER_BYTES = int(0.7 * GIB)
"""An idle replica with torch, xarray and its network loaded; .55 GiB was seen."""


@dataclass(frozen=True)
class Memory:
    """Projected peak memory of one replica in bytes, by cause."""

    worker: int
    values: int
    network: int
    output: int

    @property
    def total(self) -> int:
        """The sum."""
        return self.worker + self.values + self.network + self.output

    def __str__(self) -> str:
        parts = {"worker": self.worker, "prepared input": self.values, "network": self.network, "output": self.output}
        return ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items()) + " GiB"


def activation_bytes_per_cell(network: nn.Module, in_channels: int, stride: tuple[int, ...]) -> float:
    """Bytes of all intermediate results of one forward pass per input cell, measured on a small patch in float32.

    An upper bound of what is alive at once: in evaluation most results are freed as the pass goes on.
    """
    counted = 0

    def count(_module: nn.Module, _inputs: object, output: object) -> None:
        nonlocal counted
        if isinstance(output, torch.Tensor):
            counted += output.numel() * 4

    hooks = [m.register_forward_hook(count) for m in network.modules() if not list(m.children())]
    shape = [4 * s for s in stride]
    try:
        with torch.inference_mode():
            network(torch.zeros((1, in_channels, *shape)))
    finally:
        for hook in hooks:
            hook.remove()
    return counted / math.prod(shape)


def project_memory(grid: Grid, batch: int, bytes_per_cell: float, output_bytes_per_cell: int) -> Memory:
    """Peak memory of a replica that scores one block at a time under `grid`."""
    seen = math.prod(grid.longest_read())
    patch = math.prod(min(n, p) for n, p in zip(grid.shape, grid.patch, strict=True))
    return _memory(seen, patch, math.prod(grid.shard), batch, bytes_per_cell, output_bytes_per_cell)


def choose_patch(
    shape: tuple[int, ...],
    shard: tuple[int, ...],
    stride: tuple[int, ...],
    halo: Halo,
    reach: Halo,
    batch: int,
    bytes_per_cell: float,
    output_bytes_per_cell: int,
    *,
    limit_bytes: int,
) -> tuple[int, ...]:
    """The patch under which the fewest cells are computed, among those whose projected memory stays below the limit.

    Raises:
        UsageError: not even the smallest useful patch fits; the figures are in the message.
    """
    covering = covering_patch(shape, shard, stride, halo)
    axes = zip(shape, shard, stride, halo, reach, covering, strict=True)
    combinations = list(itertools.product(*(_useful_lengths(*axis) for axis in axes)))

    def memory(choice: tuple[_Length, ...]) -> int:
        seen, patch = math.prod(axis.seen for axis in choice), math.prod(axis.patch for axis in choice)
        return _memory(seen, patch, math.prod(shard), batch, bytes_per_cell, output_bytes_per_cell).total

    fitting = [choice for choice in combinations if memory(choice) <= limit_bytes]
    if not fitting:
        least = tuple(axis.length for axis in min(combinations, key=memory))
        grid = Grid(shape, shard, least, stride, halo, reach)
        raise memory_error(grid, project_memory(grid, batch, bytes_per_cell, output_bytes_per_cell), limit_bytes)
    best = min(fitting, key=lambda choice: (math.prod(axis.work for axis in choice), memory(choice)))
    return tuple(axis.length for axis in best)


@dataclass(frozen=True)
class _Length:
    """One patch length along one axis: cells computed per cell written, and the cells a block and a patch hold."""

    length: int
    work: float
    seen: int
    patch: int


def _useful_lengths(
    n: int, shard: int, stride: int, halo: tuple[int, int], reach: tuple[int, int], longest: int
) -> list[_Length]:
    """Patch lengths along one axis, ascending, each computing fewer cells than every shorter one."""
    useful: list[_Length] = []
    for length in range(min(smallest_patch(stride, halo), longest), longest + 1, stride):
        if length < n and length < smallest_patch(stride, halo):
            continue
        axis = Grid((n,), (shard,), (length,), (stride,), (halo,), (reach,))
        work = axis.redundancy()
        if not useful or work < useful[-1].work:
            useful.append(_Length(length, work, axis.longest_read()[0], min(n, length)))
    return useful


def _memory(seen: int, patch: int, write: int, batch: int, bytes_per_cell: float, output_bytes_per_cell: int) -> Memory:
    # Read, masked and prepared copies of the input, and one more for a moment in each step; a shard is padded to its
    # full size, held as the prediction, the padded copy and the encoded bytes.
    return Memory(WORKER_BYTES, seen * 4 * 4, int(patch * batch * bytes_per_cell), write * output_bytes_per_cell * 3)


def memory_error(grid: Grid, memory: Memory, limit_bytes: int) -> UsageError:
    """The refusal of a plan that cannot fit."""
    return UsageError(
        f"block {grid.shard} in patches of {grid.patch} does not fit in memory",
        measured=f"{memory.total / GIB:.2f} GiB projected per replica ({memory})",
        limit=f"at most {limit_bytes / GIB:.2f} GiB",
        remedy="Lower shard or replicas, or raise resources.memory_gib.",
    )


def free_memory_bytes(replicas: int) -> int:
    """What one replica may use on this machine: its share of 80 % of the memory that is free now."""
    return int(psutil.virtual_memory().available * 0.8 / replicas)
