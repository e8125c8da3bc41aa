"""What S3's answers mean: which failures pass, what a refusal tells the user, and whether a body is the stored one."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import botocore.exceptions as aws

from geobatch.errors import NotFoundError, StorageError

PERMANENT = (aws.NoCredentialsError, aws.PartialCredentialsError, aws.ParamValidationError, aws.ProfileNotFound)
_PASSING_CODES = (
    "RequestTimeout",
    "RequestTimeTooSkewed",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    # The body was damaged on its way to S3, which compared it with the checksum in the request.
    "BadDigest",
    "XAmzContentSHA256Mismatch",
)
_VERIFIED = ("ChecksumCRC32", "ChecksumSHA1", "ChecksumSHA256")
_MD5 = re.compile("[0-9a-f]{32}")


class DamagedBodyError(Exception):
    """The body of an answer is not the stored one."""


def etag(answer: Mapping[str, Any]) -> str:
    """The ETag of an answer, without quotation marks."""
    return str(answer["ETag"]).strip('"')


def status(error: aws.ClientError) -> int:
    """HTTP status of a refusal."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def code(error: aws.ClientError) -> str:
    """S3's code of a refusal, such as `NoSuchKey`."""
    return str(error.response.get("Error", {}).get("Code", ""))


def passing(error: aws.ClientError) -> bool:
    """True for an answer that may differ next time; 409 is a conditional write beside another one."""
    return status(error) in (408, 409, 429, 500, 502, 503, 504) or code(error) in _PASSING_CODES


def whole_object(answer: Mapping[str, Any]) -> bytes:
    """The body of a GET of a whole object, verified.

    botocore verifies a checksum that S3 stored with the object. Where there is none (other writers, other servers),
    the ETag of an object stored in one part is its MD5, unless its encryption says otherwise. Objects of several
    parts without a checksum of the whole cannot be verified.

    Raises:
        DamagedBodyError: the MD5 differs; botocore raises `FlexibleChecksumError` for checksums.
    """
    body: bytes = answer["Body"].read()
    verified = any("-" not in answer.get(name, "-") for name in _VERIFIED)
    own_key = "SSECustomerAlgorithm" in answer or "kms" in answer.get("ServerSideEncryption", "")
    if verified or own_key or not _MD5.fullmatch(etag(answer)):
        return body
    if hashlib.md5(body, usedforsecurity=False).hexdigest() != etag(answer):
        raise DamagedBodyError(f"{len(body)} bytes whose MD5 is not the ETag {etag(answer)}")
    return body


def part_of_object(answer: Mapping[str, Any], start: int, length: int) -> bytes:
    """The body of a ranged GET, as long as the object allows. Its bytes cannot be verified: no checksum covers a range.

    Raises:
        DamagedBodyError: it is shorter than the object's size allows.
    """
    body: bytes = answer["Body"].read()
    total = answer.get("ContentRange", "").rpartition("/")[2]
    if total.isdigit() and len(body) != (expected := min(length, int(total) - start)):
        raise DamagedBodyError(f"{len(body)} of {expected} bytes")
    return body


def no_credentials(where: str) -> StorageError:
    """The error of a process without credentials."""
    return StorageError(
        "no S3 credentials found",
        where=where,
        remedy="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or an AWS profile, in the environment.",
    )


def explained(error: Exception, where: str, bucket: str, bucket_exists: Callable[[str], bool]) -> StorageError:
    """A client error as the sentence a user can act on."""
    if isinstance(error, (aws.NoCredentialsError, aws.PartialCredentialsError)):
        return no_credentials(where)
    if not isinstance(error, aws.ClientError):
        return StorageError(f"S3 refused the request: {error}", where=where)
    reason = code(error)
    if reason == "NoSuchBucket" or (reason == "404" and not bucket_exists(bucket)):
        return StorageError(
            "bucket does not exist", where=where, measured=bucket, remedy="Create it or correct the URL."
        )
    if reason in ("NoSuchKey", "404", "NotFound"):
        return NotFoundError("no such object", where=where, remedy="Check the bucket and the key.")
    if reason in ("InvalidRange", "416"):
        return StorageError("object is shorter than the range that was asked for", where=where)
    if status(error) in (401, 403) or reason in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied"):
        return StorageError(
            "S3 refused the credentials",
            where=where,
            measured=reason or status(error),
            remedy="Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy.",
        )
    message = error.response.get("Error", {}).get("Message", "")
    return StorageError(f"S3 refused the request: {reason} {message}".rstrip(), where=where)
