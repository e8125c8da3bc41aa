"""Bundles: a trained network with all that is needed to use it correctly.

A bundle is two objects under one URL: `model.safetensors`, the weights, and `bundle.json`, everything else, written
last and holding the weights' hash. Where `bundle.json` is missing there is no bundle. Nothing in it is executed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, ValidationError, model_serializer
from safetensors import SafetensorError
from torch import nn

from geobatch.blocks import Halo
from geobatch.errors import IntegrityError, NotFoundError
from geobatch.models import build_model
from geobatch.models.reach import verified_reach, whole_input
from geobatch.preprocess import Chain, Crop
from geobatch.preprocess.bands import Bands
from geobatch.preprocess.curves import Curves
from geobatch.preprocess.event_windows import WindowInput
from geobatch.storage import open_storage

WEIGHTS = "model.safetensors"
DESCRIPTION = "bundle.json"
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ClassInfo(_Frozen):
    """A class: its name and the colour it is drawn in, `#rrggbb`."""

    name: str
    color: str


class DataDescription(_Frozen):
    """What a bundle was trained on, so that other data are recognised as other (C8).

    Attributes:
        quantity: Physical quantity of the volume, such as `amplitude`.
        domain: Axis of the samples: `time` or `depth`.
        sample_unit: `ms` or `m`.
        sample_interval: Step of the sample axis in that unit.
        polarity: `normal`, `reverse` or `unknown`.
        quantiles: Values after preprocessing at `QUANTILES`.
    """

    quantity: str
    domain: str
    sample_unit: str
    sample_interval: float
    polarity: str = "unknown"
    quantiles: tuple[float, ...] = ()


class NumberInfo(_Frozen):
    """A number that a network answers with: it gives its distance from `mean` over `deviation`."""

    name: str
    mean: float
    deviation: float


class ReachInfo(_Frozen):
    """The measured reach, as `models.reach.Reach` documents it, and the worst deviation of tiled from whole output."""

    stride: tuple[int, ...]
    by_phase: tuple[Halo, ...]
    halo: Halo
    unbounded: tuple[int, ...] = ()
    tiling_deviation: float

    @model_serializer(mode="wrap")
    def _without_nothing(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A bounded network's reach reads, and hashes, as it did in bundles that knew no other."""
        document: dict[str, Any] = serialize(self)
        if not self.unbounded:
            del document["unbounded"]
        return document


