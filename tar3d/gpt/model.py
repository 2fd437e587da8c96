"""The hybrid GPT: a condition prefix, then the triplane's tokens, through layers of linear and full
attention.

    logits = gpt(tokens[:, :-1], condition, dropped)     training: logits[:, i] predicts tokens[:, i]
    logits, cache = gpt.prefill(condition)               generation: the first token
    logits = gpt.decode(token, cache)                    ... and each next one

What is unusual: rows are packed as [condition][steps][padding] and every layer is causal, so
prefixes of different length need no mask of positions x positions; TriPE positions count from a
row's own first step; one packing and one stack of blocks serve the three calls. A row gives the
same logits alone and in any batch. The model knows no files, no pictures and no sampling, and draws
no random number after its initialisation. For bfloat16 use autocast: `gpt.bfloat16()` would round
the rotary tables and the decay rates too.

Tokens are in the GPT's own order (`gpt.token_order`), into which `ordered` brings those of files
and `reordered` back.

A step is a position of the layers: one token, or with `tokens_per_step` 3 the three plane tokens of
a cell. The calls count tokens either way. `decode` is the plain form of decoding;
`tar3d/gpt/engine.py` is the fast one.

Letters: B batch, P prefix length, E condition width, t tokens given, T = 3 R^2, n tokens per step,
s steps, S positions of a packed row, D width, V codebook size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tar3d.gpt.attention import (
    Extent,
    FullAttention,
    GatedLinearAttention,
    LayerCache,
    LinearAttention,
    RMSNorm,
    Rotary,
)
from tar3d.gpt.rope import TriPE
from tar3d.token_order import NUM_PLANES, coordinates, num_tokens, places

if TYPE_CHECKING:
    from tar3d.config import GPTConfig
    from tar3d.contracts import Condition

INIT_STD = 0.02
LINEAR = {
    "lightning": LinearAttention,
    "gated": GatedLinearAttention,
    "delta": GatedLinearAttention,
}
PREDICTOR_PARAMETERS = (
    "code_predictor.mlp.",
    "code_predictor.local",
)  # how the names of a GPT's parameters begin that make the predicted codes
CELL_LAYERS = 2  # SwiGLU layers of the head that tells the tokens of a cell apart


def mlp_width(width: int) -> int:
    """Hidden width of SwiGLU: 8/3 of the width, up to the next multiple of 64."""
    return 64 * math.ceil(8 * width / (3 * 64))


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x), arXiv 2002.05202."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, mlp_width(width), bias=False)
        self.up = nn.Linear(width, mlp_width(width), bias=False)
        self.down = nn.Linear(mlp_width(width), width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class ConditionMLP(nn.Module):
    """(B, P, E) embeddings -> (B, P, D) prefix."""

    def __init__(self, condition_width: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(condition_width, width, bias=False)
        self.fc2 = nn.Linear(width, width, bias=False)

    def forward(self, embeddings: Tensor) -> Tensor:
        return self.fc2(F.silu(self.fc1(embeddings)))


class PositionEmbedding(nn.Module):
    """Learned embeddings of a step's row, column and (where a step is a token) plane, added to the
    step's own.

    TriPE alone tells a token how far others are, not where it is itself, and what code to expect
    depends on that. They start at zero: a model trained without them can go on with them.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.row, self.column = (nn.Embedding(config.grid_size, config.width) for _ in range(2))
        self.plane = nn.Embedding(NUM_PLANES, config.width) if config.tokens_per_step == 1 else None
        steps = torch.arange(0, num_tokens(config.grid_size), config.tokens_per_step)
        places = coordinates(steps, config.grid_size, config.token_order)
        self.register_buffer("places", torch.stack(places), persistent=False)  # (3, steps)

    def forward(self, start: int, end: int) -> Tensor:
        """Steps start..end-1 of the sequence -> (end - start, D)."""
        row, column, plane = self.places[:, start:end]
        place = self.row(row) + self.column(column)
        return place if self.plane is None else place + self.plane(plane)


