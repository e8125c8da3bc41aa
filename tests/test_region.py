from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from surveys import random_volume, write_bundle, write_survey

from geobatch.blocks import Grid
from geobatch.errors import DataError, FormatError, NotFoundError, UsageError
from geobatch.formats.horizons import Horizon, Picks, read_horizon
from geobatch.formats.polygon import inside_polygon
from geobatch.job import forecast, parse_job
from geobatch.score.region import Region, require_domain, wanted_blocks

NO_HALO = ((0, 0),) * 3


def survey(shape: tuple[int, int, int], missing: npt.NDArray[np.bool_] | None = None) -> xr.DataArray:
    """A survey of inlines 100, 102, …, crosslines from 500, 4 ms samples, 12.5 m along inlines and 25 m across.

    Its inlines run north-east: x and y depend on both numbers.
    """
    i, x = np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), indexing="ij")
    places = {"cdp_x": 1000 + 25.0 * i + 12.5 * x, "cdp_y": 2000 - 25.0 * i + 12.5 * x}
    lines = ("inline", "crossline")
    return xr.DataArray(
        np.broadcast_to(np.float32(0), shape),
        dims=(*lines, "sample"),
        coords={
            "inline": 100 + 2 * np.arange(shape[0]),
            "crossline": 500 + np.arange(shape[1]),
            "sample": 4.0 * np.arange(shape[2]),
            **{
                name: (lines, values if missing is None else np.where(missing, np.nan, values))
                for name, values in places.items()
            },
        },
    )


def grid_of(shape: tuple[int, int, int], shard: tuple[int, int, int]) -> Grid:
    return Grid(shape, shard, shape, (1, 1, 1), NO_HALO, NO_HALO)


def blocks_with(grid: Grid, cells: npt.NDArray[np.bool_]) -> list[int]:
    """Numbers of the blocks that hold a marked cell, one block after the other."""
    return [n for n in range(int(np.prod(grid.counts))) if cells[grid.block(grid.index(n)).write].any()]


def in_polygon(x: float, y: float, corners: list[tuple[float, float]]) -> bool:
    """One point against a polygon of whole-numbered corners: on an edge, or an odd number of edges to the right."""
    odd = False
    for (x1, y1), (x2, y2) in zip(corners, [*corners[1:], corners[0]], strict=True):
        if (
            (x - x1) * (y2 - y1) == (y - y1) * (x2 - x1)
            and min(x1, x2) <= x <= max(x1, x2)
            and min(y1, y2) <= y <= max(y1, y2)
        ):
            return True
        if (y1 > y) != (y2 > y) and x < x1 + (x2 - x1) * (y - y1) / (y2 - y1):
            odd = not odd
    return odd


def ends(data: st.DataObject, numbers: npt.NDArray[Any]) -> tuple[float, float] | None:
    """A range of an axis that holds at least one of its numbers, or none."""
    if data.draw(st.booleans()):
        return None
    first, last = sorted(data.draw(st.integers(0, len(numbers) - 1)) for _ in range(2))
    return float(numbers[first]), float(numbers[last])


def horizon_file(path: Path, values: npt.NDArray[np.float64], volume: xr.DataArray) -> str:
    """A file of the picks that are no NaN."""
    i, x = np.nonzero(np.isfinite(values))
    np.savetxt(path, np.column_stack([volume.inline.values[i], volume.crossline.values[x], values[i, x]]))
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("horizons")


