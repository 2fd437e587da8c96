"""Names what a file is whose content does not fit its suffix: a web page, an archive, an image."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# First bytes in lower case, what the file is, and the suffixes that such files rightly have.
_KINDS: tuple[tuple[bytes, str, tuple[str, ...]], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, fetch the file itself with git lfs pull", ()),
    (b"<!doctype html", "a web page, download the file itself", ()),
    (b"<html", "a web page, download the file itself", ()),
    (b"pk\3\4", "a ZIP archive, unpack it first", (".npz", ".npy")),
    (b"\x1f\x8b", "compressed by gzip, unpack it first", ()),
    (b"bzh", "compressed by bzip2, unpack it first", ()),
    (b"\xfd7zxz\0", "compressed by xz, unpack it first", ()),
    (b"\x28\xb5\x2f\xfd", "compressed by Zstandard, unpack it first", ()),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive, unpack it first", ()),
    (b"rar!\x1a\x07", "a RAR archive, unpack it first", ()),
    (b"%pdf-", "a PDF document", ()),
    (b"\x89png\r\n", "a PNG image", ()),
    (b"\xff\xd8\xff", "a JPEG image", ()),
    (b"kaydara fbx binary", "an FBX file, which is not read, save it in another format", ()),
    (b"blender-v", "a Blender file, which is not read, save it in another format", ()),
    (b"gltf\2\0\0\0", "a binary glTF file, name it .glb", (".glb", ".gltf")),
    (b"ply\n", "a PLY file, name it .ply", (".ply",)),
    (b"ply\r", "a PLY file, name it .ply", (".ply",)),
)


def refuse_other_files(path: Path) -> None:
    """Raises ValueError that says what the file is, if its first bytes belong to another suffix."""
    with path.open("rb") as file:
        begin = file.read(256).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for first, what, suffixes in _KINDS:
        if begin.startswith(first) and path.suffix.lower() not in suffixes:
            raise ValueError(f"it is {what}")
