"""What `geobatch serve` was told, as its replicas receive it."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from geobatch.errors import NotFoundError, UsageError

TOKEN_VARIABLE = "GEOBATCH_TOKEN"
SHORTEST_TOKEN = 16


class ServeSettings(BaseModel):
    """A served bundle: where, by how many replicas, for whom.

    Attributes:
        bundle: URL of the bundle.
        host: Address that is listened on.
        port: Its port.
        replicas: Replicas that are kept.
        max_replicas: Replicas under load; as many as are kept where absent.
        cpus: CPUs a replica reserves.
        gpus: GPUs a replica reserves; its network runs there when above 0.
        threads: Torch threads of a replica.
        max_voxels: The most voxels of a request; what memory allows where absent.
        memory_bytes: Memory one replica may use.
        allow: Roots under which surveys and scored outputs may be read.
        token_sha256: Hash of the token that requests must bear; the token itself stays with the driver.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundle: str
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65535)
    replicas: int = Field(default=1, ge=1)
    max_replicas: int | None = None
    cpus: float = Field(default=1, gt=0)
    gpus: float = Field(default=0, ge=0)
    threads: int = Field(default=1, ge=1)
    max_voxels: int | None = Field(default=None, ge=1)
    memory_bytes: int = Field(gt=0)
    allow: tuple[str, ...] = ()
    token_sha256: str | None = None

    @property
    def most_replicas(self) -> int:
        """Replicas under the highest load."""
        return max(self.replicas, self.max_replicas or 0)


def read_token(token_file: str | None) -> str | None:
    """The token of the file, else of the environment variable `GEOBATCH_TOKEN`, else None.

    Raises:
        NotFoundError: the file cannot be read.
        UsageError: the token is too short to be one.
    """
    if token_file:
        try:
            token = Path(token_file).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise NotFoundError("token file does not read", where=token_file, measured=type(error).__name__) from error
    elif TOKEN_VARIABLE in os.environ:
        token = os.environ[TOKEN_VARIABLE].strip()
    else:
        return None
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(
            "token is no token",
            where=token_file or TOKEN_VARIABLE,
            measured=f"{len(token)} characters",
            limit=f"at least {SHORTEST_TOKEN} characters of printable ASCII without spaces",
            remedy="Make one, such as with `openssl rand -hex 32`.",
        )
    return token


def token_hash(token: str) -> str:
    """What replicas keep of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def is_token(offered: str, token_sha256: str) -> bool:
    """True when the hash is that of `offered`; takes as long for a token that is nearly right."""
    return hmac.compare_digest(token_hash(offered), token_sha256)


def require_safe_host(host: str, token: str | None) -> None:
    """Refuse to listen beyond this machine without a token.

    Raises:
        UsageError: the host is no loopback address and there is no token.
    """
    if token is None and not is_loopback(host):
        raise UsageError(
            "anyone who reaches this address could use the bundle",
            where="--host",
            measured=f"{host} without a token",
            limit="a loopback address such as 127.0.0.1, or a token",
            remedy=f"Give --token-file, or set {TOKEN_VARIABLE}.",
        )


def is_loopback(host: str) -> bool:
    """True for the names and addresses by which a machine reaches only itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
