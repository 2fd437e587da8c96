"""Objaverse by uids: with a package that behaves as the real one does, and the real one itself
where it is installed."""

import csv
import gzip
import importlib
import inspect
import json
import socket
import sys
import types
import urllib.error
import warnings
from pathlib import Path

import pytest

from tar3d.data.prepare import objaverse as tool
from tar3d.data.prepare.find_shapes import find_shapes

UIDS = [f"{k:032x}" for k in range(1, 41)]
STRANGER = "f" * 32


class Network:
    """What the package's downloads meet: counts them, fails as told, and can be cut off."""

    def __init__(self) -> None:
        self.fetched: list[str] = []
        self.failures: dict[str, list[BaseException]] = {}
        self.timeouts: set[float | None] = set()

    def fetch(self, name: str, path: Path, content: bytes) -> None:
        """As urlretrieve: straight into `path`, of which a part is there when it fails."""
        self.timeouts.add(socket.getdefaulttimeout())
        self.fetched.append(name)
        if self.failures.get(name):
            path.write_bytes(content[:5])
            raise self.failures[name].pop(0)
        path.write_bytes(content)

    def count(self, uid: str) -> int:
        return self.fetched.count(uid)


def packed(values: dict) -> bytes:
    return gzip.compress(json.dumps(values).encode())


def metadata(folder: str) -> dict:
    names = {
        UIDS[0]: {
            "name": "SM_Wooden_Chair_01",
            "categories": [{"name": "furniture-home"}],
            "tags": [],
        },
        UIDS[1]: {
            "name": "0a3f9c21",
            "tags": [{"name": "lamp"}, {"name": "model"}, {"name": "Desk"}],
            "categories": [],
        },
        UIDS[2]: {"name": None, "tags": None},
    }
    return {
        uid: names.get(uid, {"name": ""})
        for k, uid in enumerate(UIDS)
        if folder == f"000-{k % 3:03d}"
    }


def object_paths() -> dict:
    return {uid: f"glbs/000-{k % 3:03d}/{uid}.glb" for k, uid in enumerate(UIDS)}


def stand_in(cache: Path, network: Network) -> types.ModuleType:
    """Version 0.1.7 in short: one download after the other, a line printed for each, every error
    passed on."""
    package = types.ModuleType("objaverse")
    package._VERSIONED_PATH = str(cache)

    def load_json(name: str, content: bytes) -> dict:
        path = cache / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            network.fetch(name, path, content)
        with gzip.open(path, "rb") as f:
            return json.load(f)

    def load_objects(uids: list[str], download_processes: int = 1) -> dict[str, str]:
        paths, out = load_json("object-paths.json.gz", packed(object_paths())), {}
        for uid in uids:
            if uid not in paths:
                warnings.warn(f"Could not find object with uid {uid}. Skipping it.", stacklevel=1)
                continue
            path = cache / paths[uid]
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                network.fetch(uid, path.with_name(path.name + ".tmp"), b"glTF of " + uid.encode())
                path.with_name(path.name + ".tmp").rename(path)
                print("Downloaded 1 / 1 objects")
            out[uid] = str(path)
        return out

    def load_annotations(uids: list[str] | None = None) -> dict:
        paths, out = load_json("object-paths.json.gz", packed(object_paths())), {}
        for folder in {paths[uid].split("/")[1] for uid in uids}:
            values = load_json(f"metadata/{folder}.json.gz", packed(metadata(folder)))
            out |= {uid: values[uid] for uid in uids if uid in values}
        return out

    package.load_objects, package.load_annotations = load_objects, load_annotations
    package.load_uids = lambda: list(load_json("object-paths.json.gz", packed(object_paths())))
    return package


@pytest.fixture
def pauses(monkeypatch) -> list[float]:
    made: list[float] = []
    monkeypatch.setattr(tool.time, "sleep", made.append)
    return made


@pytest.fixture
def network(tmp_path, monkeypatch, pauses) -> Network:
    network = Network()
    monkeypatch.setitem(sys.modules, "objaverse", stand_in(tmp_path / "cache", network))
    return network


def listed(tmp_path: Path, *uids: str) -> str:
    (tmp_path / "uids.txt").write_text("\n".join(uids) + "\n")
    return str(tmp_path / "uids.txt")


def rows(path: Path) -> list[dict]:
    with path.open(encoding="utf-8", newline="") as f:
        return list(csv.DictReader(f))


def test_a_list_of_uids(tmp_path):
    listed(
        tmp_path,
        "# the first ones",
        "",
        f"  {UIDS[1].upper()}  ",
        f"{UIDS[0]}.glb  # a chair",
        UIDS[1],
    )
    assert tool.read_uids(tmp_path / "uids.txt") == [UIDS[1], UIDS[0]]


