from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geobatch.blocks import Grid, covering_patch, smallest_patch
from geobatch.errors import UsageError


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    """One-axis grids of every awkward size."""
    stride = draw(st.sampled_from([1, 2, 4, 8]))
    halo = (draw(st.integers(0, 20)), draw(st.integers(0, 20)))
    n = draw(st.integers(1, 200))
    patch = smallest_patch(stride, halo) + stride * draw(st.integers(0, 12))
    shard = draw(st.integers(1, 80))
    return Grid((n,), (shard,), (patch,), (stride,), (halo,), ((draw(st.integers(0, 5)), draw(st.integers(0, 5))),))


@settings(max_examples=500)
@given(grids())
def test_kept_parts_tile_every_block_exactly_once(grid: Grid) -> None:
    cells = [
        cell
        for index in grid.indices()
        for patch in grid.patches(grid.block(index).write)
        for cell in range(patch.keep[0].start, patch.keep[0].stop)
    ]
    assert cells == list(range(grid.shape[0]))


@settings(max_examples=500)
@given(grids())
def test_every_kept_cell_has_its_halo_or_the_surveys_edge(grid: Grid) -> None:
    (n,), (p,), (s,), ((before, after),) = grid.shape, grid.patch, grid.stride, grid.halo
    lengths = set()
    for index in grid.indices():
        block = grid.block(index)
        for patch in grid.patches(block.write):
            see, keep = patch.see[0], patch.keep[0]
            lengths.add(see.stop - see.start)
            assert 0 <= see.start <= keep.start < keep.stop <= see.stop <= n
            assert see.start == 0 or keep.start - see.start >= before
            assert see.stop == n or see.stop - keep.stop >= after
            assert see.start % s == 0
            assert see.stop == n or see.stop % s == 0
            assert block.read[0].start <= see.start and see.stop <= block.read[0].stop
    assert len(lengths) <= 2, "fixed-shape compilation needs at most two shapes per axis"
    assert max(lengths) <= max(p, n if n <= p else 0)


@settings(max_examples=200)
@given(grids())
def test_covering_patch_takes_one_pass_per_block(grid: Grid) -> None:
    patch = covering_patch(grid.shape, grid.shard, grid.stride, grid.halo)
    if patch[0] < grid.shape[0] and patch[0] < smallest_patch(grid.stride[0], grid.halo[0]):
        return
    covering = Grid(grid.shape, grid.shard, patch, grid.stride, grid.halo, grid.reach)
    assert all(len(covering.patches(covering.block(index).write)) == 1 for index in covering.indices())


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_blocks_are_numbered_in_the_order_in_which_they_are_listed(counts: list[int]) -> None:
    axes = len(counts)
    grid = Grid(
        tuple(3 * n - 1 for n in counts), (3,) * axes, (9,) * axes, (1,) * axes, ((0, 0),) * axes, ((0, 0),) * axes
    )
    assert [grid.number(index) for index in grid.indices()] == list(range(grid.total))
    assert [grid.index(number) for number in range(grid.total)] == list(grid.indices())
    with pytest.raises(UsageError, match="no such block"):
        grid.index(grid.total)
    with pytest.raises(UsageError, match="no such block"):
        grid.number(grid.counts)


def test_region_rounds_out_to_blocks() -> None:
    grid = Grid((100, 100), (32, 32), (64, 64), (4, 4), ((8, 8),) * 2, ((0, 0),) * 2)
    assert list(grid.indices((slice(33, 65), slice(0, 1)))) == [(1, 0), (2, 0)]


def test_patch_too_small_for_its_halo_is_refused_with_figures() -> None:
    with pytest.raises(UsageError, match="44 cells"):
        Grid((100,), (32,), (24,), (4,), ((16, 16),), ((0, 0),))
    with pytest.raises(UsageError, match="multiple"):
        Grid((100,), (32,), (50,), (4,), ((8, 8),), ((0, 0),))
