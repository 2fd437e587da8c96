"""Decoding as fast as it goes: packed weights, static caches, nothing read back to the host, CUDA
graphs.

    engine = Engine(gpt)
    ids = engine.run(condition, sampling, draws)

`GPT.prefill` and `GPT.decode` are the plain form of the same, and the tests hold the two together.
A step of the engine is a fixed sequence of device operations on fixed buffers: embed the last
tokens, all layers, guidance, filters, draw, store. On CUDA it is captured as a graph and replayed,
so that a token costs what its kernels cost and not what launching them does. On a CPU it runs as it
stands.

What guidance shares: the conditional and the null row of a shape are rows of one batch, so weights
are read once for both; the null prefix, the same for all shapes, goes through the prefill once; and
the head, being linear, multiplies the guided row alone.

An engine copies the weights of its GPT and knows nothing of later changes to them. Its dtype is
autocast's if autocast is on when it is made, else that of the weights; states, the residual stream
and logits are float32 in any case.

Letters: B shapes, G rows (B, or 2 B with guidance), D width, F MLP width, H heads, d head
dimension, T tokens, n tokens per step, V codebook size, C slots of a key-value cache, K dimension
of a code.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tar3d.contracts import Condition
from tar3d.gpt import decode_ops
from tar3d.gpt.attention import NORM_EPS, GatedLinearAttention, KVCache, LinearAttention, RMSNorm
from tar3d.gpt.sampling import guide, sample

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from tar3d.config import SamplingConfig
    from tar3d.gpt.model import GPT, Block, SwiGLU

BACKENDS = ("auto", "plain", "compiled", "triton")
MIN_WINDOW, MAX_GRAPHS = (
    512,
    8,
)  # a captured step sees a multiple of so many slots, with at most so many graphs
WARMUPS = 3  # steps on a side stream before a capture, as torch.cuda.graph asks for
REPORT_EVERY = 128  # steps between two reports of progress on CUDA: each waits for the device


class PackedMLP(NamedTuple):
    gain: Tensor  # (D,)
    gate_up: Tensor  # (2 F, D)
    down: Tensor  # (D, F)


class PackedBlock(NamedTuple):
    """The weights of a layer, ready for `decode_ops`. With full attention `o_gain` is None; `decay`
    is lightning attention's alone, `forget` and `delta` are those of layers whose decay depends on
    the data."""

    gain: Tensor  # (D,)
    # (3 D, D), or (4 D, D) with a gate; H or 2 H more rows where heads are told to forget
    qkv: Tensor
    qk_gain: Tensor  # (2, d)
    o: Tensor  # (D, D)
    mlp: PackedMLP
    decay: Tensor | None  # (H,)
    o_gain: Tensor | None  # (d,)
    forget: tuple[Tensor, Tensor] | None  # bias and log rate, (H,) each
    delta: bool


class PackedCellHead(NamedTuple):
    plane: Tensor  # (3, D)
    before: list[Tensor]  # (D, D) each
    mlps: list[PackedMLP]


@dataclass
class Buffers:
    """What a step reads and changes, for one number of rows and one way of sampling."""

    ids: Tensor  # (B, T) int64, filled from the left
    draws: Tensor  # (B, T) float32 in [0, 1)
    hidden: Tensor  # (G, D) float32, the layers' last output
    step: Tensor  # (1,) int64, the last step whose tokens are known
    slot: Tensor  # (1,) int64, where its keys and values go
    memories: list[
        tuple[Tensor, ...]
    ]  # of each layer: the state (G, H, d, d) float32, or keys and values (G, H, C, d)
    valid: (
        Tensor | None
    )  # (G, 1, 1, C) bool: slots that hold something; None: all before and at `slot`
    hints: Tensor | None  # (G, steps, D) float32
    predicted_codes: Tensor | None  # (B, T, K)
    codes: Tensor | None  # (K, V)


class Engine:
    """See the module docstring. `backend` says who computes the five operations of a layer:

    | backend    | operations of a layer                | on a CPU               | on CUDA         |
    |------------|--------------------------------------|------------------------|-----------------|
    | `plain`    | `decode_ops` as they stand           | what `auto` chooses    | in a CUDA graph |
    | `compiled` | `decode_ops` through torch.compile   | seconds to compile     | in a CUDA graph |
    | `triton`   | `decode_triton`, a kernel each       | not there              | in a CUDA graph |

    `auto` is `plain` on CUDA too, for as long as none of the three has been measured on a GPU.
    """

    def __init__(self, gpt: GPT, backend: str = "auto") -> None:
        if backend not in BACKENDS:
            raise ValueError(
                f"the decoding backend is {backend!r}, allowed are {', '.join(BACKENDS)}"
            )
        self.gpt, self.config, self.device = gpt, gpt.config, gpt.head.weight.device
        autocast = torch.is_autocast_enabled(self.device.type)
        self.dtype = (
            torch.get_autocast_dtype(self.device.type) if autocast else gpt.head.weight.dtype
        )
        self.backend = "plain" if backend == "auto" else backend
        self.capacity = self.config.condition_tokens + self.config.num_steps - 1
        # Exact windows cost a CPU nothing. A graph and a compiled layer are made for one window, so
        # there they are few.
        self.graphed = self.device.type == "cuda"
        self.static = self.graphed or backend == "compiled"
        self.window = max(MIN_WINDOW, -(-self.capacity // MAX_GRAPHS)) if self.static else 1
        if backend == "triton" and self.config.linear_attention != "lightning":
            raise ValueError(
                "the decoding backend triton has lightning attention alone, but gpt.linear_attention is "
                f"{self.config.linear_attention}: choose plain or auto"
            )
        if backend == "triton":
            self.window = (
                self.capacity
            )  # its kernels look at what is filled, whatever the window: one graph does
        self._ops = _operations(self.backend, self.device)
        layers = _layer_functions(self._ops)
        if backend == "compiled":
            layers = tuple(torch.compile(function, dynamic=False) for function in layers)
        self._linear_layer, self._full_layer, self._mlp_layer = layers
        with torch.no_grad():
            self._pack()
        self.buffers: Buffers | None = None
        self.prepare_seconds = 0.0  # what the last warm-up and capture took
        self._prepared_for: tuple | None = None
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}  # by window

    def _pack(self) -> None:
        gpt, pack = self.gpt, partial(_packed, self.dtype, self.backend != "compiled")
        self._blocks = [_pack_block(block, pack) for block in gpt.blocks]
        self._embedding, self._gain, self._head = (
            gpt.token_embedding.weight,
            gpt.norm.weight,
            pack(gpt.head),
        )
        self._places = (
            None
            if gpt.position_embedding is None
            else gpt.position_embedding(0, self.config.num_steps)
        )  # (steps, D)
        self._offsets = torch.arange(self.config.tokens_per_step, device=self.device)
        self._merge = None if gpt.merge is None else pack(gpt.merge)
        self._cell_head = None
        if gpt.cell_head is not None:
            head = gpt.cell_head
            self._cell_head = PackedCellHead(
                head.plane.weight,
                [pack(linear) for linear in head.before],
                [_pack_mlp(n, m, pack) for n, m in zip(head.norms, head.mlps, strict=True)],
            )

    def prepare(self, batch: int, sampling: SamplingConfig, codes: Tensor | None = None) -> None:
        """Makes the buffers for `batch` shapes sampled in this way, and on CUDA warms up and
        captures; nothing if that is done.

        `run` does it when it is needed; called before, it keeps that time out of the first run.
        """
        codes = codes if sampling.code_predictor_scale else None
        key = (batch, *dataclasses.astuple(sampling), None if codes is None else tuple(codes.shape))
        if key == self._prepared_for:
            return
        start = time.perf_counter()
        self._graphs, self.buffers = (
            {},
            None,
        )  # gives their memory back before the new ones are made
        self.sampling, self.guided = sampling, sampling.cfg_scale != 1
        self.buffers = self._new_buffers(batch, codes)
        if self.graphed:
            self._capture()
        self._prepared_for, self.prepare_seconds = key, time.perf_counter() - start

    @torch.inference_mode()
    def run(
        self,
        condition: Condition,
        sampling: SamplingConfig,
        draws: Tensor,
        codes: Tensor | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """The tokens (B, T) int64 of each condition row. `draws` (B, T) in [0, 1) decide them.

        `codes` (V, K), the tokenizer's codebook, is needed for a code_predictor_scale above 0. `progress`
        is called with (tokens done, T): after each step on a CPU, now and then on CUDA. The result
        is overwritten by the next run.
        """
        self.prepare(len(condition.mask), sampling, codes)
        n, steps = self.config.tokens_per_step, self.config.num_steps
        prefix = self._fill(condition, draws)
        with torch.autocast(self.device.type, enabled=False):
            self._draw_step()
            for step in range(steps - 1):
                self._report(progress, step)
                self.advance(prefix + step + 1)
        if progress is not None:
            if self.graphed:
                torch.cuda.synchronize(self.device)
            progress(n * steps, n * steps)
        return self.buffers.ids

    def _report(self, progress: Callable[[int, int], None] | None, step: int) -> None:
        if progress is None or (self.graphed and step % REPORT_EVERY):
            return
        if self.graphed:
            torch.cuda.synchronize(self.device)
        progress(self.config.tokens_per_step * (step + 1), self.config.num_tokens)

    def advance(self, filled: int) -> None:
        """`take_step` when its keys and values make `filled` slots hold something: by the graph,
        where there is one."""
        window = self.window_for(filled)
        if self.graphed:
            self._graphs[window].replay()
        else:
            self.take_step(window)

    def window_for(self, filled: int) -> int:
        """How many slots a step looks at when `filled` of them hold something."""
        return min(-(-filled // self.window) * self.window, self.capacity)

    def _new_buffers(self, batch: int, codes: Tensor | None) -> Buffers:
        config, rows = self.config, batch * (2 if self.guided else 1)
        heads, d = config.num_heads, config.head_dim
        make = {"device": self.device}
        memories = []
        for block in self._blocks:
            if block.o_gain is not None:
                memories.append((torch.zeros(rows, heads, d, d, dtype=torch.float32, **make),))
            else:
                memories.append(
                    tuple(torch.zeros(2, rows, heads, self.capacity, d, dtype=self.dtype, **make))
                )
        uses_code_predictor = codes is not None
        return Buffers(
            ids=torch.zeros(batch, config.num_tokens, dtype=torch.int64, **make),
            draws=torch.zeros(batch, config.num_tokens, **make),
            hidden=torch.zeros(rows, config.width, **make),
            step=torch.zeros(1, dtype=torch.int64, **make),
            slot=torch.zeros(1, dtype=torch.int64, **make),
            memories=memories,
            valid=torch.zeros(rows, 1, 1, self.capacity, dtype=torch.bool, **make)
            if self.static
            else None,
            hints=torch.zeros(rows, config.num_steps, config.width, **make)
            if config.code_predictor_dim
            else None,
            predicted_codes=torch.zeros(batch, config.num_tokens, codes.shape[1], **make)
            if uses_code_predictor
            else None,
            codes=codes.float().T.contiguous() if uses_code_predictor else None,
        )

    def _capture(self) -> None:
        """One graph for each window. The steps that warm up and capture leave rubbish in the
        buffers; `_fill` replaces it."""
        windows = sorted({self.window_for(filled) for filled in range(1, self.capacity + 1)})
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        pool = torch.cuda.graph_pool_handle()
        with torch.inference_mode(), torch.autocast(self.device.type, enabled=False):
            for window in windows:
                with torch.cuda.stream(stream):
                    for _ in range(WARMUPS):
                        self.buffers.step.zero_()
                        self.buffers.slot.zero_()
                        self.take_step(window)
                torch.cuda.current_stream(self.device).wait_stream(stream)
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=pool):
                    self.take_step(window)
                self._graphs[window] = graph

    def _fill(self, condition: Condition, draws: Tensor) -> int:
        """Prefills the conditions, and the null prefix once, into the buffers; returns the slots
        they take."""
        b, batch = self.buffers, len(condition.mask)
        null, source = None, torch.arange(batch, device=self.device)
        if self.guided:
            # One more row, whose condition the null prefix replaces.
            condition = Condition(
                torch.cat([condition.embeddings, condition.embeddings[-1:]]),
                torch.cat([condition.mask, condition.mask[-1:]]),
                condition.full,
            )
            null = torch.arange(batch + 1, device=self.device) == batch
            source = torch.cat([source, source.new_full((batch,), batch)])
        _, cache = self.gpt.prefill(condition, null=null, room=0)
        prefix = self.config.condition_tokens if self.guided else condition.mask.shape[1]
        holds = None
        for memory, layer in zip(b.memories, cache.layers, strict=True):
            if isinstance(layer, KVCache):
                memory[0][:, :, :prefix] = layer.keys[source]
                memory[1][:, :, :prefix] = layer.values[source]
                holds = layer.valid
            else:
                memory[0].copy_(layer.state[source])
        if self.static:
            b.valid.fill_(False)
            b.valid[..., :prefix] = True if holds is None else holds[source]
        elif holds is None:
            b.valid = None
        else:
            b.valid = F.pad(holds[source], (0, self.capacity - prefix), value=True)
        b.hidden.copy_(cache.hidden[source])
        if b.hints is not None:
            b.hints.copy_(cache.hints[source])
        if b.predicted_codes is not None:
            b.predicted_codes.copy_(
                self.gpt.code_predictor(condition.embeddings[:batch], condition.mask[:batch])
            )
        b.draws.copy_(draws)
        b.step.zero_()
        b.slot.fill_(prefix)
        return prefix

    def take_step(self, window: int) -> None:
        """Takes in the tokens of the buffers' `step`, and draws those of the next; attention looks
        at `window` slots."""
        b, n = self.buffers, self.config.tokens_per_step
        tokens = b.ids.index_select(1, b.step * n + self._offsets)  # (B, n)
        after = b.step + 1
        place = None if self._places is None else self._places.index_select(0, b.step)
        if b.hints is not None:
            hint = b.hints.index_select(1, after)[:, 0]
            place = hint if place is None else place + hint
        x = self._embed(tokens)  # (G, n D)
        if self._merge is not None:
            zero = torch.zeros(len(x), self.config.width, device=self.device)
            x = self._ops.linear_add(
                x.to(self.dtype), self._merge, zero if place is None else zero + place
            )
        elif place is not None:
            x = x + place
        cos, sin = (
            table.index_select(0, after)[0] for table in (self.gpt.rope.cos, self.gpt.rope.sin)
        )
        if self.static:
            b.valid.index_fill_(3, b.slot, True)
        for block, memory in zip(self._blocks, b.memories, strict=True):
            if block.o_gain is not None:
                x = self._linear_layer(x, block, cos, sin, *memory)
            else:
                x = self._full_layer(x, block, cos, sin, *memory, b.slot, b.valid, window)
        b.hidden.copy_(x)
        b.step.add_(1)
        b.slot.add_(1)
        self._draw_step()

    def _draw_step(self) -> None:
        """Draws the tokens of `step` from the layers' output for it."""
        b, n = self.buffers, self.config.tokens_per_step
        known = (
            None if self._cell_head is None else torch.zeros_like(b.hidden)
        )  # what the cell's tokens so far add
        for plane in range(n):
            position = b.step * n + plane
            scores = self._scores(b.hidden, known, plane)
            if b.predicted_codes is not None:
                scores = (
                    scores
                    + self.sampling.code_predictor_scale
                    * b.predicted_codes.index_select(1, position)[:, 0]
                    @ b.codes
                )
            token = sample(scores, self.sampling, b.draws.index_select(1, position)[:, 0])
            b.ids.index_copy_(1, position, token[:, None])
            if plane + 1 < n:
                known = self._ops.linear_add(
                    self._embed(token[:, None]).to(self.dtype), self._cell_head.before[plane], known
                )

    def _scores(self, hidden: Tensor, known: Tensor | None, plane: int) -> Tensor:
        """(B, V) float32. The head is linear, so guidance comes before it, and it sees one row a
        shape."""
        if self._cell_head is not None:
            hidden = hidden + self._cell_head.plane[plane] + known
            for mlp in self._cell_head.mlps:
                hidden = self._mlp_layer(hidden, mlp)
        x = F.rms_norm(hidden, hidden.shape[-1:], self._gain, NORM_EPS)
        if self.guided:
            x = guide(*x.chunk(2), self.sampling.cfg_scale)
        return self._ops.linear_add(
            x.to(self.dtype),
            self._head,
            torch.zeros(len(x), self.config.codebook_size, device=x.device),
        )

    def _embed(self, tokens: Tensor) -> Tensor:
        """(B, m) -> (G, m D) float32: both rows of a shape get its tokens."""
        x = F.embedding(tokens, self._embedding).flatten(1).float()
        return x.repeat(2, 1) if self.guided else x


