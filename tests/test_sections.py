from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from surveys import CLASSES, STEPS, random_volume, write_bundle, write_survey
from torch import nn

from geobatch.errors import MismatchError, UsageError
from geobatch.job import parse_job
from geobatch.models import UNet
from geobatch.models.bundle import DataDescription, ReachInfo, load_bundle, make_bundle, save_bundle
from geobatch.models.reach import Reach, measure_reach, tiling_deviations
from geobatch.models.sections import SectionNetwork, resolve_sections, section_reach, volume_network
from geobatch.preprocess import Chain
from geobatch.score.planning import make_plan, open_inputs
from geobatch.score.spec import ScoreJob
from geobatch.score.worker import BlockScorer, Task
from geobatch.shards import decode_shard, shard_key, shard_region
from geobatch.survey import open_survey, valid_volume

SHAPE = (21, 38, 27)
Values = npt.NDArray[np.floating]


def strong_network(dims: int, levels: int = 2) -> UNet:
    """A network of `dims` axes whose far inputs matter, and whose classes all occur."""
    torch.manual_seed(dims)
    network = UNet(classes=len(CLASSES), channels=4, levels=levels, dims=dims)
    with torch.no_grad():
        for _ in range(20):
            network(torch.randn(8, 1, *(16,) * dims))
        logits_BK = network.eval()(torch.randn(16, 1, *(16,) * dims))
        network.head.bias.sub_(logits_BK.mean(dim=(0, *range(2, dims + 2))))
        network.head.weight.mul_(3)
        network.head.bias.mul_(3)
    return network


def summed(members: Any, count: int) -> torch.Tensor:
    """A combination with the paths of every member and no other: what the structural measurement can follow."""
    return sum(members)


