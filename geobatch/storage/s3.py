"""Storage on S3: the only file that knows boto3.

Endpoint and credentials come from the usual AWS environment, never from a job file.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, TypeVar

import boto3
import botocore.config
import botocore.exceptions as aws
import obstore.store
from obstore.auth.boto3 import Boto3CredentialProvider
from urllib3.exceptions import HTTPError

from geobatch.errors import NotFoundError, StorageError, TransientError, UsageError
from geobatch.storage.interface import Storage, exact, join_url

T = TypeVar("T")
ATTEMPTS = 5
FIRST_WAIT_S = 0.2
PART_BYTES = 16 * 2**20


class S3Storage(Storage):
    """Objects under a prefix of a bucket. Every call is retried as a whole when the trouble is transient."""

    def __init__(self, bucket: str, prefix: str) -> None:
        self.bucket = bucket
        self.prefix = prefix
        self.url = f"s3://{bucket}/{prefix}".rstrip("/")

    def get(self, key: str) -> bytes:
        """The whole object."""
        return self.read(key)[0]

    def read(self, key: str) -> tuple[bytes, str]:
        """The whole object and its ETag."""

        def read() -> tuple[bytes, str]:
            answer = _s3_client().get_object(Bucket=self.bucket, Key=self._key(key))
            return _whole(answer["Body"].read(), answer["ContentLength"]), _etag(answer)

        return self._retried(read, key)

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Exactly `length` bytes from `start`."""
        if length == 0:
            return b""

        def read() -> bytes:
            span = f"bytes={start}-{start + length - 1}"
            answer = _s3_client().get_object(Bucket=self.bucket, Key=self._key(key), Range=span)
            return _whole(answer["Body"].read(), answer["ContentLength"])

        return exact(self._retried(read, key), length, join_url(self.url, key), start)

    def size(self, key: str) -> int:
        """Size of the object in bytes."""
        head = self._retried(lambda: _s3_client().head_object(Bucket=self.bucket, Key=self._key(key)), key)
        return int(head["ContentLength"])

    def version(self, key: str) -> str:
        """The object's ETag."""
        head = self._retried(lambda: _s3_client().head_object(Bucket=self.bucket, Key=self._key(key)), key)
        return _etag(head)

    def put(self, key: str, data: bytes) -> None:
        """One PUT."""
        self._retried(lambda: _s3_client().put_object(Bucket=self.bucket, Key=self._key(key), Body=data), key)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """One PUT with `If-None-Match: *`; after a refusal the object is read back, which may be ours."""

        def write() -> bool:
            try:
                _s3_client().put_object(Bucket=self.bucket, Key=self._key(key), Body=data, IfNoneMatch="*")
            except aws.ClientError as error:
                if _status(error) != 412:
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
                if _status(error) != 412 and _code(error) != "NoSuchKey":
                    raise
                return None
            return _etag(answer)

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
                if asked == 1 or _code(error) != "NoSuchUpload" or not self.exists(key):
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

    def _key(self, key: str) -> str:
        if ".." in PurePosixPath(key).parts or key.startswith("/"):
            raise UsageError("key leaves its root", where=self.url, measured=key)
        return f"{self.prefix}/{key}" if self.prefix else key

    def _retried(self, call: Callable[[], T], key: str) -> T:
        where = join_url(self.url, key) if key else self.url
        for attempt in range(ATTEMPTS):
            try:
                return call()
            except _PERMANENT as error:
                raise _explained(error, where, self.bucket) from error
            except (aws.ClientError, aws.BotoCoreError, HTTPError, OSError) as error:
                if isinstance(error, aws.ClientError) and not _passing(error):
                    raise _explained(error, where, self.bucket) from error
                last = error
                if attempt + 1 < ATTEMPTS:
                    time.sleep(FIRST_WAIT_S * 2**attempt)
        raise _unreachable(last, where) from last


def chunk_store(bucket: str, prefix: str) -> Any:
    """The obstore client of a prefix, for chunk traffic."""
    session = boto3.Session()
    if session.get_credentials() is None:
        raise _no_credentials(f"s3://{bucket}/{prefix}")
    endpoint = _endpoint()
    return obstore.store.S3Store(
        bucket,
        prefix=prefix or None,
        endpoint=endpoint,
        region=session.region_name or "us-east-1",
        virtual_hosted_style_request=endpoint is None,
        client_options={"allow_http": (endpoint or "").startswith("http://"), "timeout": "120s"},
        credential_provider=Boto3CredentialProvider(session),
    )


