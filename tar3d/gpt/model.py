"""The hybrid GPT: a condition prefix, then a shape's tokens, through linear and full attention.

    logits = gpt(tokens[:, :-1], condition, dropped)    training: logits[:, i] predicts token i
    logits, cache = gpt.prefill(condition)              generation: the first token
    logits = gpt.decode(token, cache)                   ... and each next one

Rows are packed as [condition][steps][padding] and every layer is causal, so prefixes of different
length need no mask of positions x positions; positions count from a row's own first step; one
packing and one stack of blocks serve the three calls. A row gives the same logits alone and in any
batch. The model knows no files, no images and no sampling, and draws no random number after its
initialisation. For bfloat16 use autocast: `gpt.bfloat16()` would round the rotary tables and the
decay rates too.

The sequence's layout (`tar3d.layouts`, `gpt.layout`) says how many tokens there are, what their
coordinates are, and in which order the GPT goes through them: `to_model_order` brings the tokens of
files into it and `to_raster_order` back.

A step is a position of the layers: one token, or with `tokens_per_step` 3 the three plane tokens of
a cell. The calls count tokens either way. `decode` is the plain form of decoding;
`tar3d/gpt/engine.py` is the fast one.

Letters: B batch, P prefix length, E condition width, t tokens that are inputs, T tokens of a
sequence, n tokens per step, s steps, S positions of a packed row, D width, V codebook size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tar3d.gpt.blocks import Block, matrix_elements
from tar3d.gpt.cell_head import CellHead
from tar3d.gpt.code_predictor import CodePredictor
from tar3d.gpt.cross_attention import build_block
from tar3d.gpt.embeddings import ConditionMLP, PositionEmbedding
from tar3d.gpt.init import INIT_STD, init_parameters
from tar3d.gpt.layers.base import LayerCache, RowLengths
from tar3d.gpt.norm import RMSNorm
from tar3d.gpt.rope import TriPE
from tar3d.gpt.rows import PackedRows, PrefixFeatures, all_full, gather, valid_first
from tar3d.layouts import build_layout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tar3d.config import GPTConfig
    from tar3d.contracts import Condition


@dataclass
class Cache:
    """The memory of `decode` for one batch."""

    layers: list[LayerCache]
    num_tokens: int  # input tokens of every row so far
    hints: Tensor | None  # (B, steps, D), of the code predictor if there is one
    hidden: Tensor  # (B, D), the layers' last output
    pending: Tensor  # (B, k), k < n: the tokens of the step not yet complete
    # (B,) int64, the ends of the rows that filled the cache; None when all have one length
    lengths: Tensor | None = None


class GPT(nn.Module):
    """The GPT of the module docstring; `config` decides the shapes of its weights."""

    adamw_parameters = ("head",)  # a classifier over V codes, not a hidden matrix
    init_as: ClassVar[dict[str, str]] = {"position_embedding": "zeros", "merge": "scale"}
    permutation: Tensor  # (T,) file positions in model order

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config, self.layout = config, build_layout(config)
        self.token_embedding = nn.Embedding(config.codebook_size, config.width)
        self.condition_mlp = ConditionMLP(config.condition_width, config.width)
        self.null_prefix = nn.Parameter(
            torch.empty(config.condition_tokens, config.condition_width)
        )
        n = config.tokens_per_step
        # The tokens of a step become one position, and are separated again.
        self.merge = nn.Linear(n * config.width, config.width, bias=False) if n > 1 else None
        self.cell_head = CellHead(config.width, n) if n > 1 else None
        self.position_embedding = (
            PositionEmbedding(self.layout, config.width) if config.absolute_positions else None
        )
        self.code_predictor = CodePredictor(config) if config.code_predictor_dim else None
        self.rope = TriPE(config, self.layout)
        permutation = torch.from_numpy(self.layout.checked_permutation())
        self.register_buffer("permutation", permutation, persistent=False)
        blocks = nn.ModuleList(build_block(config, layer) for layer in range(config.num_layers))
        self.blocks = cast("Sequence[Block]", blocks)
        self.norm = RMSNorm(config.width)
        self.head = nn.Linear(config.width, config.codebook_size, bias=False)
        self.init_weights()

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Draws all weights (`tar3d.gpt.init`); without a generator from torch's default one."""
        init_parameters(self, self.config.num_layers, generator)

    @torch.no_grad()
    def start_from_codes(self, codes: Tensor, generator: torch.Generator) -> None:
        """Starts embeddings and head rows as random linear maps of the tokenizer's codes.

        Codes are (V, K); the scale is the usual one. Codes that mean nearly the same piece of shape
        then start with nearly the same embedding and the same logit, which a rare code would
        otherwise need many sightings to learn.
        """
        codes = F.normalize(codes.float().cpu(), dim=-1)
        for table in (self.token_embedding.weight, self.head.weight):
            table.copy_(
                INIT_STD * codes @ torch.randn(codes.shape[1], table.shape[1], generator=generator)
            )

    def num_parameters(self, *, embeddings: bool = True) -> int:
        """Trainable and frozen parameters.

        `embeddings=False` leaves out the tables, the head and the null prefix.
        """
        tables = ("token_embedding.", "position_embedding.", "head.", "null_prefix")
        return sum(
            p.numel()
            for name, p in self.named_parameters()
            if embeddings or not name.startswith(tables)
        )

    def flops(self, prefix_length: int, num_tokens: int) -> int:
        """Operations of `forward` for one row, a multiplication and an addition being two.

        Its prefix has `prefix_length` positions and it predicts `num_tokens` tokens. Training takes
        three times as many. Counted is the least that the function needs, whatever computes it:
        each matrix once at each of its positions, half of the S x S products of causal attention,
        and the products of d x d a position and head that the recurrence of a linear layer takes.
        """
        steps = -(-num_tokens // self.config.tokens_per_step)
        positions = prefix_length + steps - 1
        multiplications = prefix_length * matrix_elements(self.condition_mlp)
        multiplications += num_tokens * self.head.weight.numel()
        for block in self.blocks:
            multiplications += block.multiplications(positions, prefix_length)
        if self.merge is not None and self.cell_head is not None:
            multiplications += (steps - 1) * matrix_elements(self.merge)
            multiplications += steps * matrix_elements(self.cell_head.before)
            multiplications += num_tokens * matrix_elements(self.cell_head.mlps)
        if self.code_predictor is not None:
            multiplications += self.code_predictor.multiplications(prefix_length, steps)
        return 2 * multiplications

    def to_model_order(self, sequence: Tensor) -> Tensor:
        """All T tokens (B, T, ...) of a sequence in file order -> in this GPT's order.

        Cut afterwards: the first tokens of one order are not those of another. Raises ValueError
        for a part of a sequence.
        """
        self._check_whole(sequence, "to_model_order")
        return sequence[:, self.permutation]

    def to_raster_order(self, sequence: Tensor) -> Tensor:
        """All T entries (B, T, ...) of a sequence in this GPT's order -> in file order."""
        self._check_whole(sequence, "to_raster_order")
        return sequence[:, self.permutation.argsort()]

    def _check_whole(self, sequence: Tensor, name: str) -> None:
        if sequence.shape[1] != self.layout.num_tokens:
            raise ValueError(
                f"{name} takes whole sequences of {self.layout.num_tokens} tokens, "
                f"got {sequence.shape[1]}: bring them into another order first, and cut afterwards"
            )

    def drop_rows(self, batch_size: int, generator: torch.Generator) -> Tensor:
        """Draws the rows that train the null prefix.

        (B,) bool, True with probability `config.condition_dropout`.
        """
        draws = torch.rand(batch_size, generator=generator, device=generator.device)
        return draws < self.config.condition_dropout

    def forward(
        self, tokens: Tensor | None, condition: Condition, dropped: Tensor | None = None
    ) -> Tensor:
        """Logits (B, t + 1, V) of tokens (B, t) int64, 0 <= t < T (None is t = 0).

        Entry i predicts token i. Rows where `dropped` (B,) bool is True see the null prefix instead
        of their condition. Pass it on every training step, even if no row is dropped: the null
        prefix is then always part of the graph.
        """
        return self.head(self.hidden(tokens, condition, dropped))

    def hidden(
        self, tokens: Tensor | None, condition: Condition, dropped: Tensor | None = None
    ) -> Tensor:
        """The hidden states (B, t + 1, D) that `forward` applies the head to.

        Training goes on from here (`tar3d/gpt/loss.py`), because the logits of a whole batch are
        larger than everything else it holds.
        """
        tokens = _or_empty(tokens, condition)
        rows, num_tokens = self._pack(tokens, condition, dropped), tokens.shape[-1]
        x = rows.x
        if self.config.residual_dtype == "autocast" and torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        for block in self.blocks:
            x = block(x, rows.rotary, *([rows.prefix] if block.reads_prefix else []))
        num_steps = num_tokens // self.config.tokens_per_step + 1
        if isinstance(rows.prefix_lengths, int):
            x = x[:, rows.prefix_lengths - 1 :]
        else:
            x = gather(
                x, rows.prefix_lengths[:, None] - 1 + torch.arange(num_steps, device=x.device)
            )
        return self.norm(self._split_steps(x, tokens)[:, : num_tokens + 1])

    def _split_steps(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Outputs of the layers (B, s, D), entry i for step i -> (B, s n, D), an entry a token.

        `tokens` (B, t) are those known. Entries behind them are made from a stand-in; the callers
        cut them off.
        """
        if self.cell_head is None:
            return hidden
        (B, s, _), n = hidden.shape, self.config.tokens_per_step
        steps = F.pad(tokens, (0, s * n - tokens.shape[1])).view(B, s, n)
        return self.cell_head(hidden, self.token_embedding(steps[..., :-1])).flatten(1, 2)

    @torch.no_grad()
    def prefill(
        self,
        condition: Condition,
        tokens: Tensor | None = None,
        null: Tensor | None = None,
        *,
        max_new_tokens: int | None = None,
    ) -> tuple[Tensor, Cache]:
        """Takes in whole rows; returns float32 logits (B, V) of the next token, and a cache.

        `tokens` (B, t) int64, t < T, go first (None: none); rows where `null` (B,) bool is True get
        the null prefix. The cache has room for `max_new_tokens` more (None: all that can follow).
        """
        tokens = _or_empty(tokens, condition)
        rows, num_tokens = self._pack(tokens, condition, null), tokens.shape[-1]
        num_steps = num_tokens // self.config.tokens_per_step
        ends = None if isinstance(rows.prefix_lengths, int) else rows.prefix_lengths + num_steps
        max_new_steps = self.layout.num_steps - 1 - num_steps
        if max_new_tokens is not None:
            max_new_steps = -(-max_new_tokens // self.config.tokens_per_step)
        lengths = RowLengths(ends, max_new_steps, rows.prefix)
        x, layers = rows.x, []
        for block in self.blocks:
            x, layer_cache = block.prefill(x, rows.rotary, lengths)
            layers.append(layer_cache)
        hidden = x[:, -1] if ends is None else gather(x, ends[:, None] - 1).squeeze(1)  # (B, D)
        cache = Cache(
            layers,
            num_tokens,
            rows.hints,
            hidden,
            tokens[:, num_steps * self.config.tokens_per_step :],
            ends,
        )
        return self._next_logits(cache), cache

    @torch.no_grad()
    def decode(self, token: Tensor, cache: Cache) -> Tensor:
        """Takes in one token (B,) int64 per row; returns float32 logits (B, V) of the next.

        `cache` is updated in place. Raises ValueError after the last token.
        """
        if cache.num_tokens >= self.layout.num_tokens - 1:
            raise ValueError(
                f"a sequence has {self.layout.num_tokens} tokens; after {cache.num_tokens} inputs "
                "the last one is already predicted: start a new prefill"
            )
        cache.pending = torch.cat([cache.pending, token[:, None]], dim=1)
        if cache.pending.shape[1] == self.config.tokens_per_step:
            step = cache.num_tokens // self.config.tokens_per_step
            rotary = self.rope.step(step)
            x = self._embed(cache.pending, step, cache.hints)  # (B, 1, D)
            for block, layer_cache in zip(self.blocks, cache.layers, strict=True):
                x = block.decode(x, rotary, layer_cache)
            cache.hidden, cache.pending = x[:, 0], cache.pending[:, :0]
        cache.num_tokens += 1
        return self._next_logits(cache)

    def _next_logits(self, cache: Cache) -> Tensor:
        x = self._split_steps(cache.hidden[:, None], cache.pending)[:, cache.pending.shape[1]]
        return self.head(self.norm(x)).float()

    def _embed(self, tokens: Tensor, start: int, hints: Tensor | None) -> Tensor:
        """Tokens (B, s n) of whole steps -> (B, s, D), each with the hint for the step after it.

        The first is step `start`.
        """
        x = self.token_embedding(tokens)
        if self.merge is not None:
            x = self.merge(x.unflatten(1, (-1, self.config.tokens_per_step)).flatten(2))
        end = start + x.shape[1]
        if self.position_embedding is not None:
            x = x + self.position_embedding(start, end)
        return x if hints is None else x + hints[:, start + 1 : end + 1]

    def _pack(self, tokens: Tensor, condition: Condition, dropped: Tensor | None) -> PackedRows:
        embeddings, mask, full = self._with_null(condition, dropped)
        n, batch = self.config.tokens_per_step, len(embeddings)
        if tokens.ndim != 2 or len(tokens) != batch:
            raise ValueError(
                f"tokens must be ({batch}, t), as many rows as the condition has; "
                f"got {tuple(tokens.shape)}"
            )
        if tokens.shape[1] >= self.layout.num_tokens:
            raise ValueError(
                f"got {tokens.shape[1]} tokens, at most T - 1 = {self.layout.num_tokens - 1} are "
                f"inputs (layout {self.layout.name}): "
                "pass tokens[:, :-1], the last is only predicted"
            )
        num_steps = tokens.shape[1] // n
        P, S = embeddings.shape[1], embeddings.shape[1] + num_steps
        lengths = mask.sum(1)  # (B,)
        full = full or all_full(lengths, P)
        hints = None if self.code_predictor is None else self.code_predictor.hints(embeddings, mask)
        embedded = self._embed(tokens[:, : num_steps * n], 0, hints)
        if full:
            prefix = self.condition_mlp(embeddings)
            seen = PrefixFeatures(prefix, None)
            if hints is not None:
                prefix = torch.cat([prefix[:, :-1], prefix[:, -1:] + hints[:, :1]], dim=1)
            x = torch.cat([prefix, embedded], dim=1)
            return PackedRows(x, P, self.rope.packed(P, S), hints, seen)
        # Zeroed, because a NaN in padding would survive the zero weight that attention gives it.
        embeddings = embeddings.masked_fill(~mask[..., None], 0.0)
        prefix = self.condition_mlp(gather(embeddings, valid_first(mask)))
        seen = PrefixFeatures(prefix, torch.arange(P, device=mask.device) < lengths[:, None])
        if hints is not None:
            last = torch.arange(P, device=mask.device) == lengths[:, None] - 1
            prefix = prefix + last[..., None] * hints[:, :1]
        x = torch.cat([prefix, embedded], dim=1)
        position, end = torch.arange(S, device=x.device), lengths[:, None]
        # Prefix, then steps, then padding, which repeats whatever comes last.
        origin = torch.where(position < end, position, (position - end + P).clamp_max(S - 1))
        return PackedRows(gather(x, origin), lengths, self.rope.packed(lengths, S), hints, seen)

    def _with_null(
        self, condition: Condition, dropped: Tensor | None
    ) -> tuple[Tensor, Tensor, bool]:
        """Embeddings (B, P, E) and mask (B, P), with the null prefix in the dropped rows.

        The third result promises that all positions are valid.
        """
        config = self.config
        B, P, E = condition.embeddings.shape
        if config.condition_width != E:
            raise ValueError(
                f"condition embeddings are {E} wide, this GPT takes {config.condition_width} "
                "(gpt.condition_width): use the encoder it was trained with"
            )
        if config.condition_tokens < P:
            raise ValueError(
                f"condition has {P} positions, this GPT takes at most {config.condition_tokens} "
                "(gpt.condition_tokens): shorten the prefix or train with a larger value"
            )
        embeddings, mask = condition.embeddings.to(self.null_prefix.dtype), condition.mask
        if dropped is None:
            return embeddings, mask, condition.full
        if dropped.shape != (B,) or dropped.dtype != torch.bool:
            raise ValueError(
                f"dropped rows must be ({B},) bool, got {tuple(dropped.shape)} {dropped.dtype}"
            )
        dropped = dropped.to(mask.device)[:, None]
        padding = config.condition_tokens - P
        embeddings = torch.where(
            dropped[..., None], self.null_prefix, F.pad(embeddings, (0, 0, 0, padding))
        )
        return embeddings, F.pad(mask, (0, padding)) | dropped, condition.full and padding == 0


def _or_empty(tokens: Tensor | None, condition: Condition) -> Tensor:
    """The tokens (B, t); None is t = 0."""
    return (
        condition.mask.new_empty(len(condition.mask), 0, dtype=torch.int64)
        if tokens is None
        else tokens
    )
