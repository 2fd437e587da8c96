"""Models and weights for tests of the GPT."""

import torch

from tar3d.config import GPTConfig
from tar3d.gpt.model import GPT


def small_gpt(**changes) -> GPT:
    """12 tokens of 11 codes, 6 tokens of a condition of width 5."""
    sizes = {"num_layers": 4, "width": 48, "num_heads": 2, "grid_size": 2, "codebook_size": 11}
    return GPT(GPTConfig(**sizes, condition_tokens=6, condition_width=5, **changes))


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
