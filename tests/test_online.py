"""A bundle behind HTTP: a real Ray Serve process, asked over the loopback interface."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import pytest
import safetensors.numpy
import torch
import xarray as xr
import zarr
from fastapi import HTTPException
from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send
from surveys import BUCKET, CLASSES, random_volume, write_bundle, write_survey

from geobatch.errors import UsageError
from geobatch.local_s3 import LocalS3, environment
from geobatch.models.bundle import load_bundle
from geobatch.online.app import Gate
from geobatch.online.batcher import Batcher
from geobatch.online.bodies import NPY, SAFETENSORS, decode_array
from geobatch.online.engine import ArrayRequest, Engine, require_servable
from geobatch.online.memory import Budget, fit_patch, least_patch, share_memory
from geobatch.online.places import require_allowed
from geobatch.online.spec import read_token, require_safe_host
from geobatch.score.planning import PLAN, make_plan, open_inputs
from geobatch.score.spec import ScoreJob, ScorePlan
from geobatch.score.worker import BlockScorer, Task
from geobatch.shards import create_arrays, finish_group
from geobatch.storage import join_url, open_storage, zarr_store
from geobatch.survey import VOLUME_AXES, open_survey, valid_volume

SHAPE = (45, 38, 51)
MAX_VOXELS = 100_000
TOKEN = "0123456789abcdef-of-a-test"
Array = npt.NDArray[Any]


@dataclass
class Answer:
    status: int
    headers: Any
    body: bytes

    @property
    def error(self) -> dict[str, str]:
        fault: dict[str, str] = json.loads(self.body)["error"]
        return fault

    @property
    def arrays(self) -> dict[str, Array]:
        return safetensors.numpy.load(self.body)


@dataclass
class Server:
    """A served bundle, the bucket prefix that holds it and a survey, and the folder of bulk outputs."""

    place: str
    scored: str
    port: int
    process: subprocess.Popen[bytes]

    def ask(self, method: str, path: str, body: bytes | None = None, token: str = TOKEN, **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body, named, method=method)
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return Answer(response.status, response.headers, response.read())
        except urllib.error.HTTPError as error:
            return Answer(error.code, error.headers, error.read())

    def predict(self, body: bytes, query: str = "", content_type: str = NPY, **headers: str) -> Answer:
        return self.ask("POST", f"/predict?{query}", body, Content_Type=content_type, **headers)

    def region(self, query: str = "", **keys: Any) -> Answer:
        document = json.dumps({"survey": join_url(self.place, "survey"), **keys}).encode()
        return self.ask("POST", f"/predict/region?{query}", document, Content_Type="application/json")


def npy(array: Array) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def header_only(shape: str, descr: str = "<f4") -> bytes:
    """An npy file whose header promises anything and whose data are four bytes."""
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + b"\0\0\0\0"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def server(s3_server: LocalS3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    place, port = f"s3://{BUCKET}/{uuid.uuid4().hex}", free_port()
    scored = tmp_path_factory.mktemp("scored")
    token_file = scored.parent / "token"
    token_file.write_text(TOKEN + "\n")
    with environment(s3_server.environment):
        trained = random_volume(SHAPE, seed=1)
        write_bundle(join_url(place, "bundle"), trained)
        write_survey(join_url(place, "survey"), random_volume(SHAPE) * 3)
        write_survey(join_url(place, "velocity"), trained[:4, :4, :4], quantity="velocity")
        options = ["--port", str(port), "--token-file", str(token_file), "--allow", place, "--allow", str(scored)]
        command = [sys.executable, "-m", "geobatch.cli", "serve", join_url(place, "bundle"), *options]
        process = subprocess.Popen([*command, "--cpus", "0.5", "--max-voxels", str(MAX_VOXELS)])
        served = Server(place, str(scored), port, process)
        wait_until_ready(served)
        left = psutil.Process(process.pid).children(recursive=True)
        yield served
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0, "to be told so is how a server ends"
        _, alive = psutil.wait_procs(left, timeout=30)
        assert not alive, f"left behind: {alive}"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))


def wait_until_ready(server: Server) -> None:
    for _ in range(2500):
        assert server.process.poll() is None, "the server ended before it was ready"
        try:
            if server.ask("GET", "/ready", token="").status == 200:
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise AssertionError("the server was not ready in time")


def in_one_piece(server: Server, values: Array, prepared: bool = False) -> Array:
    """Class probabilities `(class, *axes)` of one forward pass; NaN where invalid."""
    bundle = load_bundle(join_url(server.place, "bundle"))
    if not prepared:
        values = bundle.spec.chain.apply(xr.DataArray(values.astype(np.float32), dims=VOLUME_AXES).chunk()).values
    with torch.inference_mode():
        logits_K = bundle.network()(torch.from_numpy(np.nan_to_num(values))[None, None])[0]
    return np.where(np.isfinite(values), torch.softmax(logits_K, 0).numpy(), np.nan)


def require_equal(arrays: dict[str, Array], expected: Array) -> None:
    valid = np.isfinite(expected[0])
    np.testing.assert_allclose(arrays["probability"], expected, atol=1e-5)
    ordered = np.sort(expected, axis=0)
    sure = valid & (ordered[-1] - ordered[-2] > 1e-5)
    assert sure.sum() > 0.99 * valid.sum()
    np.testing.assert_array_equal(arrays["class_map"][sure], expected.argmax(axis=0)[sure])
    assert (arrays["class_map"][~valid] == 255).all()


def test_answer_equals_one_forward_pass_and_invalid_samples_are_255(server: Server) -> None:
    volume = random_volume((24, 30, 33), seed=2)
    assert 0 < np.isnan(volume).sum() < volume.size / 2
    body = safetensors.numpy.save({"amplitude": volume})
    answer = server.predict(body, "probabilities=float32", SAFETENSORS)
    assert (answer.status, answer.headers["content-type"]) == (200, SAFETENSORS)
    require_equal(answer.arrays, in_one_piece(server, volume))


def test_both_formats_and_outputs_hold_the_same(server: Server) -> None:
    body = npy(random_volume((16, 16, 16)))
    both = server.predict(body, "probabilities=uint8", Accept=SAFETENSORS).arrays
    for output in ("class_map", "probability"):
        answer = server.predict(body, f"probabilities=uint8&output={output}")
        assert answer.headers["content-type"] == NPY
        np.testing.assert_array_equal(np.load(io.BytesIO(answer.body)), both[output])
    assert (both["class_map"].dtype, both["probability"].dtype) == (np.uint8, np.uint8)
    np.testing.assert_array_equal(np.load(io.BytesIO(server.predict(body).body)), both["class_map"])


@pytest.mark.parametrize("kind", ["fortran", ">f4", "<f8", "i2"])
def test_order_and_type_of_numbers_do_not_matter(server: Server, kind: str) -> None:
    volume = np.round(random_volume((12, 14, 16), dead=0))
    volume = np.nan_to_num(volume).astype(np.float32)
    other = np.asfortranarray(volume) if kind == "fortran" else volume.astype(kind)
    assert server.predict(npy(other)).body == server.predict(npy(volume)).body


def test_prepared_array_skips_preprocessing(server: Server) -> None:
    values = np.random.default_rng(0).normal(size=(16, 18, 20)).astype(np.float32)
    answer = server.predict(npy(values), "prepared=true&probabilities=float32", Accept=SAFETENSORS)
    require_equal(answer.arrays, in_one_piece(server, values, prepared=True))


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (npy(np.array([[["a"]]], dtype=object)), 422, "another type; found object"),
        (npy(np.zeros((4, 4, 4), np.float32))[:-1], 400, "shorter than its header says; found 255 bytes"),
        (npy(np.zeros((4, 4, 4), np.float32)) + b"\0", 400, "longer than its header says"),
        (header_only("(1000000, 1000000, 1000000)"), 413, "1000000000000000000 voxels; expected 100000 voxels"),
        (header_only("(-1, -1, 4)"), 422, "array is no volume"),
        (header_only("(4, 0, 4)"), 422, "array is no volume"),
        (header_only("(4, 4)"), 422, "found shape (4, 4)"),
        (header_only("(1, 1, 1)", "<c8"), 422, "found complex64"),
        (header_only("(1, 1, 1)", "V1000000000"), 422, "another type"),
        (header_only("(" * 3000 + ")" * 3000), 400, "does not read as npy"),
        (header_only("__import__('os').getpid()"), 400, "does not read as npy"),
        (b"", 400, "does not read as npy"),
        (b"\x80\x04K\x01.", 400, "does not read as npy"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_npy_is_refused_with_the_reason(server: Server, body: bytes, status: int, says: str) -> None:
    answer = server.predict(body)
    assert answer.status == status
    assert says in answer.error["message"]


@given(cut=st.integers(0, 400), flip=st.integers(0, 399), value=st.integers(0, 255))
def test_damaged_body_is_read_or_refused_and_nothing_else(cut: int, flip: int, value: int) -> None:
    volume = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    for content_type, body in ((NPY, npy(volume)), (SAFETENSORS, safetensors.numpy.save({"a": volume}))):
        damaged = bytearray(body)
        damaged[flip % len(body)] = value
        try:
            read = decode_array(content_type, bytes(damaged[: len(body) - cut]), 1000)
        except HTTPException as refused:
            assert refused.status_code in (400, 413, 422)
        else:
            assert (read.ndim, read.dtype, read.flags.c_contiguous) == (3, np.float32, True)


def test_wrong_requests_are_refused_with_the_reason(server: Server) -> None:
    body = npy(np.zeros((4, 4, 4), np.float32))
    two = safetensors.numpy.save({"a": np.zeros(1), "b": np.zeros(1)})
    for answer, status, says in (
        (server.predict(body, content_type="text/plain"), 415, "expected application/x-npy or"),
        (server.predict(body, Accept="text/html"), 406, "found text/html"),
        (server.predict(two, content_type=SAFETENSORS), 422, "found 2; expected 1"),
        (server.predict(body[128:], content_type=SAFETENSORS), 400, "does not read as safetensors"),
        (server.predict(body, "probabilities=uint8"), 422, "npy holds one array"),
        (server.predict(body, "output=probability"), 422, "found probabilities=none"),
        (server.predict(body, "probabilities=float16"), 422, "query.probabilities"),
        (server.ask("GET", "/nothing"), 404, "Not Found"),
        (server.ask("GET", "/predict"), 405, "Method Not Allowed"),
    ):
        assert (answer.status, says in answer.error["message"]) == (status, True), answer.error


def test_body_too_long_is_refused_before_it_is_sent(server: Server) -> None:
    for send in (declare_too_much, send_too_much):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        connection.putrequest("POST", "/predict")
        connection.putheader("Authorization", f"Bearer {TOKEN}")
        connection.putheader("Content-Type", NPY)
        send(connection)
        response = connection.getresponse()
        error = json.loads(response.read())["error"]
        assert (response.status, error["limit"]) == (413, f"{MAX_VOXELS * 4 + 65536} bytes")
        connection.close()


def declare_too_much(connection: http.client.HTTPConnection) -> None:
    connection.putheader("Content-Length", str(10**12))
    connection.endheaders()


def send_too_much(connection: http.client.HTTPConnection) -> None:
    """Parts of an endless body, of which the last is never sent."""
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    for _ in range(MAX_VOXELS * 4 // 65536 + 2):
        connection.send(b"10000\r\n" + bytes(65536) + b"\r\n")


def test_token_is_needed_for_all_but_health_and_readiness(server: Server) -> None:
    for path in ("/bundle", "/openapi.json", "/docs"):
        assert server.ask("GET", path).status == 200
        for token in ("", TOKEN[:-1], TOKEN + "x", "é" * 20):
            answer = server.ask("GET", path, token=token)
            assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
            assert "no valid token" in answer.error["message"]
    assert server.ask("POST", "/predict", npy(np.zeros((4, 4, 4))), token="", Content_Type=NPY).status == 401
    assert json.loads(server.ask("GET", "/health", token="").body) == {"status": "alive"}
    ready = json.loads(server.ask("GET", "/ready", token="").body)
    assert ready == {"status": "ready", "bundle": load_bundle(join_url(server.place, "bundle")).spec.hash}


def test_bundle_tells_what_a_client_needs(server: Server) -> None:
    told = json.loads(server.ask("GET", "/bundle").body)
    assert [c["name"] for c in told["classes"]] == [c.name for c in CLASSES]
    assert (told["axes"], told["invalid_class"]) == (list(VOLUME_AXES), 255)
    assert told["limits"] == {"max_voxels": MAX_VOXELS, "max_body_bytes": MAX_VOXELS * 4 + 65536}
    assert set(json.loads(server.ask("GET", "/openapi.json").body)["paths"]) >= {"/predict", "/predict/region"}


def test_ten_clients_at_once_each_get_their_own_answer(server: Server) -> None:
    volumes = [random_volume((16, 16, 20), seed=seed) for seed in range(10)]

    def ask(volume: Array) -> Answer:
        return server.predict(npy(volume), "probabilities=float32", Accept=SAFETENSORS)

    with ThreadPoolExecutor(10) as clients:
        for volume, answer in zip(volumes, clients.map(ask, volumes), strict=True):
            require_equal(answer.arrays, in_one_piece(server, volume))


@pytest.fixture(scope="module")
def bulk(server: Server) -> dict[str, Array]:
    """Output of the bulk path, its statistics fitted to the survey, scored block by block in this process."""
    url = join_url(server.scored, "by-survey")
    plan = bulk_plan(server, url)
    open_storage(url).put(PLAN, plan.model_dump_json().encode())
    return score_all(plan, url)


def bulk_plan(server: Server, url: str, **keys: Any) -> ScorePlan:
    places = {"survey": join_url(server.place, "survey"), "bundle": join_url(server.place, "bundle"), "output": url}
    layout = {"shard": (32, 32, 32), "chunk": (16, 16, 16), "patch": (24, 36, 36)}
    crop = {"inline": (104, 180)}
    job = {"job": "score", **places, **layout, "crop": crop, "probabilities": "uint8", "statistics": "bundle", **keys}
    plan = make_plan(open_inputs(ScoreJob.model_validate(job)))
    if "statistics" in keys:
        return plan
    chain = plan.chain.fit(valid_volume(open_survey(places["survey"])))
    return plan.model_copy(update={"chain": chain, "statistics": "survey"})


def score_all(plan: ScorePlan, url: str) -> dict[str, Array]:
    create_arrays(url, plan.arrays())
    scorer = BlockScorer(plan, url)
    for number in range(plan.grid.total):
        scorer.score_block(Task(number))
    finish_group(url, plan.arrays(), {})
    group = zarr.open_group(zarr_store(url), mode="r")
    return {spec.name: np.asarray(group[spec.name][...]) for spec in plan.arrays()}


def test_region_under_a_plan_is_bit_for_bit_the_bulk_output(server: Server, bulk: dict[str, Array]) -> None:
    output = join_url(server.scored, "by-survey")
    # Numbers of the axes: inlines of the crop from 104 in steps of 2, crosslines from 500, samples of 4 ms.
    ends = {"inline": [125, 150], "crossline": [505, 535], "sample": [80, 160]}
    answer = server.region("probabilities=uint8", plan=output, **ends)
    assert answer.status == 200, answer.error
    cells = (slice(11, 24), slice(5, 36), slice(20, 41))
    np.testing.assert_array_equal(answer.arrays["class_map"], bulk["class_map"][cells])
    np.testing.assert_array_equal(answer.arrays["probability"], bulk["probability"][:, *cells])
    assert len(np.unique(answer.arrays["class_map"])) == len(CLASSES) + 1, "every class and invalid cells occur"
    whole = server.region("probabilities=uint8", plan=output).arrays
    np.testing.assert_array_equal(whole["class_map"], bulk["class_map"])
    assert answer.headers["x-geobatch-statistics"] == "survey"


def test_region_under_a_plan_in_blend_mode_is_bit_for_bit_the_bulk_output(server: Server) -> None:
    url = join_url(server.scored, "blended")
    plan = bulk_plan(server, url, statistics="bundle", mode="blend", patch=(24, 24, 24), crop=None)
    open_storage(url).put(PLAN, plan.model_dump_json().encode())
    expected = score_all(plan, url)
    answer = server.region("probabilities=uint8", plan=url, inline=[125, 150], sample=[80, 160])
    assert answer.status == 200, answer.error
    for name, array in answer.arrays.items():
        np.testing.assert_array_equal(array, expected[name][..., 13:26, :, 20:41])


def test_region_with_the_bundles_statistics_equals_bulk_scoring_with_them(
    server: Server, bulk: dict[str, Array]
) -> None:
    url = join_url(server.scored, "by-bundle")
    expected = score_all(bulk_plan(server, url, statistics="bundle", probabilities="float32", crop=None), url)
    ends = {"inline": [124, 150], "sample": [80, 160]}
    answer = server.region("probabilities=float32", statistics="bundle", **ends)
    cells = (slice(12, 26), slice(None), slice(20, 41))
    require_equal(answer.arrays, expected["probability"][:, *cells])
    for line in ({"inline": [124, 124]}, {"crossline": [537, 537]}):
        thin = server.region("probabilities=float32", statistics="bundle", **line).arrays
        (axis, (number, _)) = next(iter(line.items()))
        cell = (number - 100) // 2 if axis == "inline" else number - 500
        require_equal(thin, np.take(expected["probability"], [cell], axis=1 + VOLUME_AXES.index(axis)))
    different = answer.arrays["class_map"] != bulk["class_map"][10:24, :, 20:41]
    assert different.any(), "the statistics matter"


def test_regions_that_cannot_be_right_are_refused(server: Server, bulk: dict[str, Array]) -> None:
    survey, output = join_url(server.place, "survey"), join_url(server.scored, "by-survey")
    elsewhere = join_url(server.place, "nothing")
    for keys, status, says in (
        ({}, 422, "statistics are not said"),
        ({"plan": output, "statistics": "bundle"}, 422, "found both"),
        ({"statistics": "survey"}, 422, "Input should be 'bundle'"),
        ({"statistics": "bundle", "inlines": [1, 2]}, 422, "inlines"),
        ({"statistics": "bundle", "inline": [1, 2]}, 422, "region holds no inline of the survey"),
        ({"statistics": "bundle", "inline": [150, 100]}, 422, "region holds no inline of the survey"),
        ({"statistics": "bundle", "survey": "s3://other/survey"}, 403, "does not read from there"),
        ({"statistics": "bundle", "survey": f"{server.place}-other/survey"}, 403, "does not read from there"),
        ({"statistics": "bundle", "survey": "/etc"}, 403, "does not read from there"),
        ({"plan": "/etc"}, 403, "plan: this server does not read from there"),
        ({"plan": survey}, 404, "no scoring run there"),
        ({"statistics": "bundle", "survey": elsewhere}, 404, "no such object"),
        ({"statistics": "bundle", "survey": output}, 422, "is not a geobatch survey"),
        ({"statistics": "bundle", "survey": join_url(server.place, "velocity")}, 422, "found velocity in time"),
    ):
        answer = server.region(**keys)
        assert answer.status == status, (keys, answer.error)
        assert says in answer.error["message"], (keys, answer.error)


def test_plan_of_another_survey_is_refused(server: Server, bulk: dict[str, Array]) -> None:
    other = join_url(server.place, "other")
    write_survey(other, random_volume(SHAPE, seed=4), identity="another")
    answer = server.region(survey=other, plan=join_url(server.scored, "by-survey"))
    assert (answer.status, answer.error["what"]) == (422, "plan is of another survey")


def test_array_too_large_for_one_patch_is_tiled_and_equals_one_pass(tmp_path: Path) -> None:
    volume = write_survey(str(tmp_path / "survey"), random_volume((40, 60, 44)))
    write_bundle(str(tmp_path / "bundle"), volume)
    bundle = load_bundle(str(tmp_path / "bundle"))
    request = ArrayRequest(volume, False, "float32")
    whole, tiled = (
        Engine(bundle, Budget(volume.size, cells), device="cpu", threads=1).predict_arrays([request])[0]
        for cells in (volume.size, 40 * 40 * 40)
    )
    assert fit_patch(volume.shape, volume.shape, (2, 2, 2), bundle.spec.reach.halo, 40**3) != volume.shape
    np.testing.assert_allclose(tiled.probability, whole.probability, atol=1e-5)


def test_arrays_that_share_a_forward_pass_equal_those_that_do_not(tmp_path: Path) -> None:
    volumes = [random_volume((15, 16, 17), seed=seed) for seed in range(5)]
    write_bundle(str(tmp_path / "bundle"), volumes[0])
    bundle = load_bundle(str(tmp_path / "bundle"))
    engine = Engine(bundle, Budget(10**6, 10**6), device="cpu", threads=1)
    requests = [ArrayRequest(volume, False, "float32") for volume in volumes]
    assert len({engine.batch_key(request) for request in requests}) == 1
    passes: list[int] = []
    engine.network.register_forward_pre_hook(lambda _network, inputs: passes.append(len(inputs[0])))
    together = engine.predict_arrays(requests)
    assert passes == [5]
    for request, prediction in zip(requests, together, strict=True):
        (alone,) = engine.predict_arrays([request])
        np.testing.assert_allclose(prediction.probability, alone.probability, atol=1e-5)
        np.testing.assert_array_equal(prediction.class_map == 255, alone.class_map == 255)


class Squares:
    """Computes squares once it is opened, and remembers what came together."""

    def __init__(self) -> None:
        self.opened, self.batches = threading.Event(), list[list[int]]()

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.opened.wait(60)
        self.batches.append(list(items))
        if 13 in items:
            raise ValueError("13")
        return [item * item for item in items]


def test_requests_of_one_kind_that_wait_together_are_one_batch() -> None:
    gate = Squares()
    batcher = Batcher(gate, most=3)
    first = batcher.submit(1)
    answers = [batcher.submit(item, kind="odd" if item % 2 else "even") for item in (2, 3, 4, 6, 8)]
    alone = [batcher.submit(item) for item in (10, 11)]
    gate.opened.set()
    assert [answer.result(60) for answer in (first, *answers, *alone)] == [1, 4, 9, 16, 36, 64, 100, 121]
    assert gate.batches == [[1], [2, 4, 6], [3], [8], [10], [11]]


def test_bad_request_fails_alone_and_a_cancelled_one_is_never_computed() -> None:
    gate = Squares()
    batcher = Batcher(gate, most=8)
    held = batcher.submit(0)
    answers = [batcher.submit(item, kind="same") for item in (1, 13, 2)]
    cancelled = batcher.submit(5, kind="same")
    assert cancelled.cancel()
    gate.opened.set()
    assert (held.result(60), answers[0].result(60), answers[2].result(60)) == (0, 1, 4)
    with pytest.raises(ValueError, match="13"):
        answers[1].result(60)
    assert not any(5 in batch for batch in gate.batches)
    assert batcher.alive


@given(data=st.data())
def test_fitted_patch_is_within_memory_and_no_shorter_than_useful(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.integers(1, 900)) for _ in range(3))
    halo = tuple((data.draw(st.integers(0, 22)), data.draw(st.integers(0, 22))) for _ in range(3))
    stride = tuple(data.draw(st.sampled_from([1, 2, 4, 8])) for _ in range(3))
    least = least_patch(stride, halo)
    limit = int(np.prod(least)) * data.draw(st.integers(1, 100))
    patch = fit_patch(shape, shape, stride, halo, limit)
    assert np.prod([min(p, n) for p, n in zip(patch, shape, strict=True)]) <= limit
    for p, n, s, short in zip(patch, shape, stride, least, strict=True):
        assert p % s == 0
        assert p >= n or p >= short


def test_memory_that_cannot_hold_a_request_is_refused_with_figures(tmp_path: Path) -> None:
    write_bundle(str(tmp_path / "bundle"), random_volume((20, 20, 20)))
    bundle = load_bundle(str(tmp_path / "bundle"))
    assert share_memory(bundle, 4 * 2**30, None).max_voxels > 10**6
    with pytest.raises(UsageError, match=r"GiB projected at least; expected 1.00 GiB. Lower --max-voxels"):
        share_memory(bundle, 2**30, 10**9)


def test_network_that_must_see_a_whole_axis_is_refused(tmp_path: Path) -> None:
    write_bundle(str(tmp_path / "bundle"), random_volume((20, 20, 20)))
    spec = load_bundle(str(tmp_path / "bundle")).spec
    require_servable(spec)
    reach = spec.reach.model_copy(update={"unbounded": (2,)})
    with pytest.raises(UsageError, match="of which sample must be seen whole"):
        require_servable(spec.model_copy(update={"reach": reach}))
    with pytest.raises(UsageError, match="found axes inline, sample"):
        require_servable(spec.model_copy(update={"axes": ("inline", "sample")}))


def test_only_loopback_is_open_without_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        require_safe_host(host, None)
    for host in ("0.0.0.0", "::", "", "10.0.0.1", "example.org", "localhost.example.org"):
        require_safe_host(host, TOKEN)
        with pytest.raises(UsageError, match="without a token"):
            require_safe_host(host, None)
    monkeypatch.setenv("GEOBATCH_TOKEN", "short")
    with pytest.raises(UsageError, match="found 5 characters"):
        read_token(None)


@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1:8000", 200), ("localhost", 200), ("[::1]:8000", 200), ("rebound.example.org:8000", 403), ("", 403)],
)
def test_without_a_token_only_this_machines_names_are_answered(host: str, status: int) -> None:
    async def inside(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("in")(scope, receive, send)

    async def send(message: Any) -> None:
        sent.append(message)

    sent: list[Any] = []
    scope = {"type": "http", "method": "GET", "path": "/bundle", "headers": [(b"host", host.encode())]}
    asyncio.run(Gate(inside, None)(scope, None, send))
    assert sent[0]["status"] == status


def test_links_and_dots_do_not_lead_out_of_an_allowed_root(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "survey").mkdir(parents=True)
    outside.mkdir()
    (root / "link").symlink_to(outside)
    allowed = [str(root), "s3://bucket/surveys"]
    for url in (f"{root}/survey", f"file://{root}/survey", "s3://bucket/surveys/a", "s3://bucket/surveys"):
        require_allowed(url, allowed, "survey")
    for url in (
        *(f"{root}/link", f"{root}/../outside", f"{root}-other", str(tmp_path), "", "survey", f"file:{root}"),
        *("s3://bucket/surveys/../other", "s3://bucket/surveys-other", "s3://bucket", "s3://bucket//surveys"),
        *("http://bucket/surveys", "s3:/bucket/surveys/a", f"{root}/survey\0", "S3://bucket/surveys/a"),
    ):
        with pytest.raises(HTTPException) as refused:
            require_allowed(url, allowed, "survey")
        assert refused.value.status_code == 403
    with pytest.raises(HTTPException):
        require_allowed(f"{root}/survey", [], "survey")
