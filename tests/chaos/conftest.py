from __future__ import annotations

import pytest
from scene import Scene, make_scene


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """A small survey with its bundle and its undisturbed output, on the local disk."""
    return make_scene(str(tmp_path_factory.mktemp("scene")))
