"""The page of `job: compare`: what each candidate reached, by group, and which differences are more than chance."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np

from geobatch.report.charts import INK, LINE_COLORS, SOFT, Chart, linear, of_names
from geobatch.report.figures import Group, Panel
from geobatch.report.html import page_environment, put_page, version_text
from geobatch.report.tables import Verdict
from geobatch.storage import join_url
from geobatch.train.compare_spec import CompareJob

PAGE = "compare.html"
TEMPLATE = "groups.html.j2"
NAMES = {"auroc": "AUROC", "auprc": "AUPRC", "accuracy": "accuracy", "rmse": "RMSE", "mae": "mean error", "r2": "R²"}
NAMES |= {"score": "penalty score"}
_ROW = 26.0
_LEFT = 150.0


def write_comparison(job: CompareJob, result: dict[str, Any]) -> str:
    """The URL of the page of a result as `train.compare` documents it, written under the job's output."""
    return put_page(join_url(job.output, PAGE), render_comparison(job, result))


def render_comparison(job: CompareJob, result: dict[str, Any]) -> str:
    """The HTML text; everything that comes from data is escaped, and no script is allowed."""
    return (
        page_environment()
        .get_template(TEMPLATE)
        .render(
            name=job.name,
            url=job.data.survey,
            command="compare",
            about="Candidates",
            verdict=Verdict("good", f"best: {result['best']}"),
            notes=[],
            listed=0,
            rows=[(name, _told(figures)) for name, figures in result["candidates"].items()],
            shown_rows=40,
            groups=[*_of_groups(result), *_differences(result)],
            header="",
            attribution="",
            written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            version=version_text(),
        )
    )


def _told(figures: dict[str, Any]) -> str:
    """A candidate's figures in a line."""
    if "mean_accuracy" not in figures:
        told = {NAMES[key]: entry for key, entry in figures.items() if key in NAMES}
        return "; ".join(
            f"{name} {entry['value']:.3f} ({entry['interval'][0]:.3f} to {entry['interval'][1]:.3f})"
            for name, entry in told.items()
        )
    parts = [f"mean accuracy {figures['mean_accuracy']:.3f}"]
    if figures["standard_error"] is not None:
        parts.append(f"standard error {figures['standard_error']:.3f}")
    if "penalty_score" in figures:
        parts.append(f"penalty score {figures['penalty_score']:.3f}")
    if "chosen" in figures:
        names = list(figures["chosen"].values())
        parts.append("chosen: " + ", ".join(f"{name} {names.count(name)} ×" for name in dict.fromkeys(names)))
    return "; ".join(parts)


def _of_groups(result: dict[str, Any]) -> list[Group]:
    """What each candidate reached: on each well, or over all windows with its interval."""
    if "wells" in result:
        note = "Each well is judged by a model that has not seen it."
        return [Group("Blind wells", note, [_wells(result)])]
    keys = [key for key in next(iter(result["candidates"].values())) if key in NAMES]
    note = f"Over {result['windows']} windows of {result['groups']} {result['by']}s, with 95 % intervals over those."
    return [Group("What each reached", note, [_reached(result, key) for key in keys])]


def _wells(result: dict[str, Any]) -> Panel:
    wells = result["wells"]
    chart = Chart(linear(0, 1, "accuracy"), of_names(wells), left=_LEFT, height=_ROW * len(wells))
    legend = []
    for number, (name, figures) in enumerate(result["candidates"].items()):
        color = LINE_COLORS[number % len(LINE_COLORS)]
        chart.dots(np.array([figures["wells"][well] for well in wells]), np.arange(len(wells)) + 0.5, color, 6.0, 0.85)
        legend.append((name, color))
    return chart.panel("Accuracy of each blind well", legend=legend)


def _reached(result: dict[str, Any], key: str) -> Panel:
    entries = {name: figures[key] for name, figures in result["candidates"].items()}
    lows, highs = (np.array([entry["interval"][end] for entry in entries.values()]) for end in (0, 1))
    chart = Chart(
        linear(float(lows.min()), float(highs.max()), NAMES[key]),
        of_names(list(entries)),
        left=_LEFT,
        height=_ROW * len(entries),
    )
    return _with_intervals(chart, lows, highs, [entry["value"] for entry in entries.values()]).panel(NAMES[key])


def _differences(result: dict[str, Any]) -> list[Group]:
    """How far the best is from each other one, with the interval of a paired bootstrap."""
    best = result["best"]
    pairs = [(pair, 1.0) for pair in result["pairs"] if pair["first"] == best]
    pairs += [(pair, -1.0) for pair in result["pairs"] if pair["second"] == best]
    if not pairs:
        return []
    panels = []
    for key in [key for key in pairs[0][0] if key in NAMES]:
        names = [pair["second"] if sign > 0 else pair["first"] for pair, sign in pairs]
        ends = np.array([sorted(sign * value for value in pair[key]["interval"]) for pair, sign in pairs])
        low, high = min(0.0, float(ends.min())), max(0.0, float(ends.max()))
        label = f"{NAMES[key]} of {best} less that of the other"
        chart = Chart(linear(low, high, label), of_names(names), left=_LEFT, height=_ROW * len(names))
        chart.upright(0.0, SOFT)
        middle = [sign * pair[key]["difference"] for pair, sign in pairs]
        panels.append(_with_intervals(chart, ends[:, 0], ends[:, 1], middle).panel(NAMES[key]))
    note = "95 % intervals of paired bootstraps: where one holds 0, the two cannot be told apart."
    return [Group(f"{best} against the others", note, panels)]


def _with_intervals(chart: Chart, lows: Any, highs: Any, middle: list[float]) -> Chart:
    rows = np.arange(len(middle)) + 0.5
    for low, high, row in zip(lows, highs, rows, strict=True):
        chart.line(np.array([low, high]), np.array([row, row]), INK, 1.6)
    chart.dots(np.array(middle, float), rows, INK, 6.0)
    return chart
