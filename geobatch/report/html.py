"""The report of a scored survey as one self-contained HTML file."""

from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from geobatch.report.panels import amplitude_scale, block_panel, section_view, trace_map
from geobatch.report.record import RunRecord, read_record
from geobatch.report.sections import ScoredSurvey, SectionChoice, open_scored, read_sections
from geobatch.report.tables import (
    class_rows,
    failure_rows,
    metrics,
    plan_rows,
    provenance_rows,
    run_rows,
    stage_rows,
    textual_header,
    verdict,
)
from geobatch.storage import join_url, open_storage, split_url
from geobatch.survey import control_url

FILE_NAME = "report.html"
TEMPLATE = "report.html.j2"
LISTED_FAILURES = 200


def write_report(
    output_url: str,
    dst_path: str | Path | None = None,
    *,
    choice: SectionChoice = SectionChoice(),  # noqa: B008 - frozen
    labels: str | None = None,
) -> str:
    """The path or URL of the report of a scored survey: one HTML file that needs nothing else to be shown.

    Only the sections shown are read from the volume, so that the report of a terabyte takes seconds.

    Args:
        output_url: the scored survey.
        dst_path: path or URL of the file to write; by default `report.html` among the run's records beside the survey.
        choice: the sections to show; by default the middle ones.
        labels: URL of a labels survey over the same lines, shown and compared with.

    Raises:
        NotFoundError: nothing is at `output_url` or `labels`.
        UsageError: there is no prediction in it, a chosen section lies outside, or the labels lie on other lines.
    """
    survey = open_scored(output_url, labels)
    page = render(survey, read_record(output_url), choice, output_url)
    return put_page(join_url(control_url(output_url), FILE_NAME) if dst_path is None else str(dst_path), page)


def put_page(url: str, page: str) -> str:
    """The URL of the page that was written, in a bucket or on a file system."""
    root, name = split_url(url)
    open_storage(root).put(name, page.encode())
    return url


def render(survey: ScoredSurvey, record: RunRecord, choice: SectionChoice, output_url: str) -> str:
    """The HTML text. Everything that comes from data is escaped by the template, which allows no script at all."""
    sections, notes = read_sections(survey, choice)
    scale = amplitude_scale(survey, sections)
    views = [section_view(survey, section, scale) for section in sections]
    traces, trace_counts = trace_map(survey)
    blocks = block_panel(survey, record)
    name = str(record.run.get("name") or record.job.get("name") or output_url.rstrip("/").rsplit("/", 1)[-1])
    sizes = [survey.scored.sizes[axis] for axis in ("inline", "crossline", "sample")]
    return (
        page_environment()
        .get_template(TEMPLATE)
        .render(
            name=name,
            sizes=sizes,
            verdict=verdict(survey, record),
            views=views,
            notes=[*survey.notes, *notes, *map(str, record.run.get("warnings") or [])],
            classes=class_rows(survey, sections),
            metrics=metrics(survey, sections),
            run=run_rows(record),
            plan=plan_rows(record),
            stages=stage_rows(record),
            maps=[panel for panel in (traces, blocks) if panel is not None],
            trace_counts=trace_counts,
            failures=failure_rows(record)[:LISTED_FAILURES],
            failures_total=len(record.dead_letters),
            provenance=provenance_rows(survey, record, output_url),
            header=textual_header(survey.source),
            attribution=str(survey.info.get("attribution") or survey.source_info.get("attribution") or ""),
            written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            version=version_text(),
        )
    )


def page_environment() -> Environment:
    """Where templates are found and how they are filled: everything from data is escaped."""
    return Environment(
        loader=PackageLoader("geobatch.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def version_text() -> str:
    """Which geobatch writes."""
    try:
        return version("geobatch")
    except PackageNotFoundError:
        return "(source tree)"
