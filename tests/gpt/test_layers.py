"""A layer of one's own: one class and one line in a table; and what the engine makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from networks import draw_large_weights
from torch import Tensor, nn

from tar3d.config import GPTConfig, OptimConfig, SamplingConfig
from tar3d.contracts import Condition
from tar3d.gpt import decode_ops
from tar3d.gpt.blocks import SwiGLU
from tar3d.gpt.engine import Engine
from tar3d.gpt.generate import generate
from tar3d.gpt.layers import LINEAR_ATTENTION, linear
from tar3d.gpt.layers.base import AttentionLayer, LayerCache
from tar3d.gpt.layers.gated import GatedAttention
from tar3d.gpt.layers.lightning import LightningAttention
from tar3d.gpt.model import GPT
from tar3d.gpt.packed import PackedBlock, PlainBlock
from tar3d.optim.groups import build_optimizers

P, E, V, GRID = 4, 8, 32, 3
T = 3 * GRID**2
STOCK = tuple(LINEAR_ATTENTION)
GREEDY = SamplingConfig(temperature=0)


@dataclass
class SumCache(LayerCache):
    total: Tensor  # (B, H, 1, d)
    count: Tensor  # (B, 1, 1, 1)


class Mean(AttentionLayer):
    """The running mean of the values times a learned gain: a layer with a cache of its own kind."""

    init_as: ClassVar = {**AttentionLayer.init_as, "scale": "own"}

    def __init__(self, config, layer):
        super().__init__(config, layer)
        self.scale = nn.Parameter(torch.full((config.head_dim,), 1.5))

    def _heads(self, x):
        B, S, _ = x.shape
        return self.v(x).view(B, S, self.num_heads, self.head_dim).transpose(1, 2)

    def _output(self, o):
        return self.o((o * self.scale).transpose(1, 2).flatten(2))

    def forward(self, x, rotary):
        v = self._heads(x)
        count = torch.arange(1, v.shape[2] + 1, device=x.device)[:, None]
        return self._output(v.cumsum(2) / count)

    def prefill(self, x, rotary, rows):
        v, (B, S, _) = self._heads(x), x.shape
        lengths = torch.full((B,), S) if rows.lengths is None else rows.lengths
        valid = (torch.arange(S) < lengths[:, None])[:, None, :, None]
        cache = SumCache((v * valid).sum(2, keepdim=True), lengths[:, None, None, None])
        return self(x, rotary), cache

    def decode(self, x, rotary, cache):
        cache.total, cache.count = cache.total + self._heads(x), cache.count + 1
        return self._output(cache.total / cache.count)

    def multiplications(self, positions):
        return 0


class Elu(LightningAttention):
    """Another feature map, and nothing else."""

    def feature_map(self, qk):
        return F.elu(qk) + 1


class Ungated(LightningAttention):
    """Another output."""

    def output(self, o, x):
        return self.o(o.transpose(1, 2).flatten(2))


class HalfForgetful(GatedAttention):
    def decay(self, x):
        log_decay, beta = super().decay(x)
        return 0.5 * log_decay, beta


class PackedElu(Elu):
    """The same with a packed form of its own, without a line in the engine."""

    @staticmethod
    def packed_step(ops, weights, x, position, cache):
        projected, (state,) = ops.norm_linear(x, weights.gain, weights.projections), cache
        B, H, d, _ = state.shape
        q, k = decode_ops.rotated(
            lambda qk: F.elu(qk) + 1, projected, position.cos, position.sin, weights.qk_gain, H
        )
        v = projected[:, 2 * H * d : 3 * H * d].view(B, H, 1, d).float()
        state.mul_(weights.decay[:, None, None]).addcmul_(k[..., None], v)
        o = (decode_ops.normalise(q[:, :, None] @ state) * weights.o_gain).reshape(B, H * d)
        o = o * torch.sigmoid(projected[:, 3 * H * d :].float())
        return ops.linear_add(o.to(projected.dtype), weights.o, x)


FOREIGN = {
    "mean": Mean,
    "elu": Elu,
    "ungated": Ungated,
    "half": HalfForgetful,
    "packed_elu": PackedElu,
}


@pytest.fixture(autouse=True)
def table(monkeypatch):
    for name, layer in FOREIGN.items():
        monkeypatch.setitem(LINEAR_ATTENTION, name, layer)


def _gpt(name: str, **changes) -> GPT:
    options = {
        "num_layers": 4,
        "width": 32,
        "num_heads": 2,
        "grid_size": GRID,
        "codebook_size": V,
        "condition_tokens": P,
        "condition_width": E,
        "chunk_size": 4,
        "linear_attention": name,
        **changes,
    }
    return draw_large_weights(GPT(GPTConfig(**options))).eval()


def _condition(mask: tuple[str, ...] = ("xxxx", "xx..", ".xxx")) -> Condition:
    embeddings = torch.randn(len(mask), P, E, generator=torch.Generator().manual_seed(1))
    return Condition(embeddings, torch.tensor([[c == "x" for c in row] for row in mask]))


every_layer = pytest.mark.parametrize("name", [*STOCK, *FOREIGN])


@every_layer
@pytest.mark.parametrize("n", [1, 3], ids=["token", "cell"])
def test_greedy_tokens_of_the_engine_are_the_argmax_of_the_full_forward(name, n):
    gpt, condition = _gpt(name, tokens_per_step=n), _condition()
    ids = generate(gpt, condition, GREEDY, [0, 1, 2]).ids
    with torch.no_grad():
        logits = gpt(ids[:, :-1], condition)
    assert torch.equal(logits.argmax(-1), ids)


@every_layer
def test_guided_tokens_of_the_engine_are_those_of_full_forwards(name):
    gpt, condition = _gpt(name), _condition()
    ids = generate(gpt, condition, SamplingConfig(temperature=0, cfg_scale=2.0), [0, 1, 2]).ids
    with torch.no_grad():
        null = gpt(ids[:, :-1], condition, torch.ones(3, dtype=torch.bool))
        logits = null + 2.0 * (gpt(ids[:, :-1], condition) - null)
    assert torch.equal(logits.argmax(-1), ids)


@every_layer
def test_prefill_and_decode_are_the_full_forward(name):
    gpt, condition = _gpt(name).double(), _condition()
    tokens = torch.randint(V, (3, T), generator=torch.Generator().manual_seed(2))
    full = gpt(tokens[:, :-1], condition).float()
    for split in (0, 1, T // 2, T - 1):
        logits, cache = gpt.prefill(condition, tokens[:, :split])
        for i in range(split, T):
            torch.testing.assert_close(logits, full[:, i], rtol=1e-4, atol=1e-4)
            if i + 1 < T:
                logits = gpt.decode(tokens[:, i], cache)


@every_layer
def test_a_step_of_training_moves_every_parameter(name):
    gpt, condition = _gpt(name).train(), _condition()
    before = {key: value.clone() for key, value in gpt.state_dict().items()}
    tokens = torch.randint(V, (3, T), generator=torch.Generator().manual_seed(2))
    dropped = torch.tensor([False, False, True])
    logits = gpt(tokens[:, :-1], condition, dropped)
    F.cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
    for optimizer in build_optimizers(gpt, OptimConfig()):
        if optimizer:
            optimizer.step()
    unused = {
        "mean": ("q.weight", "k.weight", "qk_gain"),
        "ungated": ("gate.weight", "o_norm.weight"),
    }
    for key, value in gpt.state_dict().items():
        still = ".attention." in key and key.endswith(unused.get(name, ()))
        assert still or not torch.equal(value, before[key]), key
    assert gpt.flops(P, T) > 0


def test_a_layer_says_how_its_parameters_start():
    gpt = GPT(_gpt("mean").config)
    assert (gpt.blocks[0].attention.scale == 1.5).all()


def test_the_engine_packs_the_classes_that_define_a_packed_form_and_no_subclass():
    for name in (*STOCK, *FOREIGN):
        kinds = [type(block) for block in Engine(_gpt(name))._blocks]
        plain = name in FOREIGN and name != "packed_elu"
        assert kinds == [PlainBlock if plain else PackedBlock] * 3 + [PackedBlock], name


class ReluSquared(SwiGLU):
    def forward(self, x):
        return self.down(F.relu(self.gate(x)).square() * self.up(x))


def test_an_mlp_of_ones_own_is_decoded_as_it_trains():
    gpt, condition = _gpt("lightning"), _condition()
    for block in gpt.blocks:
        block.mlp.__class__ = ReluSquared
    ids = generate(gpt, condition, GREEDY, [0, 1, 2]).ids
    with torch.no_grad():
        assert torch.equal(gpt(ids[:, :-1], condition).argmax(-1), ids)


def test_one_engine_runs_plain_blocks_again_and_again_and_in_bfloat16():
    gpt, condition = _gpt("mean"), _condition()
    engine = Engine(gpt)
    first = generate(gpt, condition, GREEDY, [0, 1, 2], engine=engine).ids
    assert torch.equal(generate(gpt, condition, GREEDY, [0, 1, 2], engine=engine).ids, first)
    with torch.autocast("cpu", torch.bfloat16):
        engine = Engine(gpt)
        generate(gpt, condition, GREEDY, [0, 1, 2], engine=engine)
    assert engine.dtype == torch.bfloat16 and torch.isfinite(engine.buffers.hidden).all()


def test_backends_that_need_packed_forms_refuse_others_by_name():
    with pytest.raises(ValueError, match="compiled runs packed forms.* Elu has none of its own"):
        Engine(_gpt("elu"), "compiled")


def test_an_unknown_layer_is_refused_where_the_table_is():
    with pytest.raises(ValueError, match="gpt.linear_attention is 'performer', allowed are light"):
        GPT(GPTConfig(linear_attention="performer"))
    with pytest.raises(ValueError, match="gpt.linear_attention must name a layer"):
        GPTConfig(linear_attention="")


@pytest.mark.parametrize("name", ["gated", "delta"])
def test_kernels_of_lightning_attention_are_refused_by_other_layers(name):
    config = GPTConfig(linear_attention=name, linear_backend="lightning_attn", num_layers=1)
    with pytest.raises(
        ValueError, match="lightning_attn, which computes lightning attention alone"
    ):
        GPT(config)


@pytest.mark.parametrize("name", ["lightning", "gated"])
def test_a_feature_map_changed_in_place_is_decoded_as_it_is_trained(name, monkeypatch):
    """The packed steps of the stock layers share the map with `forward`."""
    for module in (decode_ops, linear):
        monkeypatch.setattr(module, "silu_features", lambda qk: F.elu(qk) + 1)
    gpt, condition = _gpt(name), _condition()
    ids = generate(gpt, condition, GREEDY, [0, 1, 2]).ids
    with torch.no_grad():
        assert torch.equal(gpt(ids[:, :-1], condition).argmax(-1), ids)


def test_a_layer_without_decode_is_refused_by_name():
    class Half(AttentionLayer):
        pass

    layer = Half(GPTConfig(num_layers=1, width=12, num_heads=2), 0)
    with pytest.raises(NotImplementedError, match="Half defines no decode"):
        layer.decode(torch.zeros(1, 1, 12), (torch.ones(1, 6), torch.zeros(1, 6)), None)
