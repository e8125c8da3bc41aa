"""The HTTP side of a served bundle: routes, limits, formats and refusals. No Ray."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any, Literal

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from geobatch import __version__
from geobatch.errors import GeobatchError
from geobatch.online.bodies import FORMATS, NPY, SAFETENSORS, decode_array, encode_arrays, require_format
from geobatch.online.engine import ArrayRequest
from geobatch.online.refusal import as_json, refusal, status_of
from geobatch.online.regions import RegionRequest
from geobatch.online.service import HEADER_BYTES, Service
from geobatch.online.spec import is_loopback, is_token
from geobatch.score.predictor import INVALID, Prediction, Probabilities

OPEN_PATHS = ("/health", "/ready")
BODY_TIMEOUT_S = 300
JSON = "application/json"
Output = Literal["class_map", "probability"]
Wanted = Annotated[Probabilities, Query(description="class probabilities: none, uint8 (steps of 1/254) or float32")]
Only = Annotated[Output | None, Query(description="the one array to return; npy holds one, class_map by default")]
Prepared = Annotated[bool, Query(description="true when the bundle's preprocessing was applied already")]
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_ARRAY_BODY = {"requestBody": {"required": True, "content": dict.fromkeys(FORMATS, _BINARY)}}
_REGION_BODY = {"requestBody": {"required": True, "content": {JSON: {"schema": RegionRequest.model_json_schema()}}}}
_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {"description": "class_map and probabilities", "content": dict.fromkeys(FORMATS, _BINARY)}
}


def build_app(service: Service, token_sha256: str | None) -> ASGIApp:
    """The ASGI application of one replica.

    Args:
        service: The bundle, loaded.
        token_sha256: Hash of the token every request must bear but those of `OPEN_PATHS`; None lets this machine in.
    """
    app = FastAPI(title=f"geobatch: {service.spec.name}", version=__version__)
    _answer_faults(app)

    @app.get("/health")
    async def health() -> dict[str, str]:
        """This process answers."""
        return {"status": "alive"}

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        """The network is loaded and requests are computed."""
        if not service.ready:
            raise refusal(503, "the thread that computes has ended", remedy="The replica is being replaced; try again.")
        return {"status": "ready", "bundle": service.spec.hash}

    @app.get("/bundle")
    async def bundle() -> dict[str, Any]:
        """What is served: classes, axes, preprocessing, reach, training data, metrics, limits."""
        spec = service.spec.model_dump(mode="json", exclude={"provenance", "weights_sha256"})
        limits = {"max_voxels": service.max_voxels, "max_body_bytes": service.max_body_bytes}
        return {**spec, "hash": service.spec.hash, "invalid_class": INVALID, "formats": FORMATS, "limits": limits}

    @app.post("/predict", openapi_extra=_ARRAY_BODY, responses=_ANSWER, response_class=Response)
    async def predict(
        request: Request, prepared: Prepared = False, probabilities: Wanted = "none", output: Only = None
    ) -> Response:
        """Classes of one array (inline, crossline, sample) of amplitudes, its edges treated as a survey's edges."""
        body_format = _content_type(request)
        require_format(body_format)
        form = _answer_format(request, body_format)
        _require_output(form, output, probabilities)
        body = await _read_body(request, service.max_body_bytes)
        values = decode_array(body_format, body, service.max_voxels)
        prediction = await service.predict(ArrayRequest(values, prepared, probabilities))
        return _answer(service, prediction, form, output, {})

    @app.post("/predict/region", openapi_extra=_REGION_BODY, responses=_ANSWER, response_class=Response)
    async def predict_region(request: Request, probabilities: Wanted = "none", output: Only = None) -> Response:
        """Classes of a region of a survey in storage, as bulk scoring writes them."""
        form = _answer_format(request, SAFETENSORS)
        _require_output(form, output, probabilities)
        region = _region_request(_content_type(request), await _read_body(request, HEADER_BYTES))
        work = await service.plan_region(region, probabilities)
        prediction = await service.predict_region(work)
        return _answer(service, prediction, form, output, work.notes)

    return Gate(app, token_sha256)


