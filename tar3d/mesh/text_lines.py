"""Lines of a text file of numbers, found and converted by NumPy rather than line by line in Python.

The readers of OBJ, OFF, ASCII PLY and ASCII STL choose lines by their first word, and get the
numbers of all of them at once. Errors name the line of the file.
"""

from __future__ import annotations

import re
import warnings

import numpy as np

_BLANKS = bytes(32 if i < 32 and i != 10 else i for i in range(256))
# A line that goes on in the next, and a break that the file does not have. Both are white space to
# a parser of numbers, and no file has them any more once its control characters are blanks.
JOINED, BROKEN = b"\v", b"\f"
UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # byte order marks
_WINDOWS_NAN = re.compile(rb"\d\.#(?:QNAN|SNAN|IND|INF)\d*")  # as printed by old Windows programs
_LINES_AT_ONCE = 1 << 18
_MAX_INDENT = 32  # columns of indentation that are skipped for all lines together


def plain_text(content: bytes) -> bytes:
    """Text of any line ends and byte order mark -> one with "\\n", without control characters."""
    if content.startswith(UTF_16):
        content = content.decode("utf-16", errors="replace").encode()
    content = content.removeprefix(b"\xef\xbb\xbf")
    if b"\r" in content:
        content = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    content = content.translate(_BLANKS)
    if b".#" in content:
        content = _WINDOWS_NAN.sub(lambda found: b"nan".ljust(len(found[0])), content)
    return content


def is_whole(numbers: np.ndarray) -> np.ndarray:
    """Which of `numbers` are whole, so that they may be lengths and indices."""
    return np.isfinite(numbers) & (numbers == np.floor(numbers))


