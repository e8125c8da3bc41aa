"""Ingest that ends anywhere and goes on: receipts, resume, verification, what is kept and what is replaced."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ingest_sources import SMALL, SOURCES
from segy_files import write_segy

from geobatch.cli import main
from geobatch.errors import DataError, IntegrityError, NotFoundError, TransientError
from geobatch.fanout import open_fanout
from geobatch.formats import ingest_job, segy_columns, segy_ingest
from geobatch.formats.ingestion import (
    Fault,
    Written,
    ingesting,
    is_ingested,
    read_quality,
    repair_ingested,
    store_shard,
    verify_ingested,
)
from geobatch.formats.manifest import MANIFEST, MANIFEST_SUM
from geobatch.formats.segy_ingest import ingest
from geobatch.formats.spec import IngestJob
from geobatch.formats.versions import versions_of
from geobatch.lease import LEASE, Control
from geobatch.shards import ArraySpec
from geobatch.storage import open_storage, patience
from geobatch.survey import open_survey

GRID: Any = {"chunk": (4, 4, 16), "shard": (4, 4, 16)}
COLUMNS = 15


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever cluster other tests have started, this one's pieces are written here."""
    monkeypatch.setattr("ray.is_initialized", lambda: False)


def survey_file(folder: Path, name: str = "a.sgy", seed: int = 0) -> str:
    values = np.random.default_rng(seed).normal(size=(9, 17, 37)).astype(np.float32)
    return str(write_segy(folder / name, values))


def shard_bytes(url: str) -> dict[str, bytes]:
    storage = open_storage(url)
    return {key: storage.get(key) for key, _ in storage.list() if "/c/" in key and not key.startswith("_geobatch")}


def count_columns(monkeypatch: pytest.MonkeyPatch, fail_at: int = 0) -> list[tuple[int, int]]:
    """The columns that are read from now on; the one with that number fails."""
    seen: list[tuple[int, int]] = []
    own = segy_columns.read_columns

    def read(columns: Any, file: Any) -> Any:
        seen.extend(column.index for column in columns)
        if len(seen) == fail_at:
            raise TransientError("storage went away")
        return own(columns, file)

    monkeypatch.setattr(segy_columns, "read_columns", read)
    return seen


def test_failed_ingest_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = survey_file(tmp_path), str(tmp_path / "survey")
    whole = ingest(source, str(tmp_path / "whole"), **GRID)
    with monkeypatch.context() as patch:
        seen = count_columns(patch, fail_at=7)
        with pytest.raises(TransientError):
            ingest(source, target, **GRID)
    assert not open_storage(target).exists("zarr.json")
    with monkeypatch.context() as patch:
        again = count_columns(patch)
        patch.setattr(segy_ingest, "scan_slab", lambda *slab, **options: pytest.fail("scanned again"))
        summary = ingest(source, target, **GRID)
    assert len(seen) == 7 and len(again) == COLUMNS - 6
    assert not set(seen[:6]) & set(again)
    assert summary["identity"] == whole["identity"]
    assert shard_bytes(target) == shard_bytes(str(tmp_path / "whole"))
    assert not list(open_storage(target).list("_geobatch/receipts"))
    assert not list(open_storage(target).list("_geobatch/scan"))


def test_finished_ingest_is_told_and_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = survey_file(tmp_path), str(tmp_path / "survey")
    first = ingest(source, target, **GRID)
    seen = count_columns(monkeypatch)
    again = ingest(source, target, **GRID)
    assert not seen and again["identity"] == first["identity"]


def test_what_was_begun_from_another_file_is_begun_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, other, target = survey_file(tmp_path), survey_file(tmp_path, "b.sgy", 1), str(tmp_path / "survey")
    with monkeypatch.context() as patch, pytest.raises(TransientError):
        count_columns(patch, fail_at=7)
        ingest(source, target, **GRID)
    ingest(other, target, **GRID)
    ingest(other, str(tmp_path / "whole"), **GRID)
    assert shard_bytes(target) == shard_bytes(str(tmp_path / "whole"))


def test_files_of_others_in_the_folder_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = survey_file(tmp_path), tmp_path / "survey"
    (target / "notes").mkdir(parents=True)
    (target / "notes/mine.txt").write_text("mine")
    with monkeypatch.context() as patch, pytest.raises(TransientError):
        count_columns(patch, fail_at=7)
        ingest(source, str(target), **GRID)
    ingest(survey_file(tmp_path, "b.sgy", 1), str(target), **GRID)
    ingest(source, str(target), **GRID, overwrite=True)
    assert (target / "notes/mine.txt").read_text() == "mine"


