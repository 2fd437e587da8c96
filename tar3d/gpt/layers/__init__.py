"""The attention layers of the hybrid GPT.

A new linear one is a file with a subclass of `AttentionLayer` and a line in `LINEAR_ATTENTION`.
`tests/gpt/test_layers.py` holds prefill, decoding and engine of each line against its forward pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tar3d.gpt.layers.full import FullAttention
from tar3d.gpt.layers.gated import DeltaAttention, GatedAttention
from tar3d.gpt.layers.lightning import LightningAttention

if TYPE_CHECKING:
    from tar3d.config import GPTConfig
    from tar3d.gpt.layers.base import AttentionLayer

# `gpt.linear_attention`: the layers that L stands for in `gpt.layer_pattern`; F is full attention.
LINEAR_ATTENTION: dict[str, type[AttentionLayer]] = {
    "lightning": LightningAttention,
    "gated": GatedAttention,
    "delta": DeltaAttention,
}


def build_attention(config: GPTConfig, layer: int) -> AttentionLayer:
    """The attention of layer number `layer`, by its letter in `gpt.layer_pattern`."""
    if config.layer_pattern[layer % len(config.layer_pattern)] == "F":
        return FullAttention(config, layer)
    return linear_attention_class(config.linear_attention)(config, layer)


def linear_attention_class(name: str) -> type[AttentionLayer]:
    """Raises ValueError for a name that is not in the table."""
    if name not in LINEAR_ATTENTION:
        raise ValueError(
            f"gpt.linear_attention is {name!r}, allowed are {', '.join(LINEAR_ATTENTION)}"
        )
    return LINEAR_ATTENTION[name]
