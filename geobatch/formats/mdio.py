"""MDIO v1 (Zarr 3 or 2) and surveys: a volume that `mdio` wrote opens as a survey, and a survey becomes one.

An MDIO group differs from a survey in names (`time` or `depth` for `sample`, `trace_mask` for `live_mask`), in where it
keeps statistics and units (`statsV1`, `unitsV1`), and in that chunks without a trace are not stored.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import xarray as xr
import zarr.storage

from geobatch.errors import FormatError, NotFoundError, UsageError
from geobatch.fanout import in_order, open_fanout
from geobatch.formats.mdio_headers import NAME, encode_headers, header_metadata
from geobatch.shards import ArraySpec, create_arrays, encode_shard, finish_group, shard_indices, shard_key, shard_region
from geobatch.storage import absolute_url, open_storage, zarr_store
from geobatch.survey import COMPLETE, SCHEMA, mask_dead, open_survey, require_complete, survey_info

API_VERSION = "1.1.3"
# Raw headers have a type of many fields, which nothing in a survey reads.
HEADERS = "trace_header"
LEFT_OUT = (NAME, "raw_headers", "segy_file_header")
VERTICAL = {"time": ("time", "ms", "two-way time"), "depth": ("depth", "m", "depth")}
KINDS = {
    ("inline", "crossline"): "volume",
    ("inline", "crossline", "offset"): "gathers",
    ("inline", "crossline", "angle"): "gathers",
    ("cdp",): "traces",
}
SMALL_BYTES = 64 * 2**20
LONG_NAMES = {"amplitude": "seismic amplitude", "velocity": "seismic velocity"}


def mdio_attributes(url: str) -> dict[str, Any] | None:
    """The attributes of the MDIO group at `url`, with `zarr_format`; None when there is no such group."""
    storage = open_storage(url)
    for key, zarr_format in (("zarr.json", 3), (".zattrs", 2)):
        try:
            found = json.loads(storage.get(key))
        except NotFoundError:
            continue
        except ValueError as error:
            raise FormatError("group metadata is no JSON", where=f"{url}/{key}", measured=str(error)) from error
        attributes = found.get("attributes", {}) if zarr_format == 3 else found
        if "apiVersion" in attributes and "attributes" in attributes and "geobatch" not in attributes:
            return {**attributes, "zarr_format": zarr_format}
    return None


def open_mdio(url: str, attributes: dict[str, Any]) -> xr.Dataset:
    """The MDIO group at `url` as a survey, lazily indexed and without Dask.

    Args:
        url: The group.
        attributes: What `mdio_attributes` found.

    Returns:
        Data set with dims `(inline, crossline, sample)`, `(inline, crossline, offset or angle, sample)` or
        `(trace, sample)`; raw headers are left out.

    Raises:
        FormatError: it has other dimensions, or lacks its variable.
    """
    version_2 = attributes["zarr_format"] == 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset: xr.Dataset = xr.open_zarr(
            # Chunks of MDIO end in no checksum that could be verified.
            zarr.storage.ObjectStore(zarr_store(url).store, read_only=True),
            chunks=None,
            consolidated=version_2,
            zarr_format=attributes["zarr_format"],
            drop_variables=LEFT_OUT,
            # What Zarr 2 calls a fill value would turn line numbers into floats.
            mask_and_scale=not version_2,
        )
    name = str(attributes["attributes"].get("defaultVariableName", "amplitude"))
    if name not in dataset:
        raise FormatError(
            "MDIO group lacks its variable", where=url, measured=name, limit=", ".join(map(str, dataset.data_vars))
        )
    *places, vertical = map(str, dataset[name].dims)
    if vertical not in VERTICAL or tuple(places) not in KINDS:
        raise FormatError(
            "MDIO group has dimensions that no survey has",
            where=url,
            measured=", ".join(map(str, dataset[name].dims)),
            limit="; ".join(", ".join(known) for known in KINDS) + ", each with time or depth",
            remedy="Export it to SEG-Y with mdio, and ingest that.",
        )
    kind = KINDS[tuple(places)]
    statistics = _statistics(dataset[name].attrs.pop("statsV1", None))
    if kind == "traces":
        dataset = dataset.rename_dims(cdp="trace").drop_indexes("cdp")
    dataset = dataset.drop_vars([v for v in dataset.data_vars if v not in (name, "trace_mask")])
    dataset = dataset.rename({vertical: "sample"} | ({"trace_mask": "live_mask"} if "trace_mask" in dataset else {}))
    domain, unit, long_name = VERTICAL[vertical]
    quantity = "velocity" if name == "velocity" else "amplitude"
    unit = _unit(dataset["sample"].attrs, unit)
    samples = dataset["sample"].values.astype(np.float64)
    dataset = dataset.assign_coords(sample=("sample", samples, {"units": unit, "long_name": long_name}))
    dataset[name].attrs |= {"long_name": LONG_NAMES[quantity], "units": "m/s" if quantity == "velocity" else ""}
    dataset.attrs = {
        "geobatch": {
            "schema": SCHEMA,
            "kind": kind,
            "variable": name,
            "quantity": quantity,
            "domain": domain,
            "sample_interval": float(samples[1] - samples[0]) if samples.size > 1 else 0.0,
            "sample_unit": unit,
            "crs": None,
            "bin_grid": None,
            "statistics": statistics,
            "source": {"url": url, "format": "mdio", "api_version": attributes["apiVersion"]},
            "sparse": True,
            "warnings": [],
            # MDIO stores no checksums: its metadata, which has the time of creation, must tell one from the next.
            "identity": hashlib.sha256(json.dumps(attributes, sort_keys=True).encode()).hexdigest(),
            "state": COMPLETE,
        }
    }
    return dataset


def export_mdio(
    src_survey_url: str,
    dst_url: str,
    *,
    overwrite: bool = False,
    num_cpus: int | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """A summary of the MDIO v1 group written to `dst_url` from a survey of kind `volume` or `gathers`.

    It holds the samples in float32 with NaN on dead and missing traces, the axes, `cdp_x`, `cdp_y` and `trace_mask`, in
    shards as geobatch writes them, and the `headers` of traces where the survey has them. The group is the last write;
    an export that was killed is begun anew.

    Args:
        src_survey_url: The survey.
        dst_url: The group.
        overwrite: Replace an MDIO group that is there.
        num_cpus: CPUs of the local Ray cluster when this process is connected to none.
        on_progress: Called with shards done and shards in all.

    Raises:
        UsageError: something is there already, or the survey is of another kind.
    """
    src_survey_url, dst_url = absolute_url(src_survey_url), absolute_url(dst_url)
    dataset = open_survey(src_survey_url)
    require_complete(dataset, src_survey_url)
    info = survey_info(dataset)
    if info["kind"] not in ("volume", "gathers"):
        raise UsageError(
            "MDIO is written from volumes and gathers", where=src_survey_url, measured=f"kind {info['kind']}"
        )
    storage = open_storage(dst_url)
    if storage.exists("zarr.json"):
        if not overwrite or mdio_attributes(dst_url) is None:
            raise UsageError("something is there already", where=dst_url, remedy="Give another output, or --overwrite.")
        storage.delete("zarr.json")
    volume = dataset[info["variable"]]
    spec = _spec(volume, info)
    small, values = _small(dataset, info, spec)
    create_arrays(dst_url, [spec, *small], values)
    records = {NAME: header_metadata(spec.dims[:-1], spec.shape[:-1], spec.shards[:-1])} if HEADERS in dataset else {}
    for name, metadata in records.items():
        storage.put(f"{name}/zarr.json", json.dumps(metadata, indent=2).encode())
    indices = list(shard_indices(spec))
    done = 0

    def count(index: tuple[int, ...]) -> None:
        nonlocal done
        done += 1
        on_progress(done, len(indices))

    shard_bytes = 4 * math.prod(spec.shards)
    with open_fanout(small=4 * volume.size <= SMALL_BYTES, num_cpus=num_cpus) as fanout:
        copy = functools.partial(_copy, src_url=src_survey_url, dst_url=dst_url, spec=spec)
        sizes = in_order(fanout, copy, indices, task_bytes=6 * shard_bytes, on_result=count)
    domain = "Time" if info["domain"] == "time" else "Depth"
    gather = None if info["kind"] == "volume" else spec.dims[2]
    name = f"PostStack3D{domain}" if gather is None else f"Cdp{gather.title()}Gathers3D{domain}"
    about = {"surveyType": "3D", "gatherType": "stacked" if gather is None else "cdp"}
    attributes = {
        "apiVersion": API_VERSION,
        "createdOn": str(datetime.now(UTC)),
        "name": name,
        "attributes": {**about, "defaultVariableName": spec.name},
    }
    finish_group(dst_url, [spec, *small], attributes, records)
    return {"url": dst_url, "variable": spec.name, "shape": list(spec.shape), "shards": len(sizes), "bytes": sum(sizes)}


def _copy(index: tuple[int, ...], src_url: str, dst_url: str, spec: ArraySpec) -> int:
    """Write one shard, the first of a column with its headers; its size in bytes."""
    dataset = open_survey(src_url)
    part = dataset[spec.name][shard_region(spec, index)]
    if HEADERS in dataset and index[-1] == 0:
        _copy_headers(index[:-1], dataset, dst_url, spec)
    live = dataset["live_mask"][tuple(shard_region(spec, index)[:-1])] if "live_mask" in dataset else None
    part = part.load().reset_coords(drop=True)
    if live is not None:
        part = mask_dead(part.assign_coords(live_mask=live.load().reset_coords(drop=True)))
    encoded = encode_shard(spec, np.ascontiguousarray(part.values.astype(np.float32)))
    open_storage(dst_url).put(shard_key(spec, index), encoded)
    return len(encoded)


def _copy_headers(index: tuple[int, ...], dataset: xr.Dataset, dst_url: str, spec: ArraySpec) -> None:
    """Write the chunk of trace headers above a column of shards."""
    raw = dataset[HEADERS][shard_region(spec, (*index, 0))[:-1]].values
    byte_order = ">" if survey_info(dataset)["source"]["byte_order"] == "big" else "<"
    key = "/".join([NAME, "c", *map(str, index)])
    open_storage(dst_url).put(key, encode_headers(raw, byte_order, spec.shards[:-1]))


def _spec(volume: xr.DataArray, info: dict[str, Any]) -> ArraySpec:
    chunks = tuple(volume.encoding.get("chunks") or volume.shape)
    shards = tuple(volume.encoding.get("shards") or chunks)
    dims = (*map(str, volume.dims[:-1]), info["domain"])
    attributes = {"long_name": volume.attrs.get("long_name", ""), "coordinates": "cdp_x cdp_y"}
    found = info.get("statistics") or {}
    if found.get("count"):
        count = found["count"]
        figures = {"count": count, "sum": found["mean"] * count, "sumSquares": found["rms"] ** 2 * count}
        histogram: dict[str, list[float]] = {"counts": [], "binCenters": []}
        told = {**figures, "min": found["min"], "max": found["max"], "histogram": histogram}
        attributes["statsV1"] = json.dumps(told)
    return ArraySpec(str(volume.name), dims, volume.shape, "float32", chunks, shards, math.nan, attributes)


def _small(dataset: xr.Dataset, info: dict[str, Any], spec: ArraySpec) -> tuple[list[ArraySpec], dict[str, Any]]:
    """Axes, coordinates of bins and the mask of live traces."""
    unit = {"time": info["sample_unit"]} if info["domain"] == "time" else {"length": info["sample_unit"]}
    values: dict[str, Any] = {dim: dataset[dim].values for dim in spec.dims[:-1]}
    values[spec.dims[-1]] = dataset["sample"].values
    specs = [ArraySpec.small(dim, (dim,), values[dim]) for dim in spec.dims[:-1]]
    specs.append(ArraySpec.small(spec.dims[-1], spec.dims[-1:], values[spec.dims[-1]], unitsV1=unit))
    for name, own in (("cdp_x", "cdp_x"), ("cdp_y", "cdp_y"), ("trace_mask", "live_mask")):
        if own in dataset:
            values[name] = dataset[own].values
            dims = tuple(map(str, dataset[own].dims))
            length = {"unitsV1": {"length": "m"}} if name != "trace_mask" else {}
            specs.append(ArraySpec.small(name, dims, values[name], **length))
    return specs, values


def _statistics(stored: Any) -> dict[str, Any]:
    """Count, mean, std, rms, min and max from the sums that MDIO keeps; empty when it keeps none."""
    try:
        told = json.loads(stored) if isinstance(stored, str) else dict(stored or {})
        count = int(told["count"])
        mean, square = float(told["sum"]) / count, float(told["sumSquares"]) / count
        low, high = float(told["min"]), float(told["max"])
    except (ValueError, KeyError, TypeError, ZeroDivisionError):
        return {}
    figures = {"mean": mean, "std": math.sqrt(max(square - mean**2, 0)), "rms": math.sqrt(square)}
    return {"count": count, **figures, "min": low, "max": high}


def _unit(attributes: dict[str, Any], usual: str) -> str:
    """The unit of the vertical axis that `unitsV1` gives, or the usual one."""
    told = attributes.get("unitsV1")
    if isinstance(told, str):
        told = json.loads(told)
    return str(next(iter(told.values()))) if isinstance(told, dict) and told else usual
