"""Zarr stores for chunk traffic: obstore, with every byte that Zarr gets verified and every failure classed.

Zarr reads an empty answer as fill value without a word, and knows nothing of tries. Here a part of a shard, which in
every array of geobatch ends in its crc32c, is checked and asked for again by itself; whole objects (metadata,
shards read whole) come through `Storage.get`, which compares them with the checksum that S3 stored.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import google_crc32c
import obstore.exceptions
import obstore.store
import zarr.storage
from obstore.auth.boto3 import Boto3CredentialProvider
from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype

from geobatch.errors import IntegrityError, NotFoundError, StorageError
from geobatch.storage import patience
from geobatch.storage.files import FileStorage
from geobatch.storage.interface import Storage, join_url
from geobatch.storage.patience import Patience
from geobatch.storage.s3 import S3Storage, s3_session

CRC_BYTES = 4
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
        found = await (self._object(key, prototype) if byte_range is None else self._part(key, prototype, byte_range))
        chunk = "/c/" in key or key.endswith("/c")
        if chunk and ((found is None and self.complete) or (found is not None and len(found) == 0)):
            raise IntegrityError(
                "stored object is missing" if found is None else "stored object is empty",
                where=join_url(self.storage.url, key),
                remedy="Write it again: ingest or repair the data set it belongs to.",
            )
        return found

    async def get_partial_values(self, prototype: BufferPrototype, key_ranges: Any) -> list[Buffer | None]:
        """Several parts, each verified."""
        return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))

    async def _object(self, key: str, prototype: BufferPrototype) -> Buffer | None:
        try:
            return prototype.buffer.from_bytes(await asyncio.to_thread(self.storage.get, key))
        except NotFoundError:
            return None

    async def _part(self, key: str, prototype: BufferPrototype, part: ByteRequest) -> Buffer | None:
        tries = Patience(join_url(self.storage.url, key))
        while True:
            try:
                found = await super().get(key, prototype, part)
                if found is None or _sound(found):
                    return found
                wait_s = tries.after_damage(f"{len(found)} bytes whose crc32c differs for {part}")
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
    if isinstance(storage, S3Storage):
        return VerifiedStore(_s3_client(storage), storage, complete=complete)
    if isinstance(storage, FileStorage):
        return VerifiedStore(obstore.store.LocalStore(storage.root.absolute()), storage, complete=complete)
    raise TypeError(f"no chunk store over {type(storage).__name__}")


def _sound(found: Buffer) -> bool:
    """True when the bytes end in the crc32c of those before, as all chunks and shard indexes of geobatch do."""
    data = found.as_numpy_array()
    crc = google_crc32c.value(data[:-CRC_BYTES])
    return len(data) > CRC_BYTES and crc.to_bytes(CRC_BYTES, "little") == data[-CRC_BYTES:].tobytes()


def _s3_client(storage: S3Storage) -> Any:
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
