"""Finite scalar quantization: codes are a lattice, latents take the nearest, and gradients pass."""

import pytest
import torch

from tar3d.config import TokenizerConfig
from tar3d.tokenizer.fsq import FSQ


def quantizer(levels: list[int], **changes: int) -> FSQ:
    size = torch.tensor(levels).prod().item() if levels else 4
    values = {"codebook_size": size, "code_dim": len(levels) or 1} | changes
    return FSQ(TokenizerConfig(quantizer="fsq", fsq_levels=levels, **values))


def test_codes_are_all_combinations_of_evenly_spaced_levels():
    q = quantizer([4, 3, 2])
    assert len(q.codebook.unique(dim=0)) == 24
    for column, levels in zip(q.codebook.T, (4, 3, 2), strict=True):
        assert torch.allclose(column.unique(), torch.linspace(-1, 1, levels))
    assert torch.equal(q.nearest(q.codebook), torch.arange(24))


def test_latents_take_one_level_each_and_keep_their_gradient():
    q = quantizer([4, 3])
    z = q.project(torch.randn(2, 5, 2, generator=torch.Generator().manual_seed(0)) * 3)
    assert z.abs().max() <= 1
    z.requires_grad_()
    out = q(z)
    assert torch.equal(out.codes.detach(), q.lookup(out.ids)) and out.commitment == 0
    assert torch.equal(
        out.ids, torch.cdist(z.detach(), q.codebook[None].expand(2, -1, -1)).argmin(-1)
    )
    (out.codes * torch.arange(20).view(2, 5, 2)).sum().backward()
    assert torch.equal(z.grad, torch.arange(20).view(2, 5, 2).float())


@pytest.mark.parametrize(
    "levels, changes, message",
    [
        ([], {}, r"needs tokenizer.fsq_levels, .* got \[\]"),
        ([4, 1], {}, r"each at least 2, .* got \[4, 1\]"),
        ([4, 3], {"codebook_size": 16}, "write tokenizer.codebook_size=12 tokenizer.code_dim=2"),
        ([4, 3], {"code_dim": 3}, "make 12 codes of 2 coordinates"),
    ],
)
def test_levels_that_do_not_make_the_codebook_are_refused(levels, changes, message):
    with pytest.raises(ValueError, match=message):
        quantizer(levels, **changes)
