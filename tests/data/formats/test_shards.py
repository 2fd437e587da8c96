"""Loose files and tar shards read alike."""

import tarfile

import pytest

from tar3d.data.formats.shards import ShardedFiles, read_index, write_shard

CONTENT = {
    "a.npz": b"first",
    "deep/b.npz": b"",
    "ünï 椅子.npz": b"x" * 2000,
    "long/" + "n" * 150 + ".npz": b"y",
}


def test_a_shard_reads_like_the_files_in_it(tmp_path):
    write_shard(tmp_path / "packed" / "00000.tar", CONTENT)
    with tarfile.open(tmp_path / "packed" / "00000.tar") as tar:
        tar.extractall(tmp_path / "loose", filter="data")
    packed, loose = ShardedFiles(tmp_path / "packed"), ShardedFiles(tmp_path / "loose")
    assert list(packed) == list(loose) == sorted(CONTENT)
    for name, content in CONTENT.items():
        assert packed.read(name) == loose.read(name) == content
    assert "00000.tar:a.npz" in packed.where("a.npz") and loose.where("a.npz").endswith(
        "loose/a.npz"
    )


def test_a_loose_file_goes_before_a_packed_one(tmp_path):
    write_shard(tmp_path / "0.tar", CONTENT)
    (tmp_path / "a.npz").write_bytes(b"newer")
    files = ShardedFiles(tmp_path, ".npz")
    assert files.read("a.npz") == b"newer" and len(files) == len(CONTENT)


@pytest.mark.parametrize("spoilt", [None, b"", b"{", b'{"bytes": 1, "members": {}}', b"[]"])
def test_the_index_is_only_a_cache(tmp_path, spoilt):
    write_shard(tmp_path / "0.tar", CONTENT)
    beside = tmp_path / "0.tar.json"
    beside.unlink() if spoilt is None else beside.write_bytes(spoilt)
    assert set(read_index(tmp_path / "0.tar")) == set(CONTENT)
    assert ShardedFiles(tmp_path).read("a.npz") == b"first"


def test_the_same_files_give_the_same_bytes(tmp_path):
    write_shard(tmp_path / "0.tar", CONTENT)
    write_shard(tmp_path / "1.tar", dict(reversed(CONTENT.items())))
    assert (tmp_path / "0.tar").read_bytes() == (tmp_path / "1.tar").read_bytes()


@pytest.mark.parametrize("kept", [0, 300, 600, 1100])
def test_a_shard_that_was_cut_off_is_a_sentence(tmp_path, kept):
    write_shard(tmp_path / "0.tar", {"a.npz": b"z" * 5000})
    (tmp_path / "0.tar").write_bytes((tmp_path / "0.tar").read_bytes()[:kept])
    with pytest.raises(ValueError, match="make it again"):
        ShardedFiles(tmp_path).read("a.npz")


def test_a_name_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="holds no b.npz"):
        ShardedFiles(tmp_path).read("b.npz")


def test_hidden_folders_are_left_out_and_links_followed_to_an_end(tmp_path):
    for name in ("views/a/0.png", "views/.ipynb_checkpoints/0.png", "shared/0.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name, target in {"b": "../shared", "c": "../shared", "a/loop": ".."}.items():
        (tmp_path / "views" / name).symlink_to(target)
    assert list(ShardedFiles(tmp_path / "views", ".png")) == ["a/0.png", "b/0.png", "c/0.png"]
