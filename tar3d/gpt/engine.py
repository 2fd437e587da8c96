"""Fast decoding: packed weights, static caches, CUDA graphs, nothing read back to the host.

    engine = Engine(gpt)
    ids = engine.run(condition, sampling, draws)

`GPT.prefill` and `GPT.decode` are the plain form of the same, and the tests hold the two together.
A step of the engine is a fixed sequence of device operations on fixed buffers: embed the last
tokens, all layers, guidance, filters, draw, store. On CUDA it is captured as a graph and replayed,
so that a token costs what its kernels cost and not what launching them does. On a CPU it runs as it
stands.

The engine knows no layer by name: `tar3d.gpt.packed` takes the packed form that a layer class
defines. A block whose layers have none is run by its own `decode` on its own cache; on CUDA no
graph is captured then, and every step is launched by the host.

Guidance shares work: the conditional and the null row of a shape are rows of one batch, so weights
are read once for both; the null prefix, the same for all shapes, goes through the prefill once; and
the head, being linear, multiplies the guided row alone.

An engine copies the weights of its GPT and does not follow later changes to them (plain blocks read
the GPT's own). Its dtype is autocast's if autocast is on when it is made, else that of the weights;
states, the residual stream and logits are float32 in any case.

Letters: B shapes, G rows (B, or 2 B with guidance), D width, T tokens, n tokens per step, V
codebook size, C slots of a key-value cache, K dimension of a code.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tar3d.contracts import Condition
from tar3d.gpt.blocks import SwiGLU
from tar3d.gpt.kernel_check import announced
from tar3d.gpt.layers.base import DecodePosition
from tar3d.gpt.norm import NORM_EPS
from tar3d.gpt.packed import Operations, PlainBlock, fastest_backend, pack_block
from tar3d.gpt.sampling import check_logit_sums, guide

if TYPE_CHECKING:
    from collections.abc import Callable

    from tar3d.config import SamplingConfig
    from tar3d.gpt.model import GPT

# A captured step sees a multiple of so many slots, with at most so many graphs.
MIN_WINDOW, MAX_GRAPHS = 512, 8
WARMUPS = 3  # steps on a side stream before a capture, as torch.cuda.graph asks for
REPORT_EVERY = 128  # steps between two reports of progress on CUDA: each waits for the device


@dataclass
class Buffers:
    """All that a step reads and changes, for one number of rows and one way of sampling."""

    ids: Tensor  # (B, T) int64, filled from the left
    draws: Tensor  # (B, T) float32 in [0, 1)
    logit_sums: Tensor  # (B,) float32, of all logits so far: not finite once a logit was not
    hidden: Tensor  # (G, D) float32, the layers' last output
    step: Tensor  # (1,) int64, the last step whose tokens are known
    slot: Tensor  # (1,) int64, where its keys and values go
    caches: list[Any]  # one per block: tensors of a static cache, or a plain block's cache
    # (G, 1, 1, C) bool: slots that hold something; None: all before and at `slot`
    valid: Tensor | None
    hints: Tensor | None  # (G, steps, D) float32
    predicted_codes: Tensor | None  # (B, T, K) float32, times code_predictor_scale
    codes: Tensor | None  # (K, V)


class Engine:
    """Decodes with one GPT. `backend` is what computes the operations of packed layers:

    | backend    | operations of a layer                | on a CPU               | on CUDA         |
    |------------|--------------------------------------|------------------------|-----------------|
    | `plain`    | `decode_ops` as they stand           | the choice of `auto`   | in a CUDA graph |
    | `compiled` | `decode_ops` through torch.compile   | seconds to compile     | in a CUDA graph |
    | `triton`   | `decode_triton`, a kernel each       | not there              | in a CUDA graph |

    `auto` on CUDA is `triton` where its kernels agree with the plain operations on that GPU, which
    is tried once a process, else `plain` with a warning. Raises ValueError for a backend that is
    not there, or has no operations for a layer.
    """

    def __init__(self, gpt: GPT, backend: str = "auto") -> None:
        self.gpt, self.config, self.device = gpt, gpt.config, gpt.head.weight.device
        autocast = torch.is_autocast_enabled(self.device.type)
        self.dtype = (
            torch.get_autocast_dtype(self.device.type) if autocast else gpt.head.weight.dtype
        )
        # The kernels that `auto` chooses are compiled by then.
        self._compiles = backend in ("compiled", "triton")
        if backend == "auto":
            with self._current_device():
                backend = fastest_backend(gpt, self.dtype)
        self.operations = Operations(backend, self.device, self.dtype)
        self.backend = self.operations.backend
        with torch.no_grad():
            self._pack()
        self.capacity = self.config.condition_tokens + self.gpt.layout.num_steps - 1
        # A graph holds packed blocks only. Exact windows cost a CPU nothing. A graph and a compiled
        # layer are made for one window, so there they are few.
        self.graphed = self.device.type == "cuda" and not self._plain
        self.static = self.graphed or self.backend == "compiled"
        self.window = max(MIN_WINDOW, -(-self.capacity // MAX_GRAPHS)) if self.static else 1
        if self.backend in ("compiled", "triton"):
            # Layers are compiled for each window; Triton's kernels look at what is filled alone.
            self.window = self.capacity
        self._buffers: Buffers | None = None
        self.prepare_seconds = 0.0  # time of the last warm-up and capture
        self._prepared_for: tuple | None = None
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}  # by window

    @property
    def buffers(self) -> Buffers:
        """The buffers that `prepare` made."""
        if self._buffers is None:
            raise ValueError("the engine has no buffers yet: call prepare or run")
        return self._buffers

    def _pack(self) -> None:
        gpt, pack = self.gpt, self.operations.pack
        self._blocks = [pack_block(block, self.operations) for block in gpt.blocks]
        self._plain = any(isinstance(block, PlainBlock) for block in self._blocks)
        self._embedding, self._gain = gpt.token_embedding.weight, gpt.norm.weight
        self._head = pack(gpt.head)
        self._position_table = None  # (steps, D)
        if gpt.position_embedding is not None:
            self._position_table = gpt.position_embedding(0, self.gpt.layout.num_steps)
        self._offsets = torch.arange(self.config.tokens_per_step, device=self.device)
        self._merge = None if gpt.merge is None else pack(gpt.merge)
        self._cell_head = None if gpt.cell_head is None else gpt.cell_head.pack(pack)
        self._mlp_step = self.operations.mlp_step(SwiGLU.packed_step)

    def prepare(self, batch: int, sampling: SamplingConfig, codes: Tensor | None = None) -> None:
        """Makes the buffers for `batch` shapes sampled in this way; on CUDA warms up and captures.

        Does nothing if that is done. `run` calls it when it is needed; called before, it keeps that
        time out of the first run.
        """
        codes = codes if sampling.code_predictor_scale else None
        key = (batch, *dataclasses.astuple(sampling), None if codes is None else tuple(codes.shape))
        if key == self._prepared_for:
            return
        start = time.perf_counter()
        # Gives their memory back before the new ones are made.
        self._graphs, self._buffers = {}, None
        self.sampling, self.guided = sampling, sampling.cfg_scale != 1
        self._buffers = self._new_buffers(batch, codes)
        if self.graphed:
            said = announced(f"compiling the decoding backend {self.backend}")
            with self._current_device(), said if self._compiles else contextlib.nullcontext():
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
        """Tokens (B, T) int64 in model order for each condition row, by `draws` (B, T) in [0, 1).

        `codes` (V, K), the tokenizer's codebook, is needed for a code_predictor_scale above 0.
        `progress` is called with (tokens done, T): after each step on a CPU, now and then on CUDA.
        The result is overwritten by the next run. Raises LogitsNotFinite, once all is drawn, where
        logits were NaN or infinite.
        """
        self.prepare(len(condition.mask), sampling, codes)
        n, steps = self.config.tokens_per_step, self.gpt.layout.num_steps
        with self._current_device():
            prefix = self._fill(condition, draws)
            if self.buffers.codes is not None and codes is not None:
                self.buffers.codes.copy_(codes.T)
            with torch.autocast(self.device.type, enabled=False):
                self._draw_step()
                for step in range(steps - 1):
                    self._report(progress, step)
                    self.advance(prefix + step + 1)
        if progress is not None:
            if self.graphed:
                torch.cuda.synchronize(self.device)
            progress(n * steps, n * steps)
        check_logit_sums(self.buffers.logit_sums, self.dtype)
        return self.buffers.ids

    def _report(self, progress: Callable[[int, int], None] | None, step: int) -> None:
        if progress is None or (self.graphed and step % REPORT_EVERY):
            return
        if self.graphed:
            torch.cuda.synchronize(self.device)
        progress(self.config.tokens_per_step * (step + 1), self.gpt.layout.num_tokens)

    def advance(self, filled: int) -> None:
        """`take_step`, after which `filled` slots hold something; by its graph if captured."""
        window = self.window_for(filled)
        if self.graphed:
            self._graphs[window].replay()
        else:
            self.take_step(window)

    def window_for(self, filled: int) -> int:
        """Slots that a step looks at when `filled` of them are in use."""
        return min(-(-filled // self.window) * self.window, self.capacity)

    def _current_device(self) -> contextlib.AbstractContextManager:
        """A context in which the engine's GPU is the current one, for kernels and graphs."""
        if self.device.type == "cuda":
            return torch.cuda.device(self.device)
        return contextlib.nullcontext()

    def _new_buffers(self, batch: int, codes: Tensor | None) -> Buffers:
        config, rows = self.config, batch * (2 if self.guided else 1)
        hints = predicted_codes = valid = None
        if self.static:
            valid = self._zeros(rows, 1, 1, self.capacity, dtype=torch.bool)
        if config.code_predictor_dim:
            hints = self._zeros(rows, config.num_steps, config.width)
        if codes is not None:
            predicted_codes = self._zeros(batch, config.num_tokens, codes.shape[1])
        return Buffers(
            ids=self._zeros(batch, config.num_tokens, dtype=torch.int64),
            draws=self._zeros(batch, config.num_tokens),
            logit_sums=self._zeros(batch),
            hidden=self._zeros(rows, config.width),
            step=self._zeros(1, dtype=torch.int64),
            slot=self._zeros(1, dtype=torch.int64),
            caches=[block.new_cache(rows, self.capacity) for block in self._blocks],
            valid=valid,
            hints=hints,
            predicted_codes=predicted_codes,
            codes=None if codes is None else codes.float().T.contiguous(),
        )

    def _zeros(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.device)

    def _capture(self) -> None:
        """Captures one graph for each window.

        The steps that warm up and capture overwrite the buffers; `_fill` makes them good again.
        """
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
                # Other threads may use the GPU meanwhile: a data loader that pins memory, a page.
                with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                    self.take_step(window)
                self._graphs[window] = graph

    def _fill(self, condition: Condition, draws: Tensor) -> int:
        """Prefills the conditions, and the null prefix once; returns the slots that they take."""
        b, batch = self.buffers, len(condition.mask)
        null, rows = None, torch.arange(batch, device=self.device)
        if self.guided:
            # One more row, whose condition the null prefix replaces.
            condition = Condition(
                torch.cat([condition.embeddings, condition.embeddings[-1:]]),
                torch.cat([condition.mask, condition.mask[-1:]]),
                condition.full,
            )
            null = torch.arange(batch + 1, device=self.device) == batch
            rows = torch.cat([rows, rows.new_full((batch,), batch)])
        # Static caches have their own room; plain blocks go on with the cache of the prefill.
        room = None if self._plain else 0
        _, cache = self.gpt.prefill(condition, null=null, max_new_tokens=room)
        prefix = self.config.condition_tokens if self.guided else condition.mask.shape[1]
        for i, (block, layer_cache) in enumerate(zip(self._blocks, cache.layers, strict=True)):
            b.caches[i] = block.fill(b.caches[i], layer_cache, rows)
        self._fill_valid(None if cache.lengths is None else cache.lengths[rows], prefix)
        b.hidden.copy_(cache.hidden[rows])
        if b.hints is not None and cache.hints is not None:
            b.hints.copy_(cache.hints[rows])
        if b.predicted_codes is not None and self.gpt.code_predictor is not None:
            predicted = self.gpt.code_predictor(
                condition.embeddings[:batch], condition.mask[:batch]
            )
            b.predicted_codes.copy_(self.sampling.code_predictor_scale * predicted.float())
        b.draws.copy_(draws)
        b.logit_sums.zero_()
        b.step.zero_()
        b.slot.fill_(prefix)
        return prefix

    def _fill_valid(self, lengths: Tensor | None, prefix: int) -> None:
        """Marks the slots of the prefix that are in use: those before `lengths` (G,), or all."""
        b, in_use = self.buffers, None
        if lengths is not None:
            in_use = torch.arange(prefix, device=self.device) < lengths[:, None, None, None]
        if b.valid is not None and self.static:
            b.valid.fill_(False)
            b.valid[..., :prefix] = True if in_use is None else in_use
        elif in_use is None:
            b.valid = None
        else:
            b.valid = F.pad(in_use, (0, self.capacity - prefix), value=True)

    def take_step(self, window: int) -> None:
        """Takes in the tokens of the buffers' `step` and draws those of the next.

        Attention looks at `window` slots.
        """
        b, n = self.buffers, self.config.tokens_per_step
        tokens = b.ids.index_select(1, b.step * n + self._offsets)  # (B, n)
        after = b.step + 1
        added = (
            None if self._position_table is None else self._position_table.index_select(0, b.step)
        )
        if b.hints is not None:
            hint = b.hints.index_select(1, after)[:, 0]
            added = hint if added is None else added + hint
        x = self._embed(tokens)  # (G, n D)
        if self._merge is not None:
            zero = torch.zeros(len(x), self.config.width, device=self.device)
            x = self.operations.module.linear_add(
                x.to(self.dtype), self._merge, zero if added is None else zero + added
            )
        elif added is not None:
            x = x + added
        cos, sin = (
            table.index_select(0, after)[0] for table in (self.gpt.rope.cos, self.gpt.rope.sin)
        )
        if b.valid is not None and self.static:
            b.valid.index_fill_(3, b.slot, True)
        position = DecodePosition(cos, sin, b.slot, b.valid, window)
        for block, cache in zip(self._blocks, b.caches, strict=True):
            x = block.step(x, position, cache)
        b.hidden.copy_(x)
        b.step.add_(1)
        b.slot.add_(1)
        self._draw_step()

    def _draw_step(self) -> None:
        """Draws the tokens of `step` from the layers' output for it."""
        b, n, head = self.buffers, self.config.tokens_per_step, self._cell_head
        if head is None:
            self._draw_token(b.hidden, b.step)
            return
        known = torch.zeros_like(b.hidden)  # sum over the step's tokens so far
        for k in range(n):
            hidden = b.hidden + head.plane[k] + known
            for mlp in head.mlps:
                hidden = self._mlp_step(hidden, mlp)
            token = self._draw_token(hidden, b.step * n + k)
            if k + 1 < n:
                embedded = self._embed(token[:, None]).to(self.dtype)
                known = self.operations.module.linear_add(embedded, head.before[k], known)

    def _draw_token(self, hidden: Tensor, position: Tensor) -> Tensor:
        """Draws the tokens (B,) of a position (1,) from hidden states (G, D), and stores them."""
        b = self.buffers
        if b.predicted_codes is not None and b.codes is not None:
            added = b.predicted_codes.index_select(1, position)[:, 0] @ b.codes
        else:
            added = torch.zeros(len(b.ids), self.config.codebook_size, device=hidden.device)
        logits = self._logits(hidden, added)
        return self.operations.module.draw_token(
            logits, self.sampling, b.draws, position, b.logit_sums, b.ids
        )

    def _logits(self, hidden: Tensor, added: Tensor) -> Tensor:
        """The logits (B, V) float32 of hidden states (G, D), plus those of the code predictor.

        The head is linear, so guidance comes before it, and it sees one row a shape.
        """
        x = F.rms_norm(hidden, hidden.shape[-1:], self._gain, NORM_EPS)
        if self.guided:
            conditional, null = x.chunk(2)
            x = guide(conditional, null, self.sampling.cfg_scale)
        return self.operations.module.linear_add(x.to(self.dtype), self._head, added)

    def _embed(self, tokens: Tensor) -> Tensor:
        """(B, m) -> (G, m D) float32: both rows of a shape get its tokens."""
        x = F.embedding(tokens, self._embedding).flatten(1).float()
        return x.repeat(2, 1) if self.guided else x
