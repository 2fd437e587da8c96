"""Files of tokens: what is written comes back, and what this tokenizer cannot decode is refused
with the reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tar3d.config import TokenizerConfig
from tar3d.data.formats.token_file import TokenFiles, is_token_file
from tar3d.tokenizer.vqvae import VQVAE

T, V = 48, 32


@pytest.fixture(scope="module")
def files() -> TokenFiles:
    return TokenFiles(tokenizer(0))


def tokenizer(seed: int, codes: int = V) -> VQVAE:
    torch.manual_seed(seed)
    return VQVAE(
        TokenizerConfig(
            grid_size=4,
            codebook_size=codes,
            width=16,
            num_heads=2,
            decoder_layers=1,
            upsample_stages=1,
            plane_channels=4,
        )
    )


def test_what_is_written_comes_back(files, tmp_path):
    ids, to_source = torch.randint(V, (T,)), np.diag([2.0, 2.0, 2.0, 1.0]) + 1e-9
    path = files.save(tmp_path, "chair.v2", ids, to_source=to_source, sampled=False)
    assert (
        path == tmp_path / "tokens" / "chair.v2.tokens.npz"
        and is_token_file(path)
        and path.stat().st_size < 2000
    )
    stored = files.load(path)
    assert (
        torch.equal(stored.tokens.ids, ids[None])
        and np.array_equal(stored.to_source, to_source)
        and not stored.sampled
    )
    stored = files.load(files.save(tmp_path, "made up", ids, sampled=True))
    assert np.array_equal(stored.to_source, np.eye(4)) and stored.sampled
    assert sorted(p.name for p in path.parent.iterdir()) == [
        "chair.v2.tokens.npz",
        "made up.tokens.npz",
    ]


def test_more_codes_than_16_bits_hold(tmp_path):
    files = TokenFiles(tokenizer(0, codes=2**16 + 1))
    ids = torch.arange(2**16 + 1 - T, 2**16 + 1)
    assert torch.equal(files.load(files.save(tmp_path, "a", ids, sampled=False)).tokens.ids[0], ids)


def test_a_tokenizer_with_another_decoder_speaks_the_same_tokens(files, tmp_path):
    path = files.save(tmp_path, "a", torch.zeros(T, dtype=torch.int64), sampled=False)
    other = tokenizer(0)
    with torch.no_grad():
        for parameter in other.decoder.parameters():
            parameter.add_(1.0)
    assert TokenFiles(other).load(path).tokens.ids.sum() == 0
    with pytest.raises(
        ValueError, match=f"has tokens of tokenizer {files.tokenizer}, but the one given is"
    ):
        TokenFiles(tokenizer(1)).load(path)


GOOD = {"tokens": np.zeros(T, np.uint16), "transform": np.eye(4), "sampled": True}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"tokens": None}, "has no tokens, as a file"),
        ({"transform": None, "sampled": None}, "has no transform and no sampled"),
        (
            {"tokens": np.zeros(T - 1, np.uint16)},
            rf"must be \({T},\) whole numbers, got \({T - 1},\) uint16",
        ),
        ({"tokens": np.full(T, V, np.uint16)}, f"must lie in 0 to {V - 1}, got {V} to {V}"),
        ({"tokens": np.full(T, -1, np.int16)}, "got -1 to -1"),
        ({"tokens": np.zeros(T)}, "float64"),
        ({"tokens": np.zeros(0, np.uint16)}, r"got \(0,\) uint16$"),
        ({"transform": np.eye(3)}, r"transform must be a finite \(4, 4\) matrix"),
        ({"sampled": np.zeros(2, bool)}, r"sampled must be one bool, got \(2,\) bool"),
        ({"tokens": np.array(["a"] * T)}, "whole numbers"),
        ({"tokens": np.array([None] * T)}, "is not a readable file of tokens"),
        ({"transform": np.full((4, 4), np.nan)}, r"transform must be a finite \(4, 4\) matrix"),
    ],
)
def test_what_cannot_be_decoded_is_refused_with_the_reason(files, tmp_path, change, message):
    path = tmp_path / "bad.tokens.npz"
    arrays = GOOD | {"tokenizer": files.tokenizer} | change
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    with pytest.raises(ValueError, match=message) as caught:
        files.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"no zip at all",
        lambda content: content[:200],
        lambda content: content.replace(b"\x00" * 40, b"\x01" * 40),
    ],
)
def test_a_damaged_file_is_refused(files, tmp_path, damage):
    path = files.save(tmp_path, "a", torch.zeros(T, dtype=torch.int64), sampled=False)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match="is not a readable file of tokens"):
        files.load(path)
    with pytest.raises(ValueError, match="is not a readable file of tokens"):
        files.load(Path(tmp_path / "none.tokens.npz"))