class TextLines:
    """The lines of `content`, a text of `plain_text`; `before` lines stand above it in the file."""

    def __init__(self, content: bytes, *, comments: bool = False, before: int = 0) -> None:
        self.content, self._before = content, before
        self._data = data = np.frombuffer(content + b"\n\n\n\n\n\n\n\n", np.uint8).copy()
        breaks = np.flatnonzero((data == 10) | (data == BROKEN[0]))[:-7]
        self._starts = np.concatenate([[0], breaks[:-1] + 1])
        self._ends = breaks
        if comments and b"#" in content:
            marks = np.flatnonzero(data == 35)
            lines, first = np.unique(np.searchsorted(breaks, marks), return_index=True)
            for start, end in zip(marks[first].tolist(), breaks[lines].tolist(), strict=True):
                data[start:end] = 32
        self._first = self._first_bytes()
        self.filled = np.flatnonzero(self._first < self._ends)  # lines that are not blank

    def number(self, line: int) -> int:
        """The number of the line in the file, from 1."""
        start = int(self._starts[line])
        return (
            self._before
            + 1
            + self.content.count(b"\n", 0, start)
            + self.content.count(JOINED, 0, start)
        )

    def text(self, line: int) -> str:
        """The line without comment and surrounding blanks."""
        text = self._data[self._starts[line] : self._ends[line]].tobytes()
        return text.decode("utf-8", errors="replace").strip()

    def with_word(self, word: str) -> np.ndarray:
        """Which lines (L,) begin with the lower-case `word`, in any case, and a blank."""
        letters = word.encode()
        found = np.zeros(len(self._starts), dtype=bool)
        lines = self.filled
        for i, letter in enumerate(letters):
            lines = lines[self._data[self._first[lines] + i] | 32 == letter]
        found[lines[self._data[self._first[lines] + len(letters)] <= 32]] = True
        return found

    def letters(self, place: int) -> np.ndarray:
        """The byte (L,) at `place` < 7 after the first that is no blank in each line.

        It is that of a later line where the line is shorter.
        """
        return self._data[self._first + place]

    def numbers(
        self, lines: np.ndarray, *, skip: int = 0, whole: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """All numbers of `lines`, increasing indices, and how many each line has.

        float64, or int64 if `whole`, which takes the part of each number before a "/". The first
        `skip` bytes of a line are not read. Raises ValueError with the line for anything else.
        """
        values, counts = [], []
        for start in range(0, len(lines), _LINES_AT_ONCE):
            some = lines[start : start + _LINES_AT_ONCE]
            text, count = self._masked(some, skip, whole)
            found = _converted(text, np.int64 if whole else np.float64)
            if found is None or len(found) != count.sum():
                raise self._not_a_number(some, skip, whole)
            values.append(found)
            counts.append(count)
        if not values:
            return np.empty(0, np.int64 if whole else np.float64), np.empty(0, np.int64)
        return np.concatenate(values), np.concatenate(counts)

    def _masked(self, lines: np.ndarray, skip: int, whole: bool) -> tuple[bytes, np.ndarray]:
        """The text around `lines` with all else blank, and the number of words in each line."""
        origin, end = int(self._starts[lines[0]]), int(self._ends[lines[-1]])
        starts = np.minimum(self._first[lines] + skip, self._ends[lines]) - origin
        ends = self._ends[lines] - origin
        change = np.zeros(end - origin + 1, dtype=np.int8)
        change[starts] += 1
        change[ends] -= 1
        kept = np.cumsum(change[:-1], dtype=np.int8).view(bool)
        text = np.where(kept, self._data[origin:end], np.uint8(32))
        filled = text > 32
        words = np.flatnonzero(filled & ~np.concatenate([[False], filled[:-1]]))
        counts = np.searchsorted(words, ends) - np.searchsorted(words, starts)
        slashes = np.flatnonzero(text == 47) if whole else words[:0]
        if len(slashes) > 0:
            word = np.searchsorted(words, slashes, side="right") - 1
            new = np.flatnonzero(np.diff(word, prepend=-1))  # the first slash of each word
            word_ends = np.flatnonzero(filled & ~np.concatenate([filled[1:], [False]])) + 1
            change = np.zeros(len(text) + 1, dtype=np.int8)
            change[slashes[new]] += 1
            change[word_ends[word[new]]] -= 1
            text[np.cumsum(change[:-1], dtype=np.int8).view(bool)] = 32
        return text.tobytes(), counts

    def _first_bytes(self) -> np.ndarray:
        """The place of the first byte of each line that is no blank; its end if there is none."""
        first = self._starts.copy()
        indented = np.arange(len(first))
        for _ in range(_MAX_INDENT):
            indented = indented[
                (self._data[first[indented]] <= 32) & (first[indented] < self._ends[indented])
            ]
            if len(indented) == 0:
                break
            first[indented] += 1
        for line in indented.tolist():
            rest = self._data[first[line] : self._ends[line]].tobytes()
            first[line] += len(rest) - len(rest.lstrip())
        return first

    def _not_a_number(self, lines: np.ndarray, skip: int, whole: bool) -> ValueError:
        kind, name = (int, "whole number") if whole else (float, "number")
        for line in lines.tolist():
            text = self._data[self._first[line] + skip : self._ends[line]].tobytes()
            for word in text.decode("utf-8", errors="replace").split():
                try:
                    kind(word.split("/")[0] if whole else word)
                except ValueError:
                    comma = "; a decimal comma must be a point" if "," in word else ""
                    return ValueError(
                        f"line {self.number(line)} holds {word[:40]!r}, which is no {name}{comma}"
                    )
        return ValueError(
            f"lines {self.number(int(lines[0]))} to {self.number(int(lines[-1]))} hold something "
            f"that is no {name}"
        )


def _converted(text: bytes, dtype: type) -> np.ndarray | None:
    """The numbers of a text, None if something else is in it."""
    if text.isspace() or not text:  # NumPy returns one number for blanks alone
        return np.empty(0, dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return np.fromstring(text, dtype, sep=" ")
        except ValueError:
            return None
