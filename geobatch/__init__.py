"""Distributed GPU batch processing for geoscience: object storage in, scored surveys out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from geobatch.job import load_job
    from geobatch.job import run_job as run
    from geobatch.models.bundle import load_bundle
    from geobatch.survey import open_survey

__version__ = "0.1.0"
__all__ = ["__version__", "load_bundle", "load_job", "open_survey", "run"]

_PLACES = {
    "load_bundle": ("geobatch.models.bundle", "load_bundle"),
    "load_job": ("geobatch.job", "load_job"),
    "open_survey": ("geobatch.survey", "open_survey"),
    "run": ("geobatch.job", "run_job"),
}


def __getattr__(name: str) -> Any:
    """The public functions, imported when first used: torch and Ray take seconds to load."""
    if name not in _PLACES:
        raise AttributeError(f"module 'geobatch' has no attribute {name!r}")
    import importlib

    module, attribute = _PLACES[name]
    return getattr(importlib.import_module(module), attribute)
