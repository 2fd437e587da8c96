"""Neighbouring codes, the shares that soft targets give them, and samples of the GPT itself."""

import pytest
import torch
import torch.nn.functional as F

from tar3d.gpt import loss, soft_targets
from tar3d.gpt.soft_targets import nearest_codes, sample_tokens

V, K = 37, 4


@pytest.fixture
def codes():
    return F.normalize(torch.randn(V, K, generator=torch.Generator().manual_seed(0)), dim=-1)


def test_a_code_is_the_nearest_of_itself_and_the_rest_follow_by_distance(codes, monkeypatch):
    monkeypatch.setattr(soft_targets, "CODES_AT_ONCE", 10)
    codes[5] = codes[3]  # a code twice in the codebook
    found = nearest_codes(codes, 6)
    assert torch.equal(found[:, 0], torch.arange(V)) and found[5, 1] == 3 and found[3, 1] == 5
    others = ~torch.isin(torch.arange(V), torch.tensor([3, 5]))
    expected = (codes @ codes.T).topk(6).indices
    assert torch.equal(found[others], expected[others])
    with pytest.raises(
        ValueError, match="target of 38 codes .*train.target_codes.* has 37: write fewer"
    ):
        nearest_codes(codes, V + 1)


def test_shares_are_the_softmax_of_the_cosines(codes):
    latents = F.normalize(torch.randn(2, 5, K, generator=torch.Generator().manual_seed(1)), dim=-1)
    tokens = (latents @ codes.T).argmax(-1)
    table = nearest_codes(codes, 6)
    found = soft_targets.soft_targets(tokens, latents.half(), codes, table, 0.1)
    assert torch.equal(found.ids, table[tokens])
    cosines = (latents[..., None, :] * codes[found.ids]).sum(-1)
    torch.testing.assert_close(found.weights, (cosines / 0.1).softmax(-1), rtol=0.02, atol=0)
    cold = soft_targets.soft_targets(tokens, codes[tokens], codes, table, 1e-4)
    torch.testing.assert_close(cold.weights[..., 0], torch.ones(2, 5))


def test_samples_have_the_distribution_of_the_logits(monkeypatch):
    monkeypatch.setattr(loss, "LOGITS_AT_ONCE", 7 * V)
    draws = (torch.arange(1000) + 0.5) / 1000
    hidden = torch.randn(1, K, generator=torch.Generator().manual_seed(2)).expand(1000, K)
    weight = torch.randn(V, K, generator=torch.Generator().manual_seed(3))
    found = sample_tokens(hidden[None], weight, draws[None])
    counts = torch.bincount(found[0], minlength=V) / 1000
    assert (counts - (hidden[0] @ weight.T).softmax(0)).abs().max() < 2e-3
    ends = sample_tokens(hidden[:2], weight, torch.tensor([0.0, 1.0]))
    assert ends.tolist() == [0, V - 1]  # 1 is what rounding may make of a draw