def arrow_s3() -> Any:
    """The pyarrow file system of the S3 that the AWS environment names."""
    import pyarrow.fs

    session = boto3.Session()
    credentials = session.get_credentials()
    if credentials is None:
        raise _no_credentials("S3")
    frozen = credentials.get_frozen_credentials()
    endpoint = _endpoint()
    return pyarrow.fs.S3FileSystem(
        access_key=frozen.access_key,
        secret_key=frozen.secret_key,
        session_token=frozen.token,
        region=session.region_name or "us-east-1",
        endpoint_override=endpoint,
        scheme="http" if (endpoint or "").startswith("http://") else "https",
    )


def create_bucket(bucket: str) -> None:
    """Make a bucket; one that exists already and is ours is left as it is."""
    S3Storage(bucket, "")._retried(lambda: _s3_client().create_bucket(Bucket=bucket), "")


_PERMANENT = (aws.NoCredentialsError, aws.PartialCredentialsError, aws.ParamValidationError, aws.ProfileNotFound)


@functools.cache
def _client_of_process(_process_id: int, _endpoint_url: str | None, _key_id: str | None) -> Any:
    config = botocore.config.Config(
        retries={"mode": "standard", "max_attempts": 2}, connect_timeout=10, read_timeout=60, max_pool_connections=32
    )
    return boto3.client("s3", config=config, region_name=boto3.Session().region_name or "us-east-1")


def _s3_client() -> Any:
    """The process's S3 client, made anew when the AWS environment changes."""
    return _client_of_process(os.getpid(), os.environ.get("AWS_ENDPOINT_URL"), os.environ.get("AWS_ACCESS_KEY_ID"))


def _endpoint() -> str | None:
    """The endpoint the AWS environment names, `AWS_ENDPOINT_URL_S3` first."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def _etag(answer: Mapping[str, Any]) -> str:
    return str(answer["ETag"]).strip('"')


def _status(error: aws.ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _code(error: aws.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _passing(error: aws.ClientError) -> bool:
    """True for an answer that may differ next time; 409 is a conditional write beside another one."""
    slow = ("RequestTimeout", "RequestTimeTooSkewed", "SlowDown", "Throttling", "ThrottlingException")
    return _status(error) in (409, 429, 500, 502, 503, 504) or _code(error) in slow


def _whole(body: bytes, announced: int) -> bytes:
    """The body, or a transient error when the connection ended early."""
    if len(body) != announced:
        raise OSError(f"{len(body)} of {announced} bytes arrived")
    return body


def _no_credentials(where: str) -> StorageError:
    return StorageError(
        "no S3 credentials found",
        where=where,
        remedy="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or an AWS profile, in the environment.",
    )


def _explained(error: Exception, where: str, bucket: str) -> StorageError:
    """A client error as the sentence a user can act on."""
    if isinstance(error, (aws.NoCredentialsError, aws.PartialCredentialsError)):
        return _no_credentials(where)
    if not isinstance(error, aws.ClientError):
        return StorageError(f"S3 refused the request: {error}", where=where)
    code = _code(error)
    if code == "NoSuchBucket" or (code == "404" and not _bucket_exists(bucket)):
        return StorageError(
            "bucket does not exist", where=where, measured=bucket, remedy="Create it or correct the URL."
        )
    if code in ("NoSuchKey", "404", "NotFound"):
        return NotFoundError("no such object", where=where, remedy="Check the bucket and the key.")
    if code in ("InvalidRange", "416"):
        return StorageError("object is shorter than the range that was asked for", where=where)
    if _status(error) in (401, 403) or code in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied"):
        return StorageError(
            "S3 refused the credentials",
            where=where,
            measured=code or _status(error),
            remedy="Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy.",
        )
    message = error.response.get("Error", {}).get("Message", "")
    return StorageError(f"S3 refused the request: {code} {message}".rstrip(), where=where)


def _bucket_exists(bucket: str) -> bool:
    """False when the bucket certainly is not there: a HEAD of an object does not tell what was missing."""
    try:
        _s3_client().head_bucket(Bucket=bucket)
    except aws.ClientError as error:
        return _status(error) != 404
    return True


def _unreachable(error: Exception, where: str) -> TransientError:
    return TransientError(
        "storage does not answer",
        where=where,
        measured=f"{type(error).__name__}: {error}",
        limit=f"an answer within {ATTEMPTS} attempts",
        remedy="Check AWS_ENDPOINT_URL and the network, then run the same command again.",
    )
