"""Refusals of a request: an HTTP status and an error in house form, as JSON."""

from __future__ import annotations

from typing import Any

from fastapi import HTTPException

from geobatch.errors import DataError, GeobatchError, NotFoundError, StorageError, TransientError, UsageError

STATUS: dict[type[GeobatchError], int] = {
    NotFoundError: 404,
    StorageError: 502,
    TransientError: 503,
    UsageError: 422,
    DataError: 422,
    GeobatchError: 500,
}
"""Status of an error that comes from the library, the first class that fits."""


def refusal(
    status: int, what: str, *, where: str = "", measured: object = "", limit: object = "", remedy: str = ""
) -> HTTPException:
    """An exception that ends a request with `status` and the fault, the figures and the remedy."""
    error = UsageError(what, where=where, measured=measured, limit=limit, remedy=remedy)
    return HTTPException(status, detail=as_json(error))


def as_json(error: GeobatchError) -> dict[str, Any]:
    """The fields of an error and its one sentence."""
    return {
        "what": error.what,
        "where": error.where,
        "measured": error.measured,
        "limit": error.limit,
        "remedy": error.remedy,
        "message": str(error),
    }


def status_of(error: GeobatchError) -> int:
    """The HTTP status that says what kind of error this is."""
    return next(status for kind, status in STATUS.items() if isinstance(error, kind))