class CodePredictor(nn.Module):
    """A predicted of every code of the shape from the condition alone, handed to the position that
    predicts it.

    A prefix has to be searched for what matters at a position, which a GPT learns late: most tokens
    follow from their neighbours, so the loss hardly asks for the condition until the shape is
    decided by chance. The predicted is a small network on the whole prefix, so it can be taught
    directly (`train.stage=code_predictor`, `train.code_predictor_weight`, `train.code_predictor_rows`); the GPT corrects
    and sharpens it. Its projection starts at zero: a model trained without a code predictor can go on with
    one.

    It sees the mean of the prefix, and with `gpt.code_predictor_local` that many numbers of each valid
    position and zeros after them: a mean alone does not tell where in a picture something is.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        # These deal in coordinates of codes, and are not hidden matrices.
        self.adamw_parameters = (
            "mlp",
            "project",
            *(["local"] if config.code_predictor_local else []),
        )
        seen = config.condition_tokens * config.code_predictor_local + config.condition_width
        hidden = config.code_predictor_hidden or 2 * config.condition_width
        self.local = self.local_norm = None
        if config.code_predictor_local:
            self.local_norm = RMSNorm(config.condition_width)
            self.local = nn.Linear(config.condition_width, config.code_predictor_local, bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(seen, hidden),
            nn.GELU(),
            nn.Linear(hidden, config.num_tokens * config.code_predictor_dim),
        )
        self.project = nn.Linear(
            config.tokens_per_step * config.code_predictor_dim, config.width, bias=False
        )
        self.condition_tokens, self.num_tokens, self.num_steps = (
            config.condition_tokens,
            config.num_tokens,
            config.num_steps,
        )

    def forward(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        """Prefix (B, P, E) and its validity (B, P) -> guessed codes (B, T, K), float32 unit
        vectors: the loss does not see their length, and trained alone they are 20 to 100 long,
        which would drown the tokens as hints."""
        x = embeddings.masked_fill(~mask[..., None], 0.0)
        seen = x.sum(1) / mask.sum(1, keepdim=True)
        if self.local is not None:
            x = _gather(x, _valid_first(mask))
            local = F.pad(
                self.local(self.local_norm(x)), (0, 0, 0, self.condition_tokens - x.shape[1])
            )
            seen = torch.cat([local.flatten(1), seen], dim=1)
        return F.normalize(self.mlp(seen).unflatten(-1, (self.num_tokens, -1)).float(), dim=-1)

    def hints(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        """(B, steps, D): entry i belongs to the position that predicts step i."""
        predicted = self(embeddings, mask).to(self.project.weight.dtype)
        return self.project(predicted.reshape(len(mask), self.num_steps, -1))


class CellHead(nn.Module):
    """Tells the three plane tokens of a cell apart when the layers predict a cell at once
    (`tokens_per_step` 3).

    Plane k gets the layers' output, its plane, and what the planes before it were found to be, so the distribution is exact:
    p(xy | h) p(xz | h, xy) p(yz | h, xy, xz). A cell has at most two tokens to look back at: a sum of them and two
    SwiGLU layers do what attention over three positions would.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.plane = nn.Embedding(NUM_PLANES, width)
        self.before = nn.ModuleList(
            nn.Linear(width, width, bias=False) for _ in range(NUM_PLANES - 1)
        )
        self.norms = nn.ModuleList(RMSNorm(width) for _ in range(CELL_LAYERS))
        self.mlps = nn.ModuleList(SwiGLU(width) for _ in range(CELL_LAYERS))

    def forward(self, hidden: Tensor, embedded: Tensor) -> Tensor:
        """Outputs of the layers (B, s, D) and embeddings (B, s, 2, D) of the first two tokens of
        each cell -> (B, s, 3, D); entry k heeds the tokens of planes before k only."""
        known = torch.stack(
            [linear(embedded[:, :, j]) for j, linear in enumerate(self.before)], dim=2
        ).cumsum(2)
        x = hidden[:, :, None] + self.plane.weight + F.pad(known, (0, 0, 1, 0))
        for norm, mlp in zip(self.norms, self.mlps, strict=True):
            x = x + mlp(norm(x))
        return x


