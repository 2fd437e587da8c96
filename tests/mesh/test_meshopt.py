"""The meshopt decoder against streams that the reference encoder (meshoptimizer 1.3) wrote."""

import base64
import contextlib
import json

import numpy as np
import pytest
import trimesh

from tar3d.mesh.gltf import read_gltf
from tar3d.mesh.meshopt import decode_view

# the 42 vertices of an icosphere times 100 as four int16, in both versions of the bitstream
VERTICES = {
    0: "oB8AN2Rjoj18oQCi+s1pqQAIPmShPsjN898APgA+JkYHN///wAArZCbHZEYHPWMFAJkmECSZIAAfAEU+PWQlAGMAZKG"
    "qP2kAYyY+YyZ85/H6ACVeN2Q+Y0X///AACD5kaSw+ZCUsaRUAAAABJJkAJAkgAAAfAD4moT5jyPq7+mQAqj/TqGQm+mO7o"
    "T4mx2SqRT43Kz3///AAYyY+qQg4LGMHHRUBmZgGBIBgAEkAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAMv/VQAAAAA"
    "A",
    1: "oTOjADdkY6I9fKEAogUyaakACD5koT7IzQzfAD4APiZGBzcrZCbHZEYHPWMABQAMAQFAAAEART49ZCUAYwBkoao/aQB"
    "jJj5jJnznDgUAJV43ZD5jRQg+ZGksPmQlLGkEwAABAQA+JqE+Y8gFRAVkAKo/06hkJgVjRKE+JsdkqkU+Nys9YyY+qQg4L"
    "GMHHQoAAVAABEAAAAAAAAAAAAAAAAAAAAAAy/9VAAAAAAABAQ==",
}
TRIANGLES = (
    "4fAgIDARUEDQYOCAAtAU0BPQF0CAESAFwAMwHJAPkDAMQAiQFnARkApgAVARKRAHYAH+ISAYUBHgDDGgH6ASgBH+Ak8fQAE"
    "2MA8fUBohLDscDEYa9QYVAwcEAHaHVmd4qYZliWiYAWkAAA=="
)
# columns of floats whose channels are stored as rotated xor, twice, and as deltas of two bytes
FLOATS = (
    "oTp6vwAEFDRkJPRUxCJqOtJy1iVhIeUtAQBB/wEAGHi4WKyc/EzMfOa2lm7eRqOvdwEAccccBwMPAwMAAQcASCNuAG0kbSZ"
    "sRwBIbm5tRyUAJgCSSdsA20nbSduSAJLb29uSSQBJAAQOFiAqMjoiJiwwNDAeIiImKCoAAAAAAAAAAAAAAIA/AABAwCVJEj"
    "4SMgE="
)
SEQUENCE = "0QAUDhQO8RUE0fUQAAAAAA=="
QUATERNIONS = (
    "oAE/AAAA+zTIAT8AAAC0JNcBPwAAAPv8yAE/AAAAtLPZATwAAAD7/AE8AAAAtLMBPwAAAAUGAwAAAAAAAAAAAAAAAAAAAAA"
    "AAAAAAAAAAAAAAAAAAAD/fw=="
)
EXPONENTIALS = (
    "oAE8AAAA/7MBPAAAAHwvAAE8AAAAFBoAAQwAAAAgAAE8AAAABQgBPAAAAHV2ATAAAACQASAAAAABPAAAABUYAAAAAAAAAAA"
    "AAAAAAAAAAAAAAAAAAADyACAA8wDY//Q="
)


def decoded(text: str, count: int, stride: int, mode: str = "ATTRIBUTES", filter_: str = "NONE"):
    return decode_view(base64.b64decode(text), count, stride, mode, filter_)


def sphere(directory, name: str = "EXT_meshopt_compression", **changes: object):
    """The path of a file whose buffer views are compressed, with a fallback buffer without data."""
    parts = [base64.b64decode(VERTICES[1]), base64.b64decode(TRIANGLES)]
    sizes = [(42, 8, "ATTRIBUTES"), (240, 2, "TRIANGLES")]
    views, start = [], 0
    for k, (data, (count, stride, mode)) in enumerate(zip(parts, sizes, strict=True)):
        packed = {
            "buffer": 0,
            "byteOffset": sum(map(len, parts[:k])),
            "byteLength": len(data),
            "byteStride": stride,
            "count": count,
            "mode": mode,
        }
        view = {"buffer": 1, "byteOffset": start, "byteLength": count * stride}
        views.append(view | {"extensions": {name: packed | changes}})
        start += count * stride
    views[0]["byteStride"] = 8
    content = {
        "asset": {"version": "2.0"},
        "extensionsUsed": [name, "KHR_mesh_quantization"],
        "nodes": [{"mesh": 0, "scale": [0.01] * 3}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]}],
        "accessors": [
            {"bufferView": 0, "componentType": 5122, "count": 42, "type": "VEC3"},
            {"bufferView": 1, "componentType": 5123, "count": 240, "type": "SCALAR"},
        ],
        "bufferViews": views,
        "buffers": [
            {
                "uri": "data:;base64," + base64.b64encode(b"".join(parts)).decode(),
                "byteLength": sum(map(len, parts)),
            },
            {"byteLength": start, "extensions": {name: {"fallback": True}}},
        ],
    }
    path = directory / "sphere.gltf"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("name", ["EXT_meshopt_compression", "KHR_meshopt_compression"])