def _layer_functions(ops: ModuleType) -> tuple[Callable, Callable, Callable]:
    """(linear_layer, full_layer, mlp_layer), each x (G, D) -> (G, D) float32 for one position;
    memories change in place."""

    def mlp_layer(x: Tensor, mlp: PackedMLP) -> Tensor:
        return ops.linear_add(ops.norm_swiglu(x, mlp.gain, mlp.gate_up), mlp.down, x)

    def linear_layer(
        x: Tensor, block: PackedBlock, cos: Tensor, sin: Tensor, state: Tensor
    ) -> Tensor:
        projected = ops.norm_linear(x, block.gain, block.qkv)
        if block.forget is None:
            o = ops.linear_attend(
                projected, cos, sin, block.qk_gain, block.decay, block.o_gain, state
            )
        else:
            o = ops.gated_attend(
                projected, cos, sin, block.qk_gain, *block.forget, block.o_gain, block.delta, state
            )
        return mlp_layer(ops.linear_add(o, block.o, x), block.mlp)

    def full_layer(
        x: Tensor,
        block: PackedBlock,
        cos: Tensor,
        sin: Tensor,
        keys: Tensor,
        values: Tensor,
        slot: Tensor,
        valid: Tensor | None,
        window: int,
    ) -> Tensor:
        projected = ops.norm_linear(x, block.gain, block.qkv)
        o = ops.full_attend(projected, cos, sin, block.qk_gain, keys, values, slot, valid, window)
        return mlp_layer(ops.linear_add(o, block.o, x), block.mlp)

    return linear_layer, full_layer, mlp_layer