class Lopsided(nn.Module):
    """Its axes have strides 3 and 2 and its sides differ, so that none can be taken for another."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 2, (3, 4), padding="same")
        self.pool = nn.MaxPool2d((3, 2), ceil_mode=True)

    def forward(self, x_BC: torch.Tensor) -> torch.Tensor:
        coarse_BK = self.pool(self.convolution(x_BC))
        return coarse_BK.repeat_interleave(3, 2).repeat_interleave(2, 3)[:, :, : x_BC.shape[2], : x_BC.shape[3]]


def sections_one_by_one(network: nn.Module, values: Values, axis: int) -> Values:
    """Logits `(class, inline, crossline, sample)`, section after section."""
    with torch.inference_mode():
        sections = [
            network(torch.from_numpy(np.ascontiguousarray(section))[None, None])[0].numpy()
            for section in np.moveaxis(values, axis, 0)
        ]
    return np.stack(sections, axis=axis + 1)


def probabilities(logits_K: Values) -> Values:
    return torch.softmax(torch.from_numpy(logits_K), 0).numpy()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_sections_of_a_volume_are_those_run_one_by_one(axis: int) -> None:
    network = strong_network(2).double()
    values = np.random.default_rng(0).normal(size=(5, 7, 6))
    plane = tuple(a for a in range(3) if a != axis)
    expected = sections_one_by_one(network, values, axis)
    for cells_at_once in (1, 100, 10**6):
        along = SectionNetwork(network, (plane,), cells_at_once=cells_at_once)
        with torch.inference_mode():
            found = along(torch.from_numpy(np.stack([values, -values]))[:, None])
        np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-12)
        np.testing.assert_allclose(found[1].numpy(), sections_one_by_one(network, -values, axis), atol=1e-12)


def test_images_whose_rows_are_samples_are_turned_and_turned_back() -> None:
    network = strong_network(2).double()
    values = np.random.default_rng(0).normal(size=(3, 7, 6))
    upright = sections_one_by_one(network, values.swapaxes(1, 2), 0).swapaxes(2, 3)
    with torch.inference_mode():
        found = SectionNetwork(network, ((2, 1),))(torch.from_numpy(values)[None, None])[0]
    np.testing.assert_allclose(found.numpy(), upright, atol=1e-12)


def test_traces_of_a_volume_are_those_run_one_by_one() -> None:
    network = strong_network(1).double()
    values = np.random.default_rng(0).normal(size=(3, 4, 19))
    with torch.inference_mode():
        found = SectionNetwork(network, ((2,),))(torch.from_numpy(values)[None, None])[0].numpy()
        for i, x in itertools.product(range(3), range(4)):
            expected = network(torch.from_numpy(values[i, x])[None, None])[0].numpy()
            np.testing.assert_allclose(found[:, i, x], expected, atol=1e-12)


@pytest.mark.parametrize(
    "planes", [((1, 2),), ((0, 2),), ((2, 1),), ((1, 2), (0, 2)), ((1, 2), (0, 2), (0, 1)), ((2,),)]
)
def test_reach_of_sections_is_the_one_measured_on_volumes(planes: tuple[tuple[int, ...], ...]) -> None:
    network, stride = (strong_network(1), (2,)) if len(planes[0]) == 1 else (Lopsided(), (3, 2))
    measured = measure_reach(network, 1, stride)
    info = ReachInfo(stride=measured.stride, by_phase=measured.by_phase, halo=measured.halo, tiling_deviation=0.0)
    derived = section_reach(info, planes)
    volumes = SectionNetwork(network, planes)
    volumes.combination = summed
    again = measure_reach(volumes, 1, derived.stride)
    assert (again.by_phase, again.halo) == (derived.by_phase, derived.halo)


@pytest.mark.parametrize("combine", ["mean", "vote"])
def test_tiles_of_combined_sections_are_the_whole(combine: Any) -> None:
    network = strong_network(2)
    measured = measure_reach(network, 1, (2, 2))
    info = ReachInfo(stride=measured.stride, by_phase=measured.by_phase, halo=measured.halo, tiling_deviation=0.0)
    planes = ((1, 2), (0, 2), (0, 1))
    derived = section_reach(info, planes)
    volumes = SectionNetwork(network, planes, combine)
    assert max(tiling_deviations(volumes, 1, Reach(derived.stride, derived.by_phase, derived.halo))) < 1e-10
    short = ((derived.halo[0][0], derived.halo[0][1] - 1), *derived.halo[1:])
    assert tiling_deviations(volumes, 1, Reach(derived.stride, derived.by_phase, short))[0] > 1e-6


def members(seed: int, count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [4 * torch.randn((2, 3, 5, 6, 7), generator=generator, dtype=torch.float64) for _ in range(count)]


class Given(nn.Module):
    """Gives the member's logits, one after the other, whatever it is asked."""

    def __init__(self, logits: list[torch.Tensor]) -> None:
        super().__init__()
        self.turn = itertools.cycle(logits)

    def forward(self, x_BC: torch.Tensor) -> torch.Tensor:
        # Sections along inline: (batch · inline, class, crossline, sample).
        return next(self.turn).permute(0, 2, 1, 3, 4).flatten(0, 1)


def combined(logits: list[torch.Tensor], combine: Any) -> npt.NDArray[np.float64]:
    return SectionNetwork(Given(logits), ((1, 2),) * len(logits), combine)(torch.zeros(2, 1, 5, 6, 7)).numpy()


def test_mean_has_the_mean_of_the_class_probabilities() -> None:
    logits = members(0, 3)
    expected = np.mean([torch.softmax(member, 1).numpy() for member in logits], axis=0)
    np.testing.assert_allclose(np.exp(combined(logits, "mean")), expected, atol=1e-14)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_vote_is_the_majority_and_equals_go_to_the_larger_mean(count: int) -> None:
    logits = members(count, count)
    p = np.stack([torch.softmax(member, 1).numpy() for member in logits])
    votes = np.stack([(p.argmax(axis=2) == k).sum(axis=0) for k in range(3)], axis=1)
    mean = p.mean(axis=0)
    contested = (votes == votes.max(axis=1, keepdims=True)).sum(axis=1) > 1
    assert 0 < contested.mean() < 1
    among = np.where(votes == votes.max(axis=1, keepdims=True), mean, -1)
    np.testing.assert_array_equal(combined(logits, "vote").argmax(axis=1), among.argmax(axis=1))


def test_vote_of_certain_sections_stays_finite() -> None:
    certain = torch.tensor([300.0, -300.0, 0.0]).reshape(1, 3, 1, 1, 1).expand(2, 3, 5, 6, 7)
    found = combined([certain, certain], "vote")
    assert np.isfinite(found).all()
    assert (found.argmax(axis=1) == 0).all()


