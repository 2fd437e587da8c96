"""Captions from the names of files and folders.

    clean_name("SM_OfficeChair_final_v2.001")     # "office chair"
    clean_name("0a3f9c21")                         # "": no word of it describes a shape

The rules look at the form of a word and know no particular data set.
"""

from __future__ import annotations

import re

_NO_DESCRIPTION = frozenset(
    [
        "3d",
        "asset",
        "assets",
        "blend",
        "copy",
        "dae",
        "default",
        "export",
        "exported",
        "fbx",
        "final",
        "glb",
        "glbs",
        "gltf",
        "highpoly",
        "lowpoly",
        "mesh",
        "meshes",
        "model",
        "models",
        "normalized",
        "obj",
        "object",
        "objects",
        "ply",
        "scan",
        "scene",
        "scenes",
        "stl",
        "unnamed",
        "untitled",
    ]
)
_ORGANISING_FOLDERS = frozenset(
    [
        "archive",
        "archives",
        "batch",
        "cache",
        "data",
        "dataset",
        "datasets",
        "download",
        "downloads",
        "file",
        "files",
        "input",
        "inputs",
        "misc",
        "new",
        "other",
        "others",
        "output",
        "outputs",
        "raw",
        "sample",
        "samples",
        "shape",
        "shapes",
        "source",
        "sources",
        "src",
        "test",
        "tmp",
        "train",
        "val",
        "validation",
    ]
)
# words of two consonants, which are no prefixes like sm_ or bm_
_TWO_CONSONANTS = frozenset(
    ["bb", "cd", "dj", "dr", "gp", "hq", "jr", "lp", "mr", "ms", "pc", "rv", "st", "tv", "vr", "vw"]
)
_UUID = re.compile(r"[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}", re.IGNORECASE)
# fooBar, HTMLTable
_WORD_STARTS = re.compile(r"(?<=[^\W\d_A-Z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
# cube001, chair2; but mp3, f150
_GLUED_NUMBER = re.compile(r"([^\W\d_]{3,})(?:0\d+|(?<=[^\W\d_]{4})\d{1,2})")
_VERSION = re.compile(r"v\d+|lod\d+|r\d{2,}")


def clean_name(name: str) -> str:
    """The describing words of the name of a file (without suffix) or folder, in lower case.

    "" if none of its words describes a shape.
    """
    name = _UUID.sub(" ", name).replace("'", "").replace("’", "")
    words = [
        word
        for token in re.split(r"[\W_]+", name)
        if token and not _is_code(token)
        for word in _WORD_STARTS.split(token)
    ]
    words = [
        match[1] if (match := _GLUED_NUMBER.fullmatch(word)) else word
        for word in map(str.lower, words)
    ]
    words = [word for word in words if word not in _NO_DESCRIPTION and not _is_serial(word)]
    while len(words) > 1 and (re.fullmatch(r"\d{1,2}", words[-1]) or _VERSION.fullmatch(words[-1])):
        words.pop()
    if (
        len(words) > 1
        and re.fullmatch("[b-df-hj-np-tv-xz]{2}", words[0])
        and words[0] not in _TWO_CONSONANTS
        and "_" in name
    ):
        words.pop(0)  # a prefix of an artist or an engine, such as sm_ for a static mesh
    return " ".join(words) if any(c.isalpha() for word in words for c in word) else ""


def folder_name(name: str) -> str:
    """As `clean_name`, and "" also for folders that organise a set, such as train/ and raw/."""
    return "" if name.lower() in _ORGANISING_FOLDERS else clean_name(name)


def _is_code(token: str) -> bool:
    """True for a hash, a uid or a part of one.

    Such tokens alternate letters and digits, or have many hexadecimal digits.
    """
    runs = re.findall(r"\d+|[^\W\d_]+", token)
    if re.fullmatch("[0-9a-fA-F]{4,}", token):
        return len(runs) >= (2 if len(token) >= 8 else 3)
    return len(token) >= 8 and len(runs) >= 4


def _is_serial(word: str) -> bool:
    """True for a number with leading zeros, and for one too long for a count or a date."""
    return word.isdigit() and (len(word) > 4 or (len(word) > 1 and word[0] == "0"))
