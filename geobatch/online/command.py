"""`geobatch serve`: from the options of the command line to a server that runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pydantic import ValidationError

from geobatch.errors import UsageError
from geobatch.online.places import require_root
from geobatch.online.spec import ServeSettings, read_token, require_safe_host, token_hash
from geobatch.plan import free_memory_bytes
from geobatch.storage import absolute_url


def run_server(
    tell: Callable[[str], None],
    *,
    bundle: str,
    token_file: str | None,
    allow: Sequence[str],
    replicas: int,
    max_replicas: int | None,
    **options: Any,
) -> None:
    """Serve a bundle until interrupted.

    Args:
        tell: Called with the address once requests are answered.
        bundle: URL of the bundle.
        token_file: File with the token; the environment variable `GEOBATCH_TOKEN` where absent.
        allow: Roots under which surveys and scored outputs may be read.
        replicas: Replicas that are kept.
        max_replicas: Replicas under load.
        options: The other fields of `ServeSettings`.

    Raises:
        UsageError: an option is wrong, or the address would be open to others without a token.
    """
    token = read_token(token_file)
    require_safe_host(options["host"], token)
    try:
        settings = ServeSettings(
            bundle=absolute_url(bundle),
            memory_bytes=free_memory_bytes(max(replicas, max_replicas or 0)),
            token_sha256=token_hash(token) if token else None,
            allow=tuple(require_root(root) for root in allow),
            replicas=replicas,
            max_replicas=max_replicas,
            **options,
        )
    except ValidationError as error:
        fault = error.errors()[0]
        where = "--" + str(fault["loc"][0]).replace("_", "-")
        raise UsageError(str(fault["msg"]), where=where, measured=repr(fault["input"])) from None
    from geobatch.online.deployment import serve_bundle

    guard = "with the token" if token else "without a token, to this machine alone"
    serve_bundle(settings, on_ready=lambda url: tell(f"Serving {bundle} at {url} {guard}. Ctrl-C ends it."))
