"""How long an operation on storage is tried: the waits between attempts, and when it is given up.

The figures are module attributes, read at every operation.
"""

from __future__ import annotations

import random
import time

from geobatch.errors import IntegrityError, TransientError

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 20.0
"""Silence on an open connection, after which it counts as lost."""
FIRST_WAIT_S = 0.1
LONGEST_WAIT_S = 10.0
PATIENCE_S = 300.0
"""How long storage that has answered this process before is waited for."""
FIRST_CONTACT_S = 10.0
"""How long storage that never answered this process is waited for: its address may be wrong."""
LEAST_ATTEMPTS = 3
DAMAGED_READS = 8
"""Reads that arrive damaged before the object itself counts as damaged."""


_waited_at = float("-inf")


def waited_at() -> float:
    """When an operation of this process last waited for storage, by the monotonic clock; minus infinity for never."""
    return _waited_at


class Patience:
    """The attempts of one operation, each after a random wait whose bound doubles (exponential backoff, full jitter).

    Args:
        where: The object, for the error in the end.
        limit_s: How long to try; `PATIENCE_S` when not given.
    """

    def __init__(self, where: str, limit_s: float | None = None) -> None:
        self.where = where
        self.limit_s = PATIENCE_S if limit_s is None else limit_s
        self._begun = time.monotonic()
        self._failed = 0
        self._damaged = 0

    def after_failure(self, error: Exception, *, known: bool = True) -> float:
        """Seconds to wait before the next attempt, after one that storage did not answer, or answered by refusing.

        Args:
            error: What the attempt ended in.
            known: This storage has answered before.

        Raises:
            TransientError: it was tried for long enough.
        """
        global _waited_at
        _waited_at = time.monotonic()
        self._failed += 1
        limit_s = self.limit_s if known else min(self.limit_s, FIRST_CONTACT_S)
        elapsed_s = time.monotonic() - self._begun
        if elapsed_s >= limit_s and self._failed >= LEAST_ATTEMPTS:
            raise TransientError(
                "storage does not answer",
                where=self.where,
                measured=f"{type(error).__name__}: {error}",
                limit=f"an answer within {limit_s:g} s ({self._failed} attempts made)",
                remedy="Check AWS_ENDPOINT_URL and the network, then run the same command again.",
            ) from error
        return random.uniform(0, min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(self._failed, 30)))

    def after_damage(self, what: str) -> float:
        """Seconds to wait before the next read, after one whose bytes were not those that were stored.

        Raises:
            IntegrityError: they never are, so the object itself is damaged.
        """
        self._damaged += 1
        if self._damaged >= DAMAGED_READS:
            raise IntegrityError(
                "stored object is damaged",
                where=self.where,
                measured=f"{what}, in {self._damaged} reads",
                limit="the bytes whose checksum is stored with it",
                remedy="Write it again: ingest or repair the data set it belongs to.",
            )
        return random.uniform(0, min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**self._damaged))
