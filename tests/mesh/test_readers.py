"""OBJ, PLY, STL and OFF in the varieties that programs write: the same two boxes from each, and
what is refused, by line or byte."""

import gzip
import struct

import numpy as np
import pytest

from tar3d.mesh.load import MeshError, load_mesh
from tar3d.mesh.point_cloud import load_points


def box(low, high) -> list:
    (x, y, z), (u, v, w) = low, high
    return [(x, y, z), (u, y, z), (u, v, z), (x, v, z), (x, y, w), (u, y, w), (u, v, w), (x, v, w)]


SIDES = [(0, 3, 2, 1), (4, 5, 6, 7), (0, 1, 5, 4), (1, 2, 6, 5), (2, 3, 7, 6), (3, 0, 4, 7)]
V = box((0, 0, 0), (4, 1, 2)) + box((0, 2, 0), (1, 3, 2))
QUADS = SIDES + [tuple(i + 8 for i in side) for side in SIDES]
TRIANGLES = [t for a, b, c, d in QUADS for t in ((a, b, c), (c, d, a))]
MIXED = QUADS[:6] + TRIANGLES[12:]
BOXES = (10, 38)  # volume and area
LITTLE, BIG = "binary_little_endian", "binary_big_endian"


def measured(path) -> tuple[float, float]:
    mesh = load_mesh(path)
    v = mesh.vertices.astype(np.float64) @ mesh.to_source[:3, :3].T
    a, b, c = (v[mesh.faces[:, i]] for i in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2
    return float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6), float(area)


def check(tmp_path, name: str, content: str | bytes, wanted: tuple | str = BOXES) -> None:
    """The file has the volume and area `wanted`, or is refused with these words."""
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    if isinstance(wanted, str):
        with pytest.raises(MeshError, match=wanted):
            load_mesh(path)
    else:
        assert measured(path) == pytest.approx(wanted, rel=1e-4)


# OBJ


def points(vertices=V, begin: str = "v ", end: str = "\n") -> str:
    return "".join(begin + " ".join(map(str, v)) + end for v in vertices)


def corners(faces=QUADS, begin: str = "f ", corner: str = "{}", end: str = "\n") -> str:
    return "".join(
        begin + " ".join(corner.replace("{}", str(i + 1)) for i in face) + end for face in faces
    )


PLAIN = points() + corners()
EACH_OBJECT = "".join(
    f"o {name}\n" + points(part) + corners([[i - 9 for i in side] for side in SIDES])
    for name, part in (("a", V[:8]), ("b", V[8:]))
)


@pytest.mark.parametrize(
    "content",
    [
        PLAIN,
        points() + corners(MIXED),
        PLAIN.replace("\n", "\r"),
        PLAIN.replace("\n", "\r\n"),
        b"\xef\xbb\xbf" + PLAIN.encode(),
        PLAIN.encode("utf-16"),
        PLAIN.replace(" ", "\t"),
        points() + corners(QUADS[:6]) + corners(QUADS[6:], "f\t") + "# end",
        points(begin="  v ") + corners(begin="\t f "),
        PLAIN.replace("\n", "# 1 2 3\n"),
        points() + corners(begin="f \\\n ", end=" \\ \r\n\n"),
        "# C:\\folder\\\n" + PLAIN + "usemtl C:\\m\\\n",
        *(
            points() + "vt nan nan\nvn nan -1.#IND inf\n" + corners(corner=c)
            for c in ("{}/1/1", "{}//1", "{}/1", "{}/", "{}/1/")
        ),
        points() + corners(MIXED[:9], corner="{}/1") + corners(MIXED[9:], corner="{}//1"),
        points(end=" 0.5 0.5 nan\n") + corners(),
        points(V[:8], end=" 1.0\n") + points(V[8:]) + corners(),
        "".join(f"v {x:.3e} {y:+.2E} {z}e+00\n" for x, y, z in V) + corners(),
        EACH_OBJECT,
        "".join(points([V[i] for i in quad]) + "vt 0 0\nf -4/-1 -3 -2 -1\n" for quad in QUADS),
        corners() + points(),
        "p 1 2\n" + PLAIN + "l 1/1 2/1 3\nf 1 2\nvp 0.1\ncstype bezier\ncurv 0 1 1 2\nend\n",
        points(V[:8]) + "g f 1 2 3\n" + corners(QUADS[:6]) + points(V[8:]) + corners(QUADS[6:]),
        points() + "".join(f"usemtl m{i % 3}\n" + corners([q]) for i, q in enumerate(QUADS)),
        points() + "v nan nan nan\n" + corners(),
        "# größe\n".encode("latin-1") + PLAIN.encode() + b"\0\0",
    ],
)
def test_obj(tmp_path, content):
    check(tmp_path, "a.obj", content)


