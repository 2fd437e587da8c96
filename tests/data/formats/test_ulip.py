"""Embeddings and captions that others have computed: read in order, and checked."""

import json

import numpy as np
import pytest

from tar3d.condition.given import GivenEmbeddings
from tar3d.config import ImageEncoderConfig, TextEncoderConfig
from tar3d.data.formats.ulip import EmbeddingError, read_pairs
from tar3d.data.tokens.conditions import EmbeddingConditions

ENCODER = GivenEmbeddings(ImageEncoderConfig(model="facebook/dino-vitb16"), 3, 4)
T5 = GivenEmbeddings(TextEncoderConfig(), 120, 2048)


def views(folder) -> EmbeddingConditions:
    return EmbeddingConditions("image", folder, ENCODER)


def captions(folder) -> EmbeddingConditions:
    return EmbeddingConditions("text", folder, T5)


def view(value: float, *shape: int) -> np.ndarray:
    return np.full(shape or (1, 3, 4), value, np.float32)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_views_come_in_the_order_of_their_keys(tmp_path, save):
    save(
        tmp_path / "u.npz", *[view(k) if k % 2 else view(k, 3, 4) for k in range(12)]
    )  # arr_0 ... arr_11
    read = np.stack(views(tmp_path).read("u"))
    assert read.shape == (12, 3, 4) and read.dtype == np.float16
    assert read[:, 0, 0].tolist() == list(range(12))


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"a": view(np.nan)}, "a holds values that are not finite in float16"),
        ({"a": view(1e6)}, "not finite in float16"),
        (
            {"a": view(0, 2, 3, 4)},
            r"a must be \(1, rows, width\) or \(rows, width\) of floats, got \(2, 3, 4\)",
        ),
        ({"a": np.zeros((3, 4), int)}, "of floats, got .* int64"),
        ({"a": view(0, 0, 4)}, "of floats"),
        ({"a": np.array([{}])}, "not a readable .npz"),
        ({}, "holds no array"),
    ],
)
def test_embeddings_of_a_shape_that_cannot_be_used_are_named(tmp_path, arrays, message):
    np.savez(tmp_path / "u.npz", **arrays)
    for read in (views(tmp_path).read, captions(tmp_path).read):
        with pytest.raises(EmbeddingError, match=rf"u\.npz.*{message}"):
            read("u")


@pytest.mark.parametrize("content", [b"", b"no archive" * 20, b"PK\x03\x04"])
def test_missing_and_damaged_files_are_named(tmp_path, content):
    with pytest.raises(
        EmbeddingError, match=r"u\.npz is not there, so this shape has no embeddings"
    ):
        views(tmp_path).read("u")
    (tmp_path / "u.npz").write_bytes(content)
    with pytest.raises(EmbeddingError, match=r"u\.npz is not a readable \.npz file"):
        views(tmp_path).read("u")


@pytest.mark.parametrize("shape", [(3, 5), (4, 4), (1, 2, 4)])
def test_another_width_is_nobody_s_own_fault(tmp_path, shape):
    np.savez(tmp_path / "u.npz", a=view(0), b=view(0, *shape))
    with pytest.raises(
        ValueError, match=r"u\.npz: b is \d x \d, but .* is 3 x 4: write gpt.condition_tokens=\d"
    ) as caught:
        views(tmp_path).read("u")
    assert not isinstance(caught.value, EmbeddingError)


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(ValueError, match="none is not a folder of embeddings"):
        views(tmp_path / "none")


def test_captions_keep_their_own_lengths(tmp_path):
    np.savez(
        tmp_path / "u.npz", *(view(k, 1, length, 2048) for k, length in enumerate((7, 121, 1)))
    )
    read = captions(tmp_path).read("u")
    assert [a.shape for a in read] == [(7, 2048), (120, 2048), (1, 2048)], (
        "cut to what the GPT takes"
    )
    assert [a[0, 0] for a in read] == [0, 1, 2]
    np.savez(tmp_path / "w.npz", view(0, 1, 7, 1024))
    with pytest.raises(
        ValueError,
        match=r"w\.npz: arr_0 is 1024 wide, but .* is 2048: write gpt.condition_width=1024",
    ):
        captions(tmp_path).read("w")


def test_captions_by_uid(tmp_path):
    path = tmp_path / "uid2conds.json"
    pairs = [("x/0.png", "a chair"), ("x/1.png", "ein Stuhl, grün")]
    path.write_text(
        json.dumps({"0001_a": pairs, "0001_b": []}, ensure_ascii=False), encoding="utf-8"
    )
    assert read_pairs(path) == {"0001_a": pairs, "0001_b": []}


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "not readable JSON"),
        ("[]", "must hold an object by uid, got a list"),
        ('{"u": "x"}', "'u' must have a list of"),
        ('{"u": [["p"]]}', "'u' must have a list"),
        ('{"u": [["p", 1]]}', "'u' must have a list"),
        (None, "not readable JSON"),
    ],
)
def test_other_json_is_refused(tmp_path, text, message):
    path = tmp_path / "uid2conds.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=rf"uid2conds\.json.*{message}"):
        read_pairs(path)
