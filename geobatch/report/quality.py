"""The page of `geobatch inspect`: what is suspicious, what is in it, and pictures, as one self-contained HTML file."""

from __future__ import annotations

from datetime import UTC, datetime

from geobatch.formats.miniseed_process import close_decoder
from geobatch.formats.spec import Inspected
from geobatch.report.figures import Group
from geobatch.report.html import page_environment, version_text
from geobatch.report.quality_rasters import array_groups, raster_groups
from geobatch.report.quality_seismic import class_groups, seismic_groups
from geobatch.report.quality_tables import catalogue_groups, well_groups
from geobatch.report.quality_waveforms import waveform_groups, window_groups
from geobatch.report.tables import Verdict, textual_header

TEMPLATE = "groups.html.j2"
LISTED = 20
SHOWN_ROWS = 40


def render_quality(found: Inspected, rows: list[tuple[str, str]]) -> str:
    """The HTML text of what was looked at; everything that comes from data is escaped, and no script is allowed.

    Reads planes, windows and pieces as bounded as `geobatch.sample`, `formats.waveform_sample` and the modules of the
    pictures say: a terabyte costs no more than some gigabytes of chunks, most surveys far less.

    Args:
        found: A survey or a raw source, described and lazily opened.
        rows: Label and text of each line of its description.
    """
    told, info = found.told, dict(found.dataset.attrs.get("geobatch") or {})
    try:
        groups = picture_groups(found)
    finally:
        close_decoder()
    count = len(told["suspicious"])
    verdict = Verdict("open", f"{count} to look at") if count else Verdict("good", "nothing suspicious")
    source = info.get("source") or {}
    return (
        page_environment()
        .get_template(TEMPLATE)
        .render(
            name=str(told["url"]).rstrip("/").rsplit("/", 1)[-1],
            url=told["url"],
            command="inspect",
            about="What is in it",
            verdict=verdict,
            notes=told["suspicious"],
            listed=LISTED,
            rows=rows,
            shown_rows=SHOWN_ROWS,
            groups=groups,
            header=textual_header(found.dataset),
            attribution=str(info.get("attribution") or source.get("attribution") or ""),
            written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            version=version_text(),
        )
    )


def picture_groups(found: Inspected) -> list[Group]:
    """The pictures of each kind."""
    told, dataset = found.told, found.dataset
    info = dict(dataset.attrs.get("geobatch") or {})
    kind = told.get("makes") or {"miniseed": "waveforms"}.get(told["kind"], told["kind"])
    if kind in ("volume", "gathers", "traces"):
        return seismic_groups(dataset, info, told, found.sample)
    if kind == "waveforms":
        return waveform_groups(dataset, told, found.sample)
    if kind == "windows":
        return window_groups(dataset, told)
    if kind == "wells":
        return well_groups(dataset, info, told)
    if kind == "catalogue":
        return catalogue_groups(dataset)
    if kind == "raster":
        return raster_groups(dataset, info, told)
    if kind == "array":
        return array_groups(dataset, told)
    return class_groups(dataset, info, told) if "class_map" in dataset else []
