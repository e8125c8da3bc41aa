"""An object in storage as a file that reads and seeks by ranged requests."""

from __future__ import annotations

import io
from collections import OrderedDict
from typing import Any

from geobatch.storage.interface import Storage

BLOCK_BYTES = 2**20
BLOCKS = 16


class RangedFile(io.RawIOBase):
    """An object in storage as a file to read: small reads from blocks that are kept, large ones as they are asked.

    Args:
        storage: Where it is.
        key: Its name.
        size: Its bytes; asked of storage when not given.
        blocks: Blocks of a megabyte that are kept; one is enough for reading in order.
    """

    def __init__(self, storage: Storage, key: str, size: int | None = None, blocks: int = BLOCKS) -> None:
        super().__init__()
        self.storage, self.key = storage, key
        self.size = storage.size(key) if size is None else size
        self._position, self._most = 0, blocks
        self._blocks: OrderedDict[int, bytes] = OrderedDict()

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """The position of the next read."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move the position."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` from the position as far as the object reaches."""
        view = memoryview(buffer).cast("B")
        wanted = max(0, min(len(view), self.size - self._position))
        done = 0
        if wanted > BLOCK_BYTES:
            view[:wanted] = self.storage.get_range(self.key, self._position, wanted)
            done = wanted
        while done < wanted:
            number, offset = divmod(self._position + done, BLOCK_BYTES)
            part = self._block(number)[offset : offset + wanted - done]
            view[done : done + len(part)] = part
            done += len(part)
        self._position += done
        return done

    def _block(self, number: int) -> bytes:
        if number not in self._blocks:
            start = number * BLOCK_BYTES
            self._blocks[number] = self.storage.get_range(self.key, start, min(BLOCK_BYTES, self.size - start))
            if len(self._blocks) > self._most:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(number)
        return self._blocks[number]
