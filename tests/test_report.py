from __future__ import annotations

import io
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet
import pytest
import zarr.storage
from scipy import ndimage

import geobatch.survey
from geobatch.errors import NotFoundError, UsageError
from geobatch.report import SectionChoice, write_report
from geobatch.report.figures import class_styles
from geobatch.shards import ArraySpec, create_arrays, finish_group
from geobatch.storage import open_storage

AXES = ("inline", "crossline", "sample")
Array = npt.NDArray[Any]


def faulted_layers(shape: tuple[int, int, int], seed: int = 0) -> tuple[Array, Array]:
    """Folded reflectors cut by two faults, and where the faults are."""
    generator = np.random.default_rng(seed)
    i, x, s = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in shape), indexing="ij")
    depth = s + 6 * np.sin(i / 23) + 9 * np.sin(x / 31 + 1)
    fault = np.zeros(shape, dtype=np.uint8)
    for place, throw in ((0.35, 9), (0.7, -7)):
        plane = x - place * shape[1] - 0.15 * (i - shape[0] / 2) + 0.35 * (s - shape[2] / 2)
        depth = depth + np.where(plane > 0, np.float32(throw), np.float32(0))
        fault |= (np.abs(plane) < 1.3).astype(np.uint8)
    reflectivity = ndimage.gaussian_filter1d(generator.normal(size=4 * shape[2]), 1.5)
    amplitude = np.interp(depth, np.arange(reflectivity.size) - shape[2], reflectivity).astype(np.float32)
    return 8000 * amplitude + generator.normal(0, 300, shape).astype(np.float32), fault


