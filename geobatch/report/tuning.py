"""The trials of a tuning job as a ranked table, and as a page with pictures."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from geobatch.report.charts import ALERT, INK, SOFT, Axis, Chart, linear, logarithmic, shortened
from geobatch.report.figures import Panel
from geobatch.report.html import page_environment, put_page, version_text
from geobatch.storage import join_url

FILE_NAME, TEMPLATE = "tune.html", "tune.html.j2"
_COLORS = {"complete": INK, "stopped": SOFT}
_LEGEND = (("the best", ALERT), ("to the end", INK), ("stopped", SOFT))
# A parameter whose largest value is so many times the smallest is drawn by logarithms.
_WIDE = 30.0


def write_tuning(result: dict[str, Any]) -> dict[str, Any]:
    """The result of a tuning job with the URL of its page, `page`, which is stored beside its bundle."""
    return {**result, "page": put_page(join_url(result["bundle"], FILE_NAME), render_tuning(result))}


def trial_table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the trials, the best first; parameters that a trial had no choice of are empty."""
    names = _parameters(result)
    header = ["rank", "trial", _spoken(result["metric"]), "epochs", "state", *names, "s"]
    rows = [
        [
            str(rank),
            str(trial["number"]),
            _figure(trial),
            str(trial["epochs"]),
            f"failed: {trial['error']}" if trial["state"] == "failed" else trial["state"],
            *(_text(trial["searched"].get(name)) for name in names),
            f"{trial['seconds']:.1f}",
        ]
        for rank, trial in enumerate(result["trials"], 1)
    ]
    return header, rows


def short_table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The same for a terminal: all that was searched in the last column, by the last part of its key, and errors."""
    rows = []
    for rank, trial in enumerate(result["trials"], 1):
        searched = trial["searched"]
        ends = [name.rsplit(".", 1)[-1] for name in searched]
        short = [end if ends.count(end) == 1 else name for name, end in zip(searched, ends, strict=True)]
        told = ", ".join(f"{name} {_text(value)}" for name, value in zip(short, searched.values(), strict=True))
        cells = (rank, trial["number"], _figure(trial), trial["epochs"], trial["state"], f"{trial['seconds']:.1f}")
        rows.append([*map(str, cells), f"{told}: {trial['error']}" if trial["error"] else told])
    return ["rank", "trial", _spoken(result["metric"]), "epochs", "state", "s", "searched"], rows


def render_tuning(result: dict[str, Any]) -> str:
    """The HTML text: figures over epochs, figures over each parameter, the table and the best training."""
    header, rows = trial_table(result)
    shown = [trial for trial in result["trials"] if trial["figure"] is not None]
    panels: list[Panel | None] = [_over_epochs(result["metric"], shown)]
    panels += [_over_parameter(result["metric"], shown, name) for name in _parameters(result)]
    states = [trial["state"] for trial in result["trials"]]
    return (
        page_environment()
        .get_template(TEMPLATE)
        .render(
            name=result["name"],
            url=result["bundle"],
            verdict=f"{_spoken(result['metric'])} {shown[0]['figure']:.4f}",
            counts=", ".join(f"{states.count(s)} {s}" for s in ("complete", "stopped", "failed") if s in states),
            panels=[panel for panel in panels if panel is not None],
            header=header,
            rows=rows,
            written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            version=version_text(),
        )
    )


def _over_epochs(metric: str, trials: Sequence[dict[str, Any]]) -> Panel:
    """One line per trial; the best lies on top."""
    low, high = _span([value for trial in trials for value in trial["figures"] if value is not None])
    longest = max(trial["epochs"] for trial in trials)
    chart = Chart(linear(1, max(longest, 2), "epoch"), linear(low, high, _spoken(metric)))
    for trial in reversed(trials):
        values = np.array([np.nan if value is None else value for value in trial["figures"]])
        best = trial is trials[0]
        chart.line(np.arange(1, values.size + 1), values, _color(trials, trial), 2.2 if best else 1.0)
        chart.dots(np.array([values.size]), values[-1:], _color(trials, trial), 4.0)
    return chart.panel("Trials", legend=_LEGEND, note="A dot is where a trial ended.")


def _over_parameter(metric: str, trials: Sequence[dict[str, Any]], name: str) -> Panel | None:
    """A dot per trial that had a choice of the parameter; None where none had."""
    own = [trial for trial in trials if name in trial["searched"]]
    if not own:
        return None
    low, high = _span([trial["figure"] for trial in own])
    values = [trial["searched"][name] for trial in own]
    axis, places = _places(name, values)
    chart = Chart(axis, linear(low, high, _spoken(metric)))
    for trial, place in reversed(list(zip(own, places, strict=True))):
        chart.dots(np.array([place]), np.array([trial["figure"]]), _color(trials, trial), 6.0)
    return chart.panel(shortened(name, 60), legend=_LEGEND)


def _places(name: str, values: Sequence[Any]) -> tuple[Axis, list[float]]:
    """An axis for the values of a parameter, of numbers or of names, and where each lies on it."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        numbers = [float(value) for value in values]
        if min(numbers) > 0 and max(numbers) > _WIDE * min(numbers):
            return logarithmic(min(numbers) / 1.1, max(numbers) * 1.1, name), numbers
        return linear(*_span(numbers), name), numbers
    names = sorted({_text(value) for value in values})
    ticks = tuple((k + 0.5, shortened(text, max(6, 60 // len(names)))) for k, text in enumerate(names))
    return Axis(0, len(names), name, ticks), [names.index(_text(value)) + 0.5 for value in values]


def _parameters(result: dict[str, Any]) -> list[str]:
    """Every parameter that was searched, in the order in which trials had them."""
    return list(dict.fromkeys(name for trial in result["trials"] for name in sorted(trial["searched"])))


def _figure(trial: dict[str, Any]) -> str:
    return "" if trial["figure"] is None else f"{trial['figure']:.4f}"


def _color(trials: Sequence[dict[str, Any]], trial: dict[str, Any]) -> str:
    return ALERT if trial is trials[0] else _COLORS[trial["state"]]


def _span(values: Sequence[float]) -> tuple[float, float]:
    """The ends of an axis with some room beyond the values."""
    low, high = min(values), max(values)
    room = 0.05 * (high - low) or 0.05 * abs(high) or 0.5
    return low - room, high + room


def _spoken(metric: str) -> str:
    return metric.replace("_", " ")


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
