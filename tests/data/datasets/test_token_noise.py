"""Noise in the tokens that a GPT reads: how many are replaced, and by what."""

import numpy as np
import pytest

from tar3d.data.datasets.token_noise import TokenNoise

V, COUNT = 100, 4000
TOKENS = np.random.default_rng(1).integers(V, size=COUNT)
TABLE = (np.arange(V)[:, None] + np.arange(4)).astype(np.uint16) % V  # itself and the three after


def shares(noise: TokenNoise) -> list[float]:
    """The share of replaced tokens in each of 50 rows."""
    found = []
    for seed in range(50):
        made = noise(TOKENS, np.random.default_rng(seed))
        if noise.own:
            assert np.array_equal(made["inputs"], TOKENS) and made["draws"].dtype == np.float32
            drawn = made["draws"][made["draws"] >= 0]
            assert (made["draws"][made["draws"] < 0] == -1).all() and (drawn < 1).all()
            found.append(len(drawn) / COUNT)
        else:
            assert list(made) == ["inputs"] and made["inputs"].dtype == np.int64
            found.append(float((made["inputs"] != TOKENS).mean()))
    return found


@pytest.mark.parametrize(
    "noise",
    [TokenNoise(0.4, V), TokenNoise(0.4, V, TABLE), TokenNoise(0.4, V, own=True)],
    ids=["uniform", "neighbours", "own"],
)
def test_each_row_has_a_share_of_its_own_below_the_largest(noise):
    found = shares(noise)
    assert min(found) < 0.03 and 0.35 < max(found) < 0.42 and 0.15 < np.mean(found) < 0.25


def test_neighbours_are_drawn_from_their_table_alone():
    replaced = TokenNoise(1.0, V, TABLE)(TOKENS, np.random.default_rng(0))["inputs"]
    steps = (replaced - TOKENS) % V
    counts = np.bincount(steps, minlength=V)
    assert counts[4:].sum() == 0 and counts[1:4].min() > 0.8 * counts[1:4].max()


def test_without_noise_the_tokens_are_the_inputs():
    rng = np.random.default_rng(0)
    assert TokenNoise(0.0, V, TABLE)(TOKENS, rng)["inputs"] is TOKENS
    assert (TokenNoise(0.0, V, own=True)(TOKENS, rng)["draws"] == -1).all()
