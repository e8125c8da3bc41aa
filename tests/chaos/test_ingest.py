"""Ingest killed at every stage, on disk and from and to a failing S3: the survey has the bits of one never killed."""

from __future__ import annotations

import dataclasses
import random
import signal
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from ingest_line import IngestLine
from ingest_sources import SMALL, SOURCES, Source
from proxy import chaos_proxy
from struck import Fault, Passed, Run
from surveys import BUCKET

from geobatch.formats.ingestion import verify_ingested
from geobatch.formats.manifest import BATCHES, MANIFEST, WHOLE, read_table
from geobatch.lease import LEASE, Control
from geobatch.local_s3 import LocalS3
from geobatch.storage import join_url, open_storage

AT_ONCE_S = {"geobatch.formats.ingestion.FLUSH_INTERVAL_S": 0.0, "geobatch.storage.files.ABANDONED_S": 0.0}
HASTE = {"geobatch.storage.patience.READ_TIMEOUT_S": 1.0, "geobatch.storage.patience.FIRST_WAIT_S": 0.02}
SETTINGS = {**SMALL, **AT_ONCE_S}
# What a run goes through, by how its points begin; the first that fits counts.
STAGES = {
    "lease": ("lease.json",),
    "begin": ("ingest.json",),
    "scan": (" scan ", "_geobatch/scan/", "_geobatch/parsed/"),
    "receipts": ("_geobatch/receipts/",),
    "quality": ("quality.parquet",),
    "manifest": ("manifest.parquet", "manifest.sha256"),
    "piece": (" piece ",),
    "shard": ("/c",),
    "create": ("/zarr.json",),
    "group": (" zarr.json",),
}


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever cluster other tests have started, surveys are verified here."""
    monkeypatch.setattr("ray.is_initialized", lambda: False)


def stage_of(passed: Passed) -> str:
    """The part of a run that a point belongs to."""
    if " delete _geobatch/" in passed.point and passed.point.count("/") > 1:
        return "clean-up"
    return next(stage for stage, marks in STAGES.items() if any(mark in passed.point for mark in marks))


@dataclass
class Theatre:
    """A source, a line, and what an ingest that nothing disturbed makes of it; `kills` are counted by stage."""

    source: Source
    line: IngestLine
    folder: str
    kills: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.output, begun_at = join_url(self.folder, "undisturbed"), time.monotonic()
        run = self.line.start(self.source.job(self.output))
        summary = run.wait().summary
        assert summary and summary["faults"], "each source has something bad in it"
        self.seconds = time.monotonic() - begun_at
        self.points = run.passed()
        assert len(begun(run, "piece")) == self.source.pieces
        self.objects, self.names = objects(self.output), names(self.output)

    def kill(self, *faults: Fault) -> None:
        """Kill an ingest at each of these in turn, and run it until it is finished."""
        output = join_url(self.folder, uuid.uuid4().hex)
        runs = [self.run(output, fault) for fault in faults]
        runs.append(self.run(output, None))
        self.require_finished(output, runs)

    def kill_by_clock(self, chance: random.Random, kills: int) -> None:
        """Kill an ingest after random times, and run it until it is finished."""
        output = join_url(self.folder, uuid.uuid4().hex)
        runs = []
        for _ in range(kills):
            runs.append(self.line.start(self.source.job(output)))
            time.sleep(chance.uniform(0, 0.8 * self.seconds))
            runs[-1].driver.kill()
            if runs[-1].wait().signal == signal.SIGKILL:
                self.kills[stage_of(last) if (last := next(reversed(runs[-1].passed()), None)) else "lease"] += 1
        runs.append(self.run(output, None))
        self.require_finished(output, runs)

    def run(self, output: str, fault: Fault | None) -> Run:
        """One run; what receipts and stored scans prove before it is not done again in it."""
        held, scanned = receipted(output), stored_scans(output)
        run = self.line.start(self.source.job(output), fault)
        outcome = run.wait()
        assert not begun(run, "piece") & held, "a piece with a receipt is not written again"
        assert not begun(run, "scan") & scanned, "a part whose scan is stored is not read again"
        if fault is None:
            assert outcome.summary, outcome
        elif outcome.signal:
            assert outcome.signal == signal.SIGKILL
            self.kills[stage_of(run.passed()[-1])] += 1
        return run

    def require_finished(self, output: str, runs: list[Run]) -> None:
        """The survey has the bits of the undisturbed one, and no more work was done than kills may cost."""
        found = objects(output)
        assert found.keys() == self.objects.keys()
        assert [key for key in found if found[key] != self.objects[key]] == []
        assert names(output) == self.names, "no half-written file is left"
        assert verify_ingested(output).findings == ()
        work = sum(len(run.passed(begins="before piece ")) for run in runs)
        assert work <= self.source.pieces + (len(runs) - 1) * self.line.at_once * self.source.together


def begun(run: Run, point: str) -> set[int]:
    """The numbers of pieces, or of parts of the source, that a run began; none of them twice."""
    numbers = [int(passed.point.split()[-1]) for passed in run.passed(begins=f"before {point} ")]
    assert len(numbers) == len(set(numbers))
    return set(numbers)


def objects(output: str) -> dict[str, bytes]:
    """Every object under the survey, but for the lease."""
    storage = open_storage(output)
    return {key: storage.get(key) for key, _ in storage.list() if key != LEASE}


def names(output: str) -> list[str]:
    """Every file in a survey's folder, temporary ones and locks included."""
    if output.startswith("s3://"):
        return []
    return sorted(path.relative_to(output).as_posix() for path in Path(output).rglob("*") if path.is_file())


