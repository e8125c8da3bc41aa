"""Surveys: lazy xarray data sets over sharded Zarr, with the axes, units and validity of the field."""

from __future__ import annotations

import itertools
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from geobatch.errors import DataError, MismatchError, NotFoundError
from geobatch.storage import join_url, open_storage, zarr_store

if TYPE_CHECKING:
    import xarray as xr

VOLUME_AXES = ("inline", "crossline", "sample")
INVALID_CLASS = 255
SCHEMA = 1
COMPLETE = "complete"


def open_survey(url: str) -> xr.Dataset:
    """The survey at `url`, lazily indexed and without Dask: select a region first, then make that Dask.

    Args:
        url: A Zarr 3 group that `geobatch ingest`, `run` or `synthetic` wrote, or an MDIO v1 group, on S3 or a file
            system.

    Returns:
        Data set with dims `(inline, crossline, sample)`; see `docs/architecture.md` for its variables.

    Raises:
        NotFoundError: nothing is there, or what is there was never finished.
        DataError: the Zarr group is not a geobatch survey or of an unknown schema version.
        StorageError: the bucket or the credentials are wrong.
    """
    storage = open_storage(url)
    try:
        group = json.loads(storage.get("zarr.json"))
    except NotFoundError:
        if storage.exists(".zattrs") and (foreign := _foreign(url)) is not None:
            return foreign
        begun = next(storage.list(), None) is not None
        raise NotFoundError(
            "survey was begun but not finished" if begun else "no survey there",
            where=url,
            remedy="Run the command that writes it again." if begun else "Check the URL.",
        ) from None
    if "geobatch" not in group["attributes"] and (foreign := _foreign(url)) is not None:
        return foreign
    # Ingest stores every shard; a scored survey lacks those that no run was asked for, a sparse one those without data.
    info = group["attributes"].get("geobatch", {})
    complete = info.get("kind") not in (None, "scored") and not info.get("sparse")
    # Tasks that only write surveys begin sooner without xarray.
    import xarray as xr

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        store = zarr_store(url, complete=complete)
        dataset: xr.Dataset = xr.open_zarr(store, chunks=None, consolidated=True, zarr_format=3)
    survey_info(dataset, url)
    return dataset


def _foreign(url: str) -> xr.Dataset | None:
    """The survey in a group of another maker that is read in place, None where it is of none."""
    # Formats stand above surveys, and are asked only for what is no survey of ours.
    from geobatch.formats.mdio import mdio_attributes, open_mdio

    attributes = mdio_attributes(url)
    return None if attributes is None else open_mdio(url, attributes)


def survey_info(dataset: xr.Dataset, where: str = "") -> dict[str, Any]:
    """The survey's own description: the `geobatch` attribute of its group.

    Raises:
        DataError: it is missing or of another schema version.
    """
    info = dataset.attrs.get("geobatch")
    if not isinstance(info, dict):
        raise DataError("Zarr group is not a geobatch survey", where=where, remedy="Make one with geobatch ingest.")
    if info.get("schema") != SCHEMA:
        raise DataError("unknown survey schema", where=where, measured=info.get("schema"), limit=SCHEMA)
    return info


def valid_volume(dataset: xr.Dataset, where: str = "") -> xr.DataArray:
    """The survey's volume `(inline, crossline, sample)` float32, with its live-trace mask as a coordinate.

    `mask_dead` makes dead and missing traces NaN once a region is selected; doing it here would load the volume.
    """
    info = survey_info(dataset, where)
    name = info.get("variable", "amplitude")
    if info.get("kind") != "volume" or name not in dataset:
        raise MismatchError(
            "survey holds no volume to score", where=where, measured=f"kind {info.get('kind')}", limit="kind volume"
        )
    volume: xr.DataArray = dataset[name].transpose(*VOLUME_AXES)
    if "live_mask" in dataset:
        volume = volume.assign_coords(live_mask=dataset["live_mask"].load())
    return volume


