"""The warden against a Serve that fails, without a cluster."""

from __future__ import annotations

import sys
import threading
import types
from unittest.mock import Mock

import pytest

from geobatch.score import warden
from geobatch.score.warden import Warden


@pytest.mark.parametrize(("failures", "asked"), [(0, 1), (2, 3), (99, 5)])
def test_application_of_a_silent_driver_is_removed_though_serve_fails_at_first(
    failures: int, asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()
    serve = types.SimpleNamespace(delete=Mock(side_effect=[*[RuntimeError("no controller")] * failures, None]))
    ray = types.SimpleNamespace(serve=serve, kill=lambda actor: ended.set(), get_runtime_context=Mock())
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(warden, "POLL_S", 0.01)
    monkeypatch.setattr(warden, "TRIES", 5)
    Warden("score-1", abandoned_s=0.05)
    assert ended.wait(10)
    assert serve.delete.call_count == asked
    serve.delete.assert_called_with("score-1")
