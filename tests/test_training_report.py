"""What is told of a training while it runs and afterwards: TensorBoard's events, and the page of the bundle."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboardX.proto.event_pb2 import Event

from geobatch.report.comparing import _differences, render_comparison
from geobatch.report.training import training_groups
from geobatch.storage import open_storage
from geobatch.train.board import EVENTS, FOLDER, scalars, tell_board
from geobatch.train.compare_spec import CompareJob

HEADER = 8 + 4


def epoch(number: int, **validation: Any) -> dict[str, Any]:
    return {"epoch": number, "loss": 1.0 / number, "validation": validation}


def history(epochs: int) -> list[dict[str, Any]]:
    classes = {"fault": {"f1": 0.5, "iou": None}, "layered": {"f1": 0.9, "iou": 0.8}}
    return [epoch(n, pixel_accuracy=0.1 * n, mean_class_accuracy=None, classes=classes) for n in range(1, epochs + 1)]


def events(data: bytes) -> list[Event]:
    """Records of the form length, checksum, message, checksum."""
    found, place = [], 0
    while place < len(data):
        (length,) = struct.unpack("<Q", data[place : place + 8])
        found.append(Event.FromString(data[place + HEADER : place + HEADER + length]))
        place += HEADER + length + 4
    return found


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 5))
def test_events_hold_every_figure_and_grow_at_their_end(tmp_path_factory: Any, epochs: int) -> None:
    folder = tmp_path_factory.mktemp("board")
    bodies = []
    for count in (epochs, epochs + 1):
        tell_board(str(folder), history(count))
        bodies.append(open_storage(f"{folder}/{FOLDER}").get(EVENTS))
    told = [(event.step, value.tag, value.simple_value) for event in events(bodies[0]) for value in event.summary.value]
    assert len(told) == 5 * epochs
    assert (1, "loss", 1.0) in told
    assert {tag for _, tag, _ in told} == {name for name, _ in scalars(history(1)[0])}
    # The first record holds the time of writing, as long as it was.
    (first,) = struct.unpack("<Q", bodies[0][:8])
    start = HEADER + first + 4
    assert bodies[1][start : len(bodies[0])] == bodies[0][start:]


def test_telling_a_place_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / FOLDER).write_text("a file where a folder should be")
    tell_board(str(tmp_path), history(1))


@pytest.mark.parametrize("kind", ["wells", "windows"])
def test_a_comparison_is_told_with_its_chances(kind: str) -> None:
    interval = {"difference": -0.1, "interval": [-0.2, 0.05], "first_better": 0.2}
    if kind == "wells":
        figures = {"mean_accuracy": 0.6, "standard_error": 0.1, "wells": {"A <b>": 0.5, "B": 0.7}}
        chosen = {**figures, "chosen": {"A <b>": "cnn", "B": "cnn"}}
        result = {"wells": ["A <b>", "B"], "candidates": {"cnn": figures, "choice": chosen}}
        key = "accuracy"
    else:
        entry = {"auroc": {"value": 0.9, "interval": [0.8, 0.95]}}
        result = {"windows": 8, "groups": 3, "by": "station", "candidates": {"cnn": entry, "choice": entry}}
        key = "auroc"
    result |= {"best": "choice", "pairs": [{"first": "cnn", "second": "choice", key: interval}]}
    data = {"kind": "wells", "survey": "s", "labels": "l", "curves": {"curves": ["GR"]}}
    job = CompareJob.model_validate(
        {"data": data, "candidates": {"cnn": {"model": {"name": "cnn"}}}, "output": "o", "name": "which"}
    )
    page = render_comparison(job, result)
    assert "best: choice" in page and "choice against the others" in page and "<b>" not in page
    assert ("chosen: cnn 2 ×" in page) == (kind == "wells")
    # The best is the second of the pair: its difference is the other way round.
    (panel,) = _differences(result)[0].panels
    assert panel.frame.x_label.endswith("of choice less that of the other")
    (zero,) = (mark for mark in panel.marks if "v" in mark.path)
    dot = panel.marks[-1]
    assert float(dot.path[1:].split()[0]) > float(zero.path[1:].split()[0])


def test_curves_are_those_of_what_was_measured() -> None:
    (group,) = training_groups(history(3))
    assert [panel.title for panel in group.panels] == ["Loss", "Held out", "F1 of each class"]
    assert [style.name for style in group.panels[1].classes] == ["pixel accuracy"]
    (numbers,) = training_groups([epoch(1, rmse=0.5, mae=0.4, r2=None), epoch(2, rmse=0.3, mae=0.2, r2=0.6)])
    assert [panel.title for panel in numbers.panels] == ["Loss", "RMSE", "R²"]
    (nothing,) = training_groups([epoch(1)])
    assert [panel.title for panel in nothing.panels] == ["Loss"]
    assert training_groups([]) == []
