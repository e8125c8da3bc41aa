"""Bytes of a file in storage as GDAL reads them: pages kept, blocks read ahead side by side."""

from __future__ import annotations

import bisect
import itertools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from geobatch.errors import GeobatchError
from geobatch.storage import Storage

PAGE_BYTES = 2**16
MOST_AHEAD = 64
CACHED_BYTES = 16 * 2**20
READERS = 4
RUN_BYTES = 8 * 2**20
# A gap this small between wanted blocks costs less to read than another request.
GAP_BYTES = 128 * 2**10
FETCHED_BYTES = 64 * 2**20


class Ranges:
    """Bytes of one file, of which what was read last is kept; reads in order fetch more and more ahead.

    What storage raises goes to `on_error`, and the read comes back empty: an exception would be lost inside GDAL.
    """

    def __init__(self, storage: Storage, key: str, size: int, on_error: Callable[[GeobatchError], None]) -> None:
        self.size = size
        self._storage, self._key, self._on_error = storage, key, on_error
        self._pages: OrderedDict[int, bytes] = OrderedDict()
        self._runs: dict[int, bytes] = {}
        self._starts: list[int] = []
        self._expected = -1
        self._ahead = 1

    def read(self, start: int, count: int) -> bytes:
        """Up to `count` bytes from `start`, fewer at the end of the file."""
        stop = min(self.size, start + count)
        if stop <= start:
            return b""
        body = self._fetched(start, stop)
        if body is None:
            first, last = start // PAGE_BYTES, (stop - 1) // PAGE_BYTES
            try:
                pages = self._wanted(first, last)
            except GeobatchError as error:
                self._on_error(error)
                return b""
            body = b"".join(pages)[start - first * PAGE_BYTES : stop - first * PAGE_BYTES]
        return body

    def fetch(self, spans: Sequence[tuple[int, int]]) -> None:
        """Read ahead, side by side, the bytes from start to stop of every span, and forget those of the last time.

        Spans near each other are one request. What would take too much memory is left to be read when it is asked for.
        """
        self._runs, self._starts = {}, []
        merged: list[list[int]] = []
        for start, stop in sorted(spans):
            stop = min(stop, self.size)
            if merged and start - merged[-1][1] <= GAP_BYTES and stop - merged[-1][0] <= RUN_BYTES:
                merged[-1][1] = max(merged[-1][1], stop)
            elif start < stop:
                merged.append([start, stop])
        sizes = itertools.accumulate(stop - start for start, stop in merged)
        wanted = [span for span, total in zip(merged, sizes, strict=True) if total <= FETCHED_BYTES]

        def get(span: list[int]) -> bytes | GeobatchError:
            try:
                return self._storage.get_range(self._key, span[0], span[1] - span[0])
            except GeobatchError as error:
                return error

        with ThreadPoolExecutor(READERS) as readers:
            for (start, _), body in zip(wanted, readers.map(get, wanted), strict=True):
                if isinstance(body, GeobatchError):
                    self._on_error(body)
                else:
                    self._runs[start] = body
        self._starts = sorted(self._runs)

    def _fetched(self, start: int, stop: int) -> bytes | None:
        """Bytes that were read ahead, None where they were not."""
        position = bisect.bisect_right(self._starts, start) - 1
        if position < 0:
            return None
        origin = self._starts[position]
        body = self._runs[origin]
        return body[start - origin : stop - origin] if stop <= origin + len(body) else None

    def _wanted(self, first: int, last: int) -> list[bytes]:
        """Pages `first` to `last`; missing ones are fetched in one request from the first missing one on."""
        missing = [page for page in range(first, last + 1) if page not in self._pages]
        if missing:
            self._ahead = min(2 * self._ahead, MOST_AHEAD) if missing[0] == self._expected else 1
            self._load(missing[0], max(missing[-1], missing[0] + self._ahead - 1))
        found = [self._pages[page] for page in range(first, last + 1)]
        for page in range(first, last + 1):
            self._pages.move_to_end(page)
        while len(self._pages) * PAGE_BYTES > CACHED_BYTES:
            self._pages.popitem(last=False)
        return found

    def _load(self, first: int, last: int) -> None:
        start = first * PAGE_BYTES
        body = self._storage.get_range(self._key, start, min((last + 1) * PAGE_BYTES, self.size) - start)
        for number in range(-(-len(body) // PAGE_BYTES)):
            self._pages[first + number] = body[number * PAGE_BYTES : (number + 1) * PAGE_BYTES]
        self._expected = last + 1


class RangedFile:
    """A file object over `Ranges`, which GDAL may open more than once."""

    def __init__(self, ranges: Ranges) -> None:
        self._ranges, self._position = ranges, 0

    def __enter__(self) -> RangedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move to an offset from the start (0), the position (1) or the end (2); returns the new position."""
        self._position = (0, self._position, self._ranges.size)[whence] + offset
        return self._position

    def tell(self) -> int:
        """The position."""
        return self._position

    def read(self, count: int = -1) -> bytes:
        """Up to `count` bytes, fewer at the end of the file."""
        body = self._ranges.read(self._position, self._ranges.size if count < 0 else count)
        self._position += len(body)
        return body

    def close(self) -> None:
        """Nothing: the bytes serve others."""
