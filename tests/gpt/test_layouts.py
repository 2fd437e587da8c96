"""A layout and a token order of one's own: one class and one line in a table each."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tar3d.config import GPTConfig, GPTRunConfig, SamplingConfig, TokenizerConfig
from tar3d.contracts import Condition, Tokens
from tar3d.gpt.generate import generate
from tar3d.gpt.model import GPT
from tar3d.layouts import LAYOUTS, build_layout
from tar3d.layouts.base import Axis, Layout
from tar3d.layouts.triplane import ORDERS, num_tokens
from tar3d.tokenizer.vqvae import VQVAE
from tar3d.training.gpt_init import check_tokenizer

P, E, V, GRID = 4, 6, 16, 2
GREEDY = SamplingConfig(temperature=0)


class Bars(Layout):
    """10 tokens in bars of 5, read from the back: a place along the sequence, and in its bar."""

    mesher = "none"
    num_tokens = 10

    def axes(self):
        position = self.permutation()[:: self.tokens_per_step]
        return (
            Axis("bar", 2, position // 5, categorical=True),
            Axis("beat", 5, position % 5),
        )

    def permutation(self):
        return np.arange(10)[::-1]

    @classmethod
    def check_length(cls, num_tokens):
        if num_tokens != 10:
            raise ValueError(f"{num_tokens} tokens are not 10")


@pytest.fixture
def bars(monkeypatch):
    monkeypatch.setitem(LAYOUTS, "bars", Bars)


@pytest.fixture
def reversed_order(monkeypatch):
    monkeypatch.setitem(ORDERS, "reversed", lambda grid: np.arange(num_tokens(grid))[::-1])


def _gpt(**changes) -> GPT:
    torch.manual_seed(0)
    gpt = GPT(
        GPTConfig(
            **{
                "num_layers": 2,
                "layer_pattern": "LF",
                "width": 32,
                "num_heads": 2,
                "grid_size": GRID,
                "codebook_size": V,
                "condition_tokens": P,
                "condition_width": E,
                "code_predictor_dim": 3,
                **changes,
            }
        )
    )
    with torch.no_grad():
        for parameter in gpt.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0.0, 0.3)
    return gpt


def _condition(rows: int) -> Condition:
    return Condition.of(torch.randn(rows, P, E, generator=torch.Generator().manual_seed(1)))


def _overfits_and_generates(gpt: GPT) -> Tokens:
    """Trains on one sequence for each condition until it is generated again, and holds prefill and
    decode against the forward pass."""
    T, condition = gpt.config.num_tokens, _condition(2)
    files = torch.randint(V, (2, T), generator=torch.Generator().manual_seed(2))
    tokens = gpt.to_model_order(files)
    optimizer = torch.optim.AdamW(gpt.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(100):
        loss = F.cross_entropy(gpt(tokens[:, :-1], condition).flatten(0, 1), tokens.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    full = gpt(tokens[:, :-1], condition)
    for split in (0, 1, T - 1):
        logits, cache = gpt.prefill(condition, tokens[:, :split])
        for i in range(split, T):
            torch.testing.assert_close(logits, full[:, i], rtol=1e-4, atol=1e-4)
            if i + 1 < T:
                logits = gpt.decode(tokens[:, i], cache)
    made = generate(gpt.eval(), condition, GREEDY, [0, 1])
    assert float(loss.detach()) < 0.1 and torch.equal(made.ids, files)
    return made


@pytest.mark.parametrize("options", [{}, {"rope": "sequence"}, {"tokens_per_step": 2}], ids=str)
def test_a_layout_of_ones_own_trains_decodes_and_generates(bars, options):
    gpt = _gpt(layout="bars", **options)
    assert gpt.config.num_tokens == 10 and not hasattr(gpt.position_embedding, "row")
    assert gpt.position_embedding.bar.weight.shape == (2, 32)
    made = _overfits_and_generates(gpt)
    assert made.layout == "bars"
    assert generate(gpt, _condition(1), SamplingConfig(cfg_scale=2.0), [3]).ids.shape == (1, 10)


def test_a_layout_is_checked_where_it_is_named(bars):
    with pytest.raises(ValueError, match=r"gpt\.layout is 'chain', allowed are triplane, bars"):
        GPTConfig(layout="chain")
    with pytest.raises(ValueError, match="layout of tokens is 'chain', allowed are triplane, bars"):
        Tokens(torch.zeros(1, 12, dtype=torch.int64), "chain")
    with pytest.raises(ValueError, match="12 tokens are not 10"):
        Tokens(torch.zeros(1, 12, dtype=torch.int64), "bars")
    assert Tokens(torch.zeros(1, 12, dtype=torch.int64)).layout == "triplane"
    with pytest.raises(ValueError, match="paper_sum.* layout bars has bar, beat"):
        _gpt(layout="bars", rope="paper_sum")


def test_the_tokenizer_and_its_gpts_take_tokens_of_triplanes_only(bars):
    tokenizer = VQVAE(TokenizerConfig(grid_size=2, width=32, num_heads=2, codebook_size=16))
    with pytest.raises(ValueError, match="decodes triplanes, the tokens have the layout bars"):
        tokenizer.decode(Tokens(torch.zeros(1, 10, dtype=torch.int64), "bars"))
    config = GPTRunConfig(gpt=GPTConfig(grid_size=2, codebook_size=16, layout="bars"))
    with pytest.raises(ValueError, match="gpt.layout is bars.*write gpt.layout=triplane"):
        check_tokenizer(config, tokenizer)
    config.gpt.layout, config.gpt.linear_attention = "triplane", "performer"
    with pytest.raises(ValueError, match="gpt.linear_attention is 'performer', allowed are"):
        check_tokenizer(config, tokenizer)


def test_an_order_may_end_on_any_token(reversed_order):
    gpt = _gpt(token_order="reversed")
    raster = torch.arange(12)[None]
    assert torch.equal(gpt.to_model_order(raster), raster.flip(1))
    assert torch.equal(gpt.to_raster_order(raster.flip(1)), raster)
    row, _, plane = (axis.values for axis in build_layout(gpt.config).axes())
    assert row[0] == 1 and plane[:4].tolist() == [2, 1, 0, 2]
    _overfits_and_generates(gpt)


def test_a_part_of_a_sequence_has_no_other_order(reversed_order):
    """The first T - 1 tokens of one order are not those of another."""
    for order in ("cells", "planes", "reversed"):
        gpt = _gpt(token_order=order)
        with pytest.raises(ValueError, match="whole sequences of 12 tokens, got 11.*cut"):
            gpt.to_model_order(torch.zeros(1, 11, dtype=torch.int64))
        with pytest.raises(ValueError, match="whole sequences of 12 tokens, got 11.*cut"):
            gpt.to_raster_order(torch.zeros(1, 11, 3))


def test_an_order_that_is_no_permutation_is_refused(monkeypatch):
    monkeypatch.setitem(ORDERS, "first", lambda grid: np.zeros(num_tokens(grid), dtype=np.int64))
    with pytest.raises(ValueError, match="layout triplane is no permutation of its 12 tokens"):
        _gpt(token_order="first")


def test_an_unknown_order_is_refused(reversed_order):
    with pytest.raises(ValueError, match="'spiral', allowed are cells, planes, reversed"):
        GPTConfig(token_order="spiral")
