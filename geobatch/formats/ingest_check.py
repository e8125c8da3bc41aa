"""Ingested surveys read again: `verify` finds what is not as it was written, `repair` has it written again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from geobatch.errors import IntegrityError, NotFoundError
from geobatch.formats.manifest import (
    DECISIVE,
    MANIFEST,
    MANIFEST_SUM,
    WHOLE,
    Written,
    manifest_sum,
    parse_table,
    receipt_table,
    tidy,
    written_by_piece,
)
from geobatch.lease import Control, leased
from geobatch.proof import Entry, Finding, Verification, check_objects, parquet_bytes
from geobatch.storage import Storage, absolute_url

REMEDY = "geobatch repair drops what is bad; the command that wrote the survey, run again, then writes that anew."
Progress = Callable[[int, int], None]


def verify_ingested(url: str, *, on_progress: Progress = lambda done, total: None) -> Verification:
    """Read every object of an ingested survey and compare size and SHA-256 with its manifest.

    Besides, the group must say of each array what the array says itself, and no array may hold an object that no
    receipt names. Only the lease is not looked at.

    Raises:
        NotFoundError: no ingest finished there.
    """
    return _verify(Control(absolute_url(url)), on_progress)[0]


def repair_ingested(url: str, *, on_progress: Progress = lambda done, total: None) -> dict[str, Any]:
    """What was dropped, so that the command that wrote the survey writes it again and keeps whatever holds.

    Pieces of which an object is missing or damaged lose their receipt. Without findings nothing is changed.

    Returns:
        `url`, `objects` that were read, `findings`, `pieces` dropped (`all` when the manifest itself is damaged), and
        `next`, what is to be done.

    Raises:
        NotFoundError: no ingest finished there.
        LeaseError: another process writes it.
    """
    with leased(absolute_url(url)) as control:
        result, receipts = _verify(control, on_progress)
        dropped = {finding.block for finding in result.findings} - {WHOLE}
        told = {"url": control.url, "objects": result.shards, "findings": [asdict(found) for found in result.findings]}
        if not result.findings:
            tidy(control)
            return {**told, "pieces": 0, "next": "nothing"}
        tidy(control)
        # From here on the survey is not finished: the next ingest goes on, and adopts what still has a receipt.
        control.delete(MANIFEST_SUM)
        kept = {number: written for number, written in receipts.items() if number not in dropped}
        if receipts:
            control.put(MANIFEST, parquet_bytes(receipt_table(kept)))
        else:
            control.delete(MANIFEST)
        for finding in result.findings:
            if finding.key in (MANIFEST, MANIFEST_SUM):
                continue
            if finding.key == DECISIVE:
                # Nothing tells what the rest was made from: the next ingest removes it.
                control.put_json(DECISIVE, {})
                control.delete("zarr.json")
            elif finding.what == "unexpected" or finding.key == "zarr.json" or finding.key.startswith("_geobatch/"):
                control.delete(finding.key)
            # Others are replaced where they are: what is missing from an array reads as fill.
    return {
        **told,
        "pieces": len(dropped) if receipts else "all",
        "next": "Run the command that wrote the survey again: it writes what was dropped, and nothing else.",
    }


def _verify(control: Control, on_progress: Progress) -> tuple[Verification, dict[int, Written]]:
    """What is found, and the receipts; those are empty when the manifest does not hold."""
    manifest, told = _body(control.storage, MANIFEST), _body(control.storage, MANIFEST_SUM)
    if told is None and not control.storage.exists("zarr.json"):
        raise NotFoundError(
            "no finished ingest there", where=control.url, remedy="Run the command that wrote it again: it goes on."
        )
    begun = list(_of_manifest(manifest, told))
    if manifest is None or (begun and told is not None):
        return Verification(1, len(manifest or b""), tuple(begun)), {}
    try:
        receipts = written_by_piece(parse_table(manifest, f"{control.url}/{MANIFEST}"))
    except IntegrityError as error:
        return Verification(1, len(manifest), (_control_finding(MANIFEST, "damaged", error.measured),)), {}
    entries: list[Entry] = [
        (number, stored.key, stored.size, stored.sha256)
        for number, written in receipts.items()
        for stored in written.objects
    ]
    checked = check_objects(control.url, entries, on_progress)
    found = {finding.key for finding in checked.findings}
    whole = receipts.get(WHOLE, Written(()))
    arrays = {stored.key.partition("/")[0] for stored in whole.objects if stored.key.endswith("/zarr.json")}
    # A damaged group contradicts everything.
    contradictions = () if "zarr.json" in found else _of_metadata(control.storage, arrays)
    # Pieces that repair dropped have no receipt until they are written again.
    unexpected = () if told is None else _unexpected(control.storage, arrays, {key for _, key, _, _ in entries})
    findings = [
        *begun,
        *checked.findings,
        *(finding for finding in contradictions if finding.key not in found),
        *unexpected,
    ]
    return Verification(checked.shards, checked.bytes, tuple(findings)), receipts


def _of_manifest(manifest: bytes | None, told: bytes | None) -> Iterator[Finding]:
    for key, body in ((MANIFEST, manifest), (MANIFEST_SUM, told)):
        if body is None:
            yield _control_finding(key, "missing", "no object that reads")
    if manifest is not None and told is not None and manifest_sum(manifest) != told:
        name = MANIFEST.rpartition("/")[2].encode()
        whole = len(told) == len(manifest_sum(b"")) and told.endswith(b"  " + name + b"\n")
        yield _control_finding(MANIFEST if whole else MANIFEST_SUM, "damaged", "manifest and its SHA-256 contradict")


def _of_metadata(storage: Storage, arrays: set[str]) -> Iterator[Finding]:
    """Arrays of which the group says something else than they do themselves."""
    try:
        group: Mapping[str, Any] = json.loads(storage.get("zarr.json"))["consolidated_metadata"]["metadata"]
    except (NotFoundError, IntegrityError, ValueError, KeyError, TypeError):
        yield Finding(WHOLE, "", "zarr.json", "damaged", "group without consolidated metadata")
        return
    for name in sorted(arrays | {*group}):
        key = f"{name}/zarr.json"
        try:
            own = json.loads(storage.get(key))
        except (NotFoundError, IntegrityError, ValueError):
            own = None
        if own is None or own != group.get(name):
            yield Finding(WHOLE, name, key, "contradictory", "not what the group's consolidated metadata say")


def _unexpected(storage: Storage, arrays: set[str], known: set[str]) -> Iterator[Finding]:
    """Objects inside the arrays that no receipt names, and that a reader would take for data."""
    for array in sorted(arrays):
        for key, _ in storage.list(f"{array}/"):
            if key not in known:
                yield Finding(WHOLE, array, key, "unexpected", "no receipt names it")


def _control_finding(key: str, what: str, measured: Any) -> Finding:
    return Finding(WHOLE, "", key, what, str(measured))


def _body(storage: Storage, key: str) -> bytes | None:
    try:
        return storage.get(key)
    except (NotFoundError, IntegrityError):
        return None
