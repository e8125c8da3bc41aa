"""Bundles of weights that others have trained."""

from __future__ import annotations

import hashlib
import io
from pathlib import PurePosixPath

import safetensors.torch
import torch

from geobatch.errors import DataError, MismatchError
from geobatch.models import build_model
from geobatch.models.bundle import Bundle, ClassInfo, DataDescription, make_bundle
from geobatch.models.phasenet import PHASES, RATE_HZ, WINDOW
from geobatch.preprocess import Chain
from geobatch.storage import open_storage, split_url

COLORS = ("#9e9e9e", "#2b6cb0", "#d7301f")


def phasenet_bundle(url: str, name: str = "phasenet") -> Bundle:
    """The bundle of a state dict of `seisbench.models.PhaseNet(phases="NPS", norm="std")`; nothing in it is executed.

    `save_bundle` stores it.

    Args:
        url: A file in safetensors, or one that `torch.load` reads with `weights_only=True`.
        name: The bundle's name.

    Raises:
        NotFoundError: it is not there.
        DataError: it is no state dict.
        MismatchError: its names or shapes are not those of PhaseNet.
    """
    root, key = split_url(url)
    body = open_storage(root).get(key)
    model = {"name": "phasenet", "in_channels": 3, "classes": len(PHASES), "filters": 8}
    network = build_model(model)
    try:
        network.load_state_dict(_state(body, safe=PurePosixPath(key).suffix == ".safetensors", where=url), strict=True)
    except RuntimeError as error:
        raise MismatchError(
            "weights are not those of PhaseNet", where=url, measured=str(error).splitlines()[1:2]
        ) from error
    return make_bundle(
        name=name,
        network=network,
        model=model,
        axes=("time",),
        stride=(1,),
        classes=tuple(ClassInfo(name=phase, color=color) for phase, color in zip(PHASES, COLORS, strict=True)),
        chain=Chain(),
        data=DataDescription(quantity="ground motion", domain="time", sample_unit="s", sample_interval=1 / RATE_HZ),
        window=WINDOW,
        provenance={"source": url, "sha256": hashlib.sha256(body).hexdigest()},
    )


def _state(body: bytes, *, safe: bool, where: str) -> dict[str, torch.Tensor]:
    try:
        state = safetensors.torch.load(body) if safe else torch.load(io.BytesIO(body), "cpu", weights_only=True)
    except Exception as error:  # torch's unpickler raises many kinds over what is no plain state dict.
        raise DataError("no plain state dict", where=where, measured=type(error).__name__) from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise DataError("no plain state dict", where=where, measured=type(state).__name__)
    return state
