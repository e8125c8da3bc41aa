from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geobatch.blocks import Blend, Grid, covering_patch, smallest_patch
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


@st.composite
def lattices(draw: st.DrawFn) -> Grid:
    """One-axis blend grids of every awkward size."""
    stride = draw(st.sampled_from([1, 2, 4, 8]))
    n, shard = draw(st.integers(1, 200)), draw(st.integers(1, 80))
    patch = stride * draw(st.integers(1, 12))
    blend = Blend(draw(st.sampled_from([0.0, 0.25, 0.5, 0.9])))
    return Grid((n,), (shard,), (patch,), (stride,), ((0, 0),), ((0, draw(st.integers(0, 5))),), blend)


@settings(max_examples=500)
@given(lattices())
def test_every_block_is_met_by_the_same_lattice(grid: Grid) -> None:
    (n,), (p,), (s,) = grid.shape, grid.patch, grid.stride
    whole = [patch.see[0] for patch in grid.patches((slice(0, n),))]
    for index in grid.indices():
        write = grid.block(index).write
        met = {(patch.see[0].start, patch.see[0].stop): patch.keep[0] for patch in grid.patches(write)}
        touching = [see for see in whole if see.start < write[0].stop and see.stop > write[0].start]
        assert list(met) == [(see.start, see.stop) for see in touching]
        for see in touching:
            keep = met[see.start, see.stop]
            assert (keep.start, keep.stop) == (max(see.start, write[0].start), min(see.stop, write[0].stop))
    assert whole[0].start == 0 and whole[-1].stop == n
    for before, after in itertools.pairwise(whole):
        shared = before.stop - after.start
        assert shared >= (grid.blend.overlap * p if p * (1 - grid.blend.overlap) >= s else 0)
        assert after.start % s == 0
    assert len({see.stop - see.start for see in whole}) <= 2


@settings(max_examples=500)
@given(st.one_of(grids(), lattices()))
def test_figures_of_the_whole_survey_equal_those_counted_block_by_block(grid: Grid) -> None:
    (n,), ((before, after),) = grid.shape, grid.reach
    computed, longest = 0, 0
    for index in grid.indices():
        write = grid.block(index).write
        seen = grid.seen(write)[0]
        computed += sum(patch.see[0].stop - patch.see[0].start for patch in grid.patches(write))
        longest = max(longest, min(n, seen.stop + after) - max(0, seen.start - before))
    assert grid.redundancy() == pytest.approx(computed / n)
    assert grid.longest_read() == (longest,)


def test_a_constant_number_of_blocks_stands_for_a_survey_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    spans = Grid._axis_spans
    monkeypatch.setattr(Grid, "_axis_spans", lambda *args: asked.append(args) or spans(*args))
    for blend in (None, Blend(0.25)):
        halo = (0, 0) if blend else (22, 22)
        grid = Grid((128_000_000,), (128,), (192,), (4,), (halo,), ((0, 0),), blend)
        assert grid.total == 1_000_000
        assert 1 < grid.redundancy() < 4
        assert grid.longest_read()[0] < 600
    assert len(asked) < 500


def test_region_rounds_out_to_blocks() -> None:
    grid = Grid((100, 100), (32, 32), (64, 64), (4, 4), ((8, 8),) * 2, ((0, 0),) * 2)
    assert list(grid.indices((slice(33, 65), slice(0, 1)))) == [(1, 0), (2, 0)]


def test_patch_too_small_for_its_halo_is_refused_with_figures() -> None:
    with pytest.raises(UsageError, match="44 cells"):
        Grid((100,), (32,), (24,), (4,), ((16, 16),), ((0, 0),))
    with pytest.raises(UsageError, match="multiple"):
        Grid((100,), (32,), (50,), (4,), ((8, 8),), ((0, 0),))