def _answer_faults(app: FastAPI) -> None:
    """Have every fault answered as JSON in house form under the key `error`."""

    @app.exception_handler(StarletteHTTPException)
    async def refused(_request: Request, error: StarletteHTTPException) -> Response:
        # Those of the framework itself, such as an unknown path, hold a plain sentence.
        detail: Any = error.detail
        fault = detail if isinstance(detail, dict) else as_json(GeobatchError(str(detail)))
        return JSONResponse({"error": fault}, error.status_code, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def wrong_query(_request: Request, error: RequestValidationError) -> Response:
        return JSONResponse({"error": _wrong_value(list(error.errors())).detail}, 422)

    @app.exception_handler(GeobatchError)
    async def known(_request: Request, error: GeobatchError) -> Response:
        return JSONResponse({"error": as_json(error)}, status_of(error))

    @app.exception_handler(Exception)
    async def unforeseen(_request: Request, error: Exception) -> Response:
        # What went wrong inside is for the server's log alone.
        return JSONResponse({"error": as_json(GeobatchError("the server failed", measured=type(error).__name__))}, 500)


class Gate:
    """Lets through who may use the bundle; nothing of another request's body is read.

    With a token: requests with `Authorization: Bearer` and the token. Without one: requests to a loopback name, since
    a web page can have a name of its own point at this machine and ask it through a visitor's browser.
    """

    def __init__(self, app: ASGIApp, token_sha256: str | None) -> None:
        self._app, self._token_sha256 = app, token_sha256

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401 or 403."""
        fault = None
        if scope["type"] != "lifespan" and scope.get("path") not in OPEN_PATHS:
            headers = Headers(scope=scope)
            fault = _token_fault(headers, self._token_sha256) if self._token_sha256 else _host_fault(headers)
        if fault is None:
            await self._app(scope, receive, send)
        else:
            await JSONResponse({"error": fault.detail}, fault.status_code, fault.headers)(scope, receive, send)


def _token_fault(headers: Headers, token_sha256: str) -> HTTPException | None:
    offered = headers.getlist("authorization")
    kind, _, token = offered[0].partition(" ") if len(offered) == 1 else ("", "", "")
    if kind.lower() == "bearer" and is_token(token.strip(), token_sha256):
        return None
    fault = refusal(
        401,
        "request bears no valid token",
        where="header Authorization",
        limit="Bearer and the token",
        remedy="Send the token that the server was started with.",
    )
    fault.headers = {"WWW-Authenticate": "Bearer"}
    return fault


def _host_fault(headers: Headers) -> HTTPException | None:
    named = headers.get("host", "")
    host = named.partition("]")[0].removeprefix("[") if named.startswith("[") else named.partition(":")[0]
    if is_loopback(host):
        return None
    return refusal(
        403,
        "request was sent to another name than this machine's own",
        where="header Host",
        measured=named[:200],
        limit="localhost or a loopback address",
        remedy="Start the server with a token to use it under another name.",
    )


async def _read_body(request: Request, most_bytes: int) -> bytes:
    """The whole body; refused as soon as it is known to be too long, before it is held."""
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > most_bytes:
        raise _too_long(f"{declared} bytes", most_bytes)
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for part in request.stream():
                if len(body) + len(part) > most_bytes:
                    raise _too_long(f"more than {len(body) + len(part) - 1} bytes", most_bytes)
                body += part
    except TimeoutError:
        raise refusal(
            408, "body did not arrive", where="body", measured=f"{len(body)} bytes", limit=f"within {BODY_TIMEOUT_S} s"
        ) from None
    return bytes(body)


def _too_long(measured: str, most_bytes: int) -> HTTPException:
    return refusal(
        413,
        "body is too long",
        where="body",
        measured=measured,
        limit=f"{most_bytes} bytes",
        remedy="Send smaller parts as float32, or score the survey with geobatch run.",
    )


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _answer_format(request: Request, default: str) -> str:
    """The format of the answer: the first that the header Accept names and that is known."""
    accepted = [part.partition(";")[0].strip().lower() for part in request.headers.get("accept", "*/*").split(",")]
    for name in accepted:
        if name in FORMATS:
            return name
    if {"*/*", "application/*", ""} & set(accepted):
        return default
    raise refusal(
        406,
        "answer is wanted in a format that is not written",
        where="header Accept",
        measured=", ".join(accepted)[:200],
        limit=" or ".join(FORMATS),
    )


def _require_output(form: str, output: Output | None, probabilities: Probabilities) -> None:
    """Refuse to return probabilities that were not asked for, or to lose those that were."""
    if output == "probability" and probabilities == "none":
        raise refusal(
            422,
            "probabilities are to be returned and not to be computed",
            where="output",
            measured="probabilities=none",
            limit="probabilities=uint8 or float32",
        )
    if form == NPY and output is None and probabilities != "none":
        raise refusal(
            422,
            "npy holds one array",
            where="output",
            measured="class_map and probability",
            limit="output=class_map or output=probability",
            remedy=f"Say which, or accept {SAFETENSORS}.",
        )


def _region_request(content_type: str, body: bytes) -> RegionRequest:
    if content_type != JSON:
        raise refusal(
            415,
            "body is in a format that is not read",
            where="header Content-Type",
            measured=content_type or "none",
            limit=JSON,
        )
    try:
        return RegionRequest.model_validate_json(body)
    except ValidationError as error:
        raise _wrong_value(list(error.errors())) from None


def _answer(
    service: Service, prediction: Prediction, form: str, output: Output | None, notes: dict[str, str]
) -> Response:
    arrays: dict[str, Any] = {"class_map": prediction.class_map}
    if prediction.probability is not None:
        arrays["probability"] = prediction.probability
    if output is not None:
        arrays = {output: arrays[output]}
    told = {"bundle": service.spec.hash, **notes}
    classes = json.dumps([c.name for c in service.spec.classes])
    body = encode_arrays(form, arrays, {**told, "classes": classes, "invalid_class": str(INVALID)})
    headers = {f"x-geobatch-{name}": text.encode("ascii", "replace").decode() for name, text in told.items()}
    return Response(body, media_type=form, headers=headers)


def _wrong_value(faults: list[Any]) -> HTTPException:
    fault = faults[0]
    place = ".".join(str(part) for part in fault["loc"]) or "body"
    measured = repr(fault.get("input"))[:200]
    return refusal(422, str(fault["msg"]), where=place, measured=measured, remedy="GET /openapi.json says what fits.")
