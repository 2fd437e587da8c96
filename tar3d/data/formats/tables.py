"""CSV tables, of users and of this project: one reader for all, errors with file and line.

    for line, row in read_rows(Path("captions.csv"), "id", "caption"): ...

A table is text in UTF-8, or in UTF-16 with a byte order mark. Its first line names the columns, and
commas, semicolons or tabs part the cells: what spreadsheets write.
"""

from __future__ import annotations

import contextlib
import csv
import difflib
import itertools
import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import TextIO

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab"}
# First bytes of a file -> its encoding; the longer marks first, which begin with shorter ones.
_MARKS = {
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}


class Row(NamedTuple):
    """A row of a table: the number of its first line, its cells by column, and what is wrong.

    A cell that the row lacks is "". `problem` is "" for a good row; a bad one has no cells.
    """

    line: int
    cells: dict[str, str]
    problem: str = ""


def read_header(path: Path) -> list[str]:
    """The names of the columns. Raises ValueError for a file that is no table, or an empty one."""
    with _lines_of(path) as lines:
        return [name for name in _Table(path, lines, ()).header if name]


def read_rows(path: Path, *required: str) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, cells by column) of the rows of a table that has at least the columns `required`.

    Raises ValueError as `read_checked_rows` does, and for the first bad row.
    """
    for row in read_checked_rows(path, *required):
        if row.problem:
            raise ValueError(f"{path}, line {row.line}: {row.problem}")
        yield row.line, row.cells


def read_checked_rows(path: Path, *required: str, cut_off: bool = False) -> Iterator[Row]:
    """The rows of a table that has at least the columns `required`, good and bad; no empty ones.

    With `cut_off`, a last line without an end is left out: a kill cut it off. Raises ValueError for
    what spoils more than a row: a file that cannot be read or decoded, NUL characters, no header, a
    missing or repeated column, and a quote that takes other rows into its cell.
    """
    if cut_off:
        with path.open("rb") as f:
            if not f.readline().endswith(b"\n"):
                return  # not even the header is whole
    with _lines_of(path, cut_off=cut_off) as lines:
        yield from _Table(path, lines, required).rows()


class _Lines:
    """The lines of a text, counted; those of the row that is being read are kept."""

    def __init__(self, path: Path, file: TextIO, *, cut_off: bool) -> None:
        self._path, self._file, self._cut_off = path, file, cut_off
        self.number = 0
        self.row: list[str] = []

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = next(self._file)
        if self._cut_off and not line.endswith(("\n", "\r")):
            raise StopIteration
        self.number += 1
        if "\0" in line:
            raise ValueError(
                f"{self._path}, line {self.number} holds a NUL character, so it is no text in "
                "UTF-8; save it as CSV in UTF-8"
            )
        self.row.append(line)
        return line


class _Table:
    """The parsed header of a table, and its rows."""

    def __init__(self, path: Path, lines: _Lines, required: tuple[str, ...]) -> None:
        self._path, self._lines, self._required = path, lines, required
        first = next((line for line in lines if line.strip("\ufeff \t\r\n")), "").lstrip("\ufeff")
        # spreadsheets write, and hide, a line that states the delimiter
        stated = re.fullmatch(r'"?sep=(.)"?', first.strip("\r\n"), re.IGNORECASE)
        if stated:
            first = next(lines, "")
        self._delimiter = stated[1] if stated else _delimiter(first, required)
        self._reader = csv.reader(
            itertools.chain([first] if first else [], lines), delimiter=self._delimiter, strict=True
        )
        try:
            self.header = [name.strip() for name in next(self._reader, [])]
        except csv.Error as e:
            raise ValueError(
                f"{path}: the header is no CSV ({e}); it names the columns in one line"
            ) from e
        self._check_header()

    def rows(self) -> Iterator[Row]:
        """The rows below the header, without empty ones."""
        while True:
            line, self._lines.row = self._lines.number + 1, []
            try:
                cells = next(self._reader, None)
            except csv.Error as e:
                if self._lines.number > line:
                    raise self._open_quote(line) from e
                never_closed = "a quote opens here and is never closed"
                problem = never_closed if "end of data" in str(e) else f"it is no CSV ({e})"
                yield Row(line, {}, f"{problem}; quotes within a text are doubled")
                continue
            if cells is None:
                return
            if self._takes_rows():
                raise self._open_quote(line)
            if any(cell.strip() for cell in cells):
                yield self._row(line, cells)

    def _row(self, line: int, cells: list[str]) -> Row:
        named = itertools.zip_longest(self.header, cells[: len(self.header)], fillvalue="")
        surplus = [cell for name, cell in named if not name] + cells[len(self.header) :]
        if any(cell.strip() for cell in surplus):
            delimiter = DELIMITERS.get(self._delimiter, repr(self._delimiter))
            return Row(
                line,
                {},
                "more cells than the header has columns; "
                f"text that holds a {delimiter} needs quotes around it",
            )
        cells += [""] * (len(self.header) - len(cells))
        return Row(line, {n: c for n, c in zip(self.header, cells, strict=False) if n})

    def _takes_rows(self) -> bool:
        """True if a quoted cell of the row just read holds a line that is a whole row itself."""
        _, *inner = self._lines.row
        if not inner or len(self.header) < 2:
            return False
        inner[-1] = inner[-1].partition('"')[0]
        return any(line.count(self._delimiter) == len(self.header) - 1 for line in inner)

    def _open_quote(self, line: int) -> ValueError:
        return ValueError(
            f"{self._path}, line {line}: a quote opens here that takes in the rows up to line "
            f"{self._lines.number}; close it, or write the text of that cell in one line"
        )

    def _check_header(self) -> None:
        names = [name for name in self.header if name]
        needs = f"; it needs the columns {', '.join(self._required)}" if self._required else ""
        if not names:
            raise ValueError(f"{self._path} is empty: its first line names the columns{needs}")
        repeated = [name for k, name in enumerate(names) if name in names[:k]]
        if repeated:
            raise ValueError(f"{self._path} has two columns {repeated[0]!r}; rename one of them")
        missing = [name for name in self._required if name not in names]
        if missing:
            raise ValueError(
                f"{self._path} has no column {' or '.join(missing)}; "
                f"its columns are {', '.join(names)}{needs}{_nearest(missing[0], names)}"
            )


def _delimiter(header: str, required: tuple[str, ...]) -> str:
    """The delimiter that yields the columns `required`, else the one that yields most columns."""
    columns = {}
    for delimiter in DELIMITERS:
        with contextlib.suppress(csv.Error, StopIteration):
            columns[delimiter] = [
                name.strip() for name in next(csv.reader([header], delimiter=delimiter))
            ]
    fitting = [d for d, names in columns.items() if required and set(required) <= set(names)]
    return fitting[0] if fitting else max(columns, key=lambda d: len(columns[d]), default=",")


def _nearest(missing: str, names: list[str]) -> str:
    """The words that name the column which may be meant, or ""."""
    by_lower = {name.lower(): name for name in names}
    close = difflib.get_close_matches(missing.lower(), by_lower, 1)
    return f"; is {by_lower[close[0]]!r} meant for {missing!r}?" if close else ""


@contextlib.contextmanager
def _lines_of(path: Path, *, cut_off: bool = False) -> Iterator[_Lines]:
    try:
        with path.open("rb") as f:
            start = f.read(4)
        encoding = next((e for mark, e in _MARKS.items() if start.startswith(mark)), "utf-8")
        # a line may end within a character, too
        errors = "replace" if cut_off else "strict"
        with path.open(encoding=encoding, errors=errors, newline="") as f:
            yield _Lines(path, f, cut_off=cut_off)
    except UnicodeDecodeError as e:
        raise ValueError(_undecodable(path, encoding)) from e
    except OSError as e:
        raise ValueError(f"{path} cannot be read ({e.strerror or e})") from e


def _undecodable(path: Path, encoding: str) -> str:
    """The sentence for a file that `encoding` cannot decode, with the line and the byte."""
    content = path.read_bytes()
    try:
        content.decode(encoding)
    except UnicodeDecodeError as e:
        if encoding.startswith("utf-8"):
            # of Windows-1252 all bytes but five are characters
            guess = content[e.start : e.start + 1].decode("cp1252", "replace")
            line = content[: e.start].count(b"\n") + 1
            return (
                f"{path} is not a CSV file in UTF-8: line {line} "
                f"holds the byte 0x{content[e.start]:02X}, {guess!r} in Windows-1252; "
                "save it as CSV in UTF-8"
            )
    return f"{path} begins with the mark of {encoding.upper()}, but is none; save it in UTF-8"
