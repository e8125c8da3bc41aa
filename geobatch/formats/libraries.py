"""The field's own libraries, imported when a format first needs them, since they are large and optional."""

from __future__ import annotations

import importlib
from typing import Any

from geobatch.errors import UsageError


def need(module: str, extra: str) -> Any:
    """The module, imported.

    Args:
        module: Its dotted name.
        extra: The optional part of geobatch that brings it.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            "a library that this format needs is not installed",
            where=module,
            measured=str(error),
            remedy=f"pip install 'geobatch[{extra}]' installs it.",
        ) from error