def _operations(backend: str, device: torch.device) -> ModuleType:
    if backend != "triton":
        return decode_ops
    if device.type != "cuda":
        raise ValueError(
            f"the decoding backend triton needs a CUDA GPU, the model is on {device}: choose plain or auto"
        )
    try:
        from tar3d.gpt import decode_triton
    except ImportError as e:
        raise ValueError(
            f"the decoding backend triton needs the package triton ({e}): install it, or choose plain"
        ) from e
    return decode_triton


def _packed(dtype: torch.dtype, opaque: bool, *linears: nn.Linear) -> Tensor:
    """The matrices of one or more linear maps of one input, in one; `opaque` if its layout may be
    one that only eager operations read."""
    weight = torch.cat([linear.weight for linear in linears]).to(dtype)
    return decode_ops.pack(weight) if opaque else weight


def _pack_block(block: Block, pack: Callable[..., Tensor]) -> PackedBlock:
    attention = block.attention
    linear, gated = (
        isinstance(attention, LinearAttention),
        isinstance(attention, GatedLinearAttention),
    )
    gate = [attention.gate] if linear and attention.gate is not None else []
    gate += [attention.forget] if gated else []
    return PackedBlock(
        block.attention_norm.weight,
        pack(attention.q, attention.k, attention.v, *gate),
        attention.qk_gain.reshape(2, -1),
        pack(attention.o),
        _pack_mlp(block.mlp_norm, block.mlp, pack),
        torch.exp(-attention.slopes) if linear and not gated else None,
        attention.o_norm.weight if linear else None,
        (attention.forget_bias, attention.log_rate) if gated else None,
        gated and attention.delta,
    )


def _pack_mlp(norm: RMSNorm, mlp: SwiGLU, pack: Callable[..., Tensor]) -> PackedMLP:
    return PackedMLP(norm.weight, pack(mlp.gate, mlp.up), pack(mlp.down))
