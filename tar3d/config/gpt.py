"""The hybrid GPT, and its sizes by name."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from tar3d.config.checks import at_least, one_of, require
from tar3d.layouts import build_layout

# (layers, width, heads), as named in LlamaGen (arXiv 2406.06525, table 1) and TAR3D.
GPT_SIZES: dict[str, tuple[int, int, int]] = {
    "GPT-tiny": (6, 192, 3),
    "GPT-B": (12, 768, 12),
    "GPT-L": (24, 1024, 16),
    "GPT-XL": (36, 1280, 20),
    "GPT-XXL": (48, 1536, 24),
    "GPT-XXXL": (48, 2560, 40),
    "GPT-1B": (22, 2048, 32),
    "GPT-3B": (24, 3200, 32),
    "GPT-7B": (32, 4096, 32),
}


@dataclass(kw_only=True)
class GPTConfig:
    """The hybrid GPT. Sizes by name: `gpt_config("GPT-B", ...)`."""

    num_layers: int = 12
    width: int = 768
    num_heads: int = 12
    grid_size: int = 32
    codebook_size: int = 16_384
    # P, the length of the longest prefix.
    condition_tokens: int = 197
    # E, the width of the prefix's embeddings.
    condition_width: int = 768
    # Probability that a training row sees the learned null prefix, which guidance needs.
    condition_dropout: float = 0.1
    # What a sequence is made of (tar3d/layouts).
    layout: str = "triplane"
    # Repeated over the depth: L linear attention, F full attention.
    layer_pattern: str = "LLLF"
    # Every so many blocks each position looks at the whole prefix again; 0: none does
    # (tar3d/gpt/cross_attention.py).
    cross_attention: int = 0
    # 1, or 3: the layers see the three plane tokens of a cell as one position.
    tokens_per_step: int = 1
    # "cells", or for comparison "planes", one plane after the other
    # (tar3d/layouts/triplane.py).
    token_order: str = "cells"
    # "rotation", or for comparison "paper_sum" or "sequence" (tar3d/gpt/rope.py).
    rope: str = "rotation"
    # How the prefix is rotated: "identity", or for comparison "zero", as in TAR3D.
    prefix_rope: str = "identity"
    # Width of the codes that are predicted from the condition for every position; 0: none, as in
    # the paper.
    code_predictor_dim: int = 0
    # Features of each prefix position that the code predictor sees beside their mean; 0: the mean
    # alone.
    code_predictor_local: int = 0
    # Width of the code predictor's hidden layer; 0: twice condition_width.
    code_predictor_hidden: int = 0
    rope_base: float = 10_000.0
    # Learned row, column and plane embeddings beside TriPE; the paper has none.
    absolute_positions: bool = True
    # What computes the two kinds of attention, a choice of the machine (tar3d/gpt/backends.py).
    linear_backend: str = "auto"
    attention_backend: str = "auto"
    # The sum that the layers of a training add their outputs to: "float32", or "autocast", which
    # is bfloat16 under train.precision=bf16-mixed: less to move, and rounded at every layer.
    residual_dtype: str = "float32"
    # Positions in a chunk of linear attention's chunked form.
    chunk_size: int = 64
    # "lightning", or for comparison "gated" or "delta", whose decay depends on the data
    # (tar3d/gpt/layers).
    linear_attention: str = "lightning"
    # Sigmoid output gate of the linear layers: one more width x width matrix in each.
    linear_gate: bool = True

    def __post_init__(self) -> None:
        self._check_choices()
        at_least(
            1,
            self,
            "gpt.",
            "num_layers",
            "width",
            "num_heads",
            "grid_size",
            "codebook_size",
            "condition_tokens",
            "condition_width",
            "chunk_size",
        )
        at_least(
            0,
            self,
            "gpt.",
            "cross_attention",
            "code_predictor_dim",
            "code_predictor_local",
            "code_predictor_hidden",
        )
        require(
            self.cross_attention <= self.num_layers,
            f"gpt.cross_attention {self.cross_attention} is more than the {self.num_layers} layers "
            "(gpt.num_layers), so no block would look at the prefix: write 0 for none",
        )
        require(
            self.width % self.num_heads == 0,
            f"gpt.width {self.width} is not divisible by num_heads {self.num_heads}",
        )
        require(
            len(self.layer_pattern) > 0 and set(self.layer_pattern) <= {"L", "F"},
            f"gpt.layer_pattern may hold L and F only, got {self.layer_pattern!r}",
        )
        require(
            0.0 <= self.condition_dropout < 1.0,
            f"gpt.condition_dropout must be in [0, 1), got {self.condition_dropout}",
        )
        require(
            self.head_dim % 2 == 0 and self.head_dim >= 6,
            f"gpt.width / num_heads is {self.head_dim}; rotary positions need an even number of "
            "at least 6",
        )

    def _check_choices(self) -> None:
        build_layout(self)  # raises for options that the layout does not have
        one_of("gpt.rope", self.rope, ("rotation", "paper_sum", "sequence"))
        one_of("gpt.prefix_rope", self.prefix_rope, ("identity", "zero"))
        # The name is checked in tar3d/gpt/layers, which has the table of layers.
        require(self.linear_attention != "", "gpt.linear_attention must name a layer, got ''")
        one_of(
            "gpt.linear_backend",
            self.linear_backend,
            ("auto", "chunked", "reference", "fla", "lightning_attn"),
        )
        one_of(
            "gpt.attention_backend",
            self.attention_backend,
            ("auto", "sdpa", "flash_attn"),
        )
        one_of("gpt.residual_dtype", self.residual_dtype, ("float32", "autocast"))

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.width // self.num_heads

    @property
    def num_tokens(self) -> int:
        """Tokens of a shape."""
        return build_layout(self).num_tokens

    @property
    def num_steps(self) -> int:
        """Positions that the layers see after the prefix."""
        return build_layout(self).num_steps


def size_values(name: str) -> dict[str, int]:
    """Layers, width and heads of a named size, by field of `GPTConfig`."""
    one_of("GPT size", name, tuple(GPT_SIZES))
    return dict(zip(("num_layers", "width", "num_heads"), GPT_SIZES[name], strict=True))


def gpt_config(name: str, **changes: Any) -> GPTConfig:
    """The config of a named size; `changes` set other fields, as in grid_size=16."""
    size = size_values(name)
    fields = {f.name for f in dataclasses.fields(GPTConfig)}
    unknown = sorted(set(changes) - fields)
    require(
        not unknown,
        f"{', '.join(unknown)}: no such field of GPTConfig; it has {', '.join(sorted(fields))}",
    )
    return GPTConfig(**(size | changes))
