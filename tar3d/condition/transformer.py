"""The small pre-norm transformer that trained image and text encoders are made of.

Letters: B batch, P positions, D width, H heads.
"""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class ViTBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)).

    q, k and v are separate matrices because Muon orthogonalises each of them.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(width)
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, width, bias=False)
        self.v = nn.Linear(width, width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, 4 * width, bias=False)
        self.mlp_out = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, P, D) -> (B, P, D).

        `mask`, broadcast to (B, H, P, P) bool, is True where a position may attend to another;
        None: everywhere.
        """
        y = self.attention_norm(x)
        q, k, v = (
            rearrange(project(y), "b p (h e) -> b h p e", h=self.num_heads)
            for project in (self.q, self.k, self.v)
        )
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # (B, H, P, D / H)
        x = x + self.attention_out(rearrange(y, "b h p e -> b p (h e)"))
        return x + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x))))


def init_transformer(module: nn.Module, num_layers: int) -> None:
    """Initialises matrices and tables with a normal distribution, std 0.02.

    Matrices that end on the residual stream get a smaller std, so that its scale is the same at any
    depth. `normal_` draws the same numbers in torch 2.11 and 2.13, `trunc_normal_` does not.
    """
    residual_std = 0.02 / (2 * max(num_layers, 1)) ** 0.5
    for name, parameter in module.named_parameters():
        if parameter.ndim == 2:
            is_residual = name.endswith(("attention_out.weight", "mlp_out.weight"))
            nn.init.normal_(parameter, std=residual_std if is_residual else 0.02)


def transformer_flops(module: nn.Module, num_tokens: int, width: int, num_layers: int) -> int:
    """FLOPs of one forward pass over `num_tokens` positions: matrices at each, and attention.

    A multiplication and an addition count as two.
    """
    matrices = sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))
    return 2 * num_tokens * (matrices + 2 * num_tokens * width * num_layers)
