"""Zarr stores for chunk traffic: obstore, with every byte that Zarr gets verified and every failure classed.

Zarr reads an empty answer as fill value without a word, and knows nothing of tries. In every array of geobatch each
chunk and each shard index ends in its crc32c: what arrives is checked before Zarr sees it, and asked for again by
itself. Metadata come through `Storage.get`, which compares them with the checksum that S3 stored.

A process that reads the same chunks again and again, as training does, keeps some of them: `KEPT`.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np
import numpy.typing as npt
import obstore.exceptions
import obstore.store
import zarr.storage
from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype

from geobatch.errors import IntegrityError, NotFoundError, StorageError
from geobatch.storage import patience
from geobatch.storage.files import FileStorage
from geobatch.storage.interface import Storage, join_url
from geobatch.storage.kept import Kept
from geobatch.storage.patience import Patience

if TYPE_CHECKING:
    from geobatch.storage.s3 import S3Storage

Bytes = npt.NDArray[np.uint8]
CRC_BYTES = 4
INDEX_ENTRY = np.dtype("<u8")
NO_CHUNK = 2**64 - 1
KEPT: Kept[Buffer] = Kept()
"""Parts of shards as they are stored, their indices among them; none until `KEPT.limit` allows some bytes."""
_OUT_OF_RANGE = ("416 ", "NotPartial")


class VerifiedStore(zarr.storage.ObjectStore[Any]):
    """A read-only Zarr store whose bytes are those that were written, or an error.

    Args:
        client: obstore's client of the place.
        storage: The same place, for whole objects.
        complete: Every chunk was stored, so that a missing one is an error and not fill value.
    """

    def __init__(self, client: Any, storage: Storage, *, complete: bool) -> None:
        super().__init__(client, read_only=True)
        self.storage = storage
        self.complete = complete
        self._index_lengths: dict[str, int] = {}

    def with_read_only(self, read_only: bool = True) -> VerifiedStore:
        """The store itself, which is never written through."""
        if not read_only:
            raise ValueError("shards are written by Storage, never through Zarr")
        return self

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """The bytes that Zarr asks for, verified; None where fill value is the truth.

        Raises:
            IntegrityError: the stored object is damaged, or missing although the array is complete.
            TransientError: storage does not answer.
            StorageError: it refuses the credentials.
        """
        array, chunk, _ = key.partition("/c/")
        if not chunk:
            return await self._metadata(key, prototype)
        if byte_range is not None:
            name = (self.storage.url, key, str(byte_range))
            if (kept := KEPT.get(name)) is None:
                kept = await self._verified(key, prototype, byte_range, _ends_in_crc)
                if kept is not None:
                    KEPT.put(name, kept)
            return kept
        index_bytes = await self._index_bytes(array)
        return await self._verified(key, prototype, None, lambda shard: _sound_shard(shard, index_bytes))

    async def get_partial_values(self, prototype: BufferPrototype, key_ranges: Any) -> list[Buffer | None]:
        """Several parts, each verified."""
        return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))

    async def _metadata(self, key: str, prototype: BufferPrototype) -> Buffer | None:
        try:
            return prototype.buffer.from_bytes(await asyncio.to_thread(self.storage.get, key))
        except NotFoundError:
            return None

    async def _index_bytes(self, array: str) -> int:
        """Length of the index at the end of the array's shards: offset and length of each chunk, and the crc32c."""
        if array not in self._index_lengths:
            metadata = json.loads(await asyncio.to_thread(self.storage.get, f"{array}/zarr.json"))
            shard = metadata["chunk_grid"]["configuration"]["chunk_shape"]
            chunk = metadata["codecs"][0]["configuration"]["chunk_shape"]
            count = math.prod(s // c for s, c in zip(shard, chunk, strict=True))
            self._index_lengths[array] = INDEX_ENTRY.itemsize * 2 * count + CRC_BYTES
        return self._index_lengths[array]

    async def _verified(
        self, key: str, prototype: BufferPrototype, part: ByteRequest | None, sound: Callable[[Bytes], bool]
    ) -> Buffer | None:
        tries = Patience(join_url(self.storage.url, key))
        while True:
            try:
                found = await super().get(key, prototype, part)
                if found is None and not self.complete:
                    return None
                if found is None:
                    raise _lost(tries.where)
                if sound(found.as_numpy_array()):
                    return found
                wait_s = tries.after_damage(f"a crc32c that differs in {len(found)} bytes for {part or 'all of it'}")
            except obstore.exceptions.GenericError as error:
                if any(sign in str(error) for sign in _OUT_OF_RANGE):
                    wait_s = tries.after_damage(f"an object too short for {part}")
                else:
                    wait_s = tries.after_failure(error)
            except (obstore.exceptions.PermissionDeniedError, obstore.exceptions.UnauthenticatedError) as error:
                raise StorageError("storage refused the credentials", where=tries.where) from error
            await asyncio.sleep(wait_s)


def chunk_store(storage: Storage, *, complete: bool) -> VerifiedStore:
    """The Zarr store of a place on S3 or a file system."""
    if isinstance(storage, FileStorage):
        return VerifiedStore(obstore.store.LocalStore(storage.root.absolute()), storage, complete=complete)
    from geobatch.storage.s3 import S3Storage

    if isinstance(storage, S3Storage):
        return VerifiedStore(_s3_client(storage), storage, complete=complete)
    raise TypeError(f"no chunk store over {type(storage).__name__}")


def _ends_in_crc(data: Bytes) -> bool:
    """True when the bytes end in the crc32c of those before."""
    crc = google_crc32c.value(data[:-CRC_BYTES])
    return len(data) > CRC_BYTES and crc.to_bytes(CRC_BYTES, "little") == data[-CRC_BYTES:].tobytes()


def _sound_shard(data: Bytes, index_bytes: int) -> bool:
    """True when the shard's index and every chunk it names are sound."""
    index = data[-index_bytes:]
    if len(index) < index_bytes or not _ends_in_crc(index):
        return False
    entries = index[:-CRC_BYTES].view(INDEX_ENTRY).reshape(-1, 2)
    stored = entries[entries[:, 0] != NO_CHUNK].tolist()
    return all(
        offset + length <= len(data) and _ends_in_crc(data[offset : offset + length]) for offset, length in stored
    )


def _lost(where: str) -> IntegrityError:
    return IntegrityError(
        "stored object is missing",
        where=where,
        remedy="Write it again: ingest or repair the data set it belongs to.",
    )


def _s3_client(storage: S3Storage) -> Any:
    from obstore.auth.boto3 import Boto3CredentialProvider

    from geobatch.storage.s3 import s3_session

    session, endpoint = s3_session(storage.url)
    return obstore.store.S3Store(
        storage.bucket,
        prefix=storage.prefix or None,
        endpoint=endpoint,
        region=session.region_name or "us-east-1",
        virtual_hosted_style_request=endpoint is None,
        client_options={
            "allow_http": (endpoint or "").startswith("http://"),
            "connect_timeout": timedelta(seconds=patience.CONNECT_TIMEOUT_S),
            "read_timeout": timedelta(seconds=patience.READ_TIMEOUT_S),
            "timeout": timedelta(seconds=patience.PATIENCE_S),
        },
        # The store above tries again: here only what a client sees better, such as a connection closed while idle.
        retry_config={"max_retries": 1, "retry_timeout": timedelta(seconds=patience.READ_TIMEOUT_S)},
        credential_provider=Boto3CredentialProvider(session),
    )