@settings(max_examples=100)
@given(data=st.data())
def test_a_block_is_wanted_if_and_only_if_it_holds_a_cell_of_the_region(folder: Path, data: st.DataObject) -> None:
    shape = tuple(data.draw(st.integers(1, 13)) for _ in range(3))
    grid = grid_of(shape, tuple(data.draw(st.integers(1, 6)) for _ in range(3)))
    generator = np.random.default_rng(data.draw(st.integers(0, 2**20)))
    missing = generator.random(shape[:2]) < 0.1
    volume = survey(shape, missing)
    ranges = {axis: ends(data, volume[axis].values) for axis in volume.dims}
    cells = np.ones(shape, bool)
    for number, (axis, limits) in enumerate(ranges.items()):
        inside = (
            np.ones(shape[number], bool)
            if limits is None
            else (volume[axis].values >= limits[0]) & (volume[axis].values <= limits[1])
        )
        cells &= np.expand_dims(inside, [a for a in range(3) if a != number])
    region: dict[str, Any] = dict(ranges)
    if data.draw(st.booleans()):
        x, y = volume.cdp_x.values, volume.cdp_y.values
        on_trace = [(float(x[i, j]), float(y[i, j])) for i, j in np.argwhere(~missing)]
        anywhere = generator.integers((950, 1650), (1500, 2200), (data.draw(st.integers(2, 6)), 2)).tolist()
        corners = [*map(tuple, anywhere), on_trace[generator.integers(len(on_trace))] if on_trace else (0, 0)]
        region["polygon"] = corners
        for i, j in itertools.product(*map(range, shape[:2])):
            cells[i, j] &= not missing[i, j] and in_polygon(x[i, j], y[i, j], corners)
    if data.draw(st.booleans()):
        top = generator.integers(0, 2 * shape[2], shape[:2]).astype(float)
        top[generator.random(shape[:2]) < 0.2] = np.nan
        top[0, 0] = 8
        url = horizon_file(folder / "top", top, volume)
        lines = volume.inline.values.astype(float), volume.crossline.values.astype(float)
        above = Horizon(read_horizon(url), *lines, url).values(slice(0, shape[0]))
        level = float(np.nanmax(above)) if data.draw(st.booleans()) else None
        below = above + generator.integers(0, 30, shape[:2]) if level is None else np.full(shape[:2], level)
        base = horizon_file(folder / "base", below, volume) if level is None else level
        shift = data.draw(st.tuples(st.integers(-4, 8), st.integers(-4, 8)))
        region["horizons"] = {"top": url, "base": base, "shift": shift}
        times = volume.sample.values
        cells &= (times >= above[..., None] - shift[0]) & (times <= below[..., None] + shift[1])
    if not cells.any():
        with pytest.raises(UsageError, match="region holds no"):
            wanted_blocks(grid, volume, Region.model_validate(region))
        return
    numbers = wanted_blocks(grid, volume, Region.model_validate(region))
    assert numbers.dtype == np.int64
    assert numbers.tolist() == blocks_with(grid, cells)


def test_a_band_wants_fewer_blocks_than_its_box_and_none_between_two_depths_of_one_column(tmp_path: Path) -> None:
    volume = survey((8, 8, 64))
    fault = np.where(np.arange(8)[:, None] + 0 * np.arange(8) < 2, 8.0, 240.0)
    top = horizon_file(tmp_path / "top", fault, volume)
    grid = grid_of((8, 8, 64), (4, 8, 8))
    numbers = wanted_blocks(grid, volume, Region(horizons={"top": top, "base": top, "shift": [4, 4]}))
    # The first row of blocks holds both sides of the fault, at 8 and 240 ms; nothing between them is wanted.
    assert [grid.index(n) for n in numbers.tolist()] == [(0, 0, 0), (0, 0, 7), (1, 0, 7)]


def test_a_polygon_with_a_pond_follows_the_even_odd_rule() -> None:
    x, y = (coordinate.astype(float) for coordinate in np.meshgrid(np.arange(12), np.arange(12)))
    outer, inner = [(0, 0), (10, 0), (10, 10), (0, 10), (0, 0)], [(3, 3), (7, 3), (7, 7), (3, 7), (3, 3)]
    inside = inside_polygon(x, y, np.array([*outer, *inner], float))
    assert inside[5, 1] and not inside[5, 5] and inside[5, 3], "ground, pond and its shore"
    assert inside.sum() == 11 * 11 - 3 * 3


def test_the_border_of_a_polygon_in_map_coordinates_belongs_to_it() -> None:
    azimuth, origin = np.radians(33.0), np.array([606_000.0, 6_080_000.0])
    i, x = np.meshgrid(np.arange(40.0), np.arange(30.0), indexing="ij")
    east = origin[0] + 25 * (i * np.cos(azimuth) - x * np.sin(azimuth))
    north = origin[1] + 25 * (i * np.sin(azimuth) + x * np.cos(azimuth))
    lines = np.array([(5, 5), (20, 5), (20, 17), (5, 17)])
    corners = np.column_stack([east[tuple(lines.T)], north[tuple(lines.T)]])
    assert inside_polygon(east, north, corners).sum() == 16 * 13


def test_horizons_are_planes_between_picks_of_a_plane_and_nothing_beyond() -> None:
    inline, crossline = np.arange(100, 140, 2.0), np.arange(500, 530.0)
    i, x = np.meshgrid(inline, crossline, indexing="ij")
    plane = 1000 + 3 * (i - 100) - 2 * (x - 500)
    picked = np.zeros(plane.shape, bool)
    picked[4:15:3, 5:25:4] = True
    picked[4:9, 5:12] = True
    horizon = Horizon(Picks(i[picked], x[picked], plane[picked]), inline, crossline, "")
    values = horizon.values(slice(0, 20))
    inside = np.zeros(plane.shape, bool)
    inside[4:14, 5:22] = True
    np.testing.assert_array_equal(np.isfinite(values), inside)
    np.testing.assert_allclose(values[inside], plane[inside], atol=1e-9)
    np.testing.assert_array_equal(horizon.values(slice(7, 11)), values[7:11])


