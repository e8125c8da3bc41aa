"""The page of a trained bundle: how training went, epoch by epoch, and what the bundle is."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import cycle
from types import MappingProxyType
from typing import Any

import numpy as np

from geobatch.models.bundle import BundleSpec, load_bundle
from geobatch.report.charts import ALERT, INK, LINE_COLORS, Chart, linear, logarithmic
from geobatch.report.figures import Group, Panel
from geobatch.report.html import page_environment, put_page, version_text
from geobatch.report.tables import Verdict
from geobatch.storage import join_url
from geobatch.train.spec import Validation

PAGE = "train.html"
TEMPLATE = "groups.html.j2"
NAMES = {
    "pixel_accuracy": "pixel accuracy",
    "mean_class_accuracy": "mean class accuracy",
    "fwiou": "frequency-weighted IoU",
    "mean_iou": "mean IoU",
    "rmse": "RMSE",
    "mae": "mean error",
    "r2": "R²",
}
SHARES = ("pixel_accuracy", "mean_class_accuracy", "fwiou", "mean_iou")


def write_training_report(url: str) -> str:
    """The URL of the page of the bundle at `url`, written beside it.

    Raises:
        NotFoundError, IntegrityError: as `load_bundle`.
    """
    spec = load_bundle(url).spec
    return put_page(join_url(url, PAGE), render_training(url, spec))


def render_training(url: str, spec: BundleSpec) -> str:
    """The HTML text; everything that comes from data is escaped, and no script is allowed."""
    history = spec.metrics.get("history") or []
    verdict = Verdict("good", f"{len(history)} epochs") if history else Verdict("open", "no history")
    return (
        page_environment()
        .get_template(TEMPLATE)
        .render(
            name=spec.name,
            url=url,
            command="train",
            about="The bundle",
            verdict=verdict,
            notes=[],
            listed=0,
            rows=_rows(spec),
            shown_rows=40,
            groups=training_groups(history, {entry.name: entry.color for entry in spec.classes}),
            header="",
            attribution="",
            written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            version=version_text(),
        )
    )


def training_groups(history: list[dict[str, Any]], colors: Mapping[str, str] = MappingProxyType({})) -> list[Group]:
    """Curves of the loss and of what was held out, by epoch; of classes in their colours, where they have some."""
    if not history:
        return []
    panels = [_loss(history), *_shares(history), *_numbers(history), *_classes(history, colors)]
    return [Group("How it went", "The loss is the mean of an epoch's steps; the rest is what was held out.", panels)]


def _loss(history: list[dict[str, Any]]) -> Panel:
    epochs, losses = _curve(history, lambda figures: figures["loss"])
    positive = losses[losses > 0]
    low, high = (positive.min(), positive.max()) if positive.size else (0.1, 1.0)
    chart = Chart(_epochs(epochs), logarithmic(low / 1.2, high * 1.2, "loss"))
    return _drawn(chart, epochs, losses, INK).panel("Loss")


def _shares(history: list[dict[str, Any]]) -> list[Panel]:
    """Accuracies and IoUs of what is held out."""
    keys = [key for key in SHARES if (history[-1]["validation"] or {}).get(key) is not None]
    if not keys:
        return []
    epochs, _ = _curve(history, lambda figures: figures["loss"])
    chart = Chart(_epochs(epochs), linear(0, 1, "held out"))
    for key, color in zip(keys, LINE_COLORS, strict=False):
        _drawn(chart, *_curve(history, lambda figures, key=key: figures["validation"].get(key)), color)
    return [
        chart.panel("Held out", legend=[(NAMES[key], color) for key, color in zip(keys, LINE_COLORS, strict=False)])
    ]


def _numbers(history: list[dict[str, Any]]) -> list[Panel]:
    """Errors of numbers."""
    panels = []
    for key in ("rmse", "r2"):
        epochs, values = _curve(history, lambda figures, key=key: (figures["validation"] or {}).get(key))
        if np.isfinite(values).any():
            low, high = float(np.nanmin(values)), float(np.nanmax(values))
            chart = Chart(_epochs(epochs), linear(min(low, 0.0), high, NAMES[key]))
            panels.append(_drawn(chart, epochs, values, ALERT).panel(NAMES[key]))
    return panels


def _classes(history: list[dict[str, Any]], colors: Mapping[str, str]) -> list[Panel]:
    """F1 of each class."""
    names = list((history[-1]["validation"] or {}).get("classes") or {})
    if not names:
        return []
    epochs, _ = _curve(history, lambda figures: figures["loss"])
    chart = Chart(_epochs(epochs), linear(0, 1, "F1"))
    legend = [(name, colors.get(name, color)) for name, color in zip(names, cycle(LINE_COLORS), strict=False)]
    for name, color in legend:
        _drawn(chart, *_curve(history, lambda f, name=name: f["validation"]["classes"][name]["f1"]), color)
    return [chart.panel("F1 of each class", legend=legend)]


def _curve(history: list[dict[str, Any]], value: Any) -> tuple[Any, Any]:
    """Epochs, and a figure of each, NaN where there is none."""
    found = [value(figures) for figures in history]
    return (
        np.array([figures["epoch"] for figures in history], float),
        np.array([np.nan if one is None else one for one in found], float),
    )


def _epochs(epochs: Any) -> Any:
    return linear(float(epochs.min()), float(max(epochs.max(), epochs.min() + 1)), "epoch")


def _drawn(chart: Chart, epochs: Any, values: Any, color: str) -> Chart:
    chart.line(epochs, values, color)
    chart.dots(epochs, values, color, 4.0)
    return chart


def _held_out(validation: dict[str, Any]) -> str:
    """The keys of a validation that say more than the schema by itself."""
    usual = Validation().model_dump(mode="json")
    told = {key: value for key, value in validation.items() if value != usual.get(key)}
    if not told and "fraction" in validation:
        told = {"fraction": validation["fraction"]}
    return "; ".join(f"{key} {_plain(value)}" for key, value in told.items())


def _plain(value: Any) -> str:
    return (
        ", ".join(map(_plain, value))
        if isinstance(value, list)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def _rows(spec: BundleSpec) -> list[tuple[str, str]]:
    """What the bundle is, line by line."""
    job = spec.provenance.get("job") or {}
    validation = spec.metrics.get("validation") or {}
    parameters = ", ".join(f"{key} {value}" for key, value in spec.model.items() if key != "name")
    rows = [
        ("network", f"{spec.model.get('name')}: {parameters}"),
        ("axes", ", ".join(spec.axes)),
        ("classes", ", ".join(entry.name for entry in spec.classes) or "none: a number"),
        ("halo", ", ".join(f"{before} and {after}" for before, after in spec.reach.halo)),
        ("trained on", ", ".join(str(survey["url"]) for survey in spec.provenance.get("surveys", []))),
        ("held out", _held_out(job.get("validation") or {})),
        *((NAMES[key], f"{value:.4f}") for key, value in validation.items() if key in NAMES and value is not None),
        ("hash", spec.hash),
    ]
    return [(name, text) for name, text in rows if text]
