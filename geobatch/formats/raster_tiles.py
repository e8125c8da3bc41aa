"""Which raster files make a survey: one file, a folder of tiles, or a STAC-like list of them; and their headers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Any

from geobatch.errors import DataError, FormatError, GeometryError
from geobatch.fanout import FanOut
from geobatch.formats.ingestion import Fault, Ingestion
from geobatch.formats.raster_header import read_tile
from geobatch.formats.raster_source import Source, Tile, find_source
from geobatch.storage import join_url, open_storage, split_url

TILE_SUFFIXES = (".tif", ".tiff")
LIST_BYTES = 64 * 2**20
LOOKERS = 16
SCAN_TASK_BYTES = 128 * 2**20


def find_sources(url: str, asset: str | None) -> list[Source]:
    """The raster files at `url`, in the order in which they are named: a file, a folder, or a list ending in `.json`.

    Args:
        url: Of any of these.
        asset: Which asset of a STAC item to take; the first one that is a TIFF when not given.

    Raises:
        NotFoundError: nothing is there, or a file that a list names is not.
        DataError: the folder or the list holds no raster.
        FormatError: the list is no JSON of a known form.
    """
    if PurePosixPath(url).suffix.lower() == ".json":
        urls = listed(url, asset)
    else:
        keys = [key for key, _ in open_storage(url).list()]
        urls = [join_url(url, key) for key in keys if PurePosixPath(key).suffix.lower() in TILE_SUFFIXES]
        if not keys:
            urls = [url]
    if not urls:
        raise DataError(
            "no raster there",
            where=url,
            measured="no file that ends in .tif or .tiff",
            limit="at least one",
            remedy="Name the folder that holds the tiles.",
        )
    with ThreadPoolExecutor(LOOKERS) as lookers:
        return list(lookers.map(find_source, urls))


def scan_tiles(sources: list[Source], fanout: FanOut, work: Ingestion | None) -> tuple[list[Tile], list[Fault]]:
    """The header of every file that has one, and a fault for each that has none.

    Raises:
        DataError: no file has one; of a single file it tells why.
    """
    if len(sources) == 1:
        return [read_tile(sources[0])], []
    if work is None:
        found = [result for _, result in sorted(fanout(scan_tile, sources, SCAN_TASK_BYTES))]
    else:
        found = work.remembered(
            "scan", scan_tile, sources, dump=_dump, load=_load, fanout=fanout, task_bytes=SCAN_TASK_BYTES
        )
    tiles = [tile for tile in found if isinstance(tile, Tile)]
    faults = [fault for fault in found if isinstance(fault, Fault)]
    if not tiles:
        raise FormatError(
            "no tile reads",
            where=faults[0].where,
            measured=f"{len(faults)} of {len(sources)} files are bad: {faults[0].fault}",
            limit="at least one whole raster",
        )
    return tiles, faults


def scan_tile(source: Source) -> Tile | Fault:
    """The header of a file, or what ails it."""
    try:
        return read_tile(source)
    except (FormatError, GeometryError, DataError) as error:
        return Fault("tile", source.url, f"{error.what}; found {error.measured}", "left out")


def tile_dump(tile: Tile) -> dict[str, Any]:
    """A header as JSON; numbers that JSON lacks as words."""
    words = {name: [v if v is None else repr(v) for v in getattr(tile, name)] for name in ("nodata", "unheld")}
    return {**dataclasses.asdict(tile), **words}


def tile_load(document: dict[str, Any]) -> Tile:
    """The header that `tile_dump` wrote."""
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in document.items()
    }
    values["source"] = Source(**document["source"])
    for name in ("nodata", "unheld"):
        values[name] = tuple(value if value is None else float(value) for value in document[name])
    values["palette"] = tuple(tuple(colour) for colour in document["palette"])
    return Tile(**values)


def _dump(found: Tile | Fault) -> bytes:
    tile = isinstance(found, Tile)
    return json.dumps(
        {"tile": tile_dump(found)} if isinstance(found, Tile) else {"fault": vars(found), "tile": tile}
    ).encode()


def _load(body: bytes) -> Tile | Fault:
    document = json.loads(body)
    return tile_load(document["tile"]) if document["tile"] else Fault(**document["fault"])


def listed(url: str, asset: str | None) -> list[str]:
    """The URLs in a JSON list: of addresses, of STAC items, one item, or an item collection."""
    root, name = split_url(url)
    storage = open_storage(root)
    if storage.size(name) > LIST_BYTES:
        raise FormatError("list of tiles is too long", where=url, measured=storage.size(name), limit=LIST_BYTES)
    try:
        document = json.loads(storage.get(name))
    except (ValueError, RecursionError) as error:
        raise FormatError("list of tiles is not JSON", where=url, measured=str(error)[:200]) from error
    items = document.get("features", [document]) if isinstance(document, dict) else document
    if not isinstance(items, list):
        raise _no_list(url, items)
    return [_absolute(address, root) for item in items for address in _addresses(item, asset, url)]


def _addresses(item: Any, asset: str | None, url: str) -> Iterator[str]:
    """The address that an entry of a list names, or the asset of a STAC item (STAC 1.0.0, item specification)."""
    if isinstance(item, str):
        yield item
        return
    assets = item.get("assets") if isinstance(item, dict) else None
    if isinstance(item, dict) and assets is None and isinstance(item.get("href"), str):
        yield item["href"]
        return
    if not isinstance(assets, dict):
        raise _no_list(url, item)
    for name, entry in assets.items():
        address = entry.get("href") if isinstance(entry, dict) else None
        if not isinstance(address, str):
            raise _no_list(url, entry)
        if name == asset or (asset is None and PurePosixPath(address).suffix.lower() in TILE_SUFFIXES):
            yield address
            return
    raise DataError(
        "item of the list has no raster",
        where=url,
        measured=f"assets {', '.join(map(str, assets))} of item {item.get('id')}",
        limit=asset or "one that ends in .tif or .tiff",
        remedy="Name the asset with --set asset=….",
    )


def _absolute(address: str, root: str) -> str:
    """The address itself, or below the folder of the list when it is relative."""
    if "://" in address or address.startswith("/"):
        return address
    return join_url(root, address.removeprefix("./"))


def _no_list(url: str, found: Any) -> FormatError:
    return FormatError(
        "JSON is no list of rasters",
        where=url,
        measured=repr(found)[:200],
        limit="addresses, STAC items, or an item collection",
        remedy='Write ["a.tif", "b.tif"], addresses relative to the list.',
    )
