"""Codes that are replaced by their neighbours: which, by what, and what gradients see of it."""

import torch

from tar3d.config import TokenizerConfig
from tar3d.tokenizer.ema_quantizer import EMAQuantizer
from tar3d.tokenizer.quantizer import replace_codes


def test_a_share_of_rows_gets_neighbours_and_gradients_do_not_notice():
    torch.manual_seed(0)
    quantizer = EMAQuantizer(TokenizerConfig(codebook_size=32, code_dim=4)).eval()
    z = torch.randn(64, 3, 4, 4, 4).requires_grad_()
    plain = quantizer(z)
    generator = torch.Generator().manual_seed(0)
    codes = replace_codes(plain, quantizer, 0.5, 0.25, 3, generator)
    ids = quantizer.nearest(codes.detach().flatten(0, -2)).view(plain.ids.shape)
    changed = ids != plain.ids
    rows = changed.flatten(1).any(1)
    assert 20 < rows.sum() < 44
    assert 0.2 < changed[rows].float().mean() < 0.3
    near = quantizer.neighbours(plain.ids[changed], 3)
    assert (near == ids[changed][:, None]).any(1).all() and len(ids[changed].unique()) > 10
    weights = torch.randn_like(z)
    gradients = [
        torch.autograd.grad((c * weights).sum(), z, retain_graph=True)[0]
        for c in (codes, plain.codes)
    ]
    assert torch.equal(*gradients)
    assert replace_codes(plain, quantizer, 0.0, 1.0, 3, generator) is plain.codes


def test_neighbours_are_the_nearest_codes_without_the_code_itself():
    quantizer = EMAQuantizer(TokenizerConfig(codebook_size=16, code_dim=3))
    ids = torch.tensor([3, 7])
    similar = quantizer.codebook[ids] @ quantizer.codebook.T
    expected = similar.argsort(dim=-1, descending=True)[:, 1:5]
    assert torch.equal(quantizer.neighbours(ids, 4), expected)
