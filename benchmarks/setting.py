"""The survey, the bundle and the plan that the peers of `score.py` work on."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import torch
from order import Order, Work

from geobatch.blocks import Block
from geobatch.interpretation.synthetic import CLASSES, SyntheticSurvey
from geobatch.interpretation.synthetic_files import write_survey
from geobatch.job import parse_job
from geobatch.models import build_model
from geobatch.models.bundle import ClassInfo, DataDescription, load_bundle, make_bundle, save_bundle
from geobatch.preprocess import Chain, Clip, Scale
from geobatch.score.planning import make_plan, open_inputs
from geobatch.score.spec import ScoreJob
from geobatch.survey import VOLUME_AXES, open_survey, valid_volume

CHUNK = 64


def make_setting(
    folder: str, shape: tuple[int, int, int], network: dict[str, Any], options: argparse.Namespace
) -> Order:
    """A synthetic survey and a bundle under `folder`, and the order that names them, still without a plan."""
    survey, bundle, weights = f"{folder}/survey", f"{folder}/bundle", f"{folder}/weights.pt"
    write_survey(SyntheticSurvey.varied(shape, 5), survey)
    parameters = {"classes": len(CLASSES), **network}
    chain = _write_bundle(survey, bundle, weights, parameters)
    clip, scale = chain.steps
    assert isinstance(clip, Clip) and isinstance(scale, Scale) and clip.statistics and scale.statistics
    return Order(
        survey=survey,
        bundle=bundle,
        weights=weights,
        output="",
        network=parameters,
        limits=(clip.statistics.lower, clip.statistics.upper),
        centre=scale.statistics.centre,
        divisor=scale.statistics.divisor,
        shape=shape,
        chunk=(CHUNK,) * 3,
        shard=(CHUNK,) * 3,
        patch=(CHUNK,) * 3,
        blocks=(),
        roi=(CHUNK,) * 3,
        overlap=0.25,
        workers=options.workers,
        threads=options.threads,
        as_trained=False,
        memory_bytes=int(options.memory_gib * 2**30),
    )


def with_plan(order: Order, edge: int) -> Order:
    """The order with the plan that geobatch makes for blocks of this edge under the memory cap.

    Raises:
        UsageError: no patch fits in memory.
    """
    job = parse_job(
        {
            "job": "score",
            "survey": order.survey,
            "bundle": order.bundle,
            "output": f"{order.survey}-scored",
            "statistics": "bundle",
            "probabilities": "none",
            "shard": (edge,) * 3,
            "chunk": order.chunk,
            "resources": {"threads": order.threads, "memory_gib": order.memory_bytes / 2**30},
        }
    )
    assert isinstance(job, ScoreJob)
    plan = make_plan(open_inputs(job))
    grid = plan.grid

    def work(block: Block) -> Work:
        patches = tuple((_spans(patch.see), _spans(patch.keep)) for patch in grid.patches(block.write))
        return Work(_spans(block.write), patches)

    blocks = tuple(work(grid.block(index)) for index in grid.indices())
    return dataclasses.replace(order, chunk=plan.chunk, shard=grid.shard, patch=grid.patch, blocks=blocks)


def _spans(region: tuple[slice, ...]) -> tuple[tuple[int, int], ...]:
    return tuple((part.start, part.stop) for part in region)


def _write_bundle(survey: str, url: str, weights: str, parameters: dict[str, Any]) -> Chain:
    """Store a bundle and its weights; its chain, fitted to the survey."""
    spec = {"name": "unet", **parameters}
    torch.manual_seed(0)
    network = _settled(build_model(spec))
    stride = 2 ** (parameters["levels"] - 1)
    bundle = make_bundle(
        name="benchmark",
        network=network,
        model=spec,
        axes=VOLUME_AXES,
        stride=(stride,) * 3,
        classes=tuple(ClassInfo(**entry) for entry in CLASSES),
        chain=Chain.model_validate([{"step": "clip"}, {"step": "scale"}]).fit(valid_volume(open_survey(survey))),
        data=DataDescription(quantity="amplitude", domain="time", sample_unit="ms", sample_interval=4.0),
    )
    save_bundle(url, bundle)
    torch.save(network.state_dict(), weights)
    return load_bundle(url).spec.chain


def _settled(network: torch.nn.Module) -> torch.nn.Module:
    """The network with batch norms that have seen data, so that its classes vary from place to place."""
    with torch.no_grad():
        for _ in range(10):
            network(torch.randn(2, 1, 32, 32, 32))
        logits_BK = network.eval()(torch.randn(1, 1, 32, 32, 32))
        network.head.bias.sub_(logits_BK.mean(dim=(0, 2, 3, 4)))
    return network