def test_a_gap_takes_its_value_from_the_picks_beside_it() -> None:
    inline, crossline = np.arange(24.0), np.arange(20.0)
    i, x = np.meshgrid(inline, crossline, indexing="ij")
    values = np.random.default_rng(0).normal(1500, 40, i.shape)
    picked = np.ones(i.shape, bool)
    picked[8, 5] = picked[13, 9:12] = False
    found = Horizon(Picks(i[picked], x[picked], values[picked]), inline, crossline, "").values(slice(0, 24))
    np.testing.assert_array_equal(found[picked], values[picked])
    beside = [values[7, 5], values[9, 5], values[8, 4], values[8, 6]]
    assert min(beside) <= found[8, 5] <= max(beside)
    around = values[12:15, 8:13][picked[12:15, 8:13]]
    assert (around.min() <= found[13, 9:12]).all() and (found[13, 9:12] <= around.max()).all()


def test_picks_on_one_line_serve_that_line_alone() -> None:
    inline, crossline = np.array([100.0]), np.arange(500, 520.0)
    picks = Picks(np.full(3, 100.0), np.array([502.0, 505.5, 510.0]), np.array([1000.0, 1070.0, 1000.0]))
    (values,) = Horizon(picks, inline, crossline, "").values(slice(0, 1))
    np.testing.assert_array_equal(np.isfinite(values), (crossline >= 502) & (crossline <= 510))
    np.testing.assert_allclose(values[[2, 4, 5, 10]], [1000, 1040, 1060, 1000])
    diagonal = Picks(np.array([0.0, 6.0]), np.array([0.0, 3.0]), np.array([0.0, 60.0]))
    values = Horizon(diagonal, np.arange(9.0), np.arange(9.0), "").values(slice(0, 9))
    assert [tuple(place) for place in np.argwhere(np.isfinite(values))] == [(0, 0), (2, 1), (4, 2), (6, 3)]
    assert values[4, 2] == pytest.approx(40)


@pytest.mark.parametrize(
    "text",
    [
        "# horizon\n100 500 1500.5\n! more\n102 501 1502\n104 501 1e30\n",
        "100,500,1500.5\n102, 501, 1502\n104,501,nan",
        "100 500 6e5 6.08e6 1500.5\n102 501 6e5 6.08e6 1502 # last\n104 501 6e5 6.08e6 1e30\n",
    ],
)
def test_horizon_files_read_in_each_of_their_forms(tmp_path: Path, text: str) -> None:
    (tmp_path / "h.txt").write_text(text)
    picks = read_horizon(str(tmp_path / "h.txt"))
    assert picks.inline.tolist() == [100, 102]
    assert picks.crossline.tolist() == [500, 501]
    assert picks.value.tolist() == [1500.5, 1502]


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("INLINE XLINE Z\n100 500 1500\n", FormatError, r"no horizon file; found could not convert string 'INLINE'"),
        ("100 500 1500\n100 501\n", FormatError, r"columns changed from 3 to 2.*expected lines of inline crossline"),
        ("100 500 6e5 1500\n", FormatError, r"found 4 columns"),
        ("# nothing\n", DataError, r"holds no pick; found 0 lines"),
        ("", DataError, r"holds no pick"),
        ("100 500 1e30\n", DataError, r"holds no pick; found 1 lines"),
    ],
)
def test_what_is_no_horizon_file_is_refused(tmp_path: Path, text: str, kind: type[Exception], message: str) -> None:
    (tmp_path / "h.txt").write_text(text)
    with pytest.raises(kind, match=message):
        read_horizon(str(tmp_path / "h.txt"))
    with pytest.raises(NotFoundError):
        read_horizon(str(tmp_path / "other.txt"))


def test_horizons_that_cross_or_lie_elsewhere_are_refused_with_the_place(tmp_path: Path) -> None:
    volume, grid = survey((6, 6, 30)), grid_of((6, 6, 30), (2, 2, 8))
    flat = np.full((6, 6), 50.0)
    dipping = flat.copy()
    dipping[3, 4] = 40
    top, base = horizon_file(tmp_path / "top", flat, volume), horizon_file(tmp_path / "base", dipping, volume)
    with pytest.raises(DataError, match=r"inline 106, crossline 504: the horizons cross; found top 50 below base 40"):
        wanted_blocks(grid, volume, Region(horizons={"top": top, "base": base}))
    beside = Region(inline=(100, 104), horizons={"top": top, "base": base, "shift": [4, 4]})
    assert len(wanted_blocks(grid, volume, beside)) > 0, "they cross outside the region"
    flat[:, 3:] = np.nan
    half = horizon_file(tmp_path / "half", flat, volume)
    numbers = wanted_blocks(grid, volume, Region(horizons={"top": top, "base": half, "shift": [4, 4]}))
    assert {grid.index(n)[1] for n in numbers.tolist()} == {0, 1}, "a trace needs both horizons"
    elsewhere = horizon_file(tmp_path / "far", dipping, volume.assign_coords(inline=volume.inline + 1000))
    with pytest.raises(UsageError, match=r"lies off the survey; found inlines 1100 to 1110.*expected inlines 100 to"):
        wanted_blocks(grid, volume, Region(horizons={"top": elsewhere, "base": 100}))


