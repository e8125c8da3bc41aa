from __future__ import annotations

import pytest

from geobatch.blocks import Grid, Halo, covering_patch
from geobatch.errors import UsageError
from geobatch.plan import GIB, choose_patch, project_memory

SHAPE, SHARD, STRIDE = (1000, 700, 1501), (128, 128, 128), (4, 4, 4)
HALO: Halo = ((22, 22),) * 3
NONE: Halo = ((0, 0),) * 3
FIGURES = (1, 550.0, 5)


def chosen(limit_gib: float) -> Grid:
    patch = choose_patch(SHAPE, SHARD, STRIDE, HALO, NONE, *FIGURES, limit_bytes=int(limit_gib * GIB))
    return Grid(SHAPE, SHARD, patch, STRIDE, HALO, NONE)


def test_more_memory_never_costs_more_work() -> None:
    grids = [chosen(limit) for limit in (1.2, 1.6, 2.0, 3.0, 8.0)]
    work = [grid.redundancy() for grid in grids]
    assert work == sorted(work, reverse=True)
    for limit, grid in zip((1.2, 1.6, 2.0, 3.0, 8.0), grids, strict=True):
        assert project_memory(grid, *FIGURES).total <= limit * GIB


def test_with_memory_to_spare_no_patch_computes_less() -> None:
    best = chosen(64)
    covering = Grid(SHAPE, SHARD, covering_patch(SHAPE, SHARD, STRIDE, HALO), STRIDE, HALO, NONE)
    assert best.redundancy() <= covering.redundancy()


def test_too_little_memory_is_refused_with_the_figures() -> None:
    with pytest.raises(UsageError, match=r"GiB projected per replica .*expected at most 0.80 GiB.*Lower shard"):
        chosen(0.8)
