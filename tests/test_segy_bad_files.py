"""Bad SEG-Y files by name: each is a typed error or a documented recovery, in seconds and in little memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bounds import bounded
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from segy_files import random_traces, raw_segy

from geobatch.errors import FormatError, GeobatchError, GeometryError
from geobatch.formats import ingest
from geobatch.formats.ingestion import read_quality
from geobatch.formats.segy import open_segy
from geobatch.formats.segy_ingest import Options
from geobatch.formats.segy_inspect import inspect_file
from geobatch.survey import open_survey, survey_info

SHAPE = (8, 9)
SAMPLES = 25
COUNT = SHAPE[0] * SHAPE[1]
INLINES, CROSSLINES = (index.ravel() for index in np.indices(SHAPE))
FIELDS: dict[int, Any] = {
    189: INLINES.tolist(),
    193: CROSSLINES.tolist(),
    181: (25 * INLINES + 5 * CROSSLINES).tolist(),
    185: (20 * CROSSLINES).tolist(),
}
TRACE_BYTES = 240 + 4 * SAMPLES
REV1, REV2 = {3501: (0x0100, "u2")}, {3501: (0x0200, "u2")}


def good(path: Path, **options: Any) -> Path:
    values = options.pop("values", random_traces(*[SAMPLES] * COUNT))
    return raw_segy(path, values, fields={**FIELDS, **options.pop("fields", {})}, **options)


def cut(path: Path, length: int) -> Path:
    body = good(path).read_bytes()
    path.write_bytes(body[:length])
    return path


def bytes_of(path: Path, body: bytes) -> Path:
    path.write_bytes(body)
    return path


def same(value: int) -> list[int]:
    return [value] * COUNT


def with_nan(path: Path) -> Path:
    values = random_traces(*[SAMPLES] * COUNT)
    for trace in range(0, COUNT, 2):
        values[trace][:] = np.nan
    return good(path, values=values)


def doubled(numbers: list[int], times: int) -> list[int]:
    """The first numbers in place of the last ones."""
    return [*numbers[: COUNT - times], *numbers[:times]]


REFUSED: dict[str, tuple[type[GeobatchError], str, Callable[[Path], Path]]] = {
    "zero bytes": (FormatError, "file is empty", lambda p: bytes_of(p, b"")),
    "one byte": (FormatError, "too short for SEG-Y", lambda p: bytes_of(p, b"C")),
    "textual header alone": (FormatError, "too short for SEG-Y", lambda p: cut(p, 3200)),
    "file header alone": (FormatError, "too short for SEG-Y", lambda p: cut(p, 3600)),
    "cut in the first trace header": (FormatError, "too short for SEG-Y", lambda p: cut(p, 3700)),
    "cut in the first trace": (FormatError, "0 traces and 300 bytes over", lambda p: cut(p, 3900)),
    "cut in the last trace": (
        FormatError,
        f"{COUNT - 1} traces and {TRACE_BYTES - 1} bytes over, 1 bytes short",
        lambda p: cut(p, 3600 + COUNT * TRACE_BYTES - 1),
    ),
    "bytes after the last trace": (FormatError, "17 bytes over", lambda p: good(p, after=bytes(17))),
    "text": (FormatError, "holds text", lambda p: bytes_of(p, b"inline,crossline,amplitude\n" * 300)),
    "zeros": (FormatError, "unknown sample format code.*0 .big", lambda p: bytes_of(p, bytes(9000))),
    "random bytes": (FormatError, "format|sample|trace", lambda p: bytes_of(p, np.random.default_rng(0).bytes(20_000))),
    "format code 0": (FormatError, "unknown sample format code", lambda p: good(p, binary={3225: (0, "u2")})),
    "format code 77": (FormatError, "unknown sample format code.*77", lambda p: good(p, binary={3225: (77, "u2")})),
    "fixed point with gain": (FormatError, "code 4, 32-bit fixed point", lambda p: good(p, binary={3225: (4, "u2")})),
    "24-bit integers": (FormatError, "code 7, 24-bit", lambda p: good(p, binary={3225: (7, "u2")})),
    "half of the header swapped": (
        FormatError,
        "byte order constant contradicts",
        lambda p: good(p, binary=REV2 | {3297: (0x04030201, "u4")}),
    ),
    "no number of samples": (
        FormatError,
        "number of samples per trace is zero",
        lambda p: good(p, binary={3221: (0, "u2")}, fields={115: 0}),
    ),
    "wrong number of samples": (
        FormatError,
        "does not end with a whole trace",
        lambda p: good(p, binary={3221: (SAMPLES + 1, "u2")}, fields={115: SAMPLES + 1}),
    ),
    "a thousand million samples": (
        FormatError,
        "0 traces and .*1000000000 samples",
        lambda p: good(p, binary=REV2 | {3269: (10**9, "u4")}, fields={115: 0}),
    ),
    "30,000 extended headers": (
        FormatError,
        "30000 headers of 3200 bytes",
        lambda p: good(p, binary=REV1 | {3505: (30_000, "i2")}),
    ),
    "extended headers without an end": (
        FormatError,
        "no end stanza",
        lambda p: good(p, binary=REV1 | {3505: (-1, "i2")}),
    ),
    "first trace beyond the file": (
        FormatError,
        "begin outside the file's traces",
        lambda p: good(p, binary=REV2 | {3521: (2**60, "u8")}),
    ),
    "first trace inside the header": (
        FormatError,
        "begin outside the file's traces",
        lambda p: good(p, binary=REV2 | {3521: (100, "u8")}),
    ),
    "4,000 million trace header extensions": (
        FormatError,
        "too many trace header extensions",
        lambda p: good(p, binary=REV2 | {3507: (4 * 10**9, "u4")}),
    ),
    "30,000 trace header extensions": (
        FormatError,
        "does not end with a whole trace",
        lambda p: good(p, binary=REV2 | {3507: (30_000, "u4")}),
    ),
    "interval 0": (FormatError, "sample interval is zero", lambda p: good(p, interval=0)),
    "one long trace among short ones": (
        FormatError,
        "differ too much in length",
        lambda p: raw_segy(p, random_traces(30_000, *[1] * 200)),
    ),
    "traces start at different times": (
        GeometryError,
        "traces start at different times",
        lambda p: good(p, fields={109: [4 * (i % 3) for i in range(COUNT)]}),
    ),
    "two ways to a grid": (
        GeometryError,
        "several header positions make a grid",
        lambda p: raw_segy(
            p,
            random_traces(*[SAMPLES] * COUNT),
            fields={
                9: INLINES.tolist(),
                21: CROSSLINES.tolist(),
                221: INLINES[::-1].tolist(),
                225: np.random.default_rng(1).permuted(np.arange(COUNT).reshape(SHAPE) % 9, axis=1).ravel().tolist(),
            },
        ),
    ),
}

RECOVERED: dict[str, tuple[str, int, str, Callable[[Path], Path]]] = {
    "all-zero cube": (
        "volume",
        1,
        "no trace is live",
        lambda p: good(p, values=[np.zeros(SAMPLES)] * COUNT),
    ),
    "one trace": (
        "volume",
        0,
        "",
        lambda p: raw_segy(p, random_traces(SAMPLES), fields={189: [5], 193: [7]}),
    ),
    "one sample": ("volume", 0, "", lambda p: good(p, values=random_traces(*[1] * COUNT))),
    "a few duplicates": (
        "volume",
        2,
        "2 traces stand in the place of another",
        lambda p: good(p, fields={189: doubled(FIELDS[189], 2), 193: doubled(FIELDS[193], 2)}),
    ),
    "every second trace a duplicate": (
        "traces",
        0,
        "several traces share one inline and crossline",
        lambda p: good(p, fields={189: doubled(FIELDS[189], 36), 193: doubled(FIELDS[193], 36)}),
    ),
    "all headers equal": (
        "traces",
        0,
        "every trace has the same inline and crossline",
        lambda p: good(p, fields={byte: 7 for byte in FIELDS}),
    ),
    "scattered numbers": (
        "traces",
        0,
        "far too sparse a grid",
        lambda p: good(
            p, fields={189: np.random.default_rng(0).integers(-(2**31), 2**31, COUNT).tolist(), 193: same(0)}
        ),
    ),
    "numbers at the ends of the integers": (
        "volume",
        0,
        "",
        lambda p: good(
            p, fields={189: [(-(2**31), 2**31 - 1)[i % 2] for i in range(COUNT)], 193: [i // 2 for i in range(COUNT)]}
        ),
    ),
    "scalar garbage": (
        "volume",
        0,
        "coordinate scalar 12345",
        lambda p: good(p, fields={71: 12345}),
    ),
    "negative coordinates": (
        "volume",
        0,
        "",
        lambda p: good(p, fields={181: (-25 * INLINES).tolist(), 185: (-20 * CROSSLINES).tolist()}),
    ),
    "no coordinates": (
        "volume",
        0,
        "no map coordinates",
        lambda p: good(p, fields={181: same(0), 185: same(0)}),
    ),
    "unit of coordinates garbage": (
        "volume",
        0,
        "says angles, which the coordinates are not",
        lambda p: good(p, fields={89: 4, 181: (2_000_000_000 - INLINES).tolist()}),
    ),
    "revision garbage": ("volume", 0, "", lambda p: good(p, binary={3501: (0x4040, "u2"), 3505: (0x4040, "i2")})),
    "every second trace not finite": ("volume", COUNT // 2, "", with_nan),
    "trace headers give other lengths": (
        "volume",
        0,
        "trace headers give 99 to 99 samples",
        lambda p: good(p, fields={115: 99}),
    ),
    "uneven lengths": (
        "volume",
        0,
        "traces differ in length",
        lambda p: good(p, values=random_traces(*[20 + i % 7 for i in range(COUNT)])),
    ),
    "a thousand million samples, trace headers right": (
        "volume",
        0,
        "file header gives 1000000000 samples, trace headers 25",
        lambda p: good(p, binary=REV2 | {3269: (10**9, "u4")}),
    ),
    "infinite interval in rev 2": (
        "volume",
        0,
        "",
        lambda p: good(p, binary=REV2 | {3273: (float("inf"), "f8")}),
    ),
    "wrong number of traces in rev 2": (
        "volume",
        0,
        "file header gives 1000000000000 traces",
        lambda p: good(p, binary=REV2 | {3513: (10**12, "u8")}),
    ),
}


@pytest.fixture(scope="module", autouse=True)
def imported(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is imported on first use counts for none of the files."""
    folder = tmp_path_factory.mktemp("first")
    ingest(str(good(folder / "a.sgy")), str(folder / "survey"))


