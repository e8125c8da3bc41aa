"""Small surveys and bundles for tests."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from geobatch.blocks import Grid
from geobatch.models import build_model
from geobatch.models.bundle import ClassInfo, DataDescription, make_bundle, save_bundle
from geobatch.preprocess import Chain
from geobatch.score.spec import ScorePlan
from geobatch.shards import (
    ArraySpec,
    create_arrays,
    encode_shard,
    finish_group,
    shard_indices,
    shard_key,
    shard_region,
)
from geobatch.storage import open_storage
from geobatch.survey import VOLUME_AXES

BUCKET = "surveys"
"""The bucket of the tests' S3 server."""
CLASSES = (
    ClassInfo(name="shale", color="#777777"),
    ClassInfo(name="sand", color="#eedd55"),
    ClassInfo(name="fault", color="#cc2222"),
)
STEPS = [
    {"step": "fill", "method": "interpolate", "along": "crossline", "max_gap_traces": 2},
    {"step": "clip", "percentile": 99},
    {"step": "scale", "method": "standard"},
]


def random_volume(shape: tuple[int, int, int], seed: int = 0, dead: float = 0.05) -> npt.NDArray[np.float32]:
    """Normal amplitudes with missing traces (NaN), single ones and a hole too wide to fill."""
    generator = np.random.default_rng(seed)
    volume = generator.normal(5, 300, shape).astype(np.float32)
    volume[generator.random(shape[:2]) < dead] = np.nan
    volume[shape[0] // 3 : shape[0] // 2, shape[1] // 3 : shape[1] // 2 + 3] = np.nan
    return volume


def write_survey(
    url: str, volume: npt.NDArray[np.float32], *, identity: str = "test-survey", **info: Any
) -> npt.NDArray[np.float32]:
    """A complete survey with inlines from 100 in steps of 2, crosslines from 500, 4 ms samples."""
    coordinates = {
        "inline": np.arange(volume.shape[0], dtype=np.int32) * 2 + 100,
        "crossline": np.arange(volume.shape[1], dtype=np.int32) + 500,
        "sample": np.arange(volume.shape[2]) * 4.0,
    }
    chunks = tuple(min(16, n) for n in volume.shape)
    spec = ArraySpec("amplitude", VOLUME_AXES, volume.shape, "float32", chunks, chunks, math.nan)
    live = np.isfinite(volume).any(axis=2)
    specs = [ArraySpec.small(name, (name,), values) for name, values in coordinates.items()]
    specs.append(ArraySpec.small("live_mask", ("inline", "crossline"), live))
    create_arrays(url, [spec, *specs], {**coordinates, "live_mask": live})
    for index in shard_indices(spec):
        open_storage(url).put(shard_key(spec, index), encode_shard(spec, volume[shard_region(spec, index)]))
    description = {
        "schema": 1,
        "kind": "volume",
        "variable": "amplitude",
        "quantity": "amplitude",
        "domain": "time",
        "sample_unit": "ms",
        "sample_interval": 4.0,
        "identity": identity,
        "state": "complete",
        **info,
    }
    finish_group(url, [spec, *specs], {"geobatch": description})
    return volume


def strong_network(seed: int = 0, levels: int = 2) -> torch.nn.Module:
    """A network whose far inputs matter: fresh weights hide halo errors, so these are large and shifted."""
    torch.manual_seed(seed)
    network = build_model({"name": "unet", "classes": len(CLASSES), "channels": 4, "levels": levels})
    # A few passes in training mode give batch norm statistics under which no layer is silent.
    with torch.no_grad():
        for _ in range(20):
            network(torch.randn(2, 1, 16, 16, 16))
        logits_BK = network.eval()(torch.randn(1, 1, 16, 16, 16))
        network.head.bias.sub_(logits_BK.mean(dim=(0, 2, 3, 4)))
        network.head.weight.mul_(5)
        network.head.bias.mul_(5)
    return network


def write_bundle(url: str, volume: npt.NDArray[np.float32], levels: int = 2) -> str:
    """A bundle of a strong network; its chain is fitted to `volume`. Returns its hash."""
    import xarray as xr

    chain = Chain.model_validate(STEPS).fit(xr.DataArray(volume, dims=VOLUME_AXES).chunk())
    bundle = make_bundle(
        name="test",
        network=strong_network(levels=levels),
        model={"name": "unet", "classes": len(CLASSES), "channels": 4, "levels": levels},
        axes=VOLUME_AXES,
        stride=(2 ** (levels - 1),) * 3,
        classes=CLASSES,
        chain=chain,
        data=DataDescription(quantity="amplitude", domain="time", sample_unit="ms", sample_interval=4.0),
    )
    return save_bundle(url, bundle)


def plan_of(shape: tuple[int, int, int], shard: tuple[int, int, int]) -> ScorePlan:
    """A plan without survey and bundle, for what only counts blocks."""
    return ScorePlan(
        survey="",
        survey_identity="",
        bundle="",
        bundle_hash="",
        statistics="bundle",
        crop=None,
        chain=Chain(),
        grid=Grid(shape, shard, shard, (1, 1, 1), ((0, 0),) * 3, ((0, 0),) * 3),
        chunk=shard,
        batch=1,
        threads=1,
        device="cpu",
        probabilities="uint8",
        classes=CLASSES,
    )