def test_lost_and_cut_shards_are_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = survey_file(tmp_path), str(tmp_path / "survey")
    ingest(source, target, **GRID)
    before, storage = shard_bytes(target), open_storage(target)
    storage.delete("zarr.json")
    storage.delete("amplitude/c/0/1/0")
    storage.put("trace_header/c/2/2/0", b"")
    seen = count_columns(monkeypatch)
    ingest(source, target, **GRID)
    assert sorted(seen) == [(0, 1), (2, 2)]
    assert shard_bytes(target) == before


def test_verify_finds_every_damaged_shard(tmp_path: Path) -> None:
    source, target = survey_file(tmp_path), str(tmp_path / "survey")
    with pytest.raises(NotFoundError, match="no finished ingest"):
        verify_ingested(target)
    ingest(source, target, **GRID)
    assert is_ingested(target)
    result = verify_ingested(target)
    # All but the lease, and the manifest with its checksum.
    assert (result.shards, result.findings) == (len(objects(target)) - 2, ())
    storage = open_storage(target)
    flip(target, "amplitude/c/1/1/1", 10)
    storage.delete("amplitude/c/0/0/2")
    found = {(finding.key, finding.what) for finding in verify_ingested(target).findings}
    assert found == {("amplitude/c/1/1/1", "damaged"), ("amplitude/c/0/0/2", "missing")}


def objects(url: str) -> dict[str, bytes]:
    """Every object under the survey, but for the lease."""
    storage = open_storage(url)
    return {key: storage.get(key) for key, _ in storage.list() if key != LEASE}


def flip(url: str, key: str, byte: int) -> None:
    storage = open_storage(url)
    body = bytearray(storage.get(key))
    body[byte] ^= 1 << byte % 8
    storage.put(key, bytes(body))


def finding_keys(url: str) -> set[str]:
    return {finding.key for finding in verify_ingested(url).findings}