@dataclass
class Fake:
    """A scored survey, its source and its labels in a folder, in the form that runs write."""

    folder: Path
    shape: tuple[int, int, int] = (96, 130, 150)
    shard: tuple[int, int, int] = (32, 64, 64)
    names: tuple[str, ...] = ("background", "fault")
    colors: tuple[str, ...] = ("#d9d9d9", "#d1495b")
    state: str = "complete"
    source_info: dict[str, Any] = field(default_factory=dict)
    dead: tuple[tuple[int, int, int], ...] = ()
    header: bytes = b""
    run: dict[str, Any] = field(default_factory=dict)

    def write(self) -> str:
        amplitude, fault = faulted_layers(self.shape)
        live = np.ones(self.shape[:2], dtype=bool)
        live[self.shape[0] // 2 + 5 : self.shape[0] // 2 + 9, : self.shape[1] // 3] = False
        trace_index = np.arange(live.size, dtype=np.int32).reshape(live.shape)
        if min(live.shape) > 1:
            corner = np.add.outer(np.arange(live.shape[0]), np.arange(live.shape[1])) < 30
            live[corner], trace_index[corner] = False, -1
            amplitude[corner] = np.nan
        noise = np.random.default_rng(1).normal(0, 0.12, self.shape)
        fault_probability = np.clip(ndimage.gaussian_filter(fault.astype(np.float32), 0.8) * 1.6 + noise, 0, 1)
        if len(self.names) == 2:
            probability = np.stack([1 - fault_probability, fault_probability])
        else:
            layer = ndimage.gaussian_filter(np.nan_to_num(amplitude), 2)
            probability = np.stack([np.exp(-((layer / 1500 - k + 1) ** 2)) for k in range(len(self.names))])
            probability /= probability.sum(axis=0)
        classes = probability.argmax(axis=0).astype(np.uint8)
        packed = np.round(254 * probability).astype(np.uint8)
        invalid = np.broadcast_to(~live[..., None], self.shape).copy()
        for index in self.dead:
            invalid[tuple(slice(i * n, (i + 1) * n) for i, n in zip(index, self.shard, strict=True))] = True
        classes[invalid], packed[:, invalid] = 255, 255
        traces = {"live_mask": live, "trace_index": trace_index}
        info = {
            "domain": "time",
            "sample_unit": "ms",
            "bin_grid": {"inline_spacing_m": 25, "crossline_spacing_m": 12.5},
        }
        if self.header:
            traces["file_header"] = np.frombuffer(self.header, dtype=np.uint8)
        source = {**info, "variable": "amplitude", "kind": "volume", **self.source_info}
        self._survey("source", source, {"amplitude": amplitude}, {}, traces)
        truth = fault if len(self.names) == 2 else classes
        self._survey("labels", {**info, "kind": "labels"}, {"class_map": truth}, self._flags(), {})
        packing = {"scale_factor": 1 / 254, "_FillValue": 255}
        scored = {
            **info,
            "kind": "scored",
            "state": self.state,
            "source_survey": str(self.folder / "source"),
            "bundle": "s3://models/faults",
            "bundle_hash": "b" * 64,
            "survey_identity": "a" * 64,
        }
        self._survey("scored", scored, {"class_map": classes, "probability": packed}, {**self._flags(), **packing}, {})
        self._control()
        return str(self.folder / "scored")

    def _flags(self) -> dict[str, Any]:
        return {
            "flag_values": [*range(len(self.names)), 255],
            "flag_meanings": " ".join([*(name.replace(" ", "_") for name in self.names), "invalid"]),
            "flag_colors": " ".join([*self.colors, "#00000000"]),
        }

    def _survey(
        self,
        name: str,
        info: dict[str, Any],
        volumes: dict[str, Array],
        flags: dict[str, Any],
        traces: dict[str, Array],
    ) -> None:
        coordinates = {
            "inline": np.arange(self.shape[0], dtype=np.int32) + 1100,
            "crossline": np.arange(self.shape[1], dtype=np.int32) * 2 + 300,
            "sample": np.arange(self.shape[2]) * 4.0 + 400,
        }
        values: dict[str, Array] = {**coordinates, **traces, **volumes}
        specs = [ArraySpec.small(axis, (axis,), coordinates[axis]) for axis in AXES]
        for key, data in traces.items():
            dims = AXES[:2] if data.ndim == 2 else ("file_header_byte",)
            specs.append(ArraySpec.small(key, dims, data))
        for key, data in volumes.items():
            lead = data.shape[: data.ndim - 3]
            dims = ("class", *AXES) if lead else AXES
            chunk = tuple(n // 2 for n in self.shard)
            packing = {k: v for k, v in flags.items() if k in ("scale_factor", "_FillValue")}
            attributes = packing if lead else {k: v for k, v in flags.items() if k not in packing}
            fill = 255 if data.dtype == np.uint8 else float("nan")
            shards, chunks = (*lead, *self.shard), (*(1 for _ in lead), *chunk)
            specs.append(ArraySpec(key, dims, data.shape, data.dtype.name, chunks, shards, fill, attributes))
        url = str(self.folder / name)
        create_arrays(url, specs, values)
        finish_group(url, specs, {"geobatch": {"schema": 1, "state": "complete", **info}})

    def _control(self) -> None:
        storage = open_storage(str(self.folder / "scored" / "_geobatch"))
        counts = [-(-n // b) for n, b in zip(self.shape, self.shard, strict=True)]
        grid = {"shape": self.shape, "shard": self.shard, "patch": [64, 96, 96], "stride": [4, 4, 4]}
        halos = {"halo": [[22, 22]] * 3, "reach": [[0, 0], [5, 5], [0, 0]]}
        chain = {"steps": [{"step": "fill", "method": "interpolate"}, {"step": "clip", "percentile": 99.5}]}
        plan = {"grid": {**grid, **halos}, "chunk": [16, 32, 32], "batch": 1, "device": "cpu", "chain": chain}
        blocks = [n for n, index in enumerate(np.ndindex(*counts)) if index not in self.dead]
        figures = {"voxels": 131072, "valid": 130000, "bytes_read": 900000, "class_map.size": 61000}
        seconds = {"read_s": 0.11, "preprocess_s": 0.04, "predict_s": 1.31, "write_s": 0.06}
        columns = {key: [value] * len(blocks) for key, value in {**figures, **seconds}.items()}
        receipts = pa.table({"block": blocks, **columns})
        letters = [
            {
                "block": "/".join(map(str, index)),
                "number": int(np.ravel_multi_index(index, counts)),
                "region": {"inline": [1132, 1163], "crossline": [300, 426], "sample": [400, 652]},
                "attempts": 3,
                "error": "IntegrityError: amplitude/c/1/0/0: checksum differs",
                "traceback": "Traceback (most recent call last):\n  ...",
            }
            for index in self.dead
        ]
        run = {"name": "F3 faults", "seconds": 31.5, "voxels_per_s": 3.9e6, "replicas": 2, **self.run}
        for key, value in {"plan": plan, "dead_letters": letters, "run": run}.items():
            storage.put(f"{key}.json", json.dumps(value).encode())
        sink = io.BytesIO()
        pyarrow.parquet.write_table(receipts, sink)
        storage.put("manifest.parquet", sink.getvalue())


class Outline(HTMLParser):
    """The tags of a page, its references and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for name, value in attrs if name in ("href", "src", "srcset", "data", "action")]
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


def outline(path: str) -> Outline:
    return Outline(Path(path).read_text())


def test_report_shows_each_section_in_each_way(tmp_path: Path) -> None:
    page = outline(write_report(Fake(tmp_path).write(), tmp_path / "report.html"))
    for title in ("Inline 1148", "Crossline 430", "Time slice at 700 ms", "Probability of fault", "TWT (ms)"):
        assert title in page.text
    assert page.tags.count("image") == 3 * 4 + 2
    assert "Complete" in page.text
    assert "b" * 64 in page.text


def test_report_is_one_file_without_requests_or_scripts(tmp_path: Path) -> None:
    path = write_report(Fake(tmp_path).write())
    assert path.endswith("scored/_geobatch/report.html")
    page = outline(path)
    assert page.references
    assert all(reference.startswith("data:image/webp;base64,") for reference in page.references)
    assert not {"script", "link", "iframe", "object", "form", "base"} & set(page.tags)
    assert not re.search(r"url\((?!#)|@import", Path(path).read_text())


def test_dead_blocks_are_counted_mapped_and_explained(tmp_path: Path) -> None:
    fake = Fake(tmp_path, dead=((1, 0, 0), (1, 0, 1)), state="incomplete")
    page = outline(write_report(fake.write(), tmp_path / "report.html"))
    assert "2 dead blocks" in page.text
    assert "holds a failed block" in page.text
    assert "inline 1132–1163, crossline 300–426, sample 400–652" in page.text
    assert "checksum differs" in page.text


def test_text_from_data_never_becomes_markup(tmp_path: Path) -> None:
    attack = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    fake = Fake(
        tmp_path,
        names=('a"><script>x</script>', "fault"),
        colors=('#fff";}</style><script>', "red;background:url(//x)"),
        source_info={"attribution": attack, "crs": attack},
        header=f"C 1 {attack}".ljust(3200).encode("cp037"),
        run={"name": attack, "started": attack, "warnings": [attack], "versions": {attack: attack}},
        dead=((0, 0, 0),),
    )
    page = outline(write_report(fake.write(), tmp_path / "report.html", labels=str(tmp_path / "labels")))
    assert not {"script", "img"} & set(page.tags)
    assert page.text.count(attack) >= 6
    assert "//x" not in Path(tmp_path / "report.html").read_text()


def test_labels_add_ground_truth_and_metrics(tmp_path: Path) -> None:
    fake = Fake(tmp_path, names=("shale", "sand", "salt"), colors=("#8c6d31", "#e7ba52", "#d6616b"))
    path = write_report(fake.write(), tmp_path / "report.html", labels=str(tmp_path / "labels"))
    page = outline(path)
    assert page.text.count("Ground truth") == 3
    assert "accuracy 1.000" in page.text
    assert "Probability of the predicted class" in page.text
    assert "Probability of salt" in page.text


def test_a_single_line_leaves_degenerate_sections_out_and_says_so(tmp_path: Path) -> None:
    fake = Fake(tmp_path, shape=(96, 1, 150), shard=(32, 2, 64))
    page = outline(write_report(fake.write(), tmp_path / "report.html"))
    assert "one crossline thick" in page.text
    assert "Crossline 300" in page.text
    assert "Inline 1" not in page.text
    assert page.tags.count("image") == 4


def test_chosen_sections_are_shown_and_others_refused(tmp_path: Path) -> None:
    url = Fake(tmp_path).write()
    page = outline(write_report(url, tmp_path / "r.html", choice=SectionChoice(inline=1110, sample=500)))
    assert "Inline 1110" in page.text
    assert "Time slice at 500 ms" in page.text
    with pytest.raises(UsageError, match="1100 to 1195"):
        write_report(url, tmp_path / "r.html", choice=SectionChoice(inline=20))


def test_survey_without_source_or_records_is_still_reported(tmp_path: Path) -> None:
    fake = Fake(tmp_path)
    url = fake.write()
    for key, _ in list(open_storage(f"{url}/_geobatch").list()):
        open_storage(f"{url}/_geobatch").delete(key)
    open_storage(str(tmp_path / "source")).delete("zarr.json")
    page = outline(write_report(url, tmp_path / "report.html"))
    assert "Amplitudes are not shown" in page.text
    assert page.tags.count("image") == 3 * 2


def test_only_what_scoring_wrote_can_be_reported(tmp_path: Path) -> None:
    Fake(tmp_path).write()
    with pytest.raises(UsageError, match="no prediction"):
        write_report(str(tmp_path / "source"), tmp_path / "r.html")
    with pytest.raises(NotFoundError):
        write_report(str(tmp_path / "nothing"), tmp_path / "r.html")


class CountingStore(zarr.storage.WrapperStore[Any]):
    keys: set[str] = set()  # noqa: RUF012 - shared by every store of a test on purpose

    async def get(self, key: str, *args: Any, **kwargs: Any) -> Any:
        self.keys.add(key)
        return await super().get(key, *args, **kwargs)

    async def get_partial_values(self, prototype: Any, key_ranges: Any) -> Any:
        ranges = list(key_ranges)
        self.keys.update(key for key, _ in ranges)
        return await super().get_partial_values(prototype, ranges)

    async def list(self) -> AsyncIterator[str]:
        raise AssertionError("a report must not list the store")
        yield


def test_report_reads_only_the_shards_its_sections_cross(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = Fake(tmp_path, shape=(64, 64, 64), shard=(16, 16, 16)).write()
    CountingStore.keys = set()
    opened = geobatch.survey.zarr_store
    monkeypatch.setattr(geobatch.survey, "zarr_store", lambda *a, **k: CountingStore(opened(*a, **k)))
    write_report(url, tmp_path / "report.html")
    for name in ("amplitude", "class_map", "probability"):
        read = {tuple(map(int, key.split("/")[2:]))[-3:] for key in CountingStore.keys if key.startswith(f"{name}/c/")}
        assert read == {(i, x, s) for i, x, s in np.ndindex(4, 4, 4) if 2 in (i, x, s)}


def test_classes_come_from_lists_or_words() -> None:
    words = {"flag_values": [0, 1, 255], "flag_meanings": "no_salt salt invalid", "flag_colors": "#ffffff #aa00aa #0"}
    lists = {key: value.split() if isinstance(value, str) else value for key, value in words.items()}
    assert class_styles(words) == class_styles(lists)
    assert [style.is_background for style in class_styles(words)] == [True, False]