class Block(nn.Module):
    """Pre-norm attention and MLP with residuals. `kind` is L (linear attention) or F (full
    attention)."""

    def __init__(self, config: GPTConfig, layer: int, kind: str) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.width)
        self.attention = (
            FullAttention(config) if kind == "F" else LINEAR[config.linear_attention](config, layer)
        )
        self.mlp_norm = RMSNorm(config.width)
        self.mlp = SwiGLU(config.width)

    def forward(self, x: Tensor, rotary: Rotary, cache: LayerCache | None = None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rotary, cache)
        return x + self.mlp(self.mlp_norm(x))

    def prefill(self, x: Tensor, rotary: Rotary, extent: Extent) -> tuple[Tensor, LayerCache]:
        attended, cache = self.attention.prefill(self.attention_norm(x), rotary, extent)
        x = x + attended
        return x + self.mlp(self.mlp_norm(x)), cache


@dataclass
class Cache:
    """What `decode` needs of a batch: one entry per layer, the number of tokens every row has taken
    in so far, the code predictor's hints (B, steps, D) if there is one, the layers' last output (B, D), and
    the tokens (B, k), k < n, of the step not yet complete."""

    layers: list[LayerCache]
    num_tokens: int
    hints: Tensor | None
    hidden: Tensor
    pending: Tensor


@dataclass(frozen=True)
class PackedRows:
    """Rows as [condition][steps][padding]: `x` (B, S, D), valid prefix positions per row, the
    rotary tables, and the code predictor's hints (B, steps, D) or None.

    `prefix_lengths` is an int when all prefixes are full: then S has no padding and no row needs
    its own table.
    """

    x: Tensor
    prefix_lengths: Tensor | int
    rotary: Rotary
    hints: Tensor | None


