"""From survey to SEG-Y: the source's bytes come back, and other volumes stand under its headers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segyio
from segy_files import amplitudes, write_segy

from geobatch.errors import GeometryError, MismatchError, UsageError
from geobatch.formats import ingest
from geobatch.formats.segy_export import export_segy
from geobatch.shards import ArraySpec, create_arrays, finish_group
from geobatch.storage import open_storage
from geobatch.survey import VOLUME_AXES, open_survey

GRID = {"chunk": (4, 4, 8), "shard": (4, 8, 16)}
SHAPE = (9, 11, 37)


def write_scored(url: str, source_url: str | None, region: dict[str, slice]) -> tuple[np.ndarray, np.ndarray]:
    """A scored survey over a region of its source: random classes, some invalid, and probabilities of two classes."""
    axes = {axis: np.arange(3) for axis in VOLUME_AXES}
    if source_url:
        source = open_survey(source_url).isel(region)
        axes = {axis: source[axis].values for axis in VOLUME_AXES}
    shape = tuple(values.size for values in axes.values())
    random = np.random.default_rng(0)
    classes = random.choice(np.array([0, 1, 255], np.uint8), shape)
    probability = random.integers(0, 256, (2, *shape)).astype(np.uint8)
    flags = {"flag_values": [0, 1, 255], "flag_meanings": "other fault invalid"}
    packing = {"scale_factor": 1 / 254, "_FillValue": 255}
    specs = [
        ArraySpec("class_map", VOLUME_AXES, shape, "uint8", shape, shape, 255, flags),
        ArraySpec("probability", ("class", *VOLUME_AXES), (2, *shape), "uint8", (1, *shape), (2, *shape), 255, packing),
        *(ArraySpec.small(axis, (axis,), values) for axis, values in axes.items()),
    ]
    create_arrays(url, specs, {"class_map": classes, "probability": probability, **axes})
    info: dict[str, Any] = {"schema": 1, "kind": "scored", "state": "complete"}
    finish_group(url, specs, {"geobatch": info | ({"source_survey": source_url} if source_url else {})})
    return classes, probability


@pytest.mark.parametrize("order", ["inline", "crossline", "random"])
@pytest.mark.parametrize(("code", "endian"), [(1, "big"), (1, "little"), (3, "big"), (5, "little")])
def test_exported_volume_equals_its_source_file(code: int, endian: str, order: str, tmp_path: Path) -> None:
    keep = np.random.default_rng(3).random(SHAPE[:2]) > 0.2
    values = np.round(amplitudes(SHAPE) / 8)
    values[1, 1] = 0
    path = write_segy(
        tmp_path / "a.sgy", values, code=code, endian=endian, order=order, keep=keep, step=(2, 5), extended=1
    )
    ingest(str(path), str(tmp_path / "survey"), **GRID)
    summary = export_segy(str(tmp_path / "survey"), str(tmp_path / "b.sgy"), slab_bytes=20 * 37 * 4)
    assert (tmp_path / "b.sgy").read_bytes() == path.read_bytes()
    assert summary["traces"] == keep.sum()


@pytest.mark.parametrize(
    "name",
    ["segy/f3.sgy", "segy/f3-ebcidctest.sgy", "segy/volve10-migvel-depth-sub3d.sgy", "penobscot/penobscot_xl1155.sgy"],
)
def test_real_file_comes_back_byte_for_byte(name: str, test_data: Path, tmp_path: Path) -> None:
    path = test_data / "subsurface" / name
    ingest(str(path), str(tmp_path / "survey"))
    export_segy(str(tmp_path / "survey"), str(tmp_path / "b.sgy"))
    assert (tmp_path / "b.sgy").read_bytes() == path.read_bytes()


def test_export_streams_to_a_bucket_in_parts(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_segy(tmp_path / "a.sgy", amplitudes((40, 70, 600)))
    monkeypatch.setattr("geobatch.storage.s3.PART_BYTES", 5 * 2**20)
    ingest(str(path), f"{s3}/survey")
    export_segy(f"{s3}/survey", f"{s3}/out/b.sgy", slab_bytes=2**20)
    assert open_storage(s3).get("out/b.sgy") == path.read_bytes()


def test_export_that_fails_leaves_nothing_under_its_name(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_segy(tmp_path / "a.sgy", amplitudes(SHAPE))
    ingest(str(path), str(tmp_path / "survey"), **GRID)
    monkeypatch.setattr("geobatch.storage.s3.PART_BYTES", 2000)

    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    for target in (f"{s3}/b.sgy", str(tmp_path / "b.sgy")):
        with pytest.raises(KeyboardInterrupt):
            export_segy(str(tmp_path / "survey"), target, slab_bytes=8000, on_progress=stop)
    assert not open_storage(s3).exists("b.sgy")
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["a.sgy"]


@pytest.mark.parametrize("order", ["inline", "crossline"])
def test_scored_classes_and_probabilities_stand_under_the_source_headers(order: str, tmp_path: Path) -> None:
    path = write_segy(tmp_path / "a.sgy", amplitudes(SHAPE), order=order, step=(2, 5), delay=100)
    ingest(str(path), str(tmp_path / "survey"), **GRID)
    region = {"inline": slice(2, 8), "crossline": slice(1, 10), "sample": slice(5, 30)}
    classes, probability = write_scored(str(tmp_path / "scored"), str(tmp_path / "survey"), region)
    expected = {"class_map": classes.astype(np.float32), "probability:fault": probability[1] / 254}
    expected["class_map"][classes == 255] = -1
    expected["probability:fault"][probability[1] == 255] = -1
    for variable, values in expected.items():
        target = tmp_path / f"{variable.partition(':')[0]}.sgy"
        summary = export_segy(str(tmp_path / "scored"), str(target), variable=variable, slab_bytes=3000)
        assert summary["invalid_samples"] == (values == -1).sum()
        with segyio.open(target) as file:
            assert (int(file.format), file.samples.tolist()) == (5, (120 + 4.0 * np.arange(25)).tolist())
            assert (file.ilines.tolist(), file.xlines.tolist()) == (
                [104 + 2 * i for i in range(6)],
                [305 + 5 * j for j in range(9)],
            )
            lines = np.stack([file.iline[number] for number in file.ilines])
            np.testing.assert_allclose(lines, values, rtol=1e-6)
            assert file.bin[segyio.BinField.Samples] == file.header[7][115] == 25
            with segyio.open(path) as source:
                ordinal = 2 * 11 + 1 if order == "inline" else 1 * 9 + 2
                assert file.header[0][181] == source.header[ordinal][181]
                assert file.text[0] == source.text[0]


def test_cropped_start_that_no_header_can_hold_is_refused(tmp_path: Path) -> None:
    path = write_segy(tmp_path / "a.sgy", amplitudes(SHAPE), interval=500)
    ingest(str(path), str(tmp_path / "survey"))
    write_scored(str(tmp_path / "scored"), str(tmp_path / "survey"), {"sample": slice(1, 30)})
    with pytest.raises(GeometryError, match=r"does not fit the delay field.*0\.5"):
        export_segy(str(tmp_path / "scored"), str(tmp_path / "b.sgy"))
    assert not (tmp_path / "b.sgy").exists()


def test_wrong_requests_are_refused_by_name(tmp_path: Path) -> None:
    path = write_segy(tmp_path / "a.sgy", amplitudes(SHAPE))
    survey, scored = str(tmp_path / "survey"), str(tmp_path / "scored")
    ingest(str(path), survey)
    write_scored(scored, survey, {})
    target = str(tmp_path / "b.sgy")
    with pytest.raises(UsageError, match="there already"):
        export_segy(survey, str(path))
    with pytest.raises(UsageError, match=r"no such volume.*velocity.*amplitude"):
        export_segy(survey, target, variable="velocity")
    with pytest.raises(UsageError, match=r"no such class.*salt.*probability:other, probability:fault"):
        export_segy(scored, target, variable="probability:salt")
    write_scored(str(tmp_path / "orphan"), None, {})
    with pytest.raises(MismatchError, match="no SEG-Y headers"):
        export_segy(str(tmp_path / "orphan"), target)
