from __future__ import annotations

from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import segyio
from hypothesis import given, settings
from hypothesis import strategies as st

from geobatch.errors import UsageError
from geobatch.interpretation.hashing import normal, uniform
from geobatch.interpretation.structure import Fault
from geobatch.interpretation.synthetic import CLASSES, FAULT_CLASS, SyntheticSurvey
from geobatch.interpretation.synthetic_files import write_labels, write_segy, write_survey
from geobatch.survey import open_survey, valid_volume

SHAPE = (21, 18, 43)
SURVEY = SyntheticSurvey(SHAPE, seed=5)
WHOLE = SURVEY.block(tuple(slice(0, n) for n in SHAPE))  # type: ignore[arg-type]
MEDIUM = SyntheticSurvey((72, 72, 96), seed=3).block((slice(0, 72), slice(0, 72), slice(0, 96)))


def cuts(size: int) -> st.SearchStrategy[list[int]]:
    inner = st.sets(st.integers(1, size - 1), max_size=2)
    return inner.map(lambda chosen: [0, *sorted(chosen), size])


@settings(max_examples=15, deadline=None)
@given(st.tuples(*(cuts(size) for size in SHAPE)))
def test_voxels_are_the_same_however_the_survey_is_cut(edges: tuple[list[int], ...]) -> None:
    for parts in product(*(pairwise(axis) for axis in edges)):
        region = tuple(slice(*part) for part in parts)
        for name, values in SURVEY.block(region).items():  # type: ignore[arg-type]
            np.testing.assert_array_equal(values, WHOLE[name][region], err_msg=name)


def test_a_larger_survey_continues_a_smaller_one() -> None:
    region = (slice(0, 9), slice(4, 18), slice(7, 30))
    larger = SyntheticSurvey((500, 400, 300), seed=5).block(region)
    for name, values in larger.items():
        np.testing.assert_array_equal(values, WHOLE[name][region])


def test_another_seed_is_another_survey() -> None:
    other = SyntheticSurvey(SHAPE, seed=6).block((slice(0, 5), slice(0, 5), slice(0, 43)))
    assert not np.array_equal(other["amplitude"], WHOLE["amplitude"][:5, :5])


def test_class_map_is_facies_under_faults() -> None:
    faulted = MEDIUM["fault"] == 1
    assert faulted.any() and not faulted.all()
    assert (MEDIUM["class_map"][faulted] == FAULT_CLASS).all()
    np.testing.assert_array_equal(MEDIUM["class_map"][~faulted], MEDIUM["facies"][~faulted])


def test_facies_differ_as_seismic_facies_do() -> None:
    amplitude, facies = MEDIUM["amplitude"], MEDIUM["facies"]
    rms = [float(np.sqrt((amplitude[facies == k] ** 2).mean())) for k in range(3)]
    layered, transparent, chaotic = rms
    assert layered > 1.5 * transparent
    assert 700 < layered < 1500

    def lateral_coherence(k: int) -> float:
        inside = (facies[:-4] == k) & (facies[4:] == k)
        return float(np.corrcoef(amplitude[:-4][inside], amplitude[4:][inside])[0, 1])

    assert lateral_coherence(0) > lateral_coherence(2) + 0.2
    assert chaotic > transparent


def vertical_fault(throw: float) -> Fault:
    return Fault((50.0, 50.0, 50.0), (1.0, 0.0), np.pi / 2 - 1e-9, 0.0, throw, 40.0, 40.0, 30.0)


def test_a_fault_displaces_by_its_throw_at_the_centre_and_by_nothing_at_its_rim() -> None:
    inlines, crosslines = np.array([50, 95]), np.array([49, 51, 85])
    samples = np.full((2, 3, 1), 50.0)
    before, _ = vertical_fault(8.0).undo(inlines, crosslines, samples)
    footwall, hanging_wall = before[0, 0, 0], before[0, 1, 0]
    assert footwall - hanging_wall == pytest.approx(8.0, rel=0.01)
    np.testing.assert_array_equal(before[1], 50.0)
    assert before[0, 2, 0] == 50.0


def test_a_fault_is_labelled_three_cells_thick_where_it_displaces_layers() -> None:
    across = np.arange(101)
    samples = np.full((1, 101, 1), 50.0)
    _, labelled = vertical_fault(8.0).undo(np.array([50]), across, samples)
    assert np.flatnonzero(labelled).tolist() == [49, 50, 51]
    _, faint = vertical_fault(2.0).undo(np.array([50]), across, samples)
    assert not faint.any()


def test_hashed_numbers_are_uniform_normal_and_independent_between_neighbours() -> None:
    cells = np.arange(-50_000, 50_000)
    numbers = normal(1, 2, cells)
    assert abs(numbers.mean()) < 0.02 and abs(numbers.std() - 1) < 0.02
    assert abs(np.corrcoef(numbers[1:], numbers[:-1])[0, 1]) < 0.02
    assert abs(np.corrcoef(numbers, normal(2, 2, cells))[0, 1]) < 0.02
    assert 0 <= uniform(1, cells).min() < 0.001 and 0.999 < uniform(1, cells).max() < 1


@pytest.mark.parametrize(("code", "tolerance"), [(1, 2e-3), (3, 0.5), (5, 0.0)])
def test_segy_reads_back_with_segyio(tmp_path: Path, code: int, tolerance: float) -> None:
    path = tmp_path / "synthetic.sgy"
    write_segy(SURVEY, str(path), code)
    with segyio.open(path) as file:
        assert int(file.format) == code and file.bin[segyio.BinField.Interval] == 4000
        np.testing.assert_array_equal(file.ilines, np.arange(1001, 1022))
        np.testing.assert_array_equal(file.xlines, np.arange(2001, 2019))
        np.testing.assert_allclose(segyio.tools.cube(file), WHOLE["amplitude"], atol=tolerance, rtol=1e-6)
        assert file.header[1][segyio.TraceField.SourceGroupScalar] == -100
        assert "SYNTHETIC" in segyio.tools.wrap(file.text[0])


def test_survey_and_labels_hold_the_voxels_of_the_synthetic(s3: str) -> None:
    write_survey(SURVEY, f"{s3}/survey", chunk=(8, 8, 16), shard=(16, 16, 32))
    write_labels(SURVEY, f"{s3}/labels", chunk=(8, 8, 16), shard=(16, 16, 32))
    survey, labels = open_survey(f"{s3}/survey"), open_survey(f"{s3}/labels")
    np.testing.assert_array_equal(valid_volume(survey).values, WHOLE["amplitude"])
    for name in ("class_map", "facies", "fault"):
        np.testing.assert_array_equal(labels[name].values, WHOLE[name])
    assert labels["class_map"].attrs["flag_meanings"].split() == [entry["name"] for entry in CLASSES]
    np.testing.assert_array_equal(labels["sample"].values, 4.0 * np.arange(43))
    np.testing.assert_array_equal(labels["cdp_x"].values, survey["cdp_x"].values)


@pytest.mark.parametrize(
    "wrong", [{"shape": (0, 4, 4)}, {"peak_frequency_hz": 90.0}, {"layer_thickness": 1.0}], ids=lambda w: next(iter(w))
)
def test_parameters_that_make_no_survey_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        SyntheticSurvey(**({"shape": SHAPE, "seed": 1} | wrong))  # type: ignore[arg-type]


def test_a_region_outside_the_survey_is_refused() -> None:
    with pytest.raises(UsageError, match="leaves the survey"):
        SURVEY.block((slice(0, 22), slice(0, 18), slice(0, 43)))
