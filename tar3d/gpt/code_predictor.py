"""A regression of every code of the shape from the condition alone.

`CodePredictor` is a feed-forward network, from the prefix straight to the tokenizer's codes at all
positions. It is no part of the paper's GPT, and from an image it does most of the work today: the
layers correct and sharpen what it predicts. A prefix has to be searched for what matters at a
position, which a GPT learns late: most tokens follow from their neighbours, so the loss hardly asks
for the condition until the shape is decided by chance. A small network on the whole prefix can be
taught directly.

The rest of the code meets it at three seams:

    hints into the layers     `CodePredictor.hints`, added to the position that predicts a step
    codes into the sampler    `gpt.code_predictor(...)`, weighted by `sampling.code_predictor_scale`
    one term of the loss      1 - cosine of its codes to the true ones, weighted by
                              `train.code_predictor_weight`; more rows for it alone by
                              `train.code_predictor_rows`; alone by `train.stage=code_predictor`

Letters: B batch, P prefix length, E condition width, T tokens, K dimension of a code, D width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tar3d.gpt.norm import RMSNorm
from tar3d.gpt.rows import gather, valid_first

if TYPE_CHECKING:
    from tar3d.config import GPTConfig

# Name prefixes of the parameters of a GPT that make the predicted codes.
PREDICTOR_PARAMETERS = ("code_predictor.mlp.", "code_predictor.local")


class CodePredictor(nn.Module):
    """The network of the module docstring.

    It sees the mean of the prefix, and with `gpt.code_predictor_local` that many numbers of each
    valid position and zeros after them: a mean alone does not tell where in an image something is.
    Its projection starts at zero: a model trained without a code predictor can go on with one.
    """

    init_as: ClassVar[dict[str, str]] = {"project": "zeros"}

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        # These deal in coordinates of codes, and are not hidden matrices.
        local = ["local"] if config.code_predictor_local else []
        self.adamw_parameters = ("mlp", "project", *local)
        inputs = config.condition_tokens * config.code_predictor_local + config.condition_width
        hidden = config.code_predictor_hidden or 2 * config.condition_width
        self.local: nn.Linear | None = None
        self.local_norm: RMSNorm | None = None
        if config.code_predictor_local:
            self.local_norm = RMSNorm(config.condition_width)
            self.local = nn.Linear(config.condition_width, config.code_predictor_local, bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(inputs, hidden),
            nn.GELU(),
            nn.Linear(hidden, config.num_tokens * config.code_predictor_dim),
        )
        self.project = nn.Linear(
            config.tokens_per_step * config.code_predictor_dim, config.width, bias=False
        )
        self.condition_tokens = config.condition_tokens
        self.num_tokens, self.num_steps = config.num_tokens, config.num_steps

    def forward(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        """Prefix (B, P, E) and its validity (B, P) -> predicted codes (B, T, K) in model order.

        They are float32 unit vectors: the loss does not see their length, and trained alone they
        are 20 to 100 long, which would drown the tokens as hints.
        """
        x = embeddings.masked_fill(~mask[..., None], 0.0)
        inputs = x.sum(1) / mask.sum(1, keepdim=True)
        if self.local is not None and self.local_norm is not None:
            x = gather(x, valid_first(mask))
            local = F.pad(
                self.local(self.local_norm(x)), (0, 0, 0, self.condition_tokens - x.shape[1])
            )
            inputs = torch.cat([local.flatten(1), inputs], dim=1)
        return F.normalize(self.mlp(inputs).unflatten(-1, (self.num_tokens, -1)).float(), dim=-1)

    def hints(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        """(B, steps, D): entry i belongs to the position that predicts step i."""
        predicted = self(embeddings, mask).to(self.project.weight.dtype)
        return self.project(predicted.reshape(len(mask), self.num_steps, -1))

    def multiplications(self, prefix_length: int, steps: int) -> int:
        """Multiply-adds of the matrices for one row."""
        local = 0 if self.local is None else prefix_length * self.local.weight.numel()
        mlp = sum(m.weight.numel() for m in self.mlp if isinstance(m, nn.Linear))
        return local + mlp + steps * self.project.weight.numel()