def test_a_compressed_file_is_read(tmp_path, name):
    vertices, faces = read_gltf(sphere(tmp_path, name), 1000, 1000)
    shape = trimesh.Trimesh(vertices, faces, process=False)
    assert shape.is_watertight and shape.volume == pytest.approx(3.6587, rel=5e-3)
    assert np.allclose(np.linalg.norm(vertices, axis=1), 1, atol=0.01)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"count": 43}, "has 336 bytes, but its compressed data 43 times 8"),
        ({"filter": "OCTAHEDRAL"}, "filter 'OCTAHEDRAL' is not read"),
        ({"mode": "STRIPS"}, "mode 'STRIPS' is unknown"),
        ({"byteLength": 100}, "ends early|unused bytes"),
    ],
)
def test_a_file_that_lies_is_refused(tmp_path, changes, reason):
    with pytest.raises(ValueError, match=reason):
        read_gltf(sphere(tmp_path, **changes), 1000, 1000)


def test_both_versions_of_the_bitstream_hold_the_same_vertices():
    old, new = (np.frombuffer(decoded(VERTICES[v], 42, 8), "<i2").reshape(42, 4) for v in (0, 1))
    assert (old == new).all() and (new[:, 3] == 0).all()
    assert np.allclose(np.linalg.norm(new[:, :3], axis=1), 100, atol=1)


def test_floats_come_back_bit_by_bit():
    first = (1 + np.arange(20) ** 2 / 64).astype(np.float32)
    expected = np.stack([first, -first * 3, first / 7], axis=1)
    assert decoded(FLOATS, 20, 12) == expected.tobytes()


def test_a_sequence_of_indices():
    values = [0, 5, 1, 6, 2, 700, 3, 70000]
    wide = np.frombuffer(decoded(SEQUENCE, 8, 4, "INDICES"), "<u4")
    narrow = np.frombuffer(decoded(SEQUENCE, 8, 2, "INDICES"), "<u2")
    assert wide.tolist() == values and narrow.tolist() == [v % 65536 for v in values]


def test_filters():
    stored = np.frombuffer(decoded(QUATERNIONS, 4, 8, filter_="QUATERNION"), "<i2")
    turns = np.array(
        [[0, 0, 0, 1], [0.5, 0.5, 0.5, 0.5], [0.6, 0, 0, 0.8], [0, -0.8, 0, 0.6]]
    )  # and -q turns as q does
    same = np.abs((stored.reshape(4, 4) / 32767 * turns).sum(axis=1))
    assert np.allclose(same, 1, atol=1e-4)
    stored = np.frombuffer(decoded(EXPONENTIALS, 3, 12, filter_="EXPONENTIAL"), "<f4")
    expected = [[0, 1, -2.5], [1000, 0.125, 1e-3], [5e6, 3, 4]]
    assert np.allclose(stored.reshape(3, 3), expected, rtol=1e-4)


def test_damaged_streams_raise_nothing_but_value_errors():
    rng = np.random.default_rng(0)
    for text, count, stride, mode in (
        (VERTICES[0], 42, 8, "ATTRIBUTES"),
        (VERTICES[1], 42, 8, "ATTRIBUTES"),
        (TRIANGLES, 240, 4, "TRIANGLES"),
        (SEQUENCE, 8, 4, "INDICES"),
    ):
        data = base64.b64decode(text)
        for length in range(0, len(data), 3):
            with pytest.raises(ValueError, match="ends early|unused|stream|channel"):
                decode_view(data[:length], count, stride, mode, "NONE")
        for _ in range(20):
            damaged = bytearray(data)
            damaged[rng.integers(len(data))] = rng.integers(256)
            with contextlib.suppress(ValueError):
                assert len(decode_view(bytes(damaged), count, stride, mode, "NONE")) > 0
    with pytest.raises(ValueError, match="ends early"):  # before memory is spent on it
        decode_view(base64.b64decode(VERTICES[1]), 100_000_000, 8, "ATTRIBUTES", "NONE")