@pytest.mark.parametrize(
    "content, reason",
    [
        (points() + corners([[i - 1 for i in q] for q in QUADS]), "line 17: .* to vertex 0, but"),
        (PLAIN + "f 1 2 17\n", "line 29: a face refers to vertex 17, but there are 16"),
        (PLAIN + "f -17 2 1\n", "line 29: .* vertex -17, but there are 16 above it"),
        (PLAIN.replace("\n", " \\\n\n", 2) + "f 1 2 17\n", "line 31: "),
        (points(V[:15]) + "v 0 1.#QNAN 0\n" + corners(), "line 16: a vertex has NaN or infinite"),
        (points(V[:15]) + "v 0 1e999 0\n" + corners(), "line 16: a vertex has NaN or infinite"),
        (points(V[:15]) + "v 0 1\n" + corners(), "line 16: a vertex needs 3 numbers, it has 2"),
        (PLAIN + "f 1 2.0 3\n", "line 29 holds '2.0', which is no whole number"),
        (PLAIN + "v 1,5 2 3\n", "line 29 holds '1,5', .* a decimal comma must be a point"),
        (PLAIN + "f1 2 3\n", "line 29 begins with 'f1'"),
        (PLAIN + "f 1 2 3\n 4 5\n", "line 30 begins with '4'"),
        (PLAIN + "f 1 2", "line 29: it ends in the middle of a face"),
    ],
)
def test_obj_is_refused_by_line(tmp_path, content, reason):
    check(tmp_path, "a.obj", content, reason)


# polygons


def prism(outline: list) -> tuple[list, list, tuple]:
    """A prism of height 1, turned; its faces, and its volume and area."""
    n, flat = len(outline), np.array(outline, dtype=float)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    vertices = np.concatenate([np.insert(flat, 2, z, axis=1) for z in (0, 1)]) @ turn
    faces = [tuple(range(n))[::-1], tuple(range(n, 2 * n))]
    faces += [(i, (i + 1) % n, n + (i + 1) % n, n + i) for i in range(n)]
    after = np.roll(flat, -1, axis=0)
    base = np.sum(flat[:, 0] * after[:, 1] - flat[:, 1] * after[:, 0]) / 2
    sides = np.linalg.norm(after - flat, axis=1).sum()
    return vertices.tolist(), faces, (base, 2 * base + sides)


DART = [(0, 0), (4, 0), (1, 1), (0, 4)]
STAR = [
    ((2 - i % 2 * 1.3) * np.cos(np.pi * i / 5), (2 - i % 2 * 1.3) * np.sin(np.pi * i / 5))
    for i in range(10)
]
ON_LINES = [(0, 0), (1, 0), (4, 0), (4, 3), (3, 3), (3, 1), (2, 1), (1, 1), (1, 3), (0, 3), (0, 2)]
REPEATED = [(0, 0), (4, 0), (4, 0), (4, 3), (3, 3), (3, 1), (1, 1), (1, 1), (1, 3), (0, 3)]


@pytest.mark.parametrize(
    "outline", [*(DART[i:] + DART[:i] for i in range(4)), STAR, ON_LINES, REPEATED]
)
@pytest.mark.parametrize("suffix", [".obj", ".ply", ".off"])
def test_concave_polygons(tmp_path, outline, suffix):
    vertices, faces, wanted = prism(outline)
    content = {
        ".obj": points(vertices) + corners(faces),
        ".ply": ply_ascii(faces, vertices),
        ".off": off(faces, vertices),
    }
    check(tmp_path, f"a{suffix}", content[suffix], wanted)


