"""Bad files of waveforms, by name: each is a typed error or a documented recovery, quick and within bounded memory."""

from __future__ import annotations

import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from bounds import bounded
from miniseed_files import START, counts, records, trace

from geobatch.earthquake import open_waveforms
from geobatch.errors import DataError, FormatError, GeobatchError
from geobatch.formats import miniseed
from geobatch.formats.ingestion import read_quality
from geobatch.formats.miniseed_process import COMMAND, Decoder
from geobatch.formats.miniseed_records import read_records
from geobatch.formats.spec import IngestRun


@pytest.fixture(scope="module", autouse=True)
def libraries_are_loaded(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What the first file imports is no allocation of a bad one."""
    folder = tmp_path_factory.mktemp("first")
    folder_of(folder, {"a": whole()})
    run(folder)


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever cluster other tests have started, these files are read here, by a decoder that runs already."""
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr(miniseed, "close_decoder", lambda: None)
    whole = records(trace(counts(10)))
    miniseed.decoder().decode(whole, [1_709_251_200_000_000_000], [10], [512])


def patched(data: bytes, record: int, offset: int, new: bytes) -> bytes:
    """The file with bytes of one of its records of 512 bytes replaced."""
    at = record * 512 + offset
    return data[:at] + new + data[at + len(new) :]


def whole() -> bytes:
    return records(trace(counts(4000)))


def per_record() -> list[bytes]:
    data = whole()
    return [data[at : at + 512] for at in range(0, len(data), 512)]


def shuffled() -> dict[str, bytes]:
    parts = per_record()
    return {"a": b"".join(parts[n] for n in np.random.default_rng(0).permutation(len(parts)))}


def mixed_encodings() -> dict[str, bytes]:
    data = counts(4000)
    parts = [("STEIM2", np.int32), ("FLOAT32", np.float32), ("INT32", np.int32), ("FLOAT64", np.float64)]
    pieces = [
        records(trace(data[n * 1000 : (n + 1) * 1000].astype(dtype), n * 10.0), encoding=encoding)
        for n, (encoding, dtype) in enumerate(parts)
    ]
    return {"a": b"".join(pieces)}


# What is in the folder; how many samples of the 4,000 survive; the faults, or the error.
BAD: dict[str, tuple[Callable[[], dict[str, bytes]], Any]] = {
    "truncated inside a record": (lambda: {"a": whole()[:-200]}, ["ends inside a record of 512 bytes"]),
    "truncated inside a header": (lambda: {"a": whole() + whole()[:30]}, ["no MiniSEED record"]),
    "cut in front": (lambda: {"a": whole()[100:]}, ["no MiniSEED record"]),
    "zero bytes": (lambda: {"a": b""}, FormatError),
    "zero bytes beside a good file": (lambda: {"a": b"", "b": whole()}, ["zero bytes"]),
    "text": (lambda: {"a": b"station,phase,time\n" * 100}, FormatError),
    "all zero": (lambda: {"a": bytes(8192)}, FormatError),
    "random bytes": (lambda: {"a": np.random.default_rng(0).bytes(20_000)}, FormatError),
    "blank record in the middle": (lambda: {"a": whole()[:1024] + b" " * 512 + whole()[1024:]}, ["blank"]),
    "zero record in the middle": (lambda: {"a": whole()[:1024] + bytes(512) + whole()[1024:]}, ["blank"]),
    "noise of an odd length in the middle": (
        lambda: {"a": whole()[:1024] + b"\x7f" * 333 + whole()[1024:]},
        ["no MiniSEED record"],
    ),
    "one-sample overlap": (
        lambda: {"a": records(trace(counts(4000)[:2000])) + records(trace(counts(4000)[1999:], 19.99))},
        [],
    ),
    "one-sample overlap that conflicts": (
        lambda: {"a": records(trace(counts(4000)[:2001])) + records(trace(counts(4000)[2000:] + 1, 20.0))},
        [],
    ),
    "conflicting overlap": (
        lambda: {"a": records(trace(counts(4000)[:2100])) + records(trace(counts(4000)[2000:] + 1, 20.0))},
        ["100 of 100 samples differ from those already there for the same time"],
    ),
    "duplicate file": (lambda: {"a": whole(), "b": whole()}, []),
    "unsorted records": (shuffled, []),
    "header claims 65,535 samples": (
        lambda: {"a": patched(whole(), 2, 30, struct.pack(">H", 65535))},
        ["claims 65535 samples, more than fit its 512 bytes"],
    ),
    "header claims more samples than the data hold": (
        lambda: {"a": patched(whole(), 2, 30, struct.pack(">H", 700))},
        ["*"],
    ),
    "samples begin outside the record": (
        lambda: {"a": patched(whole(), 2, 44, struct.pack(">H", 9000))},
        ["has its samples at byte 9000"],
    ),
    "chain of blockettes that goes in a circle": (
        lambda: {"a": patched(whole(), 2, 50, struct.pack(">H", 48))},
        ["*"],
    ),
    "record length of a gigabyte": (
        lambda: {"a": patched(whole(), 0, 54, b"\x1e")},
        ["a header without blockette 1000, which tells the length of the record"],
    ),
    "record length of a megabyte": (lambda: {"a": patched(whole(), 0, 54, b"\x14")}, ["ends inside a record"]),
    "no blockette at all": (
        lambda: {"a": patched(whole(), 1, 46, b"\0\0")},
        ["a header without blockette 1000, which tells the length of the record"],
    ),
    "little endian header on big endian samples": (
        lambda: {"a": patched(whole(), 0, 20, struct.pack("<HH", 2024, 61))},
        ["a header without blockette 1000"],
    ),
    "unknown encoding": (lambda: {"a": patched(whole(), 1, 52, b"\x63")}, ["has the unknown encoding 99"]),
    "wrong encoding": (lambda: {"a": patched(whole(), 1, 52, b"\x05")}, ["claims"]),
    "text record": (lambda: {"a": patched(whole(), 1, 52, b"\0")}, ["holds text, no samples"]),
    "mixed encodings": (mixed_encodings, []),
    "zero rate": (lambda: {"a": patched(whole(), 1, 32, b"\0\0\0\0")}, ["has a sampling rate of 0 Hz"]),
    "zero rate everywhere": (
        lambda: {"a": b"".join(record[:32] + bytes(4) + record[36:] for record in per_record())},
        FormatError,
    ),
    "year 9999": (lambda: {"a": patched(whole(), 1, 20, struct.pack(">H", 9999))}, ["is of the year 9999"]),
    "day 400": (lambda: {"a": patched(whole(), 1, 22, struct.pack(">H", 400))}, ["has no valid time"]),
    "clock of 1980 in one record": (lambda: {"a": patched(whole(), 1, 20, struct.pack(">H", 1980))}, []),
    "two rates for one channel": (
        lambda: {"a": whole() + records(trace(counts(100), 60.0, rate=50.0))},
        [],
    ),
    "damaged Steim frames": (
        lambda: {"a": patched(whole(), 3, 128, np.random.default_rng(1).bytes(384))},
        ["*"],
    ),
    "channel codes of bytes that are no text": (lambda: {"a": patched(whole(), 1, 8, b"\xff\x00\xfe\x01\x80")}, []),
}


def folder_of(path: Path, files: dict[str, bytes]) -> int:
    for name, data in files.items():
        (path / "raw").mkdir(parents=True, exist_ok=True)
        (path / "raw" / name).write_bytes(data)
    return sum(map(len, files.values()))


def run(path: Path) -> dict[str, Any]:
    return miniseed.ingest_source(str(path / "raw"), str(path / "s"), miniseed.Options(), IngestRun())


@pytest.mark.parametrize("name", BAD)
def test_bad_miniseed_is_an_error_or_a_recovery(name: str, tmp_path: Path) -> None:
    make, expected = BAD[name]
    size = folder_of(tmp_path, make())
    if isinstance(expected, type):
        with pytest.raises(expected) as caught:
            bounded(lambda: run(tmp_path), size)
        assert isinstance(caught.value, GeobatchError)
    else:
        bounded(lambda: run(tmp_path), size)
    if not isinstance(expected, type):
        found = [fault.fault for fault in read_quality(str(tmp_path / "s"))]
        assert len(found) == len(expected), found
        for fault, begins in zip(found, expected, strict=True):
            assert begins == "*" or fault.startswith(begins), found


@pytest.mark.parametrize("name", ["conflicting overlap", "one-sample overlap", "duplicate file", "unsorted records"])
def test_what_can_be_saved_is_whole(name: str, tmp_path: Path) -> None:
    folder_of(tmp_path, BAD[name][0]())
    run(tmp_path)
    values = open_waveforms(str(tmp_path / "s"))["waveform"].values[0, 0]
    expected = counts(4000).astype(float)
    if name == "conflicting overlap":
        expected[2100:] += 1
    np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("name", ["year 9999", "damaged Steim frames", "blank record in the middle", "zero rate"])
def test_one_bad_record_costs_its_own_samples_only(name: str, tmp_path: Path) -> None:
    folder_of(tmp_path, BAD[name][0]())
    run(tmp_path)
    survey = open_waveforms(str(tmp_path / "s"))
    values, valid = survey["waveform"].values[0, 0], survey["valid"].values[0, 0]
    np.testing.assert_array_equal(values[valid], counts(4000)[valid])
    lost = 0 if name.startswith("blank") else 4000 // len(per_record())
    assert (~valid).sum() <= 2 * lost


@pytest.mark.parametrize(
    ("script", "fault"),
    [
        ("import time; time.sleep(60)", "the decoder did not end"),
        ("import os; os.kill(os.getpid(), 11)", "the decoder died"),
        ("import sys; sys.stdin.buffer.readline(); sys.exit(0)", "the decoder died"),
        ("print('no json')", "the decoder died"),
    ],
)
def test_crash_or_hang_of_the_decoder_costs_its_request_only(script: str, fault: str) -> None:
    body = records(trace(counts(10)))
    ask: Any = (body, [1_709_251_200_000_000_000], [10], [512])
    broken = Decoder([sys.executable, "-c", script], patience_s=1.0)
    begin = time.monotonic()
    with pytest.raises(FormatError, match=fault):
        broken.decode(*ask)
    assert time.monotonic() - begin < 10
    broken.command = COMMAND
    values, bad = broken.decode(*ask)
    broken.close()
    np.testing.assert_array_equal(values, counts(10))
    assert not bad


def test_decoder_keeps_nothing_of_what_it_decoded() -> None:
    data = counts(10**6)
    body = records(trace(data), encoding="INT32")
    read, _ = read_records(body)
    own = Decoder()
    held = []
    for _ in range(40):
        values, _ = own.decode(body, read.start_ns, read.samples, read.length)
        np.testing.assert_array_equal(values, data)
        assert own._process is not None
        held.append(psutil.Process(own._process.pid).memory_info().rss)
    own.close()
    assert max(held) - held[1] < 8 * data.nbytes


def test_crash_over_one_file_costs_that_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = whole(), records(trace(counts(4000, 1), 40.0))
    folder_of(tmp_path, {"bad": bad, "good": good})
    own = Decoder.decode

    def decode(self: Decoder, body: bytes, *rest: Any) -> Any:
        if body == bad:
            raise FormatError("the decoder died", measured="exit code -11")
        return own(self, body, *rest)

    monkeypatch.setattr(Decoder, "decode", decode)
    info = run(tmp_path)
    assert info["warnings"][0] == "GB.STA.00.HHZ: 4000 samples lie in records that do not decode"
    survey = open_waveforms(str(tmp_path / "s"))
    np.testing.assert_array_equal(survey["waveform"].values[0, 0, :4000], counts(4000))
    assert not survey["valid"].values[0, 0, 4000:].any()
    (fault,) = read_quality(str(tmp_path / "s"))
    assert fault.where == "bad GB.STA.00.HHZ"


def test_survey_of_nothing_in_the_span_is_refused(tmp_path: Path) -> None:
    folder_of(tmp_path, {"a": whole()})
    options = miniseed.Options(start="2030-01-01", end="2030-01-02")
    with pytest.raises(DataError, match="span"):
        miniseed.ingest_source(str(tmp_path / "raw"), str(tmp_path / "s"), options, IngestRun())
    assert START < "2030"
