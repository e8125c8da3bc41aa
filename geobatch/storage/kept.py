"""Parts of objects that a process keeps in memory because it may read them again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """Bytes of a known number."""

    def __len__(self) -> int:
        """How many."""
        ...


B = TypeVar("B", bound=Sized)


class Kept(Generic[B]):
    """Bytes by name, those used last, never more than a limit; for several threads.

    Attributes:
        limit_bytes: Of all that is kept; nothing is while it is 0.
        held_bytes: Now.
        hits: How often what was asked for was kept.
        misses: How often it was not.
    """

    def __init__(self, limit_bytes: int = 0) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = self.hits = self.misses = 0
        self._items: OrderedDict[Hashable, B] = OrderedDict()
        self._lock = threading.Lock()

    def limit(self, limit_bytes: int) -> None:
        """Keep so many bytes from now on."""
        with self._lock:
            self.limit_bytes = limit_bytes
            self._shrink()

    def get(self, name: Hashable) -> B | None:
        """What is kept under a name, None where nothing is."""
        if not self.limit_bytes:
            return None
        with self._lock:
            found = self._items.get(name)
            if found is None:
                self.misses += 1
                return None
            self.hits += 1
            self._items.move_to_end(name)
            return found

    def put(self, name: Hashable, data: B) -> None:
        """Keep bytes under a name, in place of those that were not used for longest."""
        if len(data) > self.limit_bytes:
            return
        with self._lock:
            before = self._items.pop(name, None)
            self.held_bytes += len(data) - (0 if before is None else len(before))
            self._items[name] = data
            self._shrink()

    def _shrink(self) -> None:
        while self.held_bytes > self.limit_bytes:
            _, dropped = self._items.popitem(last=False)
            self.held_bytes -= len(dropped)