def test_a_polygon_with_a_hole_joined_by_a_bridge(tmp_path):
    square, hole = [(0, 0), (6, 0), (6, 6), (0, 6)], [(2, 2), (2, 4), (4, 4), (4, 2)]
    vertices = [(x, y, z) for z in (0, 1) for x, y in square + hole]
    top = [8, 9, 10, 11, 8, 12, 13, 14, 15, 12]
    sides = [(i, (i + 1) % 4, 8 + (i + 1) % 4, 8 + i) for i in range(4)]
    sides += [
        tuple(4 + i % 4 + i // 8 * 8 for i in (a, (a + 1) % 4, 8 + (a + 1) % 4, 8 + a))
        for a in range(4)
    ]
    check(
        tmp_path,
        "a.obj",
        points(vertices) + corners([top, [i - 8 for i in top[::-1]], *sides]),
        (32, 96),
    )


# PLY


def header(
    form: str = "ascii",
    faces: int = len(MIXED),
    vertex: str = "property float x\nproperty float y\nproperty float z\n",
    face: str = "property list uchar int vertex_indices\n",
    **more: str,
) -> str:
    """`more`: the count of vertices, and lines above them, between them and faces, and below."""
    return (
        f"ply\nformat {form} 1.0\n{more.get('above', '')}element vertex {more.get('count', 16)}\n"
        f"{vertex}{more.get('between', '')}element face {faces}\n{face}{more.get('below', '')}"
        "end_header\n"
    )


def rows(values, begin: str = "", end: str = "\n") -> str:
    return "".join(begin + " ".join(map(str, row)) + end for row in values)


def listed(faces=MIXED) -> list:
    return [(len(face), *face) for face in faces]


def ply_ascii(faces=MIXED, vertices=V) -> str:
    vertex = "property double x\nproperty double y\nproperty double z\n"
    head = header(faces=len(faces), vertex=vertex, count=len(vertices))
    return head + rows(vertices) + rows(listed(faces))


def packed(values, form: str) -> bytes:
    return b"".join(struct.pack(form, *row) for row in values)


def lists(faces=MIXED, form: str = "<B{}i", end: bytes = b"") -> bytes:
    return b"".join(struct.pack(form.format(len(f)), len(f), *f) + end for f in faces)


def strips(form: str) -> str:
    return header(form, 1).replace("element face 1", "element tristrips 1").replace("uchar", "int")


STRIPS = [i for a, b, c, d in QUADS for i in (a, b, d, c, -1)]
# the sides of a box as one strip, with a corner repeated to turn around an edge
LONG_STRIP = [4, 0, 5, 1, 6, 2, 7, 3, 4, 0, -1, 1, 0, 2, 3, -1, 4, 5, 7, 6]
BODY = packed(V, "<3f") + lists()
TEXT = rows(V) + rows(listed())


@pytest.mark.parametrize(
    "content",
    [
        ply_ascii(QUADS),
        ply_ascii(MIXED).replace("\n", "\r\n"),
        ply_ascii(MIXED).replace("\n", "\r"),
        ply_ascii(MIXED).replace("end_header\n", "end_header\n\n"),
        header(LITTLE).encode() + BODY,
        header(BIG).encode() + packed(V, ">3f") + lists(form=">B{}i"),
        header(LITTLE, 24).encode() + packed(V, "<3f") + lists(TRIANGLES),
        header(LITTLE).replace("\n", "\r\n").encode() + BODY + b"\n",
        header(LITTLE, face="property list ushort uint8 vertex_index\n").encode()
        + packed(V, "<3f")
        + lists(form="<H{}B"),
        header(
            vertex="property uchar red\nproperty float z\nproperty float nx\nproperty float y\n"
            "property float x\n",
            face="property uchar flag\nproperty list uchar int vertex_indices\nproperty float q\n",
        )
        + "".join(f"9 {z} 1.#QNAN {y} {x}\n" for x, y, z in V)
        + rows(listed(), "7 ", " 0.5\n"),
        header(
            LITTLE,
            face="property list uchar float texcoord\nproperty list uchar int vertex_indices\n"
            "property short flag\n",
        ).encode()
        + packed(V, "<3f")
        + b"".join(
            struct.pack(f"<B{2 * i % 5}f", 2 * i % 5, *[0] * (2 * i % 5)) + lists([f], end=b"\1\0")
            for i, f in enumerate(MIXED)
        ),
        header(
            LITTLE,
            between="element camera 2\nproperty float f\nproperty list int short ids\n",
            below="element edge 1\nproperty int vertex1\n",
        ).encode()
        + packed(V, "<3f")
        + struct.pack("<fi2hfi", 1, 2, 5, 6, 1, 0)
        + lists()
        + bytes(4),
        header(above="comment element face 99999999999\ncomment end_header\nobj_info 1\n") + TEXT,
        header(above="element material 2\nproperty int id\n") + "1\n2\n" + TEXT,
        strips("ascii") + rows(V) + rows(listed([STRIPS])),
        strips(BIG).encode() + packed(V, ">3f") + lists([STRIPS], ">i{}i"),
    ],
)
def test_ply(tmp_path, content):
    check(tmp_path, "a.ply", content)


def test_every_second_triangle_of_a_strip_is_turned(tmp_path):
    content = strips("ascii").replace("vertex 16", "vertex 8")
    check(tmp_path, "a.ply", content + rows(V[:8]) + rows(listed([LONG_STRIP])), (8, 28))


@pytest.mark.parametrize(
    "content, reason",
    [
        (header(LITTLE).encode() + BODY[:-9], "it ends after 17 of 18 of face"),
        (header() + "\n".join(TEXT.split("\n")[:-3]), "it ends after 16 of 18 of face"),
        (header(faces=17) + TEXT, "line 43: its header declares 17 of face, but more follows"),
        (header(LITTLE, 17).encode() + BODY, "declares 17 of face, but 13 bytes follow them"),
        (header() + TEXT[:-4], "line 43: face has fewer numbers than its list needs"),
        (header(LITTLE, 4 * 10**9).encode() + BODY, "declares 4,000,000,000 of face, but"),
        (
            header(LITTLE, 1, face="property list uint int vertex_indices\n").encode()
            + packed(V, "<3f")
            + struct.pack("<I", 2**32 - 1),
            "it ends after 0 of 1 of face",
        ),
        (
            header(LITTLE, 1, face="property list char int vertex_indices\n").encode()
            + packed(V, "<3f")
            + struct.pack("<b3i", -3, 1, 2, 3),
            "byte 361: a list has -3 values",
        ),
        (
            (header(LITTLE).encode() + packed(V, "<3f") + lists(form="<H{}H") + b"\n" * 9).replace(
                b"\n", b"\r\n"
            ),
            "a copy in text mode has damaged it",
        ),
        (header() + rows([*V[:15], ("nan", 0, 0)]) + rows(listed()), "line 25: a vertex has NaN"),
        (
            header(LITTLE).encode() + packed([*V[:15], (np.inf, 0, 0)], "<3f") + lists(),
            "byte 351: a vertex has NaN or infinite",
        ),
        (header(faces=19) + TEXT + "3 0 1 16\n", "line 44: a face refers to vertex 16"),
        (header(faces=19) + TEXT + "3 0 1 -1\n", "line 44: a face refers to vertex -1"),
        (header(vertex="property float x\n") + TEXT, "line 8: vertex has more numbers"),
        (header(face="property int a\n") + TEXT, "face has no list vertex_indices, only a"),
        (header(face="property list float int a\n") + TEXT, "line 8: .* is not understood"),
    ],
)
def test_ply_is_refused_by_line_or_byte(tmp_path, content, reason):
    check(tmp_path, "a.ply", content, reason)


# STL

FACETS = [[V[i] for i in t] for t in TRIANGLES]


def stl(facets=FACETS, head: bytes = b"", count: int | None = None) -> bytes:
    body = b"".join(struct.pack("<12fH", *[np.nan] * 3, *np.ravel(f), 0) for f in facets)
    return head.ljust(80, b"\0") + struct.pack("<I", len(facets) if count is None else count) + body


def stl_text(facets=FACETS, name: str = "x", end: str = "endsolid\n") -> str:
    loops = "".join(
        f" facet normal nan -nan(ind) 1.#QNAN\n outer loop\n{points(f, '   vertex ')} endloop\n"
        " endfacet\n"
        for f in facets
    )
    return f"solid {name}\n{loops}{end}"


@pytest.mark.parametrize(
    "content",
    [
        stl(),
        stl(head=b"solid made by a program"),
        stl(head=b"solid facet") + b"\0",
        stl() + b"made by a program that appends 92 bytes".ljust(92),
        stl() + bytes(100),
        stl(FACETS[:12]) + stl(FACETS[12:]),
        stl(count=0),
        stl(count=2**32 - 1),
        stl_text(),
        stl_text(end=""),
        stl_text().encode("utf-16"),
        stl_text().upper(),
        stl_text().replace("\n", "\r"),
        "\ufeff\n" + stl_text(name="vertex facet endsolid"),
        stl_text(FACETS[:12], end="") + stl_text(FACETS[12:]) + "\0\n",
        stl_text().replace("\n", " "),
        stl_text([[V[i] for i in quad] for quad in QUADS]),
    ],
)
def test_stl(tmp_path, content):
    check(tmp_path, "a.stl", content)


@pytest.mark.parametrize(
    "content, reason",
    [
        (stl()[:-20], r"declares 24 facets as a binary STL, but ends after 23 \(byte 1,264\)"),
        (stl(count=5), r"declares 5 facets \(byte 80\), but holds 24"),
        (stl([*FACETS, [(0, 0, 0), (np.nan, 0, 0), (1, 0, 0)]]), r"facet 25 \(byte 1,284\): .*NaN"),
        (b"solid"[:3], "it has 3 bytes: neither text that begins with solid, nor the 84"),
        (stl_text(end="")[:-12], "it ends in the middle of a facet"),
        (stl_text(end="") + " fac", "it ends in the middle of a facet"),
        (stl_text(end="")[:-6], "it ends in the middle of a facet"),
        (stl_text()[:-60], "line 165: it ends in the middle of a facet"),
        (stl_text().replace("vertex 0 3 2", "\n", 1), "line 107: a facet has 3 corners, .* has 2"),
        (stl_text().replace("vertex 0 3 2", "vertex 0 3", 1), "line 110: a vertex has 3 numbers"),
        (stl_text().replace("vertex 0 3 2", "vertex 0 x 2", 1), "line 110 holds 'x'"),
        (stl_text().replace("vertex 0 3 2", "vertex 0 inf 2", 1), "line 110: a vertex has NaN or"),
    ],
)
def test_stl_is_refused_by_line_or_byte(tmp_path, content, reason):
    check(tmp_path, "a.stl", content, reason)


# OFF


def off(faces=QUADS, vertices=V, first: str = "OFF\n", vertex: str = "", face: str = "") -> str:
    counts = f"{len(vertices)} {len(faces)} 0\n"
    return first + counts + rows(vertices, end=f"{vertex}\n") + rows(listed(faces), end=f"{face}\n")


@pytest.mark.parametrize(
    "content",
    [
        off(),
        off(TRIANGLES),
        off(MIXED, face=" 0.5 0.5 0.5 1"),
        off(MIXED, face=" 7"),
        off(first="OFF "),
        off(first="OFF"),
        off(first=""),
        off(first="\ufeffoff\n").replace("\n", "\r\n"),
        off(first="COFF\n", vertex=" 255 0 0 255"),
        off(first="CNOFF\n", vertex=" nan 0 1 0.1 0.2 0.3 1"),
        off(first="STOFF\n", vertex=" 0.5 0.5"),
        off(first="4OFF\n", vertices=[(2 * x, 2 * y, 2 * z, 2) for x, y, z in V]),
        off(first="nOFF 3\n"),
        off().replace("\n", " # 1 2 3\n\n").replace("OFF", "# OFF 1\nOFF", 1),
        off().replace("16 12 0", "16 12"),
        off().replace("16 12 0", "16\n12\n0"),
        off(MIXED).replace("\n", " "),
        off(MIXED).replace(" ", "\n"),
        off(MIXED, vertices=[(x, y, f"\n{z}") for x, y, z in V]),
        off(MIXED).replace("0\n4 ", "0 4 "),
        off([*QUADS, (0, 1)]),
    ],
)
def test_off(tmp_path, content):
    check(tmp_path, "a.off", content)


@pytest.mark.parametrize(
    "content, reason",
    [
        (off(first="OFF BINARY\n"), "it is a binary OFF, which is not read: save it as text"),
        (off(first="nOFF 4\n"), "more than 3 dimensions"),
        ("\n".join(off().split("\n")[:-3]), "declares 16 vertices and 12 faces, but ends at line"),
        (off().replace("16 12 0", "2000000000 12 0"), "declares 2,000,000,000 .* but holds 111"),
        (off().replace("16 12 0", "16 6 0"), "16 vertices and 6 faces, but line 25 holds more"),
        (off().replace("16 12 0", "-1 6 0"), "does not begin with the numbers of vertices"),
        (off([*QUADS, (0, 1, 16)]), "line 31: a face refers to vertex 16"),
        (off([*QUADS, (0, 1, -1)]), "line 31: a face refers to vertex -1"),
        (off(vertices=[*V[:15], (0, "nan", 0)]), "line 18: a vertex has NaN or infinite"),
        (off(vertices=[*V[:15], (0, "x", 0)]), "line 18 holds 'x'"),
        (off().replace("4 11 8 12 15", "4 11 8 12"), "line 30: a face needs 5 numbers there, it"),
        (off(vertices=[*V[:15], (0, 1)]), "line 18: a vertex needs 3 numbers there, it has 2"),
    ],
)
def test_off_is_refused_by_line(tmp_path, content, reason):
    check(tmp_path, "a.off", content, reason)


# other files under these suffixes


@pytest.mark.parametrize("suffix", [".obj", ".stl", ".off", ".ply", ".glb", ".xyz"])
@pytest.mark.parametrize(
    "content, reason",
    [
        (b"\n<!DOCTYPE html><html>404</html>", "it is a web page, download the file itself"),
        (gzip.compress(bytes(200), mtime=0), "it is compressed by gzip, unpack it first"),
        (b"PK\3\4" + bytes(200), "it is a ZIP archive, unpack it first"),
        (b"\x89PNG\r\n\x1a\n" + bytes(200), "it is a PNG image"),
    ],
)
def test_files_of_another_kind_are_named(tmp_path, content, reason, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(MeshError, match=reason):
        (load_points if suffix == ".xyz" else load_mesh)(path)


# order


def test_faces_keep_the_order_on_which_samples_depend(tmp_path):
    """Triangles, first halves of quadrangles, second halves; in an OBJ by material, last first."""
    halves = [*TRIANGLES[12:], *TRIANGLES[0:12:2], *TRIANGLES[1:12:2]]
    (tmp_path / "a.ply").write_text(ply_ascii(MIXED))
    assert (load_mesh(tmp_path / "a.ply").faces == halves).all()
    materials = (
        points() + "usemtl a\n" + corners(QUADS[:6]) + "usemtl b\n" + corners(TRIANGLES[12:])
    )
    (tmp_path / "a.obj").write_text(materials)
    mesh = load_mesh(tmp_path / "a.obj")
    wanted = np.array([*V[8:], *V[:8]]) - [2, 1.5, 1]
    assert np.allclose(mesh.vertices * 2 / 0.95, wanted)
    assert (mesh.faces == (np.array(halves) + 8) % 16).all()