@pytest.mark.parametrize("name", REFUSED)
def test_bad_file_is_refused_by_a_typed_error(name: str, tmp_path: Path) -> None:
    kind, message, make = REFUSED[name]
    path = make(tmp_path / "a.sgy")
    target = tmp_path / "survey"
    with pytest.raises(kind, match=message):
        bounded(lambda: ingest(str(path), str(target)), path.stat().st_size)
    with pytest.raises(kind, match=message):
        bounded(lambda: inspect_file(str(path), Options()), path.stat().st_size)
    assert not (target / "zarr.json").exists()


@pytest.mark.parametrize("name", RECOVERED)
def test_bad_file_is_recovered_as_documented(name: str, tmp_path: Path) -> None:
    kind, rows, warning, make = RECOVERED[name]
    path = make(tmp_path / "a.sgy")
    bounded(lambda: ingest(str(path), str(tmp_path / "survey")), path.stat().st_size)
    info = survey_info(open_survey(str(tmp_path / "survey")))
    assert info["kind"] == kind
    assert len(read_quality(str(tmp_path / "survey"))) == rows
    assert any(warning in sentence for sentence in info["warnings"]) or not warning
    assert any(warning in sentence for sentence in inspect_file(str(path), Options()).told["suspicious"]) or not warning


@pytest.mark.parametrize("truncated", ["refuse", "drop"])
@pytest.mark.parametrize("binary", [{}, REV1 | {3505: (1, "i2")}, REV2], ids=["rev0", "rev1", "rev2"])
def test_file_cut_at_every_byte_opens_or_is_refused(binary: dict[int, Any], truncated: Any, tmp_path: Path) -> None:
    """Every length from nothing to the end of the third trace, opened; and scanned wherever it opens."""
    extended = bytes(3200) if 3505 in binary else b""
    path = raw_segy(
        tmp_path / "whole.sgy",
        random_traces(*[10] * 4),
        fields={189: [1, 1, 2, 2], 193: [1, 2, 1, 2]},
        binary=binary,
        before=extended,
    )
    body = path.read_bytes()
    begins = 3600 + len(extended)
    opened = []
    shorter = tmp_path / "a.sgy"
    shorter.write_bytes(body)
    with shorter.open("r+b") as file:
        for length in range(begins + 3 * 280, -1, -1):
            file.truncate(length)
            try:
                found = open_segy(str(shorter), truncated=truncated)
                assert found.trace_count == (length - begins) // 280
                opened.append(length)
                if length % 7 == 0 or not (length - begins) % 280:
                    inspect_file(str(shorter), Options(truncated=truncated))
            except GeobatchError as error:
                assert str(error).endswith(".") and str(shorter) in str(error)
    whole = [begins + 280 * traces for traces in (3, 2, 1)]
    assert opened == (whole if truncated == "refuse" else list(range(begins + 840, begins + 279, -1)))


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(
        st.tuples(st.integers(3200, 3600 + 3 * TRACE_BYTES), st.integers(0, 255)), min_size=1, max_size=12
    ),
    length=st.none() | st.integers(0, 3600 + 3 * TRACE_BYTES),
)
def test_changed_bytes_never_give_anything_but_a_geobatch_error(
    changes: list[tuple[int, int]], length: int | None, tmp_path: Path
) -> None:
    path = tmp_path / "a.sgy"
    body = bytearray(good(path, values=random_traces(*[SAMPLES] * COUNT)).read_bytes()[: 3600 + 3 * TRACE_BYTES])
    for place, value in changes:
        body[min(place, len(body) - 1)] = value
    path.write_bytes(bytes(body[:length]))
    try:
        inspect_file(str(path), Options(truncated="drop"))
    except GeobatchError as error:
        assert str(error)
