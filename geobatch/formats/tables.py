"""Tables of text, CSV and its kin, from storage: columns of words, some thousand rows at a time.

Words become numbers and times where they are used, so that a bad one costs its cell or row and not the file.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from geobatch.errors import FormatError, NotFoundError, UsageError
from geobatch.formats.ingestion import Fault
from geobatch.formats.libraries import need
from geobatch.formats.versions import versions_of
from geobatch.storage import Storage, absolute_url, join_url, open_storage, split_url
from geobatch.storage.ranged import RangedFile

BLOCK_BYTES = 2**20
# Words take several times the bytes of their text: small blocks of rows keep memory near the size of the file.
ROW_BYTES = 2**18
HEAD_BYTES = 2**16
MOST_COLUMNS = 4096
MOST_BYTES = 2**33
DELIMITERS = (",", ";", "\t", "|")
FAULT_LIMIT = 1000
LONGEST_LINE = 2**16
_LONG_LINE = re.compile(rb"[^\r\n]{%d}" % (LONGEST_LINE - 1))
MISSING_WORDS = frozenset({"", "-", "--", "nan", "null", "none", "n/a", "na", "nat", "#n/a", "*", "not reported"})
Words = npt.NDArray[np.object_]


def open_object(url: str, buffer_bytes: int = BLOCK_BYTES) -> io.BufferedReader:
    """The object at `url` as a buffered file."""
    root, name = split_url(url)
    return io.BufferedReader(RangedFile(open_storage(root), name, blocks=1), buffer_bytes)


def refuse_long_lines(body: bytes, where: str) -> None:
    """Raise over a line that is no row of any table: parsers would split it into millions of words.

    Raises:
        FormatError: there is one.
    """
    if found := _LONG_LINE.search(body):
        raise FormatError(
            "line is too long",
            where=where,
            measured=f"a line from byte {found.start()} on",
            limit=f"{LONGEST_LINE} bytes",
        )


def list_sources(src_url: str, suffixes: Sequence[str]) -> list[tuple[str, int, str]]:
    """URL, size and version of the file at `src_url`, or of every file of these suffixes in the folder, sorted.

    Raises:
        NotFoundError: there is none.
    """
    src_url = absolute_url(src_url)
    root, name = split_url(src_url)
    folder, parent = open_storage(src_url), open_storage(root)
    keys = [(key, size) for key, size in folder.list() if key.lower().endswith(tuple(suffixes))]
    if keys:
        urls = [join_url(src_url, key) for key, _ in keys]
        return [(url, size, version) for url, (_, size), version in zip(urls, keys, versions_of(urls), strict=True)]
    if not name.lower().endswith(tuple(suffixes)) and next(folder.list(), None) is not None:
        raise NotFoundError("folder holds no such file", where=src_url, limit=" or ".join(suffixes))
    return [(src_url, parent.size(name), parent.version(name))]


@dataclass
class TextTable:
    """A table that is read block by block.

    Attributes:
        url: Of the file.
        names: Of its columns.
        delimiter: Between them; a blank stands for any white space.
        header_line: Line of the names, from 1.
        encoding: Of its text.
        faults: Rows that were left out, filled while blocks are read.
    """

    url: str
    names: tuple[str, ...]
    delimiter: str
    header_line: int
    encoding: str
    faults: list[Fault] = field(default_factory=list)
    bad_rows: int = 0

    def blocks(self) -> Iterator[tuple[int, dict[str, Words]]]:
        """Number of the first row, from 1 in the order of good rows, and the words of each column, stripped.

        Raises:
            FormatError: the file does not read as a table.
        """
        import pyarrow as pa
        import pyarrow.csv

        keys = [str(k) for k in range(len(self.names))]
        reading = pyarrow.csv.ReadOptions(
            use_threads=False,
            block_size=ROW_BYTES,
            skip_rows=self.header_line,
            column_names=keys,
            encoding=self.encoding,
        )
        parsing = pyarrow.csv.ParseOptions(
            delimiter="," if self.delimiter == " " else self.delimiter, invalid_row_handler=self._bad_row
        )
        converting = pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(keys, pa.string()), strings_can_be_null=False, check_utf8=True
        )
        row = 1
        try:
            with pyarrow.csv.open_csv(self._stream(), reading, parsing, converting) as reader:
                for batch in reader:
                    yield row, {name: _words(batch.column(k)) for k, name in enumerate(self.names)}
                    row += batch.num_rows
        except pa.ArrowInvalid as error:
            if "Empty CSV file" in str(error):
                return
            raise FormatError(
                "table does not read", where=self.url, measured=str(error).splitlines()[0][:200]
            ) from error

    def _stream(self) -> Any:
        if self.delimiter != " ":
            return open_object(self.url)
        # Aligned columns: pyarrow knows only single delimiters.
        root, name = split_url(self.url)
        body = open_storage(root).get(name)
        return io.BytesIO(b"\n".join(b",".join(line.replace(b",", b".").split()) for line in body.split(b"\n")))

    def _bad_row(self, row: Any) -> str:
        self.bad_rows += 1
        if self.bad_rows <= FAULT_LIMIT:
            number = self.header_line + row.number if row.number is not None else "?"
            ails = f"{row.actual_columns} of {row.expected_columns} columns"
            self.faults.append(Fault("row", f"{self.url} line {number}", ails, "left out"))
        elif self.bad_rows == FAULT_LIMIT + 1:
            self.faults.append(Fault("row", f"{self.url} further lines", "another number of columns", "left out"))
        return "skip"


def open_table(url: str, wanted: Sequence[str] = (), delimiter: str | None = None) -> TextTable:
    """The table at `url`: its names stand in the first line that splits into several and holds no number.

    Args:
        url: A text file.
        wanted: Names of which the header must hold one; comments and preambles before it are passed over.
        delimiter: Between columns, found when not given; a blank stands for any white space.

    Raises:
        NotFoundError: nothing is there.
        FormatError: it is empty, binary, or has no header.
        UsageError: it is larger than a table that is sorted in memory may be.
    """
    root, name = split_url(url)
    storage = open_storage(root)
    size = storage.size(name)
    if not size:
        raise FormatError("file is empty", where=url, measured="0 bytes")
    if size > MOST_BYTES:
        raise UsageError("table is too large", where=url, measured=f"{size} bytes", limit=MOST_BYTES)
    head = storage.get_range(name, 0, min(size, HEAD_BYTES))
    if b"\0" in head:
        raise FormatError("file is binary", where=url, measured=f"starts with {head[:8].hex()}", limit="text")
    encoding = "utf8" if _is_utf8(storage, name, size) else "latin-1"
    text = head.decode("utf-8-sig" if encoding == "utf8" else encoding, errors="replace")
    lines = text.splitlines()[: 200 if size > len(head) else None]
    plain = {_plain(name) for name in wanted}
    for number, line in enumerate(lines, 1):
        split = delimiter or _delimiter(line)
        names = tuple(_clean(word) for word in (line.split() if split == " " else line.split(split)))
        if len(names) < 2 or any(_is_number(word) for word in names):
            continue
        if plain and not plain & {_plain(word) for word in names}:
            continue
        if len(names) > MOST_COLUMNS:
            raise FormatError("too many columns", where=url, measured=len(names), limit=MOST_COLUMNS)
        return TextTable(url, _unique(names), split, number, encoding)
    raise FormatError(
        "no header with names of columns",
        where=url,
        measured=repr(lines[0][:80]) if lines else "no line",
        limit=f"names such as {', '.join(list(wanted)[:6])}" if wanted else "names of columns",
        remedy="Add a first line with the names of the columns, or map them with --set columns.…=…",
    )


def find_column(names: Sequence[str], candidates: Sequence[str]) -> str | None:
    """The first column with one of these names, whatever case, blanks and units in brackets."""
    plain = {_plain(name): name for name in reversed(names)}
    return next((plain[_plain(candidate)] for candidate in candidates if _plain(candidate) in plain), None)


def numbers(words: Words) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """The words as float64, NaN where there is none, and where a word is there that is no number."""
    pandas = need("pandas", "earthquake")
    given = words.astype(bool)
    filled = words[given]
    found = np.array(pandas.to_numeric(pandas.Series(filled, dtype=object), errors="coerce"), np.float64)
    found[~np.isfinite(found)] = np.nan
    missing = np.array([word.lower() in MISSING_WORDS for word in filled], bool)
    found[missing] = np.nan
    values, bad = np.full(len(words), np.nan), np.zeros(len(words), bool)
    values[given], bad[given] = found, np.isnan(found) & ~missing
    return values, bad


def _words(column: Any) -> Words:
    return np.array([word.strip() for word in column.to_pylist()], dtype=object)


def _delimiter(line: str) -> str:
    counts = {delimiter: line.count(delimiter) for delimiter in DELIMITERS}
    best = max(counts, key=lambda delimiter: counts[delimiter])
    return best if counts[best] else " "


def _clean(word: str) -> str:
    return word.strip().strip('"').lstrip("#").strip()


def _plain(name: str) -> str:
    bare = re.sub(r"[\[(].*?[\])]", "", name)
    return re.sub(r"[^0-9a-zA-Z/]+", "", bare).lower() or name.strip().lower()


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _unique(names: Sequence[str]) -> tuple[str, ...]:
    """Names, those that come again with a number."""
    found: dict[str, None] = {}
    numbered: Counter[str] = Counter()
    for position, name in enumerate(names):
        unique = base = name or f"column_{position + 1}"
        while unique in found:
            numbered[base] += 1
            unique = f"{base}_{numbered[base] + 1}"
        found[unique] = None
    return tuple(found)


def _is_utf8(storage: Storage, key: str, size: int) -> bool:
    """True when the whole object is UTF-8, read in pieces."""
    import codecs

    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for start in range(0, size, 8 * BLOCK_BYTES):
            length = min(8 * BLOCK_BYTES, size - start)
            decoder.decode(storage.get_range(key, start, length), start + length == size)
    except UnicodeDecodeError:
        return False
    return True
