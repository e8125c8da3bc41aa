"""NumPy arrays read by regions where they are: `.npy` files and members of `.npz` archives, never through pickle."""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import numpy.lib.format
import numpy.typing as npt

from geobatch.blocks import Region
from geobatch.errors import FormatError, GeobatchError, UsageError
from geobatch.formats.tables import open_object
from geobatch.storage import open_storage, split_url

MAGIC = b"\x93NUMPY"
HEAD_BYTES = 2**16
READERS = 4
PIECE_BYTES = 2**18
RUN_BYTES = 32 * 2**20
# A gap this small between wanted bytes costs less to read than another request.
GAP_BYTES = 128 * 2**10
LOCAL_HEADER_BYTES = 30


@dataclass(frozen=True)
class NpySource:
    """An array in a `.npy` file or in a member of a `.npz` archive.

    Attributes:
        url: Of the file.
        member: Name in the archive, empty for a plain file.
        offset: First byte of the values, from the start of the file, or of the member when it is compressed.
        compressed: The member must be inflated from its start to get anywhere.
        shape: As the array has it.
        dtype: Of its values, with byte order.
        fortran: The first axis is the fastest.
    """

    url: str
    member: str
    offset: int
    compressed: bool
    shape: tuple[int, ...]
    dtype: str
    fortran: bool

    @property
    def dims(self) -> tuple[str, ...] | None:
        """None: NumPy does not name axes."""
        return None

    @property
    def attributes(self) -> dict[str, Any]:
        """None of its own."""
        return {}

    @property
    def fastest(self) -> int:
        """The axis along which values lie side by side."""
        return 0 if self.fortran else len(self.shape) - 1

    def read(self, region: Region) -> npt.NDArray[Any]:
        """The values of a region, axes in the order of `shape`, in the stored type."""
        if self.fortran:
            return self._read(self.shape[::-1], region[::-1]).T
        return self._read(self.shape, region)

    def _read(self, shape: tuple[int, ...], region: Region) -> npt.NDArray[Any]:
        """A region of an array whose last axis is the fastest, by as few and as long requests as is sensible."""
        dtype = np.dtype(self.dtype)
        out = np.empty([part.stop - part.start for part in region], dtype)
        strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        level, span = run_level(region, strides, dtype.itemsize)
        inner = [part.stop - part.start for part in region[level:]]
        base = sum(part.start * stride for part, stride in zip(region[level:], strides[level:], strict=True))

        def place(index: tuple[int, ...], body: bytes) -> None:
            flat = np.frombuffer(body, dtype)
            steps = tuple(stride * dtype.itemsize for stride in strides[level:])
            out[index] = np.lib.stride_tricks.as_strided(flat, inner, steps, writeable=False)

        def run(index: tuple[int, ...]) -> tuple[int, int]:
            outer = sum((i + part.start) * s for i, part, s in zip(index, region[:level], strides[:level], strict=True))
            return self.offset + (outer + base) * dtype.itemsize, span * dtype.itemsize

        indices = list(np.ndindex(*[part.stop - part.start for part in region[:level]]))
        if self.compressed:
            with zipfile.ZipFile(open_object(self.url)) as archive, archive.open(self.member) as stream:
                for index in indices:
                    place(index, _stream_range(stream, *run(index), self.url))
            return out
        root, name = split_url(self.url)
        storage = open_storage(root)
        with ThreadPoolExecutor(READERS) as readers:
            for _ in readers.map(lambda index: place(index, storage.get_range(name, *run(index))), indices):
                pass
        return out


def run_level(region: Region, strides: list[int], itemsize: int) -> tuple[int, int]:
    """From which axis on a region is read in one request, and how many values that spans, gaps included."""
    lengths = [part.stop - part.start for part in region]
    level = len(region) - 1
    span = lengths[level]
    while level > 0:
        wider = (lengths[level - 1] - 1) * strides[level - 1] + span
        gap = (strides[level - 1] - span) * itemsize
        if gap > GAP_BYTES or wider * itemsize > RUN_BYTES:
            break
        level, span = level - 1, wider
    return level, span


def open_npy(url: str) -> NpySource:
    """The array in the `.npy` file at `url`.

    Raises:
        NotFoundError: nothing is there.
        FormatError: it is damaged, shorter than its shape, or holds objects or records.
    """
    root, name = split_url(url)
    storage = open_storage(root)
    size = storage.size(name)
    head = storage.get_range(name, 0, min(size, HEAD_BYTES))
    return _source(url, "", head, size, 0, False)