@pytest.fixture
def finished(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[IngestJob, str]:
    """A finished survey of the kind that the test names, and its job."""
    for name, value in SMALL.items():
        monkeypatch.setattr(name, value)
    job = SOURCES[request.param](tmp_path).job(str(tmp_path / "survey"))
    ingest_job(job)
    return job, job.output


@pytest.mark.parametrize("finished", SOURCES, indirect=True)
def test_flipped_byte_in_any_object_is_found(finished: tuple[IngestJob, str]) -> None:
    _, url = finished
    chance, storage = random.Random(0), open_storage(url)
    assert verify_ingested(url).findings == ()
    for key, body in objects(url).items():
        for byte in {0, len(body) - 1, *(chance.randrange(len(body)) for _ in range(2))}:
            flip(url, key, byte)
            found = finding_keys(url)
            # Two that contradict each other do not tell which is right.
            assert found == {key} or (key in (MANIFEST, MANIFEST_SUM) and found), (key, byte)
            storage.put(key, body)
    assert verify_ingested(url).findings == ()


@pytest.mark.parametrize("finished", SOURCES, indirect=True)
def test_repair_and_the_same_ingest_mend_any_object(finished: tuple[IngestJob, str]) -> None:
    job, url = finished
    before, storage = objects(url), open_storage(url)
    control = [key for key in before if key.startswith("_geobatch/") or key == "zarr.json"]
    others = [key for key in before if key not in control]
    for number, key in enumerate([*control, *random.Random(0).sample(others, 3)]):
        if number % 2:
            flip(url, key, len(before[key]) // 2)
        else:
            storage.delete(key)
        told = repair_ingested(url)
        assert key in {finding["key"] for finding in told["findings"]}
        ingest_job(job)
        assert objects(url) == before, key
    assert verify_ingested(url).findings == ()


def test_repair_drops_pieces_with_findings_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = survey_file(tmp_path), str(tmp_path / "survey")
    ingest(source, target, **GRID)
    before = objects(target)
    assert repair_ingested(target)["next"] == "nothing" and objects(target) == before
    flip(target, "amplitude/c/1/1/1", 10)
    open_storage(target).delete("trace_header/c/2/2/0")
    open_storage(target).put("live_mask/c/7/7", b"of nobody")
    assert repair_ingested(target)["pieces"] == 2
    assert repair_ingested(target)["pieces"] == 0, "repaired twice, nothing more is dropped"
    monkeypatch.setattr(patience, "FIRST_WAIT_S", 0.001)
    assert open_survey(target)["amplitude"].shape == (9, 17, 37), "what holds stays open"
    with pytest.raises(IntegrityError, match="damaged"):
        open_survey(target)["amplitude"].values[4, 4, 16]
    seen = count_columns(monkeypatch)
    ingest(source, target, **GRID)
    assert sorted(seen) == [(1, 1), (2, 2)] and objects(target) == before


def test_command_line_finds_drops_and_mends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = survey_file(tmp_path), str(tmp_path / "survey")
    monkeypatch.setattr("geobatch.cli.WATCHED", ())
    monkeypatch.setattr("geobatch.cluster.disconnect", lambda: None)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["geobatch", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, " ".join(captured.err.split())

    assert run("verify", target)[0] == 2
    assert run("ingest", source, target)[0] == 0
    before = objects(target)
    assert run("verify", target)[0] == 0
    flip(target, "crossline/c/0", 3)
    code, _, message = run("verify", target)
    assert code == 3 and "crossline/c/0 damaged" in message and "geobatch repair drops what is bad" in message
    code, out, _ = run("repair", target, "--json")
    assert code == 0 and "Run the command that wrote the survey again" in json.loads(out)["next"]
    code, _, message = run("verify", target)
    assert code == 3 and "manifest.sha256 missing" in message
    assert run("ingest", source, target)[0] == 0 and objects(target) == before
    assert run("verify", target)[0] == 0


def test_metadata_that_contradict_and_objects_of_nobody_are_found(tmp_path: Path) -> None:
    spec, url = ArraySpec("values", ("x",), (2,), "float32", (2,), (2,)), str(tmp_path / "survey")
    with ingesting(url, {"format": "test"}, overwrite=False) as work:
        work.create([spec], {"values": np.ones(2, np.float32)})
        other = dataclasses.replace(spec, attributes={"units": "m"})
        work.finish([other], {"schema": 1, "kind": "test", "state": "complete"})
    open_storage(url).put("values/c/5", b"of nobody")
    open_storage(url).put("notes/mine.txt", b"not ours")
    found = {(finding.key, finding.what) for finding in verify_ingested(url).findings}
    assert found == {("values/zarr.json", "contradictory"), ("values/c/5", "unexpected")}


@pytest.mark.parametrize("stage", ["zarr.json", "delete"])
def test_ingest_killed_after_its_last_write_is_tidied_by_the_next(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = survey_file(tmp_path), str(tmp_path / "survey")
    own = Control.delete

    def delete(self: Control, key: str) -> None:
        if stage == "delete" and key.startswith("_geobatch/receipts"):
            own(self, key)
        raise TransientError("storage went away")

    with monkeypatch.context() as patch, pytest.raises(TransientError):
        patch.setattr(Control, "delete", delete)
        ingest(source, target, **GRID)
    assert verify_ingested(target).findings == () and list(open_storage(target).list("_geobatch/scan"))
    seen = count_columns(monkeypatch)
    ingest(source, target, **GRID)
    assert not seen
    assert not [key for key, _ in open_storage(target).list("_geobatch/") if key.count("/") > 1]


def test_quality_table_holds_faults_of_pieces_and_of_the_whole(tmp_path: Path) -> None:
    spec = ArraySpec("values", ("x",), (4,), "float32", (2,), (2,))
    url = str(tmp_path / "survey")

    def write(index: int) -> Written:
        stored = store_shard(url, spec, (index,), np.full(2, index, np.float32))
        return Written((stored,), (Fault("tile", f"tile {index}", "torn", "left out"),), {"sum": 2.0 * index})

    with ingesting(url, {"format": "test"}, overwrite=False) as work, open_fanout(small=True) as fanout:
        work.report([Fault("row", "row 7", "no number", "masked")])
        work.create([spec], {})
        written = work.write(write, [0, 1], fanout=fanout, task_bytes=2**20)
        info = work.finish([spec], {"schema": 1, "kind": "test", "state": "complete"})
    assert [part.figures["sum"] for part in written] == [0.0, 2.0]
    assert info["faults"] == {"rows masked": 1, "tiles left out": 2}
    assert [fault.where for fault in read_quality(url)] == ["row 7", "tile 0", "tile 1"]
    assert open_survey(url)["values"].values.tolist() == [0, 0, 1, 1]


def test_pieces_may_be_grouped_otherwise_when_a_run_goes_on(tmp_path: Path) -> None:
    spec = ArraySpec("values", ("x",), (12,), "float32", (1,), (1,))
    url, tasks = str(tmp_path / "survey"), []

    def write(pieces: Sequence[int]) -> list[Written]:
        tasks.append(list(pieces))
        if 7 in pieces and len(tasks) < 4:
            raise TransientError("storage went away")
        return [Written((store_shard(url, spec, (n,), np.full(1, n, np.float32)),)) for n in pieces]

    for width in (4, 3):
        with contextlib.suppress(TransientError), ingesting(url, {"a": 1}, overwrite=False) as work:
            with open_fanout(small=True) as fanout:
                work.create([spec], {})
                written = work.write_together(
                    write, range(12), [n // width for n in range(12)], fanout=fanout, task_bytes=2**20
                )
            work.finish([spec], {"schema": 1, "kind": "test", "state": "complete"})
    assert tasks == [[0, 1, 2, 3], [4, 5, 6, 7], [4, 5], [6, 7, 8], [9, 10, 11]]
    assert [part.objects[0].key for part in written] == [f"values/c/{n}" for n in range(12)]
    assert open_survey(url)["values"].values.tolist() == list(range(12))


def test_killed_ingest_goes_on(tmp_path: Path) -> None:
    source, target = survey_file(tmp_path), tmp_path / "survey"
    whole = str(tmp_path / "whole")
    ingest(source, whole, **GRID)
    script = (
        "import sys, time; from geobatch.formats import segy_columns, segy_ingest, ingestion\n"
        "ingestion.FLUSH_INTERVAL_S = 0.0\n"
        "own = segy_columns.read_columns\n"
        "def slow(columns, file): time.sleep(0.1); return own(columns, file)\n"
        "segy_columns.read_columns = slow\n"
        "segy_ingest.ingest(sys.argv[1], sys.argv[2], chunk=(4, 4, 16), shard=(4, 4, 16))"
    )
    for stored in (3, 9):
        process = subprocess.Popen([sys.executable, "-c", script, source, str(target)])
        deadline = time.monotonic() + 60
        while len(list((target / "amplitude/c").rglob("*/0"))) < stored and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    receipts = list((target / "_geobatch/receipts").iterdir())
    assert len(receipts) >= 2
    ingest(source, str(target), **GRID)
    assert shard_bytes(str(target)) == shard_bytes(whole)
    assert verify_ingested(str(target)).findings == ()


def test_source_that_changes_while_it_is_read_is_refused_by_every_format(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a")
    spec, url = ArraySpec("values", ("x",), (2,), "float32", (2,), (2,)), str(tmp_path / "survey")
    sources = list(zip([str(tmp_path / "a.csv")], versions_of([str(tmp_path / "a.csv")]), strict=True))
    with ingesting(url, {"format": "test"}, overwrite=False, sources=sources) as work:
        work.create([spec], {})
        (tmp_path / "a.csv").write_text("another")
        with pytest.raises(DataError, match=r"a\.csv: file changed while it was being read"):
            work.finish([spec], {"schema": 1, "kind": "test", "state": "complete"})
    assert not open_storage(url).exists("zarr.json")


def test_removal_that_was_cut_short_is_taken_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, other, target = survey_file(tmp_path), survey_file(tmp_path, "b.sgy", 1), str(tmp_path / "survey")
    ingest(source, target, **GRID)
    storage = open_storage(target)
    storage.put("old/zarr.json", b"{}")
    storage.put("old/c/0", b"shard of an array that the new survey lacks")
    deleted = []

    def delete(self: Control, key: str) -> None:
        deleted.append(key)
        if len(deleted) == 5:
            raise TransientError("storage went away")
        self.storage.delete(key)

    with monkeypatch.context() as patch, pytest.raises(TransientError):
        patch.setattr(Control, "delete", delete)
        ingest(other, target, **GRID, overwrite=True)
    assert not storage.exists("zarr.json") and storage.exists("old/c/0")
    ingest(other, target, **GRID)
    assert not storage.exists("old/c/0") and verify_ingested(target).findings == ()