def mask_dead(volume: xr.DataArray) -> xr.DataArray:
    """The volume, in memory or Dask-backed, with NaN on every dead or missing trace."""
    if "live_mask" not in volume.coords:
        return volume
    live = volume["live_mask"]
    volume = volume.drop_vars("live_mask")
    return volume if bool(live.all()) else volume.where(live.drop_vars(list(live.coords)))


def class_attributes(names: Sequence[str], colors: Sequence[str]) -> dict[str, Any]:
    """Attributes of a class map: names and colours `#rrggbb` of the classes 0, 1, 2 … as CF flags."""
    return {
        "long_name": "class",
        "flag_values": list(range(len(names))),
        "flag_meanings": " ".join(name.replace(" ", "_") for name in names),
        "flag_colors": " ".join(colors),
        "comment": f"{INVALID_CLASS}: no valid sample, no label or not scored",
        "coordinates": "cdp_x cdp_y",
    }


def class_flags(attributes: Mapping[str, Any]) -> tuple[list[int], list[str], list[str]]:
    """Values, names and colours of the classes in CF flag attributes, lists or blank-separated words; as many as given.

    Names keep the underscores that stand for blanks.
    """
    words = (attributes.get(key, "") for key in ("flag_meanings", "flag_colors"))
    names, colors = (given.split() if isinstance(given, str) else [str(word) for word in given] for given in words)
    return [int(value) for value in np.atleast_1d(attributes.get("flag_values", []))], names, colors


def class_names(class_map: xr.DataArray) -> dict[int, str]:
    """Name per class value from the CF flag attributes, without the invalid class."""
    values, names, _ = class_flags(class_map.attrs)
    return {value: name for value, name in zip(values, names, strict=False) if value != INVALID_CLASS}


def require_complete(dataset: xr.Dataset, where: str) -> None:
    """Refuse a survey that a run is still writing or left incomplete.

    Raises:
        DataError: its state is not complete.
    """
    state = survey_info(dataset, where).get("state")
    if state != COMPLETE:
        raise DataError(
            "survey is not complete",
            where=where,
            measured=f"state {state}",
            limit=f"state {COMPLETE}",
            remedy="Run its job again: what is done is kept.",
        )


def require_every_shard(dataset: xr.Dataset, url: str) -> None:
    """Refuse a survey whose volume lacks stored objects: Zarr would read them as invalid samples without a word.

    One listing, whatever the size of the objects. A group of another maker may leave out what holds no trace.

    Raises:
        DataError: shards are missing or empty.
    """
    info = survey_info(dataset, url)
    if info.get("sparse"):
        return
    name = str(info.get("variable", "amplitude"))
    stored = {key: size for key, size in open_storage(url).list(f"{name}/c")}
    shards = dataset[name].encoding.get("shards") or dataset[name].encoding["chunks"]
    counts = [-(-n // s) for n, s in zip(dataset[name].shape, shards, strict=True)]
    expected = ("/".join([name, "c", *map(str, index)]) for index in itertools.product(*map(range, counts)))
    damaged = [key for key in expected if not stored.get(key)]
    if damaged:
        raise DataError(
            "survey lacks stored objects",
            where=url,
            measured=f"{len(damaged)} missing or empty, such as {damaged[0]}",
            limit=f"{math.prod(counts)} objects",
            remedy="Ingest it again with --overwrite.",
        )


def block_coordinates(volume: xr.DataArray, region: tuple[slice, ...]) -> dict[str, tuple[float, float]]:
    """First and last coordinate per axis of a region, for messages."""
    named = {}
    for axis, part in zip(volume.dims, region, strict=True):
        values = np.asarray(volume[axis].values[part])
        named[str(axis)] = (float(values[0]), float(values[-1]))
    return named


def control_url(output_url: str) -> str:
    """Where a run keeps its plan, receipts and summary, beside the arrays it writes."""
    return join_url(output_url, "_geobatch")
