"""The page of `job: evaluate`: figures with their uncertainty, confusion, calibration, errors by line, and sections."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np

from geobatch.errors import GeobatchError
from geobatch.report.charts import ALERT, INK, SOFT, Chart, linear
from geobatch.report.figures import Panel
from geobatch.report.html import page_environment, put_page, version_text
from geobatch.report.panels import SectionView, amplitude_scale, error_panel, section_view
from geobatch.report.sections import open_scored, read_section
from geobatch.storage import join_url
from geobatch.train.evaluate_spec import EvaluateJob

PAGE = "evaluate.html"
TEMPLATE = "evaluation.html.j2"
FIGURES = {
    "pixel_accuracy": "Pixel accuracy",
    "mean_class_accuracy": "Mean class accuracy",
    "fwiou": "Frequency-weighted IoU",
    "mean_iou": "Mean IoU",
}
BASELINES = {
    "most_frequent": "The most frequent class",
    "most_frequent_of_sample": "The most frequent class at each time or depth",
}


def write_evaluation(job: EvaluateJob, result: dict[str, Any]) -> str:
    """The URL of the page, written under the job's output."""
    return put_page(join_url(job.output, PAGE), render_evaluation(job, result))


def render_evaluation(job: EvaluateJob, result: dict[str, Any]) -> str:
    """The HTML text of a result as `train.evaluate` documents it; what comes from data is escaped, no script runs.

    Args:
        job: What was compared; the sections shown are read from it.
        result: Of it.
    """
    views, notes = _views(job, result)
    return (
        page_environment()
        .get_template(TEMPLATE)
        .render(
            name=job.name,
            job=job,
            result=result,
            figures=FIGURES,
            baselines=BASELINES,
            confusion=_confusion(result),
            panels=[panel for panel in (_lines(job, result), _reliability(result)) if panel is not None],
            views=views,
            notes=notes,
            written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            version=version_text(),
        )
    )


def _confusion(result: dict[str, Any]) -> list[tuple[str, list[tuple[str, int]]]]:
    """Per true class its name and, per class given, the share of its cells as text and as a depth of colour."""
    rows = []
    for name, counts in zip(result["classes"], result["confusion"], strict=True):
        total = max(1, sum(counts))
        shares = [100 * count / total for count in counts]
        rows.append((name, [(f"{share:.1f}" if share else "", round(share)) for share in shares]))
    return rows


def _lines(job: EvaluateJob, result: dict[str, Any]) -> Panel | None:
    """Accuracy of each line."""
    lines = result["lines"]
    if len(lines) < 2:
        return None
    numbers = np.array([line[job.by] for line in lines], float)
    chart = Chart(linear(numbers.min(), numbers.max(), job.by), linear(0, 1, "accuracy"))
    for key, color in (("pixel_accuracy", INK), ("mean_class_accuracy", ALERT)):
        values = np.array([line[key] for line in lines], float)
        chart.line(numbers, values, color)
        chart.dots(numbers, values, color, 4.0)
    legend = [("pixel accuracy", INK), ("mean class accuracy", ALERT)]
    return chart.panel(f"Accuracy of each {job.by}", legend=legend)


def _reliability(result: dict[str, Any]) -> Panel | None:
    """How often the network is right where it is how sure."""
    if "calibration" not in result:
        return None
    bins = result["calibration"]["bins"]
    chart = Chart(linear(0, 1, "probability of the class given"), linear(0, 1, "share that is right"), ratio=0.8)
    chart.line(np.array([0.0, 1.0]), np.array([0.0, 1.0]), SOFT, 1.0)
    trust, right = (np.array([entry[key] for entry in bins], float) for key in ("probability", "right"))
    chart.line(trust, right, INK)
    chart.dots(trust, right, INK, 4.5)
    error = result["calibration"]["expected_error"]
    return chart.panel("Calibration", note=f"Expected calibration error {error:.3f}; below the line it is too sure.")


def _views(job: EvaluateJob, result: dict[str, Any]) -> tuple[list[SectionView], list[str]]:
    """The lines with the most, the median and the fewest errors, of labels beside amplitudes where they are at hand."""
    lines = sorted(result["lines"], key=lambda line: float(line["pixel_accuracy"]))
    chosen = {"most errors": lines[0], "median": lines[len(lines) // 2], "fewest errors": lines[-1]}
    numbers: dict[float, list[str]] = {}
    for name, line in chosen.items():
        numbers.setdefault(float(line[job.by]), []).append(name)
    try:
        survey = open_scored(job.scored, job.labels)
    except GeobatchError as error:
        return [], [f"No sections are shown: {error}"]
    sections = [
        read_section(survey, job.by, int(np.abs(survey.axis_values(job.by) - number).argmin())) for number in numbers
    ]
    scale = amplitude_scale(survey, sections)
    views = []
    for section, names in zip(sections, numbers.values(), strict=True):
        view = section_view(survey, section, scale)
        panels = [*view.panels, error_panel(survey, section)]
        views.append(SectionView(f"{view.title}: {', '.join(names)}", view.scale, panels, []))
    return views, survey.notes