@pytest.mark.parametrize(
    "line, message",
    [
        ("123", "line 2: '123' is not a uid, which has 32 hex"),
        ("g" * 32, "line 2"),
        ("x,file", "line 2: 'x,file'"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, capsys, line, message):
    with pytest.raises(SystemExit) as stop:
        tool.main([listed(tmp_path, UIDS[0], line), "--out", str(tmp_path)])
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_download_makes_a_table_that_is_a_source(tmp_path, network, capsys):
    out = tmp_path / "out"
    assert (
        tool.main(
            [listed(tmp_path, *UIDS[:5]), "--out", str(out), "--limit", "4", "--timeout", "7"]
        )
        == 0
    )
    printed = capsys.readouterr()
    assert (
        "4 of 4 meshes, 2 with a caption" in printed.out
        and "Downloaded" not in printed.out + printed.err
    )
    shapes = find_shapes(out / "objaverse.csv")
    assert list(shapes) == UIDS[:4] and all(
        s.mesh.read_bytes() == f"glTF of {i}".encode() for i, s in shapes.items()
    )
    assert [s.caption for s in shapes.values()] == ["wooden chair", "lamp, desk", "", ""]
    assert [s.category for s in shapes.values()] == ["furniture home", "", "", ""]
    assert rows(out / "missing.csv") == []
    assert network.timeouts == {7.0} and socket.getdefaulttimeout() is None
    before = list(network.fetched)
    assert (
        tool.main([listed(tmp_path, *UIDS[:4]), "--out", str(out)]) == 0
        and network.fetched == before
    )


def test_failures_are_tried_again_with_growing_pauses(tmp_path, network, pauses):
    network.failures[UIDS[1]] = [urllib.error.URLError("reset"), TimeoutError("timed out")]
    assert tool.main([listed(tmp_path, *UIDS[:3]), "--out", str(tmp_path)]) == 0
    assert [network.count(uid) for uid in UIDS[:3]] == [1, 3, 1] and pauses == [2.0, 4.0]


def test_what_cannot_be_had_is_listed_and_the_rest_goes_on(tmp_path, network, pauses, capsys):
    network.failures[UIDS[1]] = [urllib.error.URLError("no route")] * 9
    network.failures[UIDS[3]] = [urllib.error.HTTPError("u", 404, "Not Found", None, None)] * 9
    assert (
        tool.main(
            [
                listed(tmp_path, *UIDS[:2], STRANGER, *UIDS[2:5]),
                "--out",
                str(tmp_path),
                "--retries",
                "1",
            ]
        )
        == 1
    )
    assert [r["id"] for r in rows(tmp_path / "objaverse.csv")] == [UIDS[0], UIDS[2], UIDS[4]]
    missing = rows(tmp_path / "missing.csv")
    assert [r["uid"] for r in missing] == [UIDS[1], STRANGER, UIDS[3]]
    assert "no route" in missing[0]["reason"] and "after 2 tries" in missing[0]["reason"]
    assert missing[1]["reason"] == tool.UNKNOWN and "404" in missing[2]["reason"]
    assert network.count(UIDS[1]) == 2 and network.count(UIDS[3]) == 1, (
        "a missing file was asked for again"
    )
    assert pauses == [2.0] and "3 are missing" in capsys.readouterr().err


def test_killed_in_the_middle_and_resumed(tmp_path, network):
    network.failures[UIDS[20]] = [KeyboardInterrupt()]
    assert tool.main([listed(tmp_path, *UIDS), "--out", str(tmp_path)]) == 130
    assert (
        tmp_path / "cache" / "glbs" / "000-002" / f"{UIDS[20]}.glb.tmp"
    ).is_file() and socket.getdefaulttimeout() is None
    assert tool.main([listed(tmp_path, *UIDS), "--out", str(tmp_path)]) == 0
    assert [network.count(uid) for uid in UIDS] == [1 + (uid == UIDS[20]) for uid in UIDS]
    assert all(
        s.mesh.read_bytes().startswith(b"glTF of")
        for s in find_shapes(tmp_path / "objaverse.csv").values()
    )


def test_an_index_that_was_cut_off_is_fetched_again(tmp_path, network):
    """The package writes it in place, and believes whatever lies there from then on."""
    for name in ("object-paths.json.gz", "metadata/000-000.json.gz"):
        path = tmp_path / "cache" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(packed({"a": "b"})[:-9])
    assert tool.main([listed(tmp_path, UIDS[0]), "--out", str(tmp_path)]) == 0
    assert rows(tmp_path / "objaverse.csv")[0]["caption"] == "wooden chair"


def test_without_a_network_it_ends_soon(tmp_path, network, pauses, capsys):
    network.failures["object-paths.json.gz"] = [urllib.error.URLError("down")] * 2
    with pytest.raises(SystemExit) as stop:
        tool.main([listed(tmp_path, *UIDS), "--out", str(tmp_path), "--retries", "1"])
    assert (
        stop.value.code == 2
        and "could not be fetched (URLError: <urlopen error down>)" in capsys.readouterr().err
    )
    assert network.fetched == ["object-paths.json.gz"] * 2
    network.fetched.clear()
    pauses.clear()
    network.failures = {uid: [urllib.error.URLError("down")] * 9 for uid in UIDS}
    assert tool.main([listed(tmp_path, *UIDS), "--out", str(tmp_path), "--retries", "0"]) == 1
    assert len(network.fetched) == 1 + tool.GIVE_UP and pauses == []
    assert [r["reason"].startswith("not tried") for r in rows(tmp_path / "missing.csv")] == [
        False
    ] * 20 + [True] * 20


def test_captions_are_empty_where_there_is_no_metadata(tmp_path, network, capsys):
    network.failures["metadata/000-000.json.gz"] = [urllib.error.URLError("down")] * 9
    assert tool.main([listed(tmp_path, *UIDS[:2]), "--out", str(tmp_path)]) == 0
    assert [r["caption"] for r in rows(tmp_path / "objaverse.csv")] == ["", ""]
    assert (
        "metadata could not be fetched (URLError: <urlopen error down>)" in capsys.readouterr().err
    )
    assert (
        network.fetched.count("metadata/000-000.json.gz") == 4
        and "metadata/000-001.json.gz" not in network.fetched
    )


def test_a_local_folder_needs_neither_package_nor_network(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "objaverse", None)
    local = tmp_path / "local"
    for path, content in (
        (f"glbs/000-000/{UIDS[0]}.glb", b"a"),
        (f"{UIDS[1]}.glb", b"b"),
        ("glbs/000-000/other.glb", b"c"),
        ("metadata/000-000.json.gz", packed(metadata("000-000"))),
    ):
        (local / path).parent.mkdir(parents=True, exist_ok=True)
        (local / path).write_bytes(content)
    assert (
        tool.main(
            [listed(tmp_path, *UIDS[:3]), "--out", str(tmp_path / "out"), "--local", str(local)]
        )
        == 1
    )
    table = rows(tmp_path / "out" / "objaverse.csv")
    assert [(r["id"], r["caption"], Path(r["file"]).read_bytes()) for r in table] == [
        (UIDS[0], "wooden chair", b"a"),
        (UIDS[1], "", b"b"),
    ]
    assert rows(tmp_path / "out" / "missing.csv") == [
        {"uid": UIDS[2], "reason": f"{local} holds no {UIDS[2]}.glb"}
    ]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--retries", "-1"], "--retries must be at least 0"),
        (["--limit", "0"], "--limit at least 1"),
        (["--timeout", "0"], "--timeout more than 0"),
        (["--local", "nowhere"], "--local nowhere is not a folder"),
        ([], "python -m pip install objaverse"),
    ],
)
def test_wrong_flags_and_a_missing_package_say_what_to_do(
    tmp_path, monkeypatch, capsys, flags, message
):
    monkeypatch.setitem(sys.modules, "objaverse", None)
    with pytest.raises(SystemExit) as stop:
        tool.main([listed(tmp_path, UIDS[0]), "--out", str(tmp_path), *flags])
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_the_real_package_has_what_is_called_and_works_alike(tmp_path, monkeypatch, pauses, capsys):
    """Its downloads go to a stand-in for urlretrieve; a name that changed shows here."""
    real = pytest.importorskip("objaverse")
    monkeypatch.setenv("HOME", str(tmp_path))
    real = importlib.reload(real)
    assert Path(real._VERSIONED_PATH).is_relative_to(tmp_path)
    assert next(iter(inspect.signature(real.load_objects).parameters)) == "uids"
    assert next(iter(inspect.signature(real.load_annotations).parameters)) == "uids"
    assert not inspect.signature(real.load_uids).parameters
    network = Network()
    network.failures[UIDS[1]] = [urllib.error.ContentTooShortError("cut", b"")] * 2

    def urlretrieve(url: str, path: str) -> None:
        name = url.partition("/resolve/main/")[2]
        uid = Path(name).stem
        content = (
            packed(object_paths())
            if name == "object-paths.json.gz"
            else packed(metadata(Path(name).name[:7]))
            if name.startswith("metadata/")
            else f"glTF of {uid}".encode()
        )
        network.fetch(uid if uid in UIDS else name, Path(path), content)

    monkeypatch.setattr("urllib.request.urlretrieve", urlretrieve)
    assert tool.main([listed(tmp_path, *UIDS[:20], STRANGER), "--out", str(tmp_path / "out")]) == 1
    assert "Downloaded" not in capsys.readouterr().out
    shapes = find_shapes(tmp_path / "out" / "objaverse.csv")
    assert list(shapes) == UIDS[:20] and all(
        s.mesh.read_bytes() == f"glTF of {i}".encode() for i, s in shapes.items()
    )
    assert shapes[UIDS[0]].caption == "wooden chair" and pauses == [2.0, 4.0]
    assert rows(tmp_path / "out" / "missing.csv") == [{"uid": STRANGER, "reason": tool.UNKNOWN}]
    before = list(network.fetched)
    assert (
        tool.main([listed(tmp_path, *UIDS[:20]), "--out", str(tmp_path / "out")]) == 0
        and network.fetched == before
    )
