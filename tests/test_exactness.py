"""C1: the scored survey equals what the same network gives on the whole survey in one piece."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from surveys import CLASSES, strong_network
from torch import nn

from geobatch.blocks import Blend, Grid, smallest_patch
from geobatch.models.reach import measure_reach
from geobatch.score.deviation import precision_deviation
from geobatch.score.predictor import INVALID, Predictor

STRIDE = (2, 2, 2)
LEVELS = 2
NETWORK = strong_network(levels=LEVELS)
REACH = measure_reach(NETWORK, 1, STRIDE)
NO_REACH = ((0, 0),) * 3


class Resampled(nn.Module):
    """Strided and dilated convolutions, a transposed one back; sizes need not divide by the stride."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.down = nn.Conv3d(1, 3, 3, stride=2, padding=1)
        self.wide = nn.Conv3d(3, 3, 3, padding=2, dilation=2)
        self.up = nn.ConvTranspose3d(3, len(CLASSES), 3, stride=2, padding=1, output_padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.up(torch.relu(self.wide(self.down(x))))
        return y[:, :, : x.shape[2], : x.shape[3], : x.shape[4]]


class Traces(nn.Module):
    """A recurrent layer along samples: every output depends on the whole trace."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.across = nn.Conv3d(1, 2, (3, 3, 1), padding=(1, 1, 0))
        self.along = nn.LSTM(2, len(CLASSES), batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.across(x).permute(0, 2, 3, 4, 1)
        traces, _ = self.along(y.reshape(-1, y.shape[3], 2))
        return traces.reshape(*y.shape[:4], len(CLASSES)).permute(0, 4, 1, 2, 3)


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 4, 3, padding=2, dilation=2), nn.GELU(), nn.Conv3d(4, len(CLASSES), 3, padding=1))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "unet": (lambda: strong_network(levels=LEVELS), 2),
    "dilated": (plain, 1),
    "resampled": (Resampled, 2),
}


def scored(
    values: npt.NDArray[np.floating],
    grid: Grid,
    dtype: torch.dtype,
    batch: int = 1,
    network: nn.Module | None = None,
    order: int = 1,
) -> npt.NDArray[np.floating]:
    """Logits of the whole survey, block by block."""
    network = network or strong_network(levels=LEVELS)
    predictor = Predictor(network, len(CLASSES), batch=batch, dtype=dtype, blend=grid.blend)
    logits = np.full((len(CLASSES), *values.shape), np.nan)
    for index in list(grid.indices())[::order]:
        block = grid.block(index)
        seen = grid.seen(block.write)
        origin = [cells.start for cells in seen]
        logits[(slice(None), *block.write)] = predictor.logits(values[seen], grid.patches(block.write), origin)
    return logits


def whole(
    values: npt.NDArray[np.floating], dtype: torch.dtype, network: nn.Module | None = None
) -> npt.NDArray[np.floating]:
    """Logits of one forward pass over the survey."""
    x = torch.from_numpy(np.nan_to_num(values))[None, None].to(dtype)
    with torch.inference_mode():
        return (network or strong_network(levels=LEVELS)).to(dtype)(x)[0].numpy()


def deviation(found: npt.NDArray[np.floating], expected: npt.NDArray[np.floating]) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@settings(max_examples=20)
@given(data=st.data())
@pytest.mark.parametrize("name", NETWORKS)
def test_blocks_and_patches_of_any_shape_and_order_give_the_whole_volume(name: str, data: st.DataObject) -> None:
    make, stride = NETWORKS[name]
    network = make().eval()
    halo = measure_reach(network, 1, (stride,) * 3).halo
    shape = tuple(data.draw(st.integers(1, 31)) for _ in range(3))
    shard = tuple(data.draw(st.integers(12, 40)) for _ in range(3))
    patch = tuple(smallest_patch(stride, h) + stride * data.draw(st.integers(0, 8)) for h in halo)
    grid = Grid(shape, shard, patch, (stride,) * 3, halo, NO_REACH)
    values = np.random.default_rng(data.draw(st.integers(0, 9))).normal(size=shape).astype(np.float32)
    dtype, tolerance = data.draw(st.sampled_from([(torch.float32, 1e-5), (torch.float64, 1e-12)]))
    batch, order = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([1, -1]))
    expected = whole(values, dtype, network)
    assert deviation(scored(values, grid, dtype, batch, network, order), expected) <= tolerance


@settings(max_examples=10)
@given(data=st.data())
def test_a_whole_axis_serves_a_network_that_needs_it(data: st.DataObject) -> None:
    network = Traces().eval()
    reach = measure_reach(network, 1, (1, 1, 1))
    assert reach.unbounded == (2,)
    shape = (*(data.draw(st.integers(1, 20)) for _ in range(2)), data.draw(st.integers(1, 30)))
    shard = (7, 9, data.draw(st.sampled_from([shape[2], 5])))
    grid = Grid(shape, shard, (6, 6, shape[2]), (1, 1, 1), reach.halo, NO_REACH, whole=(2,))
    values = np.random.default_rng(0).normal(size=shape)
    expected = whole(values, torch.float64, network)
    assert deviation(scored(values, grid, torch.float64, 2, network), expected) <= 1e-12


@settings(max_examples=10)
@given(data=st.data())
def test_blended_patches_do_not_depend_on_blocks(data: st.DataObject) -> None:
    network = strong_network(levels=LEVELS)
    shape = tuple(data.draw(st.integers(1, 25)) for _ in range(3))
    blend = Blend(data.draw(st.sampled_from([0.0, 0.25, 0.6])), data.draw(st.sampled_from(["gaussian", "constant"])))
    patch = tuple(2 * data.draw(st.integers(4, 8)) for _ in range(3))
    values = np.random.default_rng(0).normal(size=shape)
    values[shape[0] // 2 :, 0] = np.nan
    one = Grid(shape, shape, patch, STRIDE, NO_REACH, NO_REACH, blend)
    several = replace(one, shard=tuple(data.draw(st.integers(6, 30)) for _ in range(3)))
    expected, found = (
        scored(values, grid, torch.float64, batch, network, order)[:, np.isfinite(values)]
        for grid, batch, order in ((one, 1, 1), (several, data.draw(st.integers(1, 3)), -1))
    )
    if expected.size:
        assert deviation(found, expected) <= 1e-12


def test_blend_of_patches_that_agree_is_what_they_agree_on() -> None:
    values = np.random.default_rng(0).normal(size=(20, 17, 23)).astype(np.float32)
    pointwise = nn.Conv3d(1, len(CLASSES), 1).eval()
    for weights in ("gaussian", "constant"):
        grid = Grid(values.shape, (9, 9, 9), (8, 8, 8), (1, 1, 1), NO_REACH, NO_REACH, Blend(0.5, weights))
        assert (
            deviation(scored(values, grid, torch.float32, network=pointwise), whole(values, torch.float32, pointwise))
            < 1e-6
        )


def test_gaussian_weights_are_largest_in_the_middle_and_nowhere_zero() -> None:
    predictor = Predictor(nn.Conv3d(1, 2, 1), 2, blend=Blend(0.25))
    weights = predictor.weights((16, 8, 33)).numpy()
    np.testing.assert_allclose(weights, weights[::-1, ::-1, ::-1])
    assert weights.min() == pytest.approx(1e-3)
    assert weights.argmax() == np.ravel_multi_index((7, 3, 16), weights.shape)
    along = weights[7, 3]
    assert along[16 + 4] / along[16] == pytest.approx(np.exp(-0.5 * (4 / (33 / 8)) ** 2), rel=1e-5)


class Counting(nn.Module):
    """Counts the patches it sees."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.patches = network, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.patches += len(x)
        return self.network(x)


@pytest.mark.parametrize("blend", [None, Blend(0.25)])
def test_patches_without_a_valid_cell_cost_no_inference(blend: Blend | None) -> None:
    values = np.full((64, 16, 16), np.nan, np.float32)
    values[40] = 1
    network = Counting(plain()).eval()
    halo = NO_REACH if blend else ((3, 3),) * 3
    grid = Grid(values.shape, values.shape, (16, 16, 16), (1, 1, 1), halo, NO_REACH, blend)
    write = grid.block((0, 0, 0)).write
    prediction = Predictor(network, len(CLASSES), blend=blend).predict(values, grid.patches(write), (0, 0, 0))
    touching = [p for p in grid.patches(write) if p.keep[0].start <= 40 < p.keep[0].stop]
    assert network.patches == len(touching) < len(grid.patches(write))
    np.testing.assert_array_equal(prediction.class_map != INVALID, np.isfinite(values))


def test_lower_precision_is_close_and_float32_is_exact() -> None:
    values = np.random.default_rng(0).normal(size=(16, 16, 16)).astype(np.float32)
    grid = Grid(values.shape, values.shape, values.shape, STRIDE, REACH.halo, NO_REACH)
    patches = grid.patches(grid.block((0, 0, 0)).write)
    exact, coarse = (
        Predictor(strong_network(levels=LEVELS), len(CLASSES), precision=precision).logits(values, patches, (0, 0, 0))
        for precision in ("float32", "bfloat16")
    )
    assert coarse.dtype == np.float32
    assert 0 < deviation(coarse, exact) < 0.05
    measured, changed = precision_deviation(strong_network(levels=LEVELS), values, "bfloat16")
    assert measured == pytest.approx(deviation(coarse, exact), rel=1e-3)
    assert 0 <= changed < 0.05


def test_same_plan_gives_the_same_bits() -> None:
    values = np.random.default_rng(0).normal(size=(40, 37, 41)).astype(np.float32)
    grid = Grid(values.shape, (20, 20, 20), (36, 36, 36), STRIDE, REACH.halo, NO_REACH)
    np.testing.assert_array_equal(scored(values, grid, torch.float32), scored(values, grid, torch.float32))


def test_invalid_samples_come_out_invalid_and_reach_no_further_than_the_network() -> None:
    values = np.random.default_rng(0).normal(size=(40, 40, 40)).astype(np.float32)
    damaged = values.copy()
    damaged[20, 20, :] = np.nan
    grid = Grid(values.shape, values.shape, values.shape, STRIDE, REACH.halo, NO_REACH)
    patches = grid.patches(grid.block((0, 0, 0)).write)
    predictor = Predictor(strong_network(levels=LEVELS), len(CLASSES), probabilities="float32")
    sound, holed = (predictor.predict(v, patches, (0, 0, 0)) for v in (values, damaged))
    assert (holed.class_map[20, 20] == INVALID).all()
    assert np.isnan(holed.probability[:, 20, 20]).all()
    assert np.count_nonzero(holed.class_map == INVALID) == 40
    furthest = max(max(pair) for pair in REACH.by_phase[0])
    far = np.abs(np.arange(40) - 20) > furthest
    np.testing.assert_array_equal(sound.probability[:, far], holed.probability[:, far])
    assert not np.array_equal(sound.class_map, holed.class_map)


def test_quantised_probabilities_are_steps_of_a_254th() -> None:
    values = np.random.default_rng(0).normal(size=(16, 16, 16)).astype(np.float32)
    grid = Grid(values.shape, values.shape, values.shape, STRIDE, REACH.halo, NO_REACH)
    patches = grid.patches(grid.block((0, 0, 0)).write)
    exact, coarse = (
        Predictor(strong_network(levels=LEVELS), len(CLASSES), probabilities=kind).predict(values, patches, (0, 0, 0))
        for kind in ("float32", "uint8")
    )
    np.testing.assert_allclose(exact.probability.sum(axis=0), 1, atol=1e-6)
    np.testing.assert_allclose(coarse.probability / 254, exact.probability, atol=0.5 / 254 + 1e-6)
    np.testing.assert_array_equal(exact.class_map, exact.probability.argmax(axis=0))