def open_npz(url: str, member: str | None) -> NpySource:
    """The array called `member` in the `.npz` archive at `url`; the only one when no name is given.

    Raises:
        FormatError: it is no archive, or the member is damaged.
        UsageError: there is no such member, or none of several was named.
    """
    try:
        with zipfile.ZipFile(open_object(url, HEAD_BYTES)) as archive:
            names = [info.filename for info in archive.infolist()]
            known = {name.removesuffix(".npy"): name for name in names}
            if member is None and len(names) != 1:
                raise UsageError(
                    "archive holds several arrays",
                    where=url,
                    limit=", ".join(known),
                    remedy="Give --set variable=NAME.",
                )
            wanted = known.get((member or next(iter(known))).removesuffix(".npy"))
            if wanted is None:
                raise UsageError("archive has no such member", where=url, measured=member, limit=", ".join(known))
            info = archive.getinfo(wanted)
            with open_member(archive, info) as stream:
                head = stream.read(min(HEAD_BYTES, info.file_size))
    except GeobatchError:
        raise
    except Exception as error:  # zipfile and zlib raise many kinds over damaged bytes.
        raise FormatError("archive does not read", where=url, measured=str(error), limit="a .npz of numpy") from error
    where = f"{url}:{wanted}"
    if info.compress_type != zipfile.ZIP_STORED:
        return _source(url, wanted, head, info.file_size, 0, True, where)
    root, name = split_url(url)
    local = open_storage(root).get_range(name, info.header_offset, LOCAL_HEADER_BYTES)
    lengths = int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
    start = info.header_offset + LOCAL_HEADER_BYTES + lengths
    available = min(info.file_size, open_storage(root).size(name) - start)
    return _source(url, wanted, head, available, start, False, where)


def _source(url: str, member: str, head: bytes, size: int, start: int, compressed: bool, where: str = "") -> NpySource:
    """The source that a header describes; `size` bytes follow from its first byte on."""
    where = where or url
    if not head.startswith(MAGIC):
        measured = f"starts with {head[:8].hex()}" if head else "0 bytes"
        raise FormatError("no NumPy array", where=where, measured=measured, limit=MAGIC.hex())
    stream = io.BytesIO(head)
    try:
        version = numpy.lib.format.read_magic(stream)
        reader = {(1, 0): numpy.lib.format.read_array_header_1_0, (2, 0): numpy.lib.format.read_array_header_2_0}
        if version not in reader:
            raise ValueError(f"format version {version}")
        shape, fortran, dtype = reader[version](stream)
    except Exception as error:  # Python's own parser and tokenizer come through, by the damage.
        raise FormatError("header of the array does not read", where=where, measured=str(error)[:200]) from error
    if dtype.hasobject or dtype.kind not in "fiub":
        raise FormatError(
            "array holds Python objects" if dtype.hasobject else "array holds no plain numbers",
            where=where,
            measured=f"dtype {dtype}",
            limit="floats, integers or booleans",
            remedy="Save it with a number type; pickled objects are never loaded.",
        )
    needed, there = math.prod(shape) * dtype.itemsize, size - stream.tell()
    if not shape or any(n < 1 for n in shape) or needed > there:
        raise FormatError(
            "array is shorter than its shape" if shape and needed > there else "array is empty",
            where=where,
            measured=f"{there} bytes for shape {shape}",
            limit=f"{needed} bytes",
        )
    return NpySource(url, member, start + stream.tell(), compressed, tuple(shape), dtype.str, bool(fortran))


def open_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> IO[bytes]:
    """A member of an archive as a stream that inflates no more at a time than it is asked for.

    Raises:
        FormatError: it is packed as NumPy packs none; zipfile would unpack those ways without a bound.
    """
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise FormatError(
            "member of the archive is packed in a way that NumPy does not know",
            where=info.filename,
            measured=f"ZIP method {info.compress_type}",
            limit="stored or deflated",
        )
    return archive.open(info)


def _stream_range(stream: IO[bytes], start: int, length: int, where: str) -> bytes:
    """A range of an inflated member: what is before is read in small pieces and dropped."""
    try:
        for _ in _pieces(stream, start - stream.tell()):
            pass
        body = b"".join(_pieces(stream, length))
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise FormatError("compressed member does not inflate", where=where, measured=str(error)) from error
    if len(body) != length:
        raise FormatError(
            "member ends too early", where=where, measured=f"{len(body)} bytes from {start}", limit=length
        )
    return body


def _pieces(stream: IO[bytes], length: int) -> Iterator[bytes]:
    while length > 0:
        piece = stream.read(min(length, PIECE_BYTES))
        if not piece:
            return
        length -= len(piece)
        yield piece
