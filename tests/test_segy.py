"""Samples, headers and geometry of SEG-Y files, against segyio."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import segyio
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from segy_files import amplitudes, write_segy

from geobatch.errors import FormatError, GeometryError, NotFoundError, UsageError
from geobatch.fanout import open_fanout
from geobatch.formats.ibm import decode_ibm, encode_ibm
from geobatch.formats.segy import SegyLayout, decode_samples, encode_samples, open_segy
from geobatch.formats.segy_columns import runs
from geobatch.formats.segy_geometry import Grid, coordinates, fit_bin_grid, make_grid
from geobatch.formats.segy_ingest import scan
from geobatch.formats.segy_meaning import judge
from geobatch.formats.segy_scan import (
    TraceTable,
    _packed,
    _unpacked,
    dump_table,
    load_table,
    merge_tables,
    scan_slab,
    slabs,
)
from geobatch.moments import figures

REAL = [
    "segy/f3.sgy",
    "segy/f3-ebcidctest.sgy",
    "segy/volve10-migvel-depth-sub3d.sgy",
    "penobscot/penobscot_xl1155.sgy",
]


def table_of(path: Path, layout: SegyLayout | None = None) -> TraceTable:
    with open_fanout(small=True) as fanout:
        return scan(open_segy(str(path)), layout or SegyLayout(), fanout)


def grid_of(path: Path) -> Grid:
    return make_grid(table_of(path), SegyLayout(), str(path))


# Words whose value lies in the normal range of float32, with a non-zero leading digit as every writer makes them.
normalised = st.builds(
    lambda sign, exponent, fraction: sign << 31 | exponent << 24 | fraction,
    st.integers(0, 1),
    st.integers(34, 95),
    st.integers(2**20, 2**24 - 1),
)


@given(hnp.arrays(np.uint32, 50, elements=normalised))
def test_normalised_ibm_word_survives_the_round_trip(words: np.ndarray) -> None:
    np.testing.assert_array_equal(encode_ibm(decode_ibm(words)), words)


@given(hnp.arrays(np.uint32, 20, elements=st.integers(0, 2**32 - 1)))
def test_ibm_word_decodes_to_the_float32_nearest_its_value(words: np.ndarray) -> None:
    signed = [(-1) ** (int(w) >> 31) * (int(w) & 0xFFFFFF) * 16.0 ** ((int(w) >> 24 & 127) - 70) for w in words]
    with np.errstate(over="ignore", under="ignore"):
        expected = np.array(signed).astype(np.float32)
    np.testing.assert_array_equal(decode_ibm(words), expected)


@given(hnp.arrays(np.float32, 20, elements=st.floats(-(2.0**100), 2.0**100, width=32)))
def test_float_in_ibm_is_within_three_bits(values: np.ndarray) -> None:
    again = decode_ibm(encode_ibm(values))
    np.testing.assert_allclose(again, values, rtol=2.0**-21, atol=1e-44)


def test_ibm_agrees_with_segyio(tmp_path: Path) -> None:
    values = (np.random.default_rng(0).normal(size=(3, 4, 50)) * 10.0 ** np.arange(-20, 30)).astype(np.float32)
    path = write_segy(tmp_path / "a.sgy", values)
    file = open_segy(str(path))
    with segyio.open(path, ignore_geometry=True) as reference:
        np.testing.assert_array_equal(file.decode(file.read_traces(0, 12)), reference.trace.raw[:])


def test_what_ibm_and_float32_cannot_share_goes_to_the_ends() -> None:
    assert decode_ibm(np.array([0x7FFFFFFF, 0xFFFFFFFF, 0x00100000, 0x46000000], np.uint32)).tolist() == [
        np.inf,
        -np.inf,
        0.0,
        0.0,
    ]
    words = encode_ibm(np.array([np.nan, np.inf, -np.inf, -0.0], np.float32))
    assert words.tolist() == [0, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000]


@pytest.mark.parametrize("order", [">", "<"])
@pytest.mark.parametrize("code", [1, 2, 3, 5, 6, 8, 9])
def test_samples_survive_encoding(code: int, order: str) -> None:
    values = np.random.default_rng(0).integers(-128, 128, (3, 7)).astype(np.float32)
    raw = encode_samples(values, code, order)
    np.testing.assert_array_equal(decode_samples(raw, code, order), values)


def test_integers_are_rounded_and_limited() -> None:
    values = np.array([[1e6, -1e6, 1.6, np.nan]], np.float32)
    assert decode_samples(encode_samples(values, 3, ">"), 3, ">").tolist() == [[32767, -32768, 2, 0]]


@pytest.mark.parametrize("name", REAL)
def test_real_file_reads_as_segyio_does(name: str, test_data: Path) -> None:
    path = test_data / "subsurface" / name
    file, table = open_segy(str(path)), table_of(path)
    with segyio.open(path, ignore_geometry=True) as reference:
        assert (file.trace_count, file.sample_count) == (reference.tracecount, reference.samples.size)
        np.testing.assert_array_equal(file.decode(file.read_traces(0, file.trace_count)), reference.trace.raw[:])
        for values, field in ((table.inline, 189), (table.crossline, 193), (table.x, 181), (table.y, 185)):
            np.testing.assert_array_equal(values, reference.attributes(field)[:])


@pytest.mark.parametrize("endian", ["big", "little"])
@pytest.mark.parametrize("code", [1, 3, 5])
def test_byte_order_is_detected(code: int, endian: str, tmp_path: Path) -> None:
    values = np.round(amplitudes((2, 3, 20)))
    path = write_segy(tmp_path / "a.sgy", values, code=code, endian=endian)
    file = open_segy(str(path))
    assert file.byte_order == (">" if endian == "big" else "<")
    np.testing.assert_array_equal(file.decode(file.read_traces(0, 6)).reshape(values.shape), values)
    assert table_of(path).inline.tolist() == [100] * 3 + [101] * 3


def test_extended_textual_headers_are_skipped(tmp_path: Path) -> None:
    values = amplitudes((2, 3, 20))
    file = open_segy(str(write_segy(tmp_path / "a.sgy", values, extended=2)))
    assert len(file.header) == 3600 + 2 * 3200
    np.testing.assert_array_equal(file.decode(file.read_traces(0, 6)).reshape(values.shape), values)


def test_textual_header_is_decoded_from_ebcdic_and_ascii(test_data: Path) -> None:
    folder = test_data / "subsurface"
    assert "segysak Python Library" in open_segy(str(folder / "segy/f3-ebcidctest.sgy")).text
    assert "Survey: 'Penobscot'" in open_segy(str(folder / "penobscot/penobscot_xl1155.sgy")).text


def test_slabs_together_make_the_table_of_the_whole(tmp_path: Path) -> None:
    values = amplitudes((5, 7, 30))
    values[2, 3] = 0
    file = open_segy(str(write_segy(tmp_path / "a.sgy", values)))
    whole = scan_slab((0, 35), file, SegyLayout())
    parts = slabs(file, slab_bytes=4 * file.trace_bytes)
    merged = merge_tables([scan_slab(part, file, SegyLayout()) for part in parts])
    assert len(parts) == 9
    for name in ("inline", "crossline", "x", "y", "scalar", "live"):
        np.testing.assert_array_equal(getattr(merged, name), getattr(whole, name))
    assert (merged.fields, merged.varying, merged.non_finite) == (whole.fields, whole.varying, 0)
    live = values.reshape(35, 30)[whole.live].astype(np.float64)
    found = figures(merged.moments)
    expected = (live.size, live.mean(), live.std(), np.sqrt((live**2).mean()), live.min(), live.max())
    np.testing.assert_allclose(list(found.values()), expected, rtol=1e-12)


@given(hnp.arrays(np.int32, st.integers(1, 40), elements=st.integers(-(2**31), 2**31 - 1)))
def test_packed_numbers_come_back(numbers: np.ndarray) -> None:
    np.testing.assert_array_equal(_unpacked(_packed(numbers)), numbers)


def test_stored_table_is_the_scanned_one(tmp_path: Path) -> None:
    file = open_segy(str(write_segy(tmp_path / "a.sgy", amplitudes((5, 7, 30)))))
    table = scan_slab((0, 35), file, SegyLayout(offset=38))
    again = load_table(dump_table(table))
    assert (again.varying, again.fields, again.highest, again.words) == (
        table.varying,
        table.fields,
        table.highest,
        table.words,
    )
    assert again.word(189).tolist() == np.repeat(np.arange(100, 105), 7).tolist()
    assert again.word(21).tolist() == [0] * 35


def test_zero_and_coded_traces_are_dead(tmp_path: Path) -> None:
    values = amplitudes((2, 4, 20))
    values[0, 1] = 0
    codes = np.ones((2, 4), int)
    codes[1, 2] = 2
    live = grid_of(path := write_segy(tmp_path / "a.sgy", values, trace_codes=codes)).place(table_of(path).live, False)
    expected = np.ones((2, 4), bool)
    expected[0, 1] = expected[1, 2] = False
    np.testing.assert_array_equal(live, expected)


def test_lines_in_steps_make_a_dense_grid_with_a_missing_line(tmp_path: Path) -> None:
    keep = np.ones((5, 4), bool)
    keep[2] = False
    path = write_segy(tmp_path / "a.sgy", amplitudes((5, 4, 10)), step=(4, 3), keep=keep)
    grid = grid_of(path)
    assert grid.inline.tolist() == [100, 104, 108, 112, 116]
    assert grid.crossline.tolist() == [300, 303, 306, 309]
    np.testing.assert_array_equal(grid.place(np.ones(16, bool), False), keep)


@pytest.mark.parametrize("scalar", [-100, 0, 1, 10])
def test_bin_grid_is_the_one_the_coordinates_were_made_from(scalar: int, tmp_path: Path) -> None:
    path = write_segy(tmp_path / "a.sgy", amplitudes((6, 5, 10)), scalar=scalar)
    table = table_of(path)
    x, y = coordinates(table)
    fitted = fit_bin_grid(grid_of(path), x, y)
    rounding = 10 if scalar == 10 else 1 if scalar >= 0 else 0.01
    assert fitted is not None
    assert fitted["inline_spacing_m"] == pytest.approx(25, abs=rounding)
    assert fitted["crossline_spacing_m"] == pytest.approx(12.5, abs=rounding)
    assert fitted["azimuth_deg"] == pytest.approx(30, abs=10 * rounding)
    assert fitted["affine"][0] == pytest.approx(500000, abs=rounding)
    assert fitted["rms_residual_m"] <= rounding


@pytest.mark.parametrize("shape", [(1, 6, 10), (6, 1, 10), (1, 1, 10)])
def test_survey_one_line_thick_has_no_spacing_across(shape: tuple[int, int, int], tmp_path: Path) -> None:
    path = write_segy(tmp_path / "a.sgy", amplitudes(shape))
    grid = grid_of(path)
    fitted = fit_bin_grid(grid, *coordinates(table_of(path)))
    assert grid.shape == shape[:2]
    if shape[:2] == (1, 1):
        assert fitted is None
    else:
        assert fitted is not None
        assert fitted["inline_spacing_m"] == (None if shape[0] == 1 else pytest.approx(25, abs=0.1))
        assert fitted["crossline_spacing_m"] == (None if shape[1] == 1 else pytest.approx(12.5, abs=0.1))


def test_coordinates_that_do_not_vary_make_no_bin_grid(tmp_path: Path) -> None:
    grid = grid_of(write_segy(tmp_path / "a.sgy", amplitudes((2, 3, 10))))
    assert fit_bin_grid(grid, np.zeros(6), np.zeros(6)) is None


def test_duplicate_positions_are_counted_and_shown(tmp_path: Path) -> None:
    path = write_segy(tmp_path / "a.sgy", amplitudes((3, 4, 10)))
    with segyio.open(path, "r+", ignore_geometry=True) as file:
        file.header[5] = {189: 100, 193: 301}
    with pytest.raises(GeometryError, match=r"1 positions with 2 traces, such as inline 100, crossline 301.*1, 5"):
        grid_of(path)


def test_prestack_file_names_the_header_bytes_that_vary(test_data: Path) -> None:
    path = test_data / "subsurface/segy/viking_small.segy"
    with pytest.raises(GeometryError, match=r"inline 0 in byte 189.*13 \(1 to 120\)"):
        make_grid(table_of(path), SegyLayout(), str(path))


def test_sparse_grid_is_refused_with_its_fill(test_data: Path) -> None:
    path = test_data / "subsurface/segy/volve10r12-full-twt-arb.sgy"
    layout = SegyLayout(inline=13, crossline=21)
    with pytest.raises(GeometryError, match="225 traces on 225 x 225 positions"):
        make_grid(table_of(path, layout), layout, str(path))


def test_velocity_in_depth_is_recognised_from_what_the_file_says(test_data: Path) -> None:
    path = test_data / "subsurface/segy/volve10-migvel-depth-sub3d.sgy"
    meaning = judge(open_segy(str(path)), table_of(path))
    assert (meaning.quantity, meaning.units, meaning.domain) == ("velocity", "m/s", "depth")
    assert (meaning.sample_interval, meaning.sample_unit) == (20, "m")
    assert all(len(reasons) == 2 for reasons in meaning.evidence.values())


@pytest.mark.parametrize("name", [n for n in REAL if "volve" not in n])
def test_seismic_is_amplitude_in_time(name: str, test_data: Path) -> None:
    path = test_data / "subsurface" / name
    meaning = judge(open_segy(str(path)), table_of(path))
    assert (meaning.quantity, meaning.domain, meaning.sample_interval) == ("amplitude", "time", 4)
    assert meaning.doubts == []


def test_one_piece_of_evidence_is_a_doubt_and_an_option_settles_it(tmp_path: Path) -> None:
    path = write_segy(tmp_path / "a.sgy", 2000 + np.abs(amplitudes((2, 3, 10))), interval=5000)
    file, table = open_segy(str(path)), table_of(path)
    meaning = judge(file, table)
    assert (meaning.quantity, meaning.domain) == ("amplitude", "time")
    about_quantity, about_domain = meaning.doubts
    assert "quantity=velocity" in about_quantity
    assert "sample interval 5 is unusual in ms" in about_domain
    settled = judge(file, table, quantity="velocity", sample_unit="ft")
    assert (settled.quantity, settled.domain, settled.sample_unit) == ("velocity", "depth", "m")
    assert settled.sample_interval == pytest.approx(1.524)
    with pytest.raises(UsageError, match="does not fit"):
        judge(file, table, domain="time", sample_unit="m")
    with pytest.raises(UsageError, match=r"unknown quantity; found speed; expected amplitude or velocity"):
        judge(file, table, quantity="speed")


def test_close_runs_are_read_together_and_long_ones_are_split() -> None:
    ordinals = np.array([0, 1, 2, 5, 1000, 1001], np.int32)
    assert runs(ordinals, 6000) == [slice(0, 4), slice(4, 6)]
    assert runs(np.arange(4, dtype=np.int32), 5 * 2**20) == [slice(i, i + 1) for i in range(4)]
    assert runs(np.array([], np.int32), 6000) == []


def damaged(tmp_path: Path, change: str) -> Path:
    path = write_segy(tmp_path / "a.sgy", amplitudes((2, 3, 20)))
    raw = bytearray(path.read_bytes())
    if change == "cut":
        raw = raw[:-100]
    elif change == "empty":
        raw = bytearray()
    elif change == "text":
        raw = bytearray(b"depth,amplitude\n" * 500)
    elif change == "code":
        raw[3224:3226] = b"\x00\x63"
    elif change == "gain":
        raw[3224:3226] = b"\x00\x04"
    elif change == "samples":
        raw[3220:3222] = bytes(2)
        for trace in range(6):
            raw[3600 + trace * 320 + 114 : 3600 + trace * 320 + 116] = bytes(2)
    elif change == "headers":
        raw[3500:3502], raw[3504:3506] = b"\x01\x00", b"\x7f\xff"
    elif change == "endless":
        raw[3500:3502], raw[3504:3506] = b"\x01\x00", b"\xff\xff"
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("cut", "5 traces and 220 bytes over, 100 bytes short"),
        ("empty", "empty.*0 bytes"),
        ("text", "holds text.*'depth,amplitude"),
        ("code", "unknown sample format code.*99"),
        ("gain", "not supported.*code 4, 32-bit fixed point with gain"),
        ("samples", "number of samples per trace is zero"),
        ("headers", "32767 headers of 3200 bytes"),
        ("endless", "no end stanza"),
    ],
)
def test_bad_file_is_refused_in_one_clear_sentence(change: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=message):
        open_segy(str(damaged(tmp_path, change)))


def test_zero_sample_interval_needs_the_option(tmp_path: Path) -> None:
    path = write_segy(tmp_path / "a.sgy", amplitudes((2, 3, 20)), interval=0)
    with pytest.raises(FormatError, match="sample interval is zero"):
        judge(open_segy(str(path)), table_of(path))
    assert judge(open_segy(str(path)), table_of(path), sample_interval=2.0).sample_interval == 2


def test_absent_file_and_position_outside_the_header_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        open_segy(str(tmp_path / "none.sgy"))
    with pytest.raises(UsageError, match=r"inline.*found 240"):
        SegyLayout(inline=240)
