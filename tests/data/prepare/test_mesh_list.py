"""What is found beside meshes, and how it gets into a data set folder."""

import csv
import json
import os
import pickle
from pathlib import Path

import pytest

from tar3d.data.formats.dataset_folder import read_splits
from tar3d.data.prepare.dataset_tables import write_tables
from tar3d.data.prepare.find_shapes import Shape, find_shapes
from tar3d.data.prepare.mesh_list import mesh_ids

DATASETS = Path(
    os.environ.get("TAR3D_DATASETS") or Path(__file__).parents[4] / "shared" / "datasets"
)


def touch(folder: Path, *names: str) -> Path:
    """Empty files: nothing here opens a mesh or a picture."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def rows(path: Path) -> list[dict]:
    with path.open(encoding="utf-8", newline="") as f:
        return list(csv.DictReader(f))


@pytest.fixture
def source(tmp_path) -> Path:
    return touch(tmp_path / "given", "chairs/office_chair_01.glb", "chairs/0a3f.obj", "lamp.ply")


IDS = ["chairs__0a3f", "chairs__office_chair_01", "lamp"]


# ids -------------------------------------------------------------------------


def test_ids_are_paths_without_suffix(meshes):
    named = mesh_ids(meshes)
    assert sorted(named) == [
        "ball",
        "ball.obj",
        "box",
        "more__deep__ring",
        "more__pill",
        "more__tube",
    ]
    assert named["ball"].name == "ball.glb" and named["ball.obj"].name == "ball.obj"
    assert mesh_ids(meshes.parent) == named  # a data set folder with meshes/ in it


def test_a_table_names_its_meshes_itself(tmp_path):
    touch(tmp_path, "a/x.glb", "b/x.glb")
    text = "\ufeffid,file,caption,category\none,a/x.glb,an x,letters\ntwo,b/x.glb\n"
    (tmp_path / "list.csv").write_text(text, encoding="utf-8")
    shapes = find_shapes(tmp_path / "list.csv")
    assert shapes == {
        "one": Shape(tmp_path / "a/x.glb", (), "an x", "letters"),
        "two": Shape(tmp_path / "b/x.glb", (), "x", ""),
    }
    assert pickle.loads(pickle.dumps(shapes)) == shapes


def test_the_manifest_of_a_folder_is_such_a_table_and_says_what_it_lacks(tmp_path):
    touch(tmp_path, "meshes/x.glb", "meshes/new.glb")
    (tmp_path / "manifest.csv").write_text("id,file\none,meshes/x.glb\n")
    assert mesh_ids(tmp_path) == {"one": tmp_path / "meshes/x.glb"}
    with pytest.warns(
        UserWarning,
        match=r"1 meshes under .* are not in .*manifest\.csv and left out, as .*new\.glb",
    ):
        assert list(find_shapes(tmp_path)) == ["one"]


def test_a_manifest_without_files_gives_categories_only(source):
    (source / "manifest.csv").write_text("id,category\nlamp,lighting\ngone,lighting\n")
    shapes = find_shapes(source)
    assert list(shapes) == IDS and [shapes[i].category for i in IDS] == ["", "", "lighting"]
    (source / "manifest.csv").write_text("file,note\nlamp.ply,of another program\n")
    assert [s.category for s in find_shapes(source).values()] == ["", "", ""]


@pytest.mark.parametrize(
    "text, message",
    [
        ("id,path\n", "has no column file; its columns are id, path"),
        ("id,file\n", "lists no meshes"),
        ("id,file\n,x.glb\n", "line 2: the id is empty"),
        ("id,file\na,\n", "line 2: the file is empty"),
        ("id,file\n../a,x.glb\n", "line 2: the id '../a' names files"),
        ("id,file\nb/a,x.glb\n", "line 2: the id 'b/a' names files"),
        (
            "id,file\na,none.glb\n",
            "none of the 1 files listed in .* exists, the first is .*none.glb",
        ),
        ("id,file,caption\na,x.glb,red, green\n", "line 2: more cells than the header has columns"),
        ("id,file\na,\xff\n", "not a CSV file in UTF-8"),
    ],
)
def test_wrong_tables_are_refused_by_line(tmp_path, text, message):
    touch(tmp_path, "x.glb", "y.glb")
    (tmp_path / "list.csv").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=message):
        find_shapes(tmp_path / "list.csv")


def test_a_bad_row_is_refused_by_line_and_the_rest_goes_on(tmp_path):
    touch(tmp_path, "x.glb", "y.glb")
    text = "id,file\na,x.glb\na,y.glb\n.b,y.glb\n,y.glb\nc,\nd,y.glb,z\n\ne,y.glb\n"
    (tmp_path / "list.csv").write_text(text)
    shapes = find_shapes(tmp_path / "list.csv")
    problems = {name: shape.problem for name, shape in shapes.items() if shape.problem}
    assert list(problems) == [f"list.csv, line {k}" for k in (3, 4, 5, 6, 7)]
    assert "list.csv, line 3: the id 'a' stands in line 2 already" in problems["list.csv, line 3"]
    assert [name for name in shapes if name not in problems] == ["a", "e"]
    write_tables(shapes, tmp_path / "list.csv", tmp_path / "out")
    assert [r["id"] for r in rows(tmp_path / "out" / "manifest.csv")] == ["a", "e"]


@pytest.mark.parametrize("system, refused", [("linux", []), ("darwin", ["A", "a"])])
def test_ids_that_are_one_file_elsewhere_are_named(tmp_path, monkeypatch, system, refused):
    touch(tmp_path, "x.glb")
    (tmp_path / "list.csv").write_text("id,file\nA,x.glb\na,x.glb\ncon,x.glb\n")
    monkeypatch.setattr("sys.platform", system)
    with pytest.warns(UserWarning, match="cannot name files on Windows, the first is 'con'"):
        shapes = find_shapes(tmp_path / "list.csv")
    assert [name for name, shape in shapes.items() if shape.problem] == refused


def test_a_mesh_on_another_drive_keeps_its_whole_path(source, tmp_path, monkeypatch):
    def relpath(path, start):
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    monkeypatch.setattr(os.path, "relpath", relpath)
    write(source, tmp_path / "out")
    assert rows(tmp_path / "out" / "manifest.csv")[2]["file"] == (source / "lamp.ply").as_posix()


def test_no_source_is_refused(tmp_path):
    touch(tmp_path, "empty/notes.txt", "one.glb")
    for path in (tmp_path / "none", tmp_path / "one.glb"):
        with pytest.raises(ValueError, match="is not a folder of meshes, nor a .csv table"):
            find_shapes(path)
    with pytest.raises(ValueError, match="holds no meshes; looked for .glb"):
        find_shapes(tmp_path / "empty")


# captions and images ---------------------------------------------------------


def test_captions_fall_back_from_file_to_table_to_names(source):
    assert [s.caption for s in find_shapes(source).values()] == ["chairs", "office chair", "lamp"]
    (source / "manifest.csv").write_text(
        "id,category,caption\nlamp,lighting,a lamp\nchairs__0a3f,seats,a seat\n"
    )
    (source / "captions.csv").write_text("id,caption\nlamp,a  tall lamp\nlamp,a brass lamp\n")
    assert [s.caption for s in find_shapes(source).values()] == [
        "a seat",
        "office chair",
        "a tall lamp",
    ]


def test_a_category_says_more_than_a_folder_and_no_caption_is_none(tmp_path):
    touch(tmp_path, "raw/0a3f.glb", "raw/0b4e.glb")
    (tmp_path / "list.csv").write_text("id,file,category\na,raw/0a3f.glb,chairs\nb,raw/0b4e.glb,\n")
    assert [s.caption for s in find_shapes(tmp_path / "list.csv").values()] == ["chairs", ""]


def test_pictures_by_id(source):
    touch(
        source,
        "images/lamp/10.png",
        "images/lamp/2.png",
        "images/chairs__0a3f.png",
        "images/chairs/office_chair_01/front.JPG",
        "images/other.png",
        "images/.hidden.png",
        "images/notes.txt",
        "views/lamp/0.png",
        "views/lamp/cameras.json",
    )
    with pytest.warns(
        UserWarning, match="1 images of .*images belong to no mesh, the first is .*other.png"
    ):
        shapes = find_shapes(source)
    names = {i: [p.relative_to(source).as_posix() for p in s.images] for i, s in shapes.items()}
    assert names == {
        "lamp": ["images/lamp/2.png", "images/lamp/10.png"],
        "chairs__0a3f": ["images/chairs__0a3f.png"],
        "chairs__office_chair_01": ["images/chairs/office_chair_01/front.JPG"],
    }


def test_views_and_columns_give_pictures_where_images_do_not(source):
    touch(source, "images/chairs__0a3f.png", "views/lamp/0.png", "views/chairs__0a3f/0.png")
    (source / "manifest.csv").write_text(
        "id,thumbnail,image\nlamp,t.png,\nchairs__office_chair_01,t.png,i.png\n"
    )
    assert {i: s.images for i, s in find_shapes(source).items()} == {
        "lamp": (source / "views/lamp/0.png",),
        "chairs__0a3f": (source / "images/chairs__0a3f.png",),
        "chairs__office_chair_01": (source / "i.png",),
    }


def test_pictures_or_captions_that_fit_no_mesh_at_all_are_a_mistake(source):
    touch(source, "images/0001.png", "images/0002.png")
    with pytest.raises(
        ValueError,
        match=r"none of the 2 images of .*0001\.png, an id of a mesh is 'chairs__0a3f'",
    ):
        find_shapes(source)
    (source / "images" / "0001.png").rename(source / "images" / "lamp.png")
    (source / "captions.csv").write_text("id,caption\nlamp.ply,a lamp\n")
    with pytest.raises(ValueError, match=r"none of the 1 rows of .*'lamp\.ply' in line 2"):
        find_shapes(source)


@pytest.mark.skipif(
    not (DATASETS / "dev" / "manifest.csv").is_file(),
    reason="TAR3D_DATASETS names the folder that holds dev",
)
def test_a_real_table(tmp_path):
    source = DATASETS / "dev"
    shapes = find_shapes(source)
    assert len(shapes) == 1495 and find_shapes(source / "manifest.csv") == shapes
    acorn = shapes["bm_acorn"]
    assert (
        acorn.mesh.is_file()
        and acorn.caption == "acorn"
        and acorn.images == (source / "thumbs" / "bm_acorn.png",)
    )
    assert sum(bool(s.images) for s in shapes.values()) == 744
    assert all(s.caption and s.category and s.mesh.is_file() for s in shapes.values())
    write_tables(shapes, source, tmp_path)
    assert {name: len(ids) for name, ids in read_splits(tmp_path).items()} == {
        "train": 1349,
        "val": 146,
        "test": 0,
    }
    assert mesh_ids(tmp_path).keys() == shapes.keys()  # the folder is a source itself


# tables of the data set folder -----------------------------------------------


def write(source: Path, out: Path) -> None:
    write_tables(find_shapes(source), source, out)


def test_tables_of_a_new_folder(source, tmp_path):
    out = tmp_path / "out"
    (source / "manifest.csv").write_text("id,category\nlamp,lighting\n")
    (source / "captions.csv").write_text("id,caption\nlamp,a lamp\nlamp,a light\n")
    write(source, out)
    assert [(r["id"], r["caption"]) for r in rows(out / "captions.csv")] == [
        ("chairs__0a3f", "chairs"),
        ("chairs__office_chair_01", "office chair"),
        ("lamp", "a lamp"),
        ("lamp", "a light"),
    ]
    assert rows(out / "manifest.csv")[2] == {
        "id": "lamp",
        "category": "lighting",
        "file": "../given/lamp.ply",
    }
    assert {i: p.resolve() for i, p in mesh_ids(out).items()} == {
        i: p.resolve() for i, p in mesh_ids(source).items()
    }
    assert not (out / "splits.json").exists()  # nobody gave any


def test_rows_of_other_ids_and_other_columns_are_never_lost(source, tmp_path):
    out = touch(tmp_path / "out", "x")
    (out / "captions.csv").write_text("id,caption,by\nold,an old one,me\nlamp,my lamp,me\n")
    (out / "manifest.csv").write_text(
        "id,category,licence\nold,antiques,CC0\nlamp,lighting,CC-BY\n"
    )
    write(source, out)
    captions = {r["id"]: r for r in rows(out / "captions.csv")}
    assert captions["old"] == {"id": "old", "caption": "an old one", "by": "me"}
    assert captions["lamp"]["caption"] == "my lamp"  # the source's is only made up from a name
    manifest = {r["id"]: r for r in rows(out / "manifest.csv")}
    assert manifest["old"] == {"id": "old", "category": "antiques", "licence": "CC0", "file": ""}
    assert manifest["lamp"] == {
        "id": "lamp",
        "category": "lighting",
        "licence": "CC-BY",
        "file": "../given/lamp.ply",
    }
    assert sorted(mesh_ids(out)) == IDS  # and the folder is still a source
    (source / "captions.csv").write_text("id,caption\nlamp,a lamp\n")
    write(source, out)
    assert {r["id"]: r["caption"] for r in rows(out / "captions.csv")}[
        "lamp"
    ] == "a lamp"  # given ones count


def test_a_second_run_writes_nothing(source, tmp_path):
    (source / "split.csv").write_text(
        "id,split\nlamp,val\nchairs__0a3f,train\nchairs__office_chair_01,train\n"
    )
    write(source, tmp_path / "out")
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()}
    assert len(times) == 3
    write(source, tmp_path / "out")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()} == times


def test_in_place_new_meshes_are_still_found(source):
    """A manifest with the column file would fix what belongs to the set."""
    (source / "manifest.csv").write_text("id,category\nlamp,lighting\n")
    write(source, source)
    assert (source / "manifest.csv").read_text() == "id,category\nlamp,lighting\n"
    touch(source, "new_table.glb")
    write(source, source)
    assert rows(source / "captions.csv")[-1] == {"id": "new_table", "caption": "new table"}


def test_a_table_in_place_makes_its_folder_a_source(tmp_path):
    touch(tmp_path, "x.glb")
    (tmp_path / "list.csv").write_text(f"id,file,category\none,{tmp_path / 'x.glb'},letters\n")
    write(tmp_path / "list.csv", tmp_path)
    assert rows(tmp_path / "manifest.csv") == [
        {"id": "one", "category": "letters", "file": "x.glb"}
    ]


# splits ----------------------------------------------------------------------


def test_splits_from_each_place(source, tmp_path):
    (source / "manifest.csv").write_text(
        "id,split_hint\nlamp,val\nchairs__0a3f,train\nchairs__office_chair_01,train\n"
    )
    write(source, tmp_path / "hint")
    assert read_splits(tmp_path / "hint") == {"train": IDS[:2], "val": ["lamp"], "test": []}
    (source / "split.csv").write_text(
        "id,split\nlamp,test\nchairs__0a3f,train\nchairs__office_chair_01,train\n"
    )
    write(source, tmp_path / "file")
    assert read_splits(tmp_path / "file")["test"] == ["lamp"]
    (source / "splits.json").write_text(
        json.dumps({"train": ["lamp"], "val": [], "test": ["elsewhere"]})
    )
    with pytest.warns(UserWarning, match="2 of 3 shapes are in no split"):
        write(source, tmp_path / "json")
    assert read_splits(tmp_path / "json") == {"train": ["lamp"], "val": [], "test": ["elsewhere"]}


@pytest.mark.parametrize(
    "text, message",
    [
        ("id,split\nlamp,val\nlamps,train\n", r"split\.csv, line 3: 'lamps' is the id of no mesh"),
        (
            "id,split\nlamp,validation\n",
            r"split\.csv, line 2: the split of 'lamp' is 'validation', allowed are train, ",
        ),
        ("id,split\nlamp,\n", "line 2: the split of 'lamp' is ''"),
        ("id,split\nlamp,val\nlamp,test\n", "line 3: 'lamp' is in 'val' already"),
        ("id,set\nlamp,val\n", "has no column split"),
    ],
)
def test_wrong_splits_are_refused_by_line_and_nothing_is_written(source, tmp_path, text, message):
    (source / "split.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        write(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_wrong_splits_of_a_table_are_refused_by_line(source, tmp_path):
    (source / "manifest.csv").write_text("id,split\nlamp,hold\n")
    with pytest.raises(ValueError, match=r"manifest\.csv, line 2: the split of 'lamp' is 'hold'"):
        write(source, tmp_path / "out")


def test_new_ids_join_and_known_ones_never_move(source, tmp_path):
    out = tmp_path / "out"
    (source / "split.csv").write_text(
        "id,split\nlamp,val\nchairs__0a3f,train\nchairs__office_chair_01,train\n"
    )
    write(source, out)
    touch(source, "new.glb")
    with (source / "split.csv").open("a") as f:
        f.write("new,test\n")
    write(source, out)
    assert read_splits(out) == {"train": IDS[:2], "val": ["lamp"], "test": ["new"]}
    (source / "split.csv").write_text("id,split\nlamp,train\n")
    with pytest.warns(
        UserWarning, match="stays as it is: 1 ids are in another split there .* first is 'lamp'"
    ):
        write(source, out)
    assert read_splits(out)["val"] == ["lamp"]
