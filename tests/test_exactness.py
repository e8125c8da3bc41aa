"""C1: the scored survey equals what the same network gives on the whole survey in one piece."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from surveys import CLASSES, strong_network

from geobatch.blocks import Grid, smallest_patch
from geobatch.models.reach import measure_reach
from geobatch.score.predictor import INVALID, Predictor

LEVELS = 2
STRIDE = (2, 2, 2)
NETWORK = strong_network(levels=LEVELS)
REACH = measure_reach(NETWORK, 1, STRIDE)
NO_REACH = ((0, 0),) * 3


def scored(
    values: npt.NDArray[np.floating], grid: Grid, dtype: torch.dtype, batch: int = 1
) -> npt.NDArray[np.floating]:
    """Logits of the whole survey, block by block."""
    predictor = Predictor(strong_network(levels=LEVELS), len(CLASSES), batch=batch, dtype=dtype)
    logits = np.full((len(CLASSES), *values.shape), np.nan)
    for index in grid.indices():
        block = grid.block(index)
        seen = grid.seen(block.write)
        origin = [cells.start for cells in seen]
        logits[(slice(None), *block.write)] = predictor.logits(values[seen], grid.patches(block.write), origin)
    return logits


def whole(values: npt.NDArray[np.floating], dtype: torch.dtype) -> npt.NDArray[np.floating]:
    """Logits of one forward pass over the survey."""
    x = torch.from_numpy(np.nan_to_num(values))[None, None].to(dtype)
    with torch.inference_mode():
        return strong_network(levels=LEVELS).to(dtype)(x)[0].numpy()


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_blocks_and_patches_of_any_shape_give_the_whole_volume(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.integers(1, 53)) for _ in range(3))
    shard = tuple(data.draw(st.integers(7, 60)) for _ in range(3))
    least = [smallest_patch(s, h) for s, h in zip(STRIDE, REACH.halo, strict=True)]
    patch = tuple(n + 2 * data.draw(st.integers(0, 8)) for n in least)
    grid = Grid(shape, shard, patch, STRIDE, REACH.halo, NO_REACH)
    values = np.random.default_rng(data.draw(st.integers(0, 9))).normal(size=shape).astype(np.float32)
    batch = data.draw(st.integers(1, 3))
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        expected = whole(values, dtype)
        deviation = np.abs(scored(values, grid, dtype, batch) - expected).max() / np.abs(expected).max()
        assert deviation <= tolerance


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
