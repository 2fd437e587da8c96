"""What is found in a folder and what is left out, by name; and whether a folder can be written."""

import json
import os
import tempfile
from pathlib import Path

import pytest

from tar3d.folders import (
    find_files,
    is_reserved,
    length_problem,
    name_problem,
    printable,
    probe_output,
    repeated_by_case,
)

SUFFIXES = (".glb", ".obj")


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def names(paths, root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in paths]


@pytest.fixture
def unprivileged():
    """A folder of a user who is not root, whom rights bind."""
    if not hasattr(os, "geteuid"):
        pytest.skip("a system without users' rights")
    with tempfile.TemporaryDirectory() as name:
        folder, root = Path(name), os.geteuid() == 0
        if root:
            os.chown(folder, 65534, -1)
            os.seteuid(65534)
        try:
            yield folder
        finally:
            if root:
                os.seteuid(0)
            for path in folder.rglob("*"):
                path.chmod(0o755)


def test_other_kinds_are_named_and_what_belongs_to_meshes_is_not(tmp_path):
    touch(
        tmp_path, "a.GLB", "b/c.obj", "b/c.mtl", "x.fbx", "y.FBX", "z.3mf", "LICENSE", "notes.txt"
    )
    found = find_files(tmp_path, SUFFIXES, beside=[".mtl"])
    assert names(found.files, tmp_path) == ["a.GLB", "b/c.obj"] and not found.unusable
    (note,) = found.notes()
    assert (
        "files of other kinds than .glb .obj: " in note
        and ".mtl" not in note
        and "notes" not in note
    )
    assert "2 .fbx (x.fbx, ...), 1 .3mf (z.3mf), 1 without suffix (LICENSE)" in note


def test_hidden_and_system_folders_are_left_out_with_a_count(tmp_path):
    touch(tmp_path, "a.glb", ".Trash-1/b.glb", "c/.ipynb_checkpoints/d.glb", "__MACOSX/._a.glb")
    touch(tmp_path, "._a.glb", ".git/e.glb")
    found = find_files(tmp_path, SUFFIXES)
    assert names(found.files, tmp_path) == ["a.glb"]
    assert "hidden folders (4): " in found.notes()[0] and ".Trash-1/b.glb" in found.notes()[0]
    assert names(find_files(tmp_path / ".Trash-1", SUFFIXES).files, tmp_path) == [".Trash-1/b.glb"]


def test_links_are_followed_without_end_or_doubles(tmp_path):
    root = touch(tmp_path / "root", "own/a.glb", "z.glb")
    touch(tmp_path, "real/deep/b.glb", "one.glb")
    for name, target in {
        "Chairs": "../real",
        "Again": "own",  # read before own by name, but own keeps its name
        "own/loop": "..",
        "up": "../..",
        "one.glb": "../one.glb",
        "gone.glb": "/nowhere/gone.glb",
        "round.obj": "round.obj",
        "lost": "/nowhere/folder",
    }.items():
        (root / name).symlink_to(target)
    (tmp_path / "real/deep/back").symlink_to(root)
    found = find_files(root, SUFFIXES)
    assert names(found.files, root) == ["Chairs/deep/b.glb", "one.glb", "own/a.glb", "z.glb"]
    assert names(found.repeated, root) == ["Again", "Chairs/deep/back", "own/loop", "up"]
    assert names(found.unusable, root) == ["gone.glb", "lost", "round.obj"]
    assert "a link to /nowhere/gone.glb, which is not there" in found.unusable[root / "gone.glb"]


def test_folders_that_may_not_be_read_are_named(unprivileged):
    touch(unprivileged, "a.glb", "locked/b.glb")
    (unprivileged / "locked").chmod(0)
    found = find_files(unprivileged, SUFFIXES)
    assert names(found.files, unprivileged) == ["a.glb"]
    assert "Permission denied" in found.unusable[unprivileged / "locked"]


def test_what_this_project_wrote_is_no_input(tmp_path):
    touch(tmp_path, "a.glb", "inspect/inspect.csv", "inspect/a.obj", "samples/b.glb")
    touch(
        tmp_path, *(f"rec/{name}" for name in ("a.glb", "report.csv", "report.md", "summary.json"))
    )
    touch(tmp_path, "gen/s.glb", "mine/m.glb", "new/half.glb")
    record = json.dumps({"gpt_type": "uncond", "seed": 0})
    (tmp_path / "gen/s.json").write_text(record)
    (tmp_path / "mine/m.json").write_text('{"author": "me"}')
    found = find_files(tmp_path, SUFFIXES, leave_out=tmp_path / "new")
    # a category may be called samples
    assert names(found.files, tmp_path) == ["a.glb", "mine/m.glb", "samples/b.glb"]
    assert names(found.outputs, tmp_path) == ["gen/s.glb", "new", "rec"]
    for folder in ("rec", "gen"):  # given themselves, they are read
        assert len(find_files(tmp_path / folder, SUFFIXES).files) == 1


def test_without_depth_sub_folders_are_named(tmp_path):
    touch(tmp_path, "a.glb", "b/c.glb")
    found = find_files(tmp_path, SUFFIXES, deep=False)
    assert (
        names(found.files, tmp_path) == ["a.glb"]
        and "sub-folders, which are not looked into (1): b" in found.notes()[0]
    )


def test_names():
    latin = Path(os.fsdecode(b"St\xfchle.glb"))
    assert "not in UTF-8" in name_problem(latin) and printable(latin) == "St\\xfchle.glb"
    assert name_problem(Path("Stühle.glb")) == "" and printable("Stühle") == "Stühle"
    assert "302 bytes" in length_problem("ü" * 149 + ".glb") and not length_problem("a" * 230)
    assert [n for n in ("con", "Con.b", "a.", "a ", "a:b", "console", "a.b") if is_reserved(n)] == [
        "con",
        "Con.b",
        "a.",
        "a ",
        "a:b",
    ]
    assert repeated_by_case(["Chair", "lamp", "chair"]) == ["Chair", "chair"]


def test_a_probe_leaves_nothing_and_says_what_is_wrong(tmp_path, unprivileged):
    probe_output(unprivileged / "new" / "deep", "--out")
    assert list(unprivileged.iterdir()) == []
    (unprivileged / "file").touch()
    (unprivileged / "fixed").mkdir(0o555)
    for folder, reason in (
        ("file", "a file of that name"),
        ("file/below", "a file of that name"),
        ("fixed", "Permission denied"),
        ("fixed/new/deep", "Permission denied"),
        ("a" * 300, "too long"),
    ):
        with pytest.raises(
            ValueError, match=rf"^--out .*{folder[:9]}.* cannot be written.*{reason}"
        ):
            probe_output(unprivileged / folder, "--out")
    assert sorted(p.name for p in unprivileged.rglob("*")) == ["file", "fixed"]