def receipted(output: str) -> set[int]:
    """Pieces that receipts prove."""
    control = Control(output)
    keys = [MANIFEST, *(key for key, _ in control.storage.list(BATCHES))]
    return {number for key in keys for number in read_table(control, key)["piece"].to_pylist()} - {WHOLE}


def stored_scans(output: str) -> set[int]:
    """Parts of the source whose scan is stored."""
    return {int(key.rpartition("/")[2]) for key, _ in open_storage(output).list("_geobatch/scan")}


def on_disk(make: Callable[[Path], Source], folder: Path, at_once: int = 1) -> Theatre:
    (folder / "traces").mkdir()
    line = IngestLine(folder / "traces", settings=SETTINGS, at_once=at_once)
    return Theatre(make(folder), line, str(folder / "surveys"))


@pytest.fixture
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Theatre]:
    """A theatre for the source that the test names, on the local disk."""
    theatre = on_disk(SOURCES[request.param], tmp_path)
    yield theatre
    theatre.line.close()


@pytest.mark.parametrize("disk", SOURCES, indirect=True)
def test_killed_ingests_go_on(disk: Theatre) -> None:
    middle = [passed.number for passed in disk.points if stage_of(passed) == "shard"]
    group = next(passed.number for passed in disk.points if passed.point == "after put zarr.json")
    disk.kill(Fault(middle[len(middle) // 2]), Fault(point="before put _geobatch/receipts"))
    disk.kill(Fault(group))


@pytest.mark.chaos
@pytest.mark.timeout(600)
@pytest.mark.parametrize("disk", SOURCES, indirect=True)
def test_kills_at_every_stage_change_no_bit(disk: Theatre) -> None:
    chance = random.Random(0)
    chosen = {stage_of(passed): passed.number for passed in disk.points}
    numbers = {*chosen.values(), *(passed.number for passed in disk.points[:: max(1, len(disk.points) // 20)])}
    for number in sorted(numbers):
        disk.kill(Fault(number))
    for _ in range(4):
        disk.kill(*(Fault(chance.randint(1, len(disk.points))) for _ in range(3)))
    print(f"\n{disk.source.format}: {disk.kills.total()} kills, {dict(disk.kills)}")
    assert disk.kills.total() >= 30 and {*STAGES, "clean-up"} <= {*disk.kills}


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_kills_with_pieces_side_by_side_change_no_bit(tmp_path: Path) -> None:
    theatre = on_disk(SOURCES["volume"], tmp_path, at_once=2)
    pieces = [passed.number for passed in theatre.points if stage_of(passed) in ("piece", "shard", "receipts")]
    chance = random.Random(1)
    for _ in range(8):
        theatre.kill(*(Fault(chance.choice(pieces)) for _ in range(2)))
    theatre.line.close()
    assert theatre.kills.total() >= 8


@pytest.mark.chaos
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["volume", "archive"])
def test_kills_from_and_to_a_failing_s3_change_no_bit(name: str, s3: str, s3_server: LocalS3, tmp_path: Path) -> None:
    (tmp_path / "traces").mkdir()
    source = to_s3(SOURCES[name](tmp_path), f"s3://{BUCKET}/raw/{uuid.uuid4().hex}")
    with chaos_proxy(s3_server.endpoint) as proxy:
        through = {**s3_server.environment, "AWS_ENDPOINT_URL": proxy.endpoint}
        theatre = Theatre(source, IngestLine(tmp_path / "traces", through, settings={**SETTINGS, **HASTE}), s3)
        # No checksum covers a part of a raw file.
        proxy.set(rate=0.05, seed=1, stall_s=3, unverifiable="/raw/")
        for passed in theatre.points[:: max(1, len(theatre.points) // 6)]:
            theatre.kill(Fault(passed.number))
        theatre.kill_by_clock(random.Random(2), kills=6)
        faults = proxy.statistics()["faults"]
    theatre.line.close()
    print(f"\n{name} on S3: {theatre.kills.total()} kills, {dict(theatre.kills)}, faults {faults}")
    assert theatre.kills.total() >= 6 and sum(faults.values()) > 20


def to_s3(source: Source, url: str) -> Source:
    """The source, copied into a bucket."""
    own = Path(source.url)
    storage, files = open_storage(url), [own] if own.is_file() else sorted(own.iterdir())
    for file in files:
        storage.put(file.name, file.read_bytes())
    where = join_url(url, own.name) if own.is_file() else url
    # From a bucket, columns of shards that share lines are read together: here three of six.
    return dataclasses.replace(source, url=where, together=3 if source.format == "segy" else 1)
