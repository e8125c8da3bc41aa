"""How the memory of a replica is shared between requests and the network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from geobatch.blocks import Halo, smallest_patch
from geobatch.errors import UsageError
from geobatch.models.bundle import Bundle
from geobatch.plan import GIB, WORKER_BYTES, activation_bytes_per_cell

REQUESTS_PER_REPLICA = 16
"""Requests a replica holds at once, body and answer; the next ones wait in Serve."""
REQUEST_SHARE = 0.5
READ_CELLS = 2**23
"""Cells that a piece of a region may read, when a request may hold fewer voxels: 8 Mi are 203 cells cubed."""
COPIES = 4
"""Read, masked and prepared copies of the values in float32, and one more for a moment, as in `geobatch.plan`."""


@dataclass(frozen=True)
class Budget:
    """What fits in a replica.

    Attributes:
        max_voxels: The most voxels of one request.
        network_cells: The most cells of one forward pass.
    """

    max_voxels: int
    network_cells: int


def share_memory(bundle: Bundle, memory_bytes: int, max_voxels: int | None) -> Budget:
    """What fits in `memory_bytes`: half of it for requests, half for the network, unless `max_voxels` says otherwise.

    Raises:
        UsageError: not even the smallest useful patch fits beside the requests.
    """
    spec = bundle.spec
    answer = 1 + 4 * len(spec.classes)
    held = REQUESTS_PER_REPLICA * (4 + answer) + COPIES * 4 + answer
    piece = READ_CELLS * COPIES * 4
    free = memory_bytes - WORKER_BYTES - piece
    voxels = max_voxels or max(int(free * REQUEST_SHARE / held), 0)
    per_cell = activation_bytes_per_cell(bundle.network(), spec.in_channels, spec.reach.stride)
    cells = int((free - voxels * held) / per_cell)
    least = math.prod(least_patch(spec.reach.stride, spec.reach.halo))
    if cells < least or voxels < 1:
        raise UsageError(
            "requests and network do not fit in memory",
            where=f"replica, {voxels} voxels a request",
            measured=f"{(memory_bytes - free + voxels * held + least * per_cell) / GIB:.2f} GiB projected at least",
            limit=f"{memory_bytes / GIB:.2f} GiB",
            remedy="Lower --max-voxels or --replicas.",
        )
    return Budget(voxels, cells)


def least_patch(stride: Sequence[int], halo: Halo) -> list[int]:
    """The shortest useful patch per axis."""
    return [smallest_patch(s, h) for s, h in zip(stride, halo, strict=True)]


def fit_patch(
    lengths: Sequence[int], shape: Sequence[int], stride: Sequence[int], halo: Halo, most_cells: int
) -> tuple[int, ...]:
    """The patch of `lengths`, or the shortest useful one, halved until a forward pass holds at most `most_cells`.

    Args:
        lengths: Cells per axis that one patch would best cover.
        shape: Cells of the whole per axis; a patch sees no more.
        stride: Total stride of the network.
        halo: Its halo.
        most_cells: The limit; the smallest useful patch is within it.
    """
    least = least_patch(stride, halo)
    patch = [max(-(-n // s) * s, short) for n, s, short in zip(lengths, stride, least, strict=True)]
    while math.prod(min(p, n) for p, n in zip(patch, shape, strict=True)) > most_cells:
        axis = max(range(len(patch)), key=lambda a: patch[a] - least[a])
        patch[axis] = max(least[axis], -(-patch[axis] // (2 * stride[axis])) * stride[axis])
    return tuple(patch)
