"""Arrays in HTTP bodies: NumPy's `.npy` and safetensors, both without a way to run code.

A header is judged before any array is made of it, so that no request allocates more than the bytes it sent and the
float32 copy of the voxels it is allowed.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from geobatch.online.refusal import refusal
from geobatch.survey import VOLUME_AXES

NPY = "application/x-npy"
SAFETENSORS = "application/safetensors"
FORMATS = (NPY, SAFETENSORS)
LONGEST_HEADER = 10_000
_SAFETENSORS_DTYPES = {
    **{"F16": "<f2", "F32": "<f4", "F64": "<f8"},
    **{"I8": "<i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"},
    **{"U8": "<u1", "U16": "<u2", "U32": "<u4", "U64": "<u8"},
}


def decode_array(content_type: str, body: bytes, max_voxels: int) -> npt.NDArray[np.float32]:
    """The one array of a body, `(inline, crossline, sample)` float32 in C order, NaN where invalid.

    Args:
        content_type: One of `FORMATS`.
        body: The whole body.
        max_voxels: The most voxels that are accepted.

    Raises:
        HTTPException: 415 for another format, 400 for a body that breaks its format, 422 for an array of another
            kind, 413 for one that is too large.
    """
    require_format(content_type)
    return (_decode_npy if content_type == NPY else _decode_safetensors)(body, max_voxels)


def require_format(content_type: str) -> None:
    """Refuse, with 415, a body in another format than `FORMATS`."""
    if content_type not in FORMATS:
        raise refusal(
            415,
            "body is in a format that is not read",
            where="header Content-Type",
            measured=content_type or "none",
            limit=" or ".join(FORMATS),
            remedy="Save the array with numpy.save or safetensors and name its format.",
        )


def encode_arrays(format_name: str, arrays: Mapping[str, npt.NDArray[np.generic]], metadata: dict[str, str]) -> bytes:
    """The arrays as one body: every one of them in safetensors, which also takes the metadata; a single one in npy."""
    if format_name == SAFETENSORS:
        return safetensors.numpy.save({k: np.ascontiguousarray(v) for k, v in arrays.items()}, metadata)
    (array,) = arrays.values()
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version=(1, 0), allow_pickle=False)
    return stream.getvalue()


def _decode_npy(body: bytes, max_voxels: int) -> npt.NDArray[np.float32]:
    stream = io.BytesIO(body)
    try:
        version = np.lib.format.read_magic(stream)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran_order, dtype = read(stream, max_header_size=LONGEST_HEADER)
    except Exception as error:  # NumPy hands on whatever Python's own parser raises at a damaged header.
        raise refusal(
            400,
            "body does not read as npy",
            where="npy header",
            measured=str(error)[:200] or type(error).__name__,
            limit="npy of version 1.0 or 2.0",
            remedy="Save the array with numpy.save.",
        ) from error
    _require_volume(shape, dtype, max_voxels, "npy header")
    data = memoryview(body)[stream.tell() :]
    _require_length(data, shape, dtype)
    values = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran_order else "C")
    return np.ascontiguousarray(values, dtype=np.float32)


def _decode_safetensors(body: bytes, max_voxels: int) -> npt.NDArray[np.float32]:
    try:
        tensors: list[Any] = safetensors.deserialize(body)  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as error:
        raise refusal(
            400, "body does not read as safetensors", where="safetensors header", measured=str(error)[:200]
        ) from error
    if len(tensors) != 1:
        raise refusal(
            422, "body holds another number of tensors", where="safetensors header", measured=len(tensors), limit=1
        )
    ((name, tensor),) = tensors
    where = f"tensor {name[:100]}"
    if tensor["dtype"] not in _SAFETENSORS_DTYPES:
        known = ", ".join(_SAFETENSORS_DTYPES)
        raise refusal(422, "array is of another type", where=where, measured=tensor["dtype"], limit=f"one of {known}")
    dtype = np.dtype(_SAFETENSORS_DTYPES[tensor["dtype"]])
    _require_volume(tensor["shape"], dtype, max_voxels, where)
    return np.ascontiguousarray(np.frombuffer(tensor["data"], dtype).reshape(tensor["shape"]), dtype=np.float32)


def _require_volume(shape: Sequence[int], dtype: np.dtype[np.generic], max_voxels: int, where: str) -> None:
    """Refuse what is no volume of real numbers, or too large a one."""
    if dtype.hasobject or dtype.kind not in "fiu" or dtype.itemsize > 8:
        raise refusal(
            422,
            "array is of another type",
            where=where,
            measured=str(dtype)[:100],
            limit="real numbers of 1 to 8 bytes",
        )
    if len(shape) != len(VOLUME_AXES) or any(n < 1 for n in shape):
        raise refusal(
            422,
            "array is no volume",
            where=where,
            measured=f"shape {tuple(shape)}"[:200],
            limit=f"3 axes ({', '.join(VOLUME_AXES)}) of at least 1 cell",
        )
    require_voxels(shape, max_voxels, where)


def require_voxels(shape: Sequence[int], max_voxels: int, where: str) -> None:
    """Refuse, with 413, a volume of more voxels than one request may hold."""
    if math.prod(shape) > max_voxels:
        raise refusal(
            413,
            "request holds too many voxels",
            where=where,
            measured=f"shape {tuple(shape)}, {math.prod(shape)} voxels"[:200],
            limit=f"{max_voxels} voxels",
            remedy="Send smaller parts, or score the survey with geobatch run.",
        )


def _require_length(data: memoryview, shape: Sequence[int], dtype: np.dtype[np.generic]) -> None:
    expected = math.prod(shape) * dtype.itemsize
    if data.nbytes != expected:
        raise refusal(
            400,
            "body is shorter than its header says" if data.nbytes < expected else "body is longer than its header says",
            where="npy data",
            measured=f"{data.nbytes} bytes",
            limit=f"{expected} bytes",
        )
