"""Arrays of an .npz without copies equal those that numpy reads."""

import numpy as np
import pytest

from tar3d.data.formats.npz import map_npz, read_npz

ARRAYS = {
    "a": np.arange(12.0).reshape(4, 3),
    "fortran": np.asfortranarray(np.arange(12, dtype=np.float16).reshape(4, 3)),
    "number": np.array(2.5),
    "none": np.empty((0, 3), np.float32),
    "flags": np.array([True, False]),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_equal_numpy_s(tmp_path, save):
    path = tmp_path / "a.npz"
    save(path, **ARRAYS)
    for arrays in (read_npz(path.read_bytes(), ARRAYS), map_npz(path, ARRAYS)):
        assert list(arrays) == list(ARRAYS)
        for key, array in ARRAYS.items():
            assert arrays[key].dtype == array.dtype and np.array_equal(arrays[key], array)
    assert list(map_npz(path, ["b", "a"])) == ["a"]


def test_what_is_stored_is_not_copied(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, a=ARRAYS["a"])
    content = path.read_bytes()
    inside = np.frombuffer(content, np.uint8)
    assert np.shares_memory(read_npz(content, ["a"])["a"], inside)
    mapped = map_npz(path, ["a"])["a"]
    assert not mapped.flags.owndata and not mapped.flags.writeable


@pytest.mark.parametrize("save, noticed", [(np.savez, False), (np.savez_compressed, True)])
def test_a_flipped_bit_is_noticed_where_all_is_read(tmp_path, save, noticed):
    path = tmp_path / "a.npz"
    save(path, a=np.random.default_rng(0).random(1000))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(ValueError):
        read_npz(bytes(content), ["a"])
    if noticed:
        with pytest.raises(ValueError, match=r"a\.npz is not a readable \.npz file"):
            map_npz(path, ["a"])
    else:
        assert len(map_npz(path, ["a"])["a"]) == 1000


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "cannot mmap an empty file"),
        (b"no archive" * 10, "not a zip file"),
        (None, "No such file"),
    ],
)
def test_no_archive_is_a_sentence_that_names_it(tmp_path, content, message):
    if content is not None:
        (tmp_path / "b.npz").write_bytes(content)
    with pytest.raises(ValueError, match=rf"b\.npz is not a readable .npz file \(.*{message}"):
        map_npz(tmp_path / "b.npz", ["a"])


def test_objects_are_never_unpickled(tmp_path):
    np.savez(tmp_path / "c.npz", a=np.array([{}]))
    with pytest.raises(ValueError, match="c.npz is not a readable"):
        map_npz(tmp_path / "c.npz", ["a"])
