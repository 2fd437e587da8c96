"""Names of files and folders -> words for a caption.

    clean_name("SM_OfficeChair_final_v2.001")     # "office chair"
    clean_name("0a3f9c21")                         # "": it says nothing

The rules are general ones, by how a word looks; no data set is known here.
"""

from __future__ import annotations

import re

_SAYS_NOTHING = frozenset(
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
_FOLDERS = frozenset(
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
_TWO_CONSONANTS = frozenset(
    ["bb", "cd", "dj", "dr", "gp", "hq", "jr", "lp", "mr", "ms", "pc", "rv", "st", "tv", "vr", "vw"]
)  # that are words, other than sm_ or bm_
_UUID = re.compile(r"[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}", re.IGNORECASE)
_WORD_STARTS = re.compile(
    r"(?<=[^\W\d_A-Z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])"
)  # fooBar, HTMLTable
_GLUED_NUMBER = re.compile(
    r"([^\W\d_]{3,})(?:0\d+|(?<=[^\W\d_]{4})\d{1,2})"
)  # cube001, chair2; but mp3, f150
_VERSION = re.compile(r"v\d+|lod\d+|r\d{2,}")


def clean_name(name: str) -> str:
    """Lower-case words of a file's name (without its suffix) or a folder's; "" if nothing in it
    says what the shape is."""
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
    words = [word for word in words if word not in _SAYS_NOTHING and not _is_serial(word)]
    while len(words) > 1 and (re.fullmatch(r"\d{1,2}", words[-1]) or _VERSION.fullmatch(words[-1])):
        words.pop()
    if (
        len(words) > 1
        and re.fullmatch("[b-df-hj-np-tv-xz]{2}", words[0])
        and words[0] not in _TWO_CONSONANTS
        and "_" in name
    ):
        words.pop(0)  # the mark of an artist or an engine, as sm_ of a static mesh
    return " ".join(words) if any(c.isalpha() for word in words for c in word) else ""


def folder_name(name: str) -> str:
    """As `clean_name`, but "" also for folders that say how a set is kept, such as train/ and
    raw/."""
    return "" if name.lower() in _FOLDERS else clean_name(name)


def _is_code(token: str) -> bool:
    """A hash, a uid or a part of one: letters and digits that take turns, or many hexadecimal
    digits."""
    kinds = re.findall(r"\d+|[^\W\d_]+", token)
    if re.fullmatch("[0-9a-fA-F]{4,}", token):
        return len(kinds) >= (2 if len(token) >= 8 else 3)
    return len(token) >= 8 and len(kinds) >= 4


def _is_serial(word: str) -> bool:
    """A number with leading zeros, or one too long to count or date anything."""
    return word.isdigit() and (len(word) > 4 or (len(word) > 1 and word[0] == "0"))