@pytest.mark.parametrize(
    ("axes", "asked", "found"),
    [
        (("inline", "crossline", "sample"), (), ()),
        (("sample",), (), ()),
        (("crossline", "sample"), (), ("inline",)),
        (("sample", "inline"), (), ("crossline",)),
        (("trace", "sample"), ("crossline", "inline"), ("inline", "crossline")),
        (("row", "column"), ("sample",), ("sample",)),
    ],
)
def test_sections_follow_from_the_axes_of_the_bundle(axes: Any, asked: Any, found: Any) -> None:
    assert resolve_sections(axes, asked) == found


@pytest.mark.parametrize(
    ("axes", "asked", "message"),
    [
        (("trace", "sample"), (), r"runs along several sections; found none given.*expected inline or crossline"),
        (("trace", "sample"), ("sample",), r"do not lie in these sections; found sample.*Name the axis across"),
        (("crossline", "sample"), ("crossline",), r"found crossline; axes of the bundle crossline, sample"),
        (("sample",), ("inline",), r"only networks of sections.*Leave sections out"),
        (("inline", "crossline", "sample"), ("inline",), r"only networks of sections"),
        (("sample", "crossline", "inline"), (), r"do not fit a volume; found sample, crossline, inline"),
        (("inline",), (), r"do not fit a volume.*Make the bundle with axis names of"),
        (("y", "x"), ("inline",), r"do not fit a volume; found y, x"),
    ],
)
def test_axes_that_do_not_fit_are_refused_with_the_remedy(axes: Any, asked: Any, message: str) -> None:
    with pytest.raises((UsageError, MismatchError), match=message):
        resolve_sections(axes, asked)


def write_small_bundle(url: str, volume: Values, axes: tuple[str, ...]) -> None:
    """A bundle of sections or traces; its statistics are those of the survey."""
    import xarray as xr

    dims = len(axes)
    bundle = make_bundle(
        name="sections",
        network=strong_network(dims),
        model={"name": "unet", "classes": len(CLASSES), "channels": 4, "levels": 2, "dims": dims},
        axes=axes,
        stride=(2,) * dims,
        classes=CLASSES,
        chain=Chain.model_validate(STEPS).fit(xr.DataArray(volume, dims=("inline", "crossline", "sample")).chunk()),
        data=DataDescription(quantity="amplitude", domain="time", sample_unit="ms", sample_interval=4.0),
    )
    save_bundle(url, bundle)


def scored(place: Path, **keys: Any) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Class map and probability of a survey whose blocks were scored one after the other in this process."""
    job = parse_job(
        {
            "job": "score",
            **{key: str(place / key) for key in ("survey", "bundle")},
            "output": str(place / f"scored-{len(list(place.iterdir()))}"),
            "statistics": "bundle",
            "shard": [16, 16, 16],
            "chunk": [16, 16, 16],
            "probabilities": "float32",
            **keys,
        }
    )
    assert isinstance(job, ScoreJob)
    plan = make_plan(open_inputs(job))
    scorer = BlockScorer(plan, job.output)
    whole = [np.zeros(spec.shape, spec.dtype) for spec in plan.arrays()]
    for index in plan.grid.indices():
        scorer.score_block(Task(plan.grid.number(index)))
        for spec, target in zip(plan.arrays(), whole, strict=True):
            position = (0,) * (target.ndim - 3) + index
            region = shard_region(spec, position)
            shard = decode_shard(spec, scorer.output.get(shard_key(spec, position)))
            target[region] = shard[tuple(slice(0, cells.stop - cells.start) for cells in region)]
    return whole[0], whole[1]


def prepared(place: Path) -> Values:
    """The survey after the bundle's preprocessing, NaN where invalid."""
    volume = valid_volume(open_survey(str(place / "survey"))).load().chunk()
    return load_bundle(str(place / "bundle")).spec.chain.apply(volume).values


@pytest.fixture
def sections_place(tmp_path: Path) -> Path:
    """A survey and a bundle of sections that fit inlines and crosslines."""
    volume = write_survey(str(tmp_path / "survey"), random_volume(SHAPE))
    write_small_bundle(str(tmp_path / "bundle"), volume, ("trace", "sample"))
    return tmp_path