class GPT(nn.Module):
    """See the module docstring for the three calls; `config` is all that the shapes depend on."""

    adamw_parameters = ("head",)  # a classifier over V codes, not a hidden matrix

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.codebook_size, config.width)
        self.condition_mlp = ConditionMLP(config.condition_width, config.width)
        self.null_prefix = nn.Parameter(
            torch.empty(config.condition_tokens, config.condition_width)
        )
        n = config.tokens_per_step
        self.merge = (
            nn.Linear(n * config.width, config.width, bias=False) if n > 1 else None
        )  # the tokens of a cell -> a step
        self.cell_head = CellHead(config.width) if n > 1 else None
        self.position_embedding = PositionEmbedding(config) if config.absolute_positions else None
        self.code_predictor = CodePredictor(config) if config.code_predictor_dim else None
        self.rope = TriPE(config)
        self.register_buffer(
            "_places",
            places(torch.arange(config.num_tokens), config.grid_size, config.token_order),
            persistent=False,
        )
        kinds = [
            config.layer_pattern[layer % len(config.layer_pattern)]
            for layer in range(config.num_layers)
        ]
        self.blocks = nn.ModuleList(Block(config, layer, kind) for layer, kind in enumerate(kinds))
        self.norm = RMSNorm(config.width)
        self.head = nn.Linear(config.width, config.codebook_size, bias=False)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Draws all weights; without a generator from torch's default one.

        | parameters                              | start                            |
        |-----------------------------------------|----------------------------------|
        | embeddings, null prefix, head, matrices | normal, std 0.02                 |
        | o and down (they end on the residual)   | normal, std 0.02 / sqrt(2 L)     |
        | norm gains                              | 1                                |
        | position embeddings, code predictor projection  | 0                                |
        | what heads forget by themselves         | as in lightning attention        |
        """
        for name, parameter in self.named_parameters():
            if name.endswith(("norm.weight", "gain")):
                parameter.fill_(1.0)
                continue
            if name.endswith(("forget_bias", "log_rate")):
                continue
            if name.startswith(("position_embedding.", "code_predictor.project.")):
                parameter.zero_()
                continue
            residual = name.endswith((".o.weight", ".down.weight"))
            std = INIT_STD / math.sqrt(2 * self.config.num_layers) if residual else INIT_STD
            parameter.normal_(0.0, std, generator=generator)

    @torch.no_grad()
    def start_from_codes(self, codes: Tensor, generator: torch.Generator) -> None:
        """Token embeddings and head rows become random linear maps of the tokenizer's codes (V, K),
        at the usual scale.

        Codes that mean nearly the same piece of shape then start with nearly the same embedding and
        the same logit, which a rare code would otherwise need many sightings to learn.
        """
        codes = F.normalize(codes.float().cpu(), dim=-1)
        for table in (self.token_embedding.weight, self.head.weight):
            table.copy_(
                INIT_STD * codes @ torch.randn(codes.shape[1], table.shape[1], generator=generator)
            )

    def num_parameters(self, *, embeddings: bool = True) -> int:
        """Trainable and frozen parameters; `embeddings=False` leaves out the tables, the head and
        the null prefix."""
        tables = ("token_embedding.", "position_embedding.", "head.", "null_prefix")
        return sum(
            p.numel()
            for name, p in self.named_parameters()
            if embeddings or not name.startswith(tables)
        )

    def flops(self, prefix_length: int, num_tokens: int) -> int:
        """Operations of `forward` for one row whose prefix has that many positions and which
        predicts `num_tokens` tokens, a multiplication and an addition being two. Training takes
        three times as many.

        Counted is the least that the function needs, whatever computes it: each matrix once at each
        of its positions, half of the S x S products of causal attention, two d x d products a
        position and head for the recurrence of a linear layer, three with the delta rule.
        """
        config, steps = self.config, -(-num_tokens // self.config.tokens_per_step)
        S, D = prefix_length + steps - 1, config.width
        multiplications = (
            prefix_length * _matrices(self.condition_mlp) + num_tokens * self.head.weight.numel()
        )
        for block in self.blocks:
            products = 3 if config.linear_attention == "delta" else 2
            attended = (
                S + 1 if isinstance(block.attention, FullAttention) else products * config.head_dim
            )
            multiplications += S * (_matrices(block) + D * attended)
        if self.merge is not None:
            multiplications += (steps - 1) * _matrices(self.merge) + steps * _matrices(
                self.cell_head.before
            )
            multiplications += num_tokens * _matrices(self.cell_head.mlps)
        if self.code_predictor is not None:
            local = (
                0
                if self.code_predictor.local is None
                else prefix_length * _matrices(self.code_predictor.local)
            )
            multiplications += local + _matrices(self.code_predictor.mlp)
            multiplications += steps * _matrices(self.code_predictor.project)
        return 2 * multiplications

    def ordered(self, sequence: Tensor) -> Tensor:
        """Tokens (B, T), or the first T - 1 of them, as files have them -> in the order this GPT
        goes through them."""
        return sequence[:, self._places[: sequence.shape[1]]]

    def reordered(self, sequence: Tensor) -> Tensor:
        """The way back, for all T entries (B, T, ...) of a sequence in this GPT's order."""
        return sequence[:, self._places.argsort()]

    def drop_rows(self, batch_size: int, generator: torch.Generator) -> Tensor:
        """(B,) bool, True with probability `config.condition_dropout`: the rows that train the null
        prefix."""
        draws = torch.rand(batch_size, generator=generator, device=generator.device)
        return draws < self.config.condition_dropout

    def forward(
        self, tokens: Tensor | None, condition: Condition, dropped: Tensor | None = None
    ) -> Tensor:
        """Logits (B, t + 1, V) of tokens (B, t) int64, 0 <= t < T (None is t = 0): entry i predicts
        token i.

        Rows where `dropped` (B,) bool is True see the null prefix instead of their condition. Pass
        it on every training step, even if no row is dropped: the null prefix is then always part of
        the graph.
        """
        return self.head(self.hidden(tokens, condition, dropped))

    def hidden(
        self, tokens: Tensor | None, condition: Condition, dropped: Tensor | None = None
    ) -> Tensor:
        """(B, t + 1, D): what `forward` applies the head to. Training goes on from here
        (`tar3d/gpt/loss.py`), because the logits of a whole batch are larger than everything else
        it holds."""
        tokens = _given(tokens, condition)
        rows, given = self._pack(tokens, condition, dropped), tokens.shape[-1]
        x = rows.x
        for block in self.blocks:
            x = block(x, rows.rotary)
        num_steps = given // self.config.tokens_per_step + 1
        if isinstance(rows.prefix_lengths, int):
            x = x[:, rows.prefix_lengths - 1 :]
        else:
            x = _gather(
                x, rows.prefix_lengths[:, None] - 1 + torch.arange(num_steps, device=x.device)
            )
        return self.norm(self._split_steps(x, tokens)[:, : given + 1])

    def _split_steps(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Outputs of the layers (B, s, D), entry i for step i, and the tokens known (B, t) -> (B, s
        n, D), an entry a token.

        What lies behind the tokens known is worked out from a stand-in; it comes after all that is
        wanted."""
        if self.cell_head is None:
            return hidden
        B, s, _ = hidden.shape
        cells = F.pad(tokens, (0, s * NUM_PLANES - tokens.shape[1])).view(B, s, NUM_PLANES)
        return self.cell_head(hidden, self.token_embedding(cells[..., :-1])).flatten(1, 2)

    @torch.no_grad()
    def prefill(
        self,
        condition: Condition,
        tokens: Tensor | None = None,
        null: Tensor | None = None,
        *,
        room: int | None = None,
    ) -> tuple[Tensor, Cache]:
        """Takes in whole rows; returns float32 logits (B, V) of the next token and the cache for
        `decode`.

        `tokens` (B, t) int64, t < T, go first (None: none); rows where `null` (B,) bool is True get
        the null prefix. The cache has `room` for so many further steps (None: all that can follow).
        """
        tokens = _given(tokens, condition)
        rows, num_tokens = self._pack(tokens, condition, null), tokens.shape[-1]
        num_steps = num_tokens // self.config.tokens_per_step
        ends = None if isinstance(rows.prefix_lengths, int) else rows.prefix_lengths + num_steps
        extent = Extent(ends, room=self.config.num_steps - 1 - num_steps if room is None else room)
        x, layers = rows.x, []
        for block in self.blocks:
            x, layer_cache = block.prefill(x, rows.rotary, extent)
            layers.append(layer_cache)
        hidden = x[:, -1] if ends is None else _gather(x, ends[:, None] - 1).squeeze(1)  # (B, D)
        cache = Cache(
            layers,
            num_tokens,
            rows.hints,
            hidden,
            tokens[:, num_steps * self.config.tokens_per_step :],
        )
        return self._next_logits(cache), cache

    @torch.no_grad()
    def decode(self, token: Tensor, cache: Cache) -> Tensor:
        """Takes in one token (B,) int64 per row, updates `cache` in place, returns float32 logits
        (B, V) of the next."""
        if cache.num_tokens >= self.config.num_tokens - 1:
            raise ValueError(
                f"a triplane has {self.config.num_tokens} tokens; after {cache.num_tokens} inputs "
                "the last one is already predicted: start a new prefill"
            )
        cache.pending = torch.cat([cache.pending, token[:, None]], dim=1)
        if cache.pending.shape[1] == self.config.tokens_per_step:
            step = cache.num_tokens // self.config.tokens_per_step
            rotary = self.rope.step(step)
            x = self._embed(cache.pending, step, cache.hints)  # (B, 1, D)
            for block, layer_cache in zip(self.blocks, cache.layers, strict=True):
                x = block(x, rotary, layer_cache)
            cache.hidden, cache.pending = x[:, 0], cache.pending[:, :0]
        cache.num_tokens += 1
        return self._next_logits(cache)

    def _next_logits(self, cache: Cache) -> Tensor:
        x = self._split_steps(cache.hidden[:, None], cache.pending)[:, cache.pending.shape[1]]
        return self.head(self.norm(x)).float()

    def _embed(self, tokens: Tensor, start: int, hints: Tensor | None) -> Tensor:
        """Tokens (B, s n) of whole steps, the first being step `start` -> (B, s, D), each with the
        hint for the step after it."""
        x = self.token_embedding(tokens)
        if self.merge is not None:
            x = self.merge(x.unflatten(1, (-1, self.config.tokens_per_step)).flatten(2))
        end = start + x.shape[1]
        if self.position_embedding is not None:
            x = x + self.position_embedding(start, end)
        return x if hints is None else x + hints[:, start + 1 : end + 1]

    def _pack(self, tokens: Tensor, condition: Condition, dropped: Tensor | None) -> PackedRows:
        config, (embeddings, mask, full) = self.config, self._with_null(condition, dropped)
        batch = len(embeddings)
        if tokens.ndim != 2 or len(tokens) != batch:
            raise ValueError(
                f"tokens must be ({batch}, t), as many rows as the condition has; got {tuple(tokens.shape)}"
            )
        if tokens.shape[1] >= config.num_tokens:
            raise ValueError(
                f"got {tokens.shape[1]} tokens, at most T - 1 = {config.num_tokens - 1} are inputs "
                f"(grid_size {config.grid_size}): pass tokens[:, :-1], the last is only predicted"
            )
        num_steps = tokens.shape[1] // config.tokens_per_step
        P, S = embeddings.shape[1], embeddings.shape[1] + num_steps
        lengths = mask.sum(1)  # (B,)
        shortest = P if full else int(lengths.min())
        if shortest == 0:
            raise ValueError(
                "a condition row has no valid prefix position; give it one, or pass the row as dropped"
            )
        hints = None if self.code_predictor is None else self.code_predictor.hints(embeddings, mask)
        embedded = self._embed(tokens[:, : num_steps * config.tokens_per_step], 0, hints)
        if shortest == P:
            prefix = self.condition_mlp(embeddings)
            if hints is not None:
                prefix = torch.cat([prefix[:, :-1], prefix[:, -1:] + hints[:, :1]], dim=1)
            return PackedRows(
                torch.cat([prefix, embedded], dim=1), P, self.rope.packed(P, S), hints
            )
        # Zeroed, because a NaN in padding would survive the zero weight that attention gives it.
        embeddings = embeddings.masked_fill(~mask[..., None], 0.0)
        prefix = self.condition_mlp(_gather(embeddings, _valid_first(mask)))
        if hints is not None:
            last = torch.arange(P, device=mask.device) == lengths[:, None] - 1
            prefix = prefix + last[..., None] * hints[:, :1]
        x = torch.cat([prefix, embedded], dim=1)
        position, end = torch.arange(S, device=x.device), lengths[:, None]
        # Prefix, then steps, then padding, which repeats whatever comes last.
        source = torch.where(position < end, position, (position - end + P).clamp_max(S - 1))
        return PackedRows(_gather(x, source), lengths, self.rope.packed(lengths, S), hints)

    def _with_null(
        self, condition: Condition, dropped: Tensor | None
    ) -> tuple[Tensor, Tensor, bool]:
        """Embeddings (B, P, E) and mask (B, P), with the null prefix in the dropped rows, and
        whether all are surely valid."""
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


def _matrices(module: nn.Module) -> int:
    """Entries of the matrices that a position of this module is multiplied with."""
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))


def _given(tokens: Tensor | None, condition: Condition) -> Tensor:
    """The tokens (B, t); None is t = 0."""
    return (
        condition.mask.new_empty(len(condition.mask), 0, dtype=torch.int64)
        if tokens is None
        else tokens
    )


def _valid_first(mask: Tensor) -> Tensor:
    """(B, P) bool -> the positions of each row, valid ones first, in order."""
    return torch.argsort((~mask).to(torch.uint8), dim=1, stable=True)


def _gather(x: Tensor, index: Tensor) -> Tensor:
    """x (B, S, D), index (B, n) -> (B, n, D): each row's own positions."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))
