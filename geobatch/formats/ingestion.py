"""What every raw format shares on its way to a survey: one writer, pieces with receipts, resume, and a quality table.

    with ingesting(dst_url, decisive, overwrite=False, sources=[(url, version), …]) as work:
        tables = work.remembered("scan", scan, parts, …)     # read from what an earlier run stored, where there is any
        work.create(specs, values)                           # arrays; the group does not exist yet
        written = work.write(write_piece, pieces, …)         # only pieces without a receipt that holds
        work.finish(specs, info)                             # quality table, manifest, then the group: it opens

A piece is the unit of work: it stores whole shards, each by one PUT, and returns what proves them. Receipts are flushed
every few seconds, so that a run that ends anywhere costs the pieces in flight and one batch. `decisive` is everything
that decides a byte of the survey: what was begun under another one is begun anew, and a finished survey is kept unless
`overwrite` says otherwise.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from geobatch.errors import DataError, TransientError, UsageError
from geobatch.fanout import FanOut, in_order
from geobatch.formats.ingest_check import repair_ingested as repair_ingested
from geobatch.formats.ingest_check import verify_ingested as verify_ingested
from geobatch.formats.manifest import (
    BATCHES,
    DECISIVE,
    MANIFEST,
    MANIFEST_SUM,
    QUALITY,
    WHOLE,
    fault_table,
    manifest_sum,
    read_table,
    receipt_table,
    tidy,
    written_by_piece,
)
from geobatch.formats.manifest import Fault as Fault
from geobatch.formats.manifest import Stored as Stored
from geobatch.formats.manifest import Written as Written
from geobatch.formats.manifest import is_ingested as is_ingested
from geobatch.formats.manifest import read_quality as read_quality
from geobatch.lease import LEASE, Control, leased
from geobatch.proof import batch_name, parquet_bytes
from geobatch.shards import ArraySpec, Index, array_objects, encode_shard, group_metadata, shard_key
from geobatch.storage import open_storage, split_url

Item = TypeVar("Item")
Result = TypeVar("Result")

FLUSH_INTERVAL_S = 5.0
LOOKERS = 16


class Ingestion:
    """A survey that this process alone writes. Made by `ingesting`.

    Attributes:
        url: Where it goes.
        done: Its description, when it was finished before and nothing is to be done.
        resumed: An earlier run of the same kind got some way.
    """

    def __init__(
        self, control: Control, done: dict[str, Any] | None, resumed: bool, sources: Sequence[tuple[str, str]]
    ) -> None:
        self.control, self.url = control, control.url
        self.done, self.resumed, self._sources = done, resumed, sources
        self._faults: list[Fault] = []
        self._created: dict[str, Stored] = {}
        self._written: dict[int, Written] = {}
        self._pending: list[int] = []
        self._flushed_at = time.monotonic()
        self._sequence = 0

    def remembered(
        self,
        name: str,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        *,
        dump: Callable[[Result], bytes],
        load: Callable[[bytes], Result],
        fanout: FanOut,
        task_bytes: int,
        on_result: Callable[[Item], None] = lambda item: None,
    ) -> list[Result]:
        """The results of `function` in the order of `items`; each is stored as it is made, and read on resume.

        Args:
            name: Of the folder in which results are kept until the survey is finished.
            function: Runs in a task.
            items: What it runs on.
            dump: A result as bytes.
            load: The result again.
            fanout: Runs it.
            task_bytes: Most memory of one task.
            on_result: Hears of each item when it is done.
        """
        folder = f"_geobatch/{name}"
        stored = {key for key, _ in self.control.storage.list(folder)} if self.resumed else set()
        task = partial(_remember, self.url, folder, stored, function, dump, load)
        numbered = list(enumerate(items))
        return in_order(fanout, task, numbered, task_bytes=task_bytes, on_result=lambda pair: on_result(pair[1]))

    def report(self, faults: Iterable[Fault]) -> None:
        """Add to the quality table what no piece reports."""
        self._faults += faults

    def create(self, specs: Sequence[ArraySpec], values: Mapping[str, npt.NDArray[Any]]) -> None:
        """Write the metadata of every array, and the small arrays whole."""
        self.control.require()
        for key, body in array_objects(specs, values):
            self.control.storage.put(key, body)
            self._created[key] = Stored.of(key, body)

    def write(
        self,
        function: Callable[[Item], Written],
        pieces: Sequence[Item],
        *,
        fanout: FanOut,
        task_bytes: int,
        on_piece: Callable[[Item], None] = lambda piece: None,
    ) -> list[Written]:
        """What every piece wrote, in the order of `pieces`; those with receipts that hold are not written again.

        Args:
            function: Writes one piece, in a task.
            pieces: The same ones in the same order for the same `decisive`.
            fanout: Runs the tasks.
            task_bytes: Most memory of one task.
            on_piece: Hears of each piece when it is done.
        """
        self._written = self._held() if self.resumed else {}
        for number in self._written:
            on_piece(pieces[number])
        missing = [number for number in range(len(pieces)) if number not in self._written]
        # pyarrow imports pandas for its first table: a quarter of a second while pieces are written, not after them.
        threading.Thread(target=receipt_table, args=({},), daemon=True).start()
        try:
            for position, written in fanout(function, [pieces[number] for number in missing], task_bytes):
                self._written[missing[position]] = written
                self._pending.append(missing[position])
                on_piece(pieces[missing[position]])
                if time.monotonic() - self._flushed_at > FLUSH_INTERVAL_S:
                    with contextlib.suppress(TransientError):
                        self._flush()
        finally:
            self._flush()
        return [self._written[number] for number in range(len(pieces))]

    def finish(self, specs: Sequence[ArraySpec], info: Mapping[str, Any], **attributes: Any) -> dict[str, Any]:
        """Write quality table and manifest, then the group, so that the survey opens; returns its description.

        Args:
            specs: Every array.
            info: The survey's own description, the group's attribute `geobatch`.
            attributes: More attributes of the group.

        Raises:
            DataError: a source changed while it was read.
        """
        _require_unchanged(self._sources)
        faults = [*self._faults, *(fault for number in sorted(self._written) for fault in self._written[number].faults)]
        self.control.put(QUALITY, parquet_bytes(fault_table(faults)))
        described = {**info, "faults": _counts(faults)}
        group = group_metadata(specs, {**attributes, "geobatch": described})
        whole = {**self._created, **self._control_objects(), "zarr.json": Stored.of("zarr.json", group)}
        told = Written(tuple(whole[key] for key in sorted(whole)))
        manifest = parquet_bytes(receipt_table({WHOLE: told, **self._written}))
        self.control.put(MANIFEST, manifest)
        self.control.put(MANIFEST_SUM, manifest_sum(manifest))
        self.control.require()
        self.control.storage.put("zarr.json", group)
        tidy(self.control)
        return described

    def digests(self) -> list[str]:
        """SHA-256 of every object, in the order of pieces."""
        return [stored.sha256.hex() for number in sorted(self._written) for stored in self._written[number].objects]

    def _held(self) -> dict[int, Written]:
        """What the receipts prove of pieces all of whose objects are stored at the size they say."""
        found: dict[int, Written] = {}
        for key in [MANIFEST, *(key for key, _ in self.control.storage.list(BATCHES))]:
            table = read_table(self.control, key)
            if len(table) and self.control.lease:
                self.control.lease.outrank(int(table["fence"].to_numpy().max()))
            found |= written_by_piece(table)
        found.pop(WHOLE, None)
        arrays = {stored.key.partition("/")[0] for written in found.values() for stored in written.objects}
        sizes = {key: size for array in arrays for key, size in self.control.storage.list(f"{array}/c")}
        return {
            number: written
            for number, written in found.items()
            if all(sizes.get(stored.key) == stored.size for stored in written.objects)
        }

    def _control_objects(self) -> dict[str, Stored]:
        """What decided the survey, and what was wrong with its sources, as stored."""
        own = (LEASE, MANIFEST, MANIFEST_SUM)
        keys = [key for key, _ in self.control.storage.list("_geobatch/") if key.count("/") == 1 and key not in own]
        return {key: Stored.of(key, self.control.storage.get(key)) for key in keys}

    def _flush(self) -> None:
        self._flushed_at = time.monotonic()
        if not self._pending:
            return
        self._sequence += 1
        name = f"{BATCHES}/{batch_name(self.control.fence, self._sequence)}"
        pending = {number: self._written[number] for number in self._pending}
        self.control.put_new(name, parquet_bytes(receipt_table(pending, self.control.fence)))
        self._pending = []


@contextlib.contextmanager
def ingesting(
    dst_url: str,
    decisive: Mapping[str, Any],
    *,
    overwrite: bool,
    sources: Sequence[tuple[str, str]] = (),
    on_wait: Callable[[str], None] = lambda holder: None,
) -> Iterator[Ingestion]:
    """The right to write a survey, with what an earlier run of the same `decisive` left.

    Args:
        dst_url: Where it goes.
        decisive: Sources with their versions, options, and the version of the code that decides bytes; JSON.
        overwrite: Replace another survey that is complete.
        sources: URL and version of each file that is read, as `versions_of` tells it; compared again at the end.
        on_wait: Told who writes the survey, when another process does.

    Raises:
        UsageError: another survey is there, or something that no ingest wrote.
        LeaseError: another process writes it and does not end.
    """
    _refuse_other(dst_url, decisive, overwrite)
    with leased(dst_url, on_wait=on_wait) as control:
        # Whoever held the lease until now may have finished it.
        done = _refuse_other(dst_url, decisive, overwrite)
        begun = control.get_json(DECISIVE)
        same = begun is not None and begun == _canonical(decisive)
        if done is not None and same:
            # A run that was killed after its last write left what it worked with.
            tidy(control)
            yield Ingestion(control, done, True, sources)
            return
        if not same:
            if begun is not None or control.storage.exists("zarr.json"):
                _remove(control)
            control.put_json(DECISIVE, _canonical(decisive))
        yield Ingestion(control, None, same, sources)


def versions_of(urls: Sequence[str]) -> list[str]:
    """The version of every file, asked for several at a time."""

    def version(url: str) -> str:
        root, name = split_url(url)
        return open_storage(root).version(name)

    with ThreadPoolExecutor(LOOKERS) as lookers:
        return list(lookers.map(version, urls))


def store_shard(url: str, spec: ArraySpec, index: Index, data: npt.NDArray[Any]) -> Stored:
    """Store one shard of the survey at `url`, and what proves it."""
    encoded = encode_shard(spec, np.ascontiguousarray(data))
    key = shard_key(spec, index)
    open_storage(url).put(key, encoded)
    return Stored.of(key, encoded)


def _remember(
    url: str,
    folder: str,
    stored: set[str],
    function: Callable[[Any], Any],
    dump: Callable[[Any], bytes],
    load: Callable[[bytes], Any],
    numbered: tuple[int, Any],
) -> Any:
    number, item = numbered
    key, storage = f"{folder}/{number:08d}", open_storage(url)
    if key in stored:
        return load(storage.get(key))
    result = function(item)
    storage.put(key, dump(result))
    return result


def _refuse_other(url: str, decisive: Mapping[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """The description of the complete survey that is there already, None when none is or a part of it is to be redone.

    Only a complete group opens, so only that is worth protecting; what was left unfinished is written again.
    """
    storage = open_storage(url)
    if not storage.exists("zarr.json"):
        return None
    try:
        info = json.loads(storage.get("zarr.json")).get("attributes", {}).get("geobatch", {})
    except ValueError:
        info = {}
    control = Control(url)
    if control.get_json(DECISIVE) == _canonical(decisive):
        return dict(info) if info and storage.exists(MANIFEST_SUM) else None
    if not overwrite:
        raise UsageError(
            "a survey is there already", where=url, remedy="Give another output, or --overwrite to replace it."
        )
    if info.get("kind") in (None, "scored"):
        raise UsageError("what is there is no ingested survey, and is not overwritten", where=url)
    return None


def _require_unchanged(sources: Sequence[tuple[str, str]]) -> None:
    """Refuse sources of which one has another version now: its parts were read at different times."""
    for (url, expected), found in zip(sources, versions_of([url for url, _ in sources]), strict=True):
        if found != expected:
            raise DataError(
                "file changed while it was being read",
                where=url,
                measured=f"version {found}",
                limit=f"version {expected}",
                remedy="Run it again when nothing writes the file.",
            )


def _remove(control: Control) -> None:
    """Remove a survey's group first, so that it no longer opens, then its arrays and its control state.

    What says that something was begun stays until it is replaced: a removal that was cut short is taken up again.
    """
    control.delete("zarr.json")
    keys = [key for key, _ in control.storage.list()]
    arrays = {key.removesuffix("zarr.json") for key in keys if key.count("/") == 1 and key.endswith("/zarr.json")}
    for key in keys:
        ours = key.startswith("_geobatch/") and key not in (LEASE, DECISIVE)
        if ours or key[: key.find("/") + 1] in arrays:
            control.delete(key)


def _canonical(decisive: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(decisive, sort_keys=True))


def _counts(faults: Sequence[Fault]) -> dict[str, int]:
    """How often each kind of thing was treated in each way."""
    counts: dict[str, int] = {}
    for fault in faults:
        name = f"{fault.what}s {fault.action}"
        counts[name] = counts.get(name, 0) + 1
    return counts