def require_scored(found: tuple[Any, Any], expected: Values, valid: npt.NDArray[np.bool_]) -> None:
    classes, probability = found
    np.testing.assert_allclose(probability[:, valid], expected[:, valid], atol=1e-5)
    ordered = np.sort(expected, axis=0)
    sure = valid & (ordered[-1] - ordered[-2] > 1e-5)
    assert sure.sum() > 0.99 * valid.sum() > 0
    assert len(np.unique(expected.argmax(axis=0)[sure])) == len(CLASSES)
    np.testing.assert_array_equal(classes[sure], expected.argmax(axis=0)[sure])
    assert (classes[~valid] == 255).all()


def test_scored_inline_sections_are_those_run_one_by_one(sections_place: Path) -> None:
    values = prepared(sections_place)
    network = load_bundle(str(sections_place / "bundle")).network()
    expected = probabilities(sections_one_by_one(network, np.nan_to_num(values), 0))
    require_scored(scored(sections_place, sections="inline"), expected, np.isfinite(values))


def test_scored_mean_of_inline_and_crossline_sections_is_that_of_both_run_one_by_one(sections_place: Path) -> None:
    values = prepared(sections_place)
    network = load_bundle(str(sections_place / "bundle")).network()
    both = [probabilities(sections_one_by_one(network, np.nan_to_num(values), axis)) for axis in (0, 1)]
    found = scored(sections_place, sections=["inline", "crossline"])
    require_scored(found, np.mean(both, axis=0), np.isfinite(values))


def test_scored_traces_are_those_of_the_whole_survey(tmp_path: Path) -> None:
    volume = write_survey(str(tmp_path / "survey"), random_volume(SHAPE))
    write_small_bundle(str(tmp_path / "bundle"), volume, ("sample",))
    values = prepared(tmp_path)
    traces = torch.from_numpy(np.nan_to_num(values)).reshape(-1, 1, SHAPE[2])
    with torch.inference_mode():
        logits = load_bundle(str(tmp_path / "bundle")).network()(traces)
    expected = probabilities(logits.reshape(*SHAPE[:2], len(CLASSES), SHAPE[2]).permute(2, 0, 1, 3).numpy())
    require_scored(scored(tmp_path), expected, np.isfinite(values))


@pytest.mark.parametrize("shape", [(1, 38, 27), (21, 1, 27), (21, 38, 1)])
def test_a_volume_network_scores_a_survey_of_one_section(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    volume = np.random.default_rng(0).normal(5, 300, shape).astype(np.float32)
    write_survey(str(tmp_path / "survey"), volume)
    write_bundle(str(tmp_path / "bundle"), volume)
    values = prepared(tmp_path)
    with torch.inference_mode():
        logits = load_bundle(str(tmp_path / "bundle")).network()(torch.from_numpy(values)[None, None])[0]
    _, probability = scored(tmp_path)
    np.testing.assert_allclose(probability, probabilities(logits.numpy()), atol=1e-5)


def test_another_choice_of_sections_is_another_plan(sections_place: Path) -> None:
    def plan_hash(**keys: Any) -> str:
        job = {"job": "score", "survey": str(sections_place / "survey"), "bundle": str(sections_place / "bundle")}
        parsed = parse_job({**job, "output": str(sections_place / "scored"), "statistics": "bundle", **keys})
        assert isinstance(parsed, ScoreJob)
        return make_plan(open_inputs(parsed)).hash

    both = plan_hash(sections=["inline", "crossline"])
    assert both == plan_hash(sections=["crossline", "inline"], combine="mean")
    assert len({both, plan_hash(sections="inline"), plan_hash(sections=["inline", "crossline"], combine="vote")}) == 3


def test_a_job_that_combines_nothing_is_refused() -> None:
    job = {"job": "score", "survey": "a", "bundle": "b", "output": "c"}
    with pytest.raises(UsageError, match="combine: vote needs several sections"):
        parse_job({**job, "sections": "inline", "combine": "vote"})
    with pytest.raises(UsageError, match="each may be named once"):
        parse_job({**job, "sections": ["inline", "inline"]})


def test_the_network_of_a_volume_bundle_is_its_own(tmp_path: Path) -> None:
    volume = random_volume((9, 9, 9))
    write_bundle(str(tmp_path), volume)
    bundle = load_bundle(str(tmp_path))
    network, reach = volume_network(bundle)
    assert isinstance(network, UNet)
    assert reach == bundle.spec.reach
