import json
from itertools import chain

import pytest

from tar3d.data.formats.dataset_folder import (
    complete_splits,
    mesh_path,
    read_splits,
    split_ids,
    split_of,
)
from tar3d.io import atomic_write, write_csv

IDS = [f"shape{k}" for k in range(1000)]


def test_split_of_an_id_never_changes():
    """Stored answers: a change would move held-out shapes of existing data sets into their training
    split."""
    assert [split_of(name) for name in ("shape0", "shape10", "shape30")] == ["train", "val", "test"]


def test_splits_are_disjoint_complete_and_near_their_shares():
    splits = split_ids(IDS)
    assert sorted(chain(*splits.values())) == sorted(IDS)
    assert (
        860 < len(splits["train"]) < 940
        and 25 < len(splits["val"]) < 80
        and 25 < len(splits["test"]) < 80
    )
    assert split_ids(IDS[::-1]) == splits


def test_a_small_set_still_has_something_to_validate_on():
    few = [i for i in IDS if split_of(i) == "train"][:3]
    splits = split_ids(few)
    assert len(splits["val"]) == 1 and sorted(splits["train"] + splits["val"]) == sorted(few)
    assert split_ids(few[:1])["train"] == few[:1]


def test_new_shapes_join_splits_that_were_made_here(tmp_path):
    complete_splits(tmp_path, IDS[:500])
    complete_splits(tmp_path, IDS[400:])
    assert read_splits(tmp_path) == split_ids(IDS)


def test_own_splits_stay_as_they_are(tmp_path):
    own = {"train": ["shape2"], "val": ["shape1"], "test": ["shape0"]}
    (tmp_path / "splits.json").write_text(json.dumps(own))
    complete_splits(tmp_path, IDS)
    assert read_splits(tmp_path) == own


@pytest.mark.parametrize(
    "text, message",
    [
        (
            '{"train": ["a", "b"], "val": ["c"], "test": ["b"]}',
            "1 ids stand in both train and test, the first is 'b'",
        ),
        (
            '{"train": ["a"], "val": ["c", "d"], "test": ["d", "c"]}',
            "2 ids stand in both val and test, the first is 'c'",
        ),
        ('{"train": ["a"], "val": []}', "must hold the lists train, val and test, got train, val"),
        ("{}", "got nothing"),
        ("{", "not JSON"),
    ],
)
def test_splits_that_leak_or_lack_something_are_refused(tmp_path, text, message):
    (tmp_path / "splits.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_splits(tmp_path)


def test_missing_splits_say_how_to_make_them(tmp_path):
    with pytest.raises(ValueError, match="make_samples"):
        read_splits(tmp_path)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    with atomic_write(path, "w") as f:
        f.write("old")
    with pytest.raises(RuntimeError), atomic_write(path, "w") as f:  # noqa: PT012  what is tested
        f.write("half of the n")
        raise RuntimeError
    assert path.read_text() == "old" and [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_mesh_of_an_id(tmp_path):
    (tmp_path / "a,b.glb").touch()
    rows = [
        {"id": "a,b", "file": str(tmp_path / "a,b.glb")},
        {"id": "gone", "file": "meshes/gone.glb"},
    ]
    write_csv(tmp_path / "report.csv", ["id", "file"], rows)
    assert mesh_path(tmp_path, "a,b") == tmp_path / "a,b.glb"
    with pytest.raises(
        ValueError, match=r"meshes/gone\.glb, the mesh that 'gone' was sampled from, is not there"
    ):
        mesh_path(tmp_path, "gone")
    with pytest.raises(ValueError, match="no row for 'c'"):
        mesh_path(tmp_path, "c")


def test_splits_with_a_byte_order_mark_are_read(tmp_path):
    splits = {"train": ["a"], "val": [], "test": []}
    (tmp_path / "splits.json").write_text(json.dumps(splits), encoding="utf-8-sig")
    assert read_splits(tmp_path) == splits
