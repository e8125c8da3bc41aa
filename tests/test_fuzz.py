"""Readers of foreign files meet bytes that were changed, cut and moved: only errors of ours come out."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent / "fuzz"))
from targets import TARGETS, execute


@st.composite
def damaged(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A seed with bytes replaced, a part cut out and a part doubled."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 8))):
        if not data:
            break
        place = draw(st.integers(0, len(data) - 1))
        how = draw(st.sampled_from(["replace", "cut", "double", "end"]))
        if how == "replace":
            new = draw(st.binary(min_size=1, max_size=8))
            data[place : place + len(new)] = new
        elif how == "cut":
            del data[place : place + draw(st.integers(1, 300))]
        elif how == "double":
            data[place:place] = data[place : place + draw(st.integers(1, 300))]
        else:
            del data[place:]
    return bytes(data)


@pytest.mark.parametrize("target", TARGETS)
def test_damaged_files_end_in_errors_of_ours(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    seeds = list(TARGETS[target].seeds(tmp_path))

    @settings(max_examples=150, deadline=2000, suppress_health_check=[HealthCheck.too_slow])
    @given(damaged(seeds))
    def run(data: bytes) -> None:
        execute(target, data, tmp_path)

    run()
