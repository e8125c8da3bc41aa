from __future__ import annotations

import dataclasses

import pytest

from geobatch.blocks import Blend, Grid, Halo, covering_patch
from geobatch.errors import UsageError
from geobatch.plan import GIB, Costs, Limits, choose_patch, project_memory, require_memory

SHAPE, SHARD, STRIDE = (1000, 700, 1501), (128, 128, 128), (4, 4, 4)
HALO: Halo = ((22, 22),) * 3
NONE: Halo = ((0, 0),) * 3
COSTS = Costs(activation_bytes=550.0, classes=4, probability_bytes=1)
GPU = dataclasses.replace(COSTS, device="cuda")
GRID = Grid(SHAPE, SHARD, covering_patch(SHAPE, SHARD, STRIDE, HALO), STRIDE, HALO, NONE)
BLEND = Grid(SHAPE, SHARD, (64, 64, 64), STRIDE, NONE, NONE, Blend(0.25))
HOSTS = (1.2, 1.6, 2.0, 3.0, 8.0)


def chosen(limit_gib: float, costs: Costs = COSTS) -> Grid:
    return choose_patch(GRID, costs, Limits(int(limit_gib * GIB)))[0]


def test_more_memory_never_costs_more_work() -> None:
    grids = [chosen(limit) for limit in HOSTS]
    work = [grid.redundancy() for grid in grids]
    assert work == sorted(work, reverse=True)
    for limit, grid in zip(HOSTS, grids, strict=True):
        assert project_memory(grid, 1, COSTS).host <= limit * GIB


def test_with_memory_to_spare_no_patch_computes_less() -> None:
    assert chosen(64).redundancy() <= GRID.redundancy()


def test_too_little_memory_is_refused_with_the_figures() -> None:
    with pytest.raises(UsageError, match=r"GiB projected per replica .*expected at most 0.80 GiB.*Lower shard"):
        chosen(0.8)


def test_the_network_counts_on_the_device_it_runs_on() -> None:
    host, device = (project_memory(GRID, 2, costs) for costs in (COSTS, GPU))
    assert host.device == 0
    assert device.device > host.network
    assert device.host == host.host - host.network - host.reduction
    with pytest.raises(UsageError, match=r"does not fit in device memory.*expected at most 1.00 GiB"):
        require_memory(GRID, 1, GPU, Limits(8 * GIB, GIB))


def test_a_device_takes_several_small_patches_at_once_but_no_smaller_patches_for_it() -> None:
    alone, _ = choose_patch(GRID, GPU, Limits(64 * GIB, 80 * GIB))
    grid, batch = choose_patch(GRID, GPU, Limits(64 * GIB, 80 * GIB), (1, 2, 4, 8))
    assert grid.patch == alone.patch
    assert batch > 1
    assert project_memory(grid, batch, GPU).device <= 80 * GIB


def test_replicas_that_overlap_blocks_need_more_host_memory() -> None:
    overlapping = dataclasses.replace(COSTS, overlap=True)
    assert project_memory(GRID, 1, overlapping).host > project_memory(GRID, 1, COSTS).host


def test_a_patch_to_blend_is_shortened_only_as_far_as_memory_asks() -> None:
    assert choose_patch(BLEND, COSTS, Limits(8 * GIB))[0].patch == BLEND.patch
    grid, _ = choose_patch(BLEND, COSTS, Limits(int(1.1 * GIB)))
    assert 8 <= min(grid.patch) <= max(grid.patch) <= 64
    assert grid.patch != BLEND.patch
    assert project_memory(grid, 1, COSTS).host <= 1.1 * GIB
    assert project_memory(BLEND, 1, COSTS).reduction == 128**3 * 4 * 17


def test_a_whole_axis_stays_whole() -> None:
    grid = dataclasses.replace(GRID, shard=(64, 64, 1504), patch=(160, 160, 1504), whole=(2,))
    assert choose_patch(grid, COSTS, Limits(8 * GIB))[0].patch[2] == 1504
    with pytest.raises(UsageError, match="whole axis"):
        dataclasses.replace(grid, patch=(160, 160, 160))


def test_a_million_blocks_are_planned_by_a_few_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    spans = Grid._axis_spans
    monkeypatch.setattr(Grid, "_axis_spans", lambda *args: asked.append(args) or spans(*args))
    shape = (12_800, 12_800, 12_799)
    grid = dataclasses.replace(GRID, shape=shape)
    line = dataclasses.replace(GRID, shape=(128_000_000, 1, 1), shard=(128, 1, 1))
    for survey in (grid, line):
        assert survey.total == 1_000_000
        choose_patch(survey, COSTS, Limits(8 * GIB), (1, 2, 4))
    assert len(asked) < 10_000
