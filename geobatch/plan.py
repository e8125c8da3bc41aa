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
    seen, write, patch = 1, 1, 1
    for n, b, p, (hb, ha), (rb, ra) in zip(grid.shape, grid.shard, grid.patch, grid.halo, grid.reach, strict=True):
        seen *= min(n, max(b + hb + ha, p) + rb + ra)
        write *= min(n, b)
        patch *= min(n, p)
    # Read, masked and prepared copies of the input; each step makes one more for a moment.
    values = seen * 4 * 4
    return Memory(WORKER_BYTES, values, int(patch * batch * bytes_per_cell), write * output_bytes_per_cell * 3)


def choose_patch(
    *,
    shape: tuple[int, ...],
    shard: tuple[int, ...],
    stride: tuple[int, ...],
    halo: Halo,
    reach: Halo,
    batch: int,
    bytes_per_cell: float,
    output_bytes_per_cell: int,
    limit_bytes: int,
) -> tuple[int, ...]:
    """The patch under which the fewest cells are computed, among those whose projected memory stays below the limit.

    Raises:
        UsageError: not even the smallest useful patch fits; the figures are in the message.
    """
    covering = covering_patch(shape, shard, stride, halo)
    axes = zip(shape, shard, stride, halo, covering, strict=True)
    choices = [_useful_lengths(n, b, s, h, longest) for n, b, s, h, longest in axes]
    grids = [Grid(shape, shard, patch, stride, halo, reach) for patch in itertools.product(*choices)]

    def memory(grid: Grid) -> int:
        return project_memory(grid, batch, bytes_per_cell, output_bytes_per_cell).total

    fitting = [grid for grid in grids if memory(grid) <= limit_bytes]
    if not fitting:
        least = min(grids, key=memory)
        raise memory_error(least, project_memory(least, batch, bytes_per_cell, output_bytes_per_cell), limit_bytes)
    return min(fitting, key=lambda grid: (grid.redundancy(), math.prod(grid.patch))).patch


def _useful_lengths(n: int, shard: int, stride: int, halo: tuple[int, int], longest: int) -> list[int]:
    """Patch lengths along one axis, ascending, each computing fewer cells than every shorter one."""
    useful: list[int] = []
    fewest = math.inf
    for length in range(min(smallest_patch(stride, halo), longest), longest + 1, stride):
        if length < n and length < smallest_patch(stride, halo):
            continue
        cells = Grid((n,), (shard,), (length,), (stride,), (halo,), ((0, 0),)).redundancy()
        if cells < fewest:
            fewest = cells
            useful.append(length)
    return useful


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
