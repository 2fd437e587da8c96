"""Weights for tests of the GPT."""

import torch

from tar3d.gpt.model import GPT


@torch.no_grad()
def draw_large_weights(gpt: GPT) -> GPT:
    """So large that every path shows in the logits; gains and the like stay near where they
    start."""
    generator = torch.Generator().manual_seed(0)
    for parameter in gpt.parameters():
        if parameter.ndim == 2:
            parameter.normal_(0.0, 0.3, generator=generator)
        else:
            parameter.add_(
                0.2 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            )
    return gpt