class BundleSpec(_Frozen):
    """Everything of a bundle but its weights: the content of `bundle.json`.

    Attributes:
        curves: Of a network of logs: the fitted curves, its channels.
        bands: Of a network of rasters: the fitted bands, its channels.
        window: Of a network of sequences: the samples it was trained on at a time.
        windows: Of a network of event windows: how they become its channels, fitted.
        number: Of a network that answers with a number, and has no classes.
    """

    schema_version: int = 1
    name: str
    model: dict[str, Any]
    axes: tuple[str, ...]
    in_channels: int = 1
    classes: tuple[ClassInfo, ...]
    chain: Chain
    curves: Curves | None = None
    bands: Bands | None = None
    window: int | None = None
    windows: WindowInput | None = None
    number: NumberInfo | None = None
    reach: ReachInfo
    data: DataDescription
    metrics: dict[str, Any] = {}
    provenance: dict[str, Any] = {}
    weights_sha256: str

    @model_serializer(mode="wrap")
    def _without_nothing(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A bundle of volumes reads, and hashes, as it did before there were others."""
        document: dict[str, Any] = serialize(self)
        for key in ("curves", "bands", "window", "windows", "number"):
            if document[key] is None:
                del document[key]
        return document

    @property
    def hash(self) -> str:
        """SHA-256 over the canonical JSON, weights' hash included."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


@dataclass(frozen=True)
class Bundle:
    """A bundle in memory: its description and the bytes of its weights."""

    spec: BundleSpec
    weights: bytes

    def network(self) -> nn.Module:
        """The trained network, in evaluation mode, on the CPU."""
        network = build_model(self.spec.model)
        network.load_state_dict(safetensors.torch.load(self.weights))
        return network.eval()


def make_bundle(
    *,
    name: str,
    network: nn.Module,
    model: Mapping[str, Any],
    axes: tuple[str, ...],
    stride: tuple[int, ...],
    classes: tuple[ClassInfo, ...],
    chain: Chain,
    data: DataDescription,
    curves: Curves | None = None,
    bands: Bands | None = None,
    window: int | None = None,
    windows: WindowInput | None = None,
    number: NumberInfo | None = None,
    metrics: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Bundle:
    """A bundle of a trained network, its reach measured and its tiling checked for every size modulo the stride.

    Axes along which its output depends on the whole patch, or on the patch's size or place, are recorded as unbounded;
    of a network that answers once per input, all.

    Args:
        name: The bundle's name.
        network: The trained network.
        model: What `build_model` builds it from.
        axes: Axis names of its input, in order.
        stride: Its total stride per axis.
        classes: Its classes, in the order of its outputs.
        chain: The preprocessing, fitted. A crop is left out: it names a place in the survey trained on.
        data: What it was trained on.
        curves: Of a network of logs, fitted.
        bands: Of a network of rasters, fitted.
        window: Of a network of sequences: the samples it was trained on at a time.
        windows: Of a network of event windows, fitted.
        number: What it answers with, where it has no classes.
        metrics: Figures of the held-out data.
        provenance: Where it comes from.

    Raises:
        MismatchError: it returns no finite number, or takes no patch of a few strides per axis.
    """
    network = network.to("cpu").eval()
    state: dict[str, torch.Tensor] = {k: v.detach().contiguous() for k, v in network.state_dict().items()}
    weights = safetensors.torch.save(state)
    in_channels = int(model.get("in_channels", 1))
    once = model.get("output") == "one"
    reach, deviation = (whole_input(stride), 0.0) if once else verified_reach(network, in_channels, stride)
    spec = BundleSpec(
        name=name,
        model=dict(model),
        axes=axes,
        in_channels=in_channels,
        classes=classes,
        chain=chain.model_copy(update={"steps": tuple(step for step in chain.steps if not isinstance(step, Crop))}),
        curves=curves,
        bands=bands,
        window=window,
        windows=windows,
        number=number,
        reach=ReachInfo(**dataclasses.asdict(reach), tiling_deviation=deviation),
        data=data,
        metrics=dict(metrics or {}),
        provenance=dict(provenance or {}),
        weights_sha256=hashlib.sha256(weights).hexdigest(),
    )
    return Bundle(spec, weights)


def save_bundle(url: str, bundle: Bundle) -> str:
    """Write the bundle to `url`, in place of one that is there; return its hash.

    The old description goes first and the new one comes last, so that a kill in between leaves no bundle rather than
    new weights under an old description.
    """
    storage = open_storage(url)
    storage.delete(DESCRIPTION)
    storage.put(WEIGHTS, bundle.weights)
    document = {**bundle.spec.model_dump(mode="json"), "hash": bundle.spec.hash}
    storage.put(DESCRIPTION, json.dumps(document, indent=2).encode())
    return bundle.spec.hash


def load_bundle(url: str) -> Bundle:
    """The bundle at `url`, every hash checked.

    Raises:
        NotFoundError: no bundle is there.
        IntegrityError: the description or the weights differ from their hash, or do not read as a bundle.
    """
    storage = open_storage(url)
    try:
        raw = storage.get(DESCRIPTION)
    except NotFoundError:
        raise NotFoundError("no bundle there", where=url, remedy="Train one, or correct the URL.") from None
    remedy = "Restore the bundle from its source or train it again."
    try:
        document = json.loads(raw)
        recorded = document.pop("hash")
        spec = BundleSpec.model_validate(document)
    except (ValueError, KeyError, AttributeError, ValidationError) as error:
        raise IntegrityError(
            "bundle.json does not read as a bundle", where=url, measured=_first_line(error), remedy=remedy
        ) from error
    if spec.hash != recorded:
        raise IntegrityError(
            "bundle.json was changed after it was written",
            where=url,
            measured=f"hash {spec.hash}",
            limit=recorded,
            remedy=remedy,
        )
    weights = storage.get(WEIGHTS)
    found = hashlib.sha256(weights).hexdigest()
    if found != spec.weights_sha256:
        raise IntegrityError(
            f"{WEIGHTS} differs from its hash", where=url, measured=found, limit=spec.weights_sha256, remedy=remedy
        )
    bundle = Bundle(spec, weights)
    try:
        bundle.network()
    except (RuntimeError, SafetensorError) as error:
        raise IntegrityError(
            "weights do not fit the network", where=url, measured=_first_line(error), remedy=remedy
        ) from error
    return bundle


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