def test_empty_regions_are_refused_with_the_ranges_of_the_survey() -> None:
    volume, grid = survey((6, 6, 30)), grid_of((6, 6, 30), (2, 2, 8))
    with pytest.raises(UsageError, match=r"region.inline: region holds no inline.*\[300.0, 400.0\]; expected 100 to"):
        wanted_blocks(grid, volume, Region(inline=(300, 400)))
    with pytest.raises(UsageError, match=r"region.time: region holds no time.*expected 0 to 116"):
        wanted_blocks(grid, volume, Region(time=(300, 400)))
    with pytest.raises(UsageError, match=r"no cell of the survey.*x 1000 to 1187.5, y 1875 to 2062.5"):
        wanted_blocks(grid, volume, Region(polygon=[(0, 0), (1, 0), (1, 1)]))
    with pytest.raises(UsageError, match=r"no cell of the survey.*sample 0 to 116"):
        wanted_blocks(grid, volume, Region(horizons={"top": 500, "base": 600}))
    with pytest.raises(UsageError, match=r"no map coordinates.*Give inline and crossline ranges"):
        wanted_blocks(grid, volume.drop_vars("cdp_x"), Region(polygon=[(0, 0), (1, 0), (1, 1)]))


def test_time_and_depth_are_the_sample_axis_of_their_own_surveys() -> None:
    volume, grid = survey((6, 6, 30)), grid_of((6, 6, 30), (2, 2, 8))
    for name in ("time", "depth"):
        named = wanted_blocks(grid, volume, Region.model_validate({name: [40, 60]}))
        np.testing.assert_array_equal(named, wanted_blocks(grid, volume, Region(sample=(40, 60))))
    require_domain(Region(time=(0, 10)), "time")
    with pytest.raises(UsageError, match=r"region.depth: the survey has no depth axis.*Give region.time"):
        require_domain(Region(depth=(0, 10)), "time")
    with pytest.raises(ValueError, match="are the same axis"):
        Region(time=(0, 10), sample=(0, 10))
    with pytest.raises(ValueError, match="at least 3"):
        Region(polygon=[(0, 0), (1, 1)])


def test_a_polygon_of_many_corners_on_a_million_blocks() -> None:
    shape, shard = (800, 800, 800), (8, 8, 8)
    volume, grid = survey(shape), grid_of(shape, shard)
    angle = np.linspace(0, 2 * np.pi, 2000, endpoint=False)
    outline = np.column_stack([16_000 + 6000 * np.cos(angle), -3000 + 6000 * np.sin(angle)])
    numbers = wanted_blocks(grid, volume, Region(polygon=outline.tolist(), horizons={"top": 320, "base": 2876}))
    index = np.column_stack(np.unravel_index(numbers, grid.counts))
    assert (index[:, 2].min(), index[:, 2].max()) == (10, 89)
    # A block that the circle's edge crosses is wanted too: each column within one block's diagonal of its edge.
    columns = len(np.unique(index[:, 0] * 100 + index[:, 1]))
    area, block_area, diagonal = np.pi * 6000**2, 64 * 25 * 12.5 * 2, 8 * np.hypot(25 + 12.5, 25 - 12.5)
    assert area / block_area <= columns <= np.pi * (6000 + diagonal) ** 2 / block_area
    assert len(numbers) == columns * 80
    np.testing.assert_array_equal(wanted_blocks(grid, volume, Region()), np.arange(1_000_000))


def test_a_forecast_counts_the_blocks_and_voxels_of_a_polygon(tmp_path: Path) -> None:
    shape = (45, 38, 51)
    volume = write_survey(str(tmp_path / "survey"), random_volume(shape), domain="time")
    write_bundle(str(tmp_path / "bundle"), volume)
    places = {key: str(tmp_path / key) for key in ("survey", "bundle", "output")}
    job = {"job": "score", **places, "shard": [16, 32, 32], "chunk": [16, 16, 16], "statistics": "bundle"}
    told = forecast(parse_job({**job, "region": {"inline": [164, 190], "time": [0, 100]}}))
    assert (told["blocks"], told["voxels"]) == (2, 13 * 38 * 32)
    with pytest.raises(UsageError, match="no depth axis"):
        forecast(parse_job({**job, "region": {"depth": [0, 100]}}))
    with pytest.raises(UsageError, match="no map coordinates"):
        forecast(parse_job({**job, "region": {"polygon": [[0, 0], [1, 0], [1, 1]]}}))
