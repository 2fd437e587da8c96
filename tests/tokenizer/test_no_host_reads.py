"""A training forward of the tokenizer neither copies to a GPU nor reads from it on the way."""

from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tar3d.config import VQVAEConfig, load
from tar3d.tokenizer.vqvae import VQVAE


class _OnlyOwnTensors(TorchDispatchMode):
    """Fails on an operation with a tensor that neither was given nor is a result of another.

    A list as an index is such a tensor: it is made on the processor and copied.
    """

    def __init__(self, *given: torch.Tensor) -> None:
        super().__init__()
        self.known = list(given)  # keeps them, so that no other gets the place of one

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        ids = {id(x) for x in self.known}
        for x in tree_leaves((args, kwargs or {})):
            assert not isinstance(x, torch.Tensor) or id(x) in ids, function
        result = function(*args, **(kwargs or {}))
        self.known += [x for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        return result


@pytest.mark.parametrize("encoder", ["plane_pool", "cross_attention"])
def test_a_forward_stays_on_its_device(encoder, monkeypatch):
    """On the device "meta", which has no values that could be read."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())  # not there
    config = load(
        VQVAEConfig,
        None,
        [f"tokenizer.encoder={encoder}", "tokenizer.grid_size=4", "tokenizer.width=24"],
    )
    vqvae = VQVAE(config.tokenizer).to("meta").train()
    surface = torch.empty(2, 50, 6, device="meta")
    points = torch.empty(2, 30, 3, device="meta")
    with (
        torch.no_grad(),
        _OnlyOwnTensors(surface, points, *vqvae.parameters(), *vqvae.buffers()),
    ):
        vqvae(surface, points, quantize=True)
        with pytest.raises(AssertionError, match="index"):
            points[..., [0, 2]]
