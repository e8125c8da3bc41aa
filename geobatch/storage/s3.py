"""Storage on S3: the only file that knows boto3.

Endpoint and credentials come from the usual AWS environment, never from a job file.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any, TypeVar

import boto3
import botocore.config
import botocore.exceptions as aws
from urllib3.exceptions import HTTPError

from geobatch.errors import NotFoundError, UsageError
from geobatch.storage import patience
from geobatch.storage.interface import Storage, exact, join_url
from geobatch.storage.patience import Patience
from geobatch.storage.s3_answers import (
    PERMANENT,
    DamagedBodyError,
    code,
    etag,
    explained,
    no_credentials,
    part_of_object,
    passing,
    status,
    whole_object,
)

T = TypeVar("T")
PART_BYTES = 16 * 2**20
ARROW_ATTEMPTS = 10
_CLIENT_LOCK = threading.Lock()
_ANSWERED: set[tuple[str | None, str]] = set()
"""Endpoint and bucket that answered this process, by whatever."""


class S3Storage(Storage):
    """Objects under a prefix of a bucket. Every call is retried as a whole when the trouble is transient.

    Args:
        bucket: The bucket.
        prefix: What every key begins with, without the `/` at its end.
        patience_s: How long each call is tried; `patience.PATIENCE_S` when not given.
    """

    def __init__(self, bucket: str, prefix: str, patience_s: float | None = None) -> None:
        self.bucket = bucket
        self.prefix = prefix
        self.patience_s = patience_s
        self.url = f"s3://{bucket}/{prefix}".rstrip("/")

    def get(self, key: str) -> bytes:
        """The whole object."""
        return self.read(key)[0]

    def read(self, key: str) -> tuple[bytes, str]:
        """The whole object and its ETag."""

        def read() -> tuple[bytes, str]:
            answer = _s3_client().get_object(Bucket=self.bucket, Key=self._key(key), ChecksumMode="ENABLED")
            return whole_object(answer), etag(answer)

        return self._retried(read, key)

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Exactly `length` bytes from `start`, whose number is checked; no checksum covers a part of an object."""
        if length == 0:
            return b""

        def read() -> bytes:
            span = f"bytes={start}-{start + length - 1}"
            answer = _s3_client().get_object(Bucket=self.bucket, Key=self._key(key), Range=span)
            return part_of_object(answer, start, length)

        return exact(self._retried(read, key), length, join_url(self.url, key), start)

    def size(self, key: str) -> int:
        """Size of the object in bytes."""
        head = self._retried(lambda: _s3_client().head_object(Bucket=self.bucket, Key=self._key(key)), key)
        return int(head["ContentLength"])

    def version(self, key: str) -> str:
        """The object's ETag."""
        head = self._retried(lambda: _s3_client().head_object(Bucket=self.bucket, Key=self._key(key)), key)
        return etag(head)

    def put(self, key: str, data: bytes) -> None:
        """One PUT."""
        self._retried(lambda: _s3_client().put_object(Bucket=self.bucket, Key=self._key(key), Body=data), key)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """One PUT with `If-None-Match: *`; after a refusal the object is read back, which may be ours."""

        def write() -> bool:
            try:
                _s3_client().put_object(Bucket=self.bucket, Key=self._key(key), Body=data, IfNoneMatch="*")
            except aws.ClientError as error:
                if status(error) != 412:
                    raise
                return False
            return True

        return self._retried(write, key) or self.get(key) == data

    def put_if_match(self, key: str, data: bytes, version: str) -> str | None:
        """One PUT with `If-Match`; after a refusal the object is read back, which may be ours."""

        def write() -> str | None:
            try:
                answer = _s3_client().put_object(Bucket=self.bucket, Key=self._key(key), Body=data, IfMatch=version)
            except aws.ClientError as error:
                if status(error) != 412 and code(error) != "NoSuchKey":
                    raise
                return None
            return etag(answer)

        if written := self._retried(write, key):
            return written
        try:
            stored, found = self.read(key)
        except NotFoundError:
            return None
        return found if stored == data else None

    @contextlib.contextmanager
    def open_writer(self, key: str) -> Iterator[Callable[[bytes], None]]:
        """A multipart upload, aborted when the context ends by an error."""
        where = {"Bucket": self.bucket, "Key": self._key(key)}
        upload: str | None = None
        parts: list[dict[str, Any]] = []
        pending = bytearray()

        def send(body: bytes) -> None:
            nonlocal upload
            if upload is None:
                upload = self._retried(lambda: _s3_client().create_multipart_upload(**where), key)["UploadId"]
            number = len(parts) + 1
            answer = self._retried(
                lambda: _s3_client().upload_part(**where, UploadId=upload, PartNumber=number, Body=body), key
            )
            parts.append({"ETag": answer["ETag"], "PartNumber": number})

        def write(data: bytes) -> None:
            pending.extend(data)
            # S3 takes 10,000 parts: they grow, so that terabytes fit and small objects stay cheap in memory.
            while len(pending) >= (part_bytes := PART_BYTES * (1 + len(parts) // 200)):
                send(bytes(pending[:part_bytes]))
                del pending[:part_bytes]

        try:
            yield write
            if upload is None:
                self.put(key, bytes(pending))
                return
            if pending:
                send(bytes(pending))
            self._complete(key, upload, parts)
        except BaseException:
            if upload is not None:
                with contextlib.suppress(Exception):
                    _s3_client().abort_multipart_upload(**where, UploadId=upload)
            raise

    def _complete(self, key: str, upload: str, parts: Sequence[dict[str, Any]]) -> None:
        """Publish a multipart upload; when a lost answer is asked for again, the object that is there decides."""
        where = {"Bucket": self.bucket, "Key": self._key(key)}
        asked = 0

        def complete() -> None:
            nonlocal asked
            asked += 1
            try:
                _s3_client().complete_multipart_upload(**where, UploadId=upload, MultipartUpload={"Parts": parts})
            except aws.ClientError as error:
                if asked == 1 or code(error) != "NoSuchUpload" or not self.exists(key):
                    raise

        self._retried(complete, key)

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Objects under `prefix`."""
        strip = len(self.prefix) + 1 if self.prefix else 0
        start = self._key(prefix) if prefix else f"{self.prefix}/" if self.prefix else ""
        question = {"Bucket": self.bucket, "Prefix": start}
        while True:
            # Page by page, since a paginator that met an error ends as if there were no more.
            page = self._retried(lambda: _s3_client().list_objects_v2(**question), prefix)
            for item in page.get("Contents", []):
                yield item["Key"][strip:], item["Size"]
            if not page.get("IsTruncated"):
                return
            question["ContinuationToken"] = page["NextContinuationToken"]

    def delete(self, key: str) -> None:
        """Remove the object."""
        self._retried(lambda: _s3_client().delete_object(Bucket=self.bucket, Key=self._key(key)), key)

    def sweep(self) -> None:
        """Nothing: objects appear whole, and uploads in parts that never ended are for the bucket's lifecycle rules."""

    def _key(self, key: str) -> str:
        if ".." in PurePosixPath(key).parts or key.startswith("/"):
            raise UsageError("key leaves its root", where=self.url, measured=key)
        return f"{self.prefix}/{key}" if self.prefix else key

    def _retried(self, call: Callable[[], T], key: str) -> T:
        where = join_url(self.url, key) if key else self.url
        tries = Patience(where, self.patience_s)
        place = (_endpoint(), self.bucket)
        while True:
            try:
                result = call()
            except PERMANENT as error:
                raise explained(error, where, self.bucket, _bucket_exists) from error
            except (DamagedBodyError, aws.FlexibleChecksumError) as error:
                wait_s = tries.after_damage(str(error))
            except (aws.ClientError, aws.BotoCoreError, HTTPError, OSError) as error:
                if isinstance(error, aws.ClientError):
                    _ANSWERED.add(place)
                    if not passing(error):
                        raise explained(error, where, self.bucket, _bucket_exists) from error
                wait_s = tries.after_failure(error, known=place in _ANSWERED)
            else:
                _ANSWERED.add(place)
                return result
            time.sleep(wait_s)


def s3_session(where: str) -> tuple[boto3.Session, str | None]:
    """Session and endpoint of the AWS environment, for other clients. Raises `StorageError` without credentials."""
    session = boto3.Session()
    if session.get_credentials() is None:
        raise no_credentials(where)
    return session, _endpoint()


def arrow_s3() -> Any:
    """The pyarrow file system of the S3 that the AWS environment names."""
    import pyarrow.fs

    session, endpoint = s3_session("S3")
    frozen = session.get_credentials().get_frozen_credentials()
    return pyarrow.fs.S3FileSystem(
        access_key=frozen.access_key,
        secret_key=frozen.secret_key,
        session_token=frozen.token,
        region=session.region_name or "us-east-1",
        endpoint_override=endpoint,
        scheme="http" if (endpoint or "").startswith("http://") else "https",
        connect_timeout=patience.CONNECT_TIMEOUT_S,
        request_timeout=patience.READ_TIMEOUT_S,
        retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=ARROW_ATTEMPTS),
    )


def create_bucket(bucket: str) -> None:
    """Make a bucket; one that exists already and is ours is left as it is."""
    S3Storage(bucket, "")._retried(lambda: _s3_client().create_bucket(Bucket=bucket), "")


@functools.cache
def _client_of_process(_process_id: int, _endpoint_url: str | None, _key_id: str | None) -> Any:
    config = botocore.config.Config(
        # `_retried` alone tries again, so that it alone bounds the time an operation takes.
        retries={"total_max_attempts": 1},
        connect_timeout=patience.CONNECT_TIMEOUT_S,
        read_timeout=patience.READ_TIMEOUT_S,
        max_pool_connections=32,
        # A body is covered by its CRC32, which stands in a signed header, over http as over https: SHA-256 costs more.
        s3={"payload_signing_enabled": False},
        # Whole objects alone are asked with their checksum: some servers answer it for a range too, which it is not of.
        response_checksum_validation="when_required",
    )
    # The session that boto3 keeps for the process would keep the first credentials it found.
    session = boto3.Session()
    return session.client("s3", config=config, region_name=session.region_name or "us-east-1")


def _s3_client() -> Any:
    """The process's S3 client, made anew when the AWS environment changes."""
    # boto3 makes clients in one thread at a time only.
    with _CLIENT_LOCK:
        return _client_of_process(os.getpid(), _endpoint(), os.environ.get("AWS_ACCESS_KEY_ID"))


def _endpoint() -> str | None:
    """The endpoint the AWS environment names, `AWS_ENDPOINT_URL_S3` first."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def _bucket_exists(bucket: str) -> bool:
    """False when the bucket certainly is not there: a HEAD of an object does not tell what was missing."""
    try:
        _s3_client().head_bucket(Bucket=bucket)
    except aws.ClientError as error:
        return status(error) != 404
    except aws.BotoCoreError:
        return True
    return True
