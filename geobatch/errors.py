"""Every error geobatch raises on purpose.

GeobatchError                       exit 1
├── UsageError       (ValueError)   exit 2   the command or the job file is wrong
│   └── StorageError (OSError)               a bucket, path or credential is wrong
│       └── NotFoundError (KeyError)         an object that was named does not exist
├── DataError        (ValueError)   exit 3   the data are bad
│   ├── FormatError                          a raw file breaks its format
│   ├── GeometryError                        its traces make no grid
│   ├── MismatchError                        the wrong data for this bundle or this output
│   └── IntegrityError                       bytes differ from their recorded hash
├── IncompleteError                 exit 4   dead letters remain
├── LeaseError                      exit 1   another run writes this output
└── TransientError   (OSError)      exit 1   storage or workers failed beyond every retry
"""

from __future__ import annotations

from typing import Any


class GeobatchError(Exception):
    """An error in house form: what, where, the measured value, the limit, the remedy.

    Args:
        what: The fault, as a clause without a full stop.
        where: The file, object, block or job key it was found in.
        measured: The value that was found.
        limit: The value that is allowed or was expected.
        remedy: What the user can do, as a sentence.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", measured: Any = "", limit: Any = "", remedy: str = "") -> None:
        self.what = what
        self.where = where
        self.measured = str(measured)
        self.limit = str(limit)
        self.remedy = remedy
        super().__init__(what)

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        if self.measured:
            text += f"; found {self.measured}"
        if self.limit:
            text += f"; expected {self.limit}"
        text = text.rstrip(".") + "."
        return f"{text} {self.remedy}" if self.remedy else text

    def __reduce__(self) -> tuple[Any, ...]:
        fields = {"where": self.where, "measured": self.measured, "limit": self.limit, "remedy": self.remedy}
        return (_rebuild, (type(self), self.what, fields))


def _rebuild(kind: type[GeobatchError], what: str, fields: dict[str, str]) -> GeobatchError:
    """The same error on the other side of a process boundary."""
    return kind(what, **fields)


class UsageError(GeobatchError, ValueError):
    """The command or the job file is wrong."""

    exit_code = 2


class StorageError(UsageError, OSError):
    """A bucket, path or credential is wrong."""


class NotFoundError(StorageError, KeyError):
    """An object that was named does not exist."""


class DataError(GeobatchError, ValueError):
    """The data are bad."""

    exit_code = 3


class FormatError(DataError):
    """A raw file breaks its format."""


class GeometryError(DataError):
    """The traces of a file make no grid."""


class MismatchError(DataError):
    """The data, or an output begun earlier, are not what the bundle or the job needs."""


class IntegrityError(DataError):
    """Bytes differ from their recorded hash."""


class IncompleteError(GeobatchError):
    """The run ended and dead letters remain."""

    exit_code = 4


class LeaseError(GeobatchError):
    """Another run holds the lease of this output."""


class TransientError(GeobatchError, OSError):
    """Storage or workers failed beyond every retry; the same command may succeed later."""
