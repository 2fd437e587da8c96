import pytest
import torch
from networks import draw_large_weights

from tar3d.config import GPT_SIZES, GPTConfig, gpt_config
from tar3d.contracts import Condition
from tar3d.gpt.blocks import mlp_width
from tar3d.gpt.init import INIT_STD
from tar3d.gpt.layers.full import KVCache
from tar3d.gpt.layers.gated import GatedAttention, head_gates
from tar3d.gpt.layers.linear import LinearAttention, StateCache
from tar3d.gpt.model import GPT

P, E, V, T = 6, 5, 11, 12  # R = 2
KINDS = ["L", "F", "LLLF"]
GATED = ["gated", "delta"]  # gpt.linear_attention, besides lightning attention


def _gpt(**changes) -> GPT:
    """A small float64 GPT with weights large enough that every path shows in the logits."""
    options = {
        "num_layers": 4,
        "width": 24,
        "num_heads": 2,
        "grid_size": 2,
        "codebook_size": V,
        "condition_tokens": P,
        "condition_width": E,
        "chunk_size": 4,
        **changes,
    }
    return draw_large_weights(GPT(GPTConfig(**options)).double())


def _tokens(batch: int = 3) -> torch.Tensor:
    return torch.randint(V, (batch, T), generator=torch.Generator().manual_seed(1))


def _condition(mask: list[str] = ("xx....", ".xx.xx", "xxxxxx"), seed: int = 2) -> Condition:
    """Right padding, left padding with a hole, and a full row."""
    embeddings = torch.randn(
        len(mask),
        len(mask[0]),
        E,
        generator=torch.Generator().manual_seed(seed),
        dtype=torch.float64,
    )
    return Condition(embeddings, torch.tensor([[c == "x" for c in row] for row in mask]))


FULL = ("xxxxxx",) * 3
token_or_cell = pytest.mark.parametrize("n", [1, 3], ids=["token", "cell"])


@token_or_cell
@pytest.mark.parametrize("code_predictor", [0, 3], ids=["plain", "code_predictor"])
@pytest.mark.parametrize(
    "rope", [("rotation", "identity"), ("paper_sum", "zero"), ("sequence", "identity")]
)
@pytest.mark.parametrize("pattern", KINDS)
@pytest.mark.parametrize("mask", [FULL, ("xx....", ".xx.xx", "xxxxxx")], ids=["full", "ragged"])
def test_prefill_and_decode_are_the_full_forward_for_every_split(
    pattern, mask, rope, code_predictor, n
):
    gpt = _gpt(
        layer_pattern=pattern,
        rope=rope[0],
        prefix_rope=rope[1],
        code_predictor_dim=code_predictor,
        tokens_per_step=n,
    )
    tokens, condition = _tokens(), _condition(mask)
    null = torch.tensor([False, False, True])
    full = gpt(tokens[:, :-1], condition, null)
    assert full.shape == (3, T, V)
    for split in range(T):
        logits, cache = gpt.prefill(condition, tokens[:, :split], null)
        torch.testing.assert_close(logits, full[:, split].float(), rtol=1e-5, atol=1e-5)
        for i in range(split, T - 1):
            logits = gpt.decode(tokens[:, i], cache)
            torch.testing.assert_close(logits, full[:, i + 1].float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("linear", GATED)
@pytest.mark.parametrize("mask", [FULL, ("xx....", ".xx.xx", "xxxxxx")], ids=["full", "ragged"])
def test_layers_that_read_their_decay_decode_as_they_train(mask, linear):
    gpt, tokens, condition = _gpt(linear_attention=linear), _tokens(), _condition(mask)
    full = gpt(tokens[:, :-1], condition)
    for split in range(T):
        logits, cache = gpt.prefill(condition, tokens[:, :split])
        torch.testing.assert_close(logits, full[:, split].float(), rtol=1e-5, atol=1e-5)
        for i in range(split, T - 1):
            logits = gpt.decode(tokens[:, i], cache)
            torch.testing.assert_close(logits, full[:, i + 1].float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("linear", GATED)
def test_layers_that_read_their_decay_begin_as_lightning_attention_forgets(linear):
    gpt = GPT(
        GPTConfig(
            num_layers=4,
            width=24,
            num_heads=2,
            grid_size=2,
            codebook_size=V,
            linear_attention=linear,
        )
    )
    for block in gpt.blocks:
        if isinstance(block.attention, GatedAttention):
            attention, at_rest = (
                block.attention,
                torch.zeros(1, block.attention.forget.out_features, 1),
            )
            log_decay, _ = head_gates(
                at_rest, attention.forget_bias[:, None], attention.log_rate[:, None]
            )
            torch.testing.assert_close(-log_decay[0, :, 0], attention.slopes)


@pytest.mark.parametrize("linear", GATED)
def test_chunks_and_reference_of_such_layers_agree_in_every_gradient(linear):
    gradients = []
    for backend in ("chunked", "reference"):
        gpt = _gpt(linear_attention=linear, linear_backend=backend)
        gpt(_tokens()[:, :-1], _condition()).square().mean().backward()
        gradients.append({name: p.grad for name, p in gpt.named_parameters() if p.grad is not None})
    assert (
        any("forget" in name for name in gradients[0])
        and gradients[0].keys() == gradients[1].keys()
    )
    for name, grad in gradients[0].items():
        torch.testing.assert_close(grad, gradients[1][name], rtol=1e-6, atol=1e-8)


@token_or_cell
@pytest.mark.parametrize(
    "code_predictor",
    [{}, {"code_predictor_dim": 3}, {"code_predictor_dim": 3, "code_predictor_local": 2}],
    ids=["none", "mean", "local"],
)
@pytest.mark.parametrize("pattern", KINDS)
def test_a_row_in_a_padded_batch_is_the_row_alone(pattern, code_predictor, n):
    gpt, tokens, condition = (
        _gpt(layer_pattern=pattern, tokens_per_step=n, **code_predictor),
        _tokens(),
        _condition(),
    )
    together = gpt(tokens[:, :-1], condition)
    for row in range(3):
        valid = condition.mask[row]
        alone = Condition(
            condition.embeddings[row : row + 1, valid], condition.mask[row : row + 1, valid]
        )
        torch.testing.assert_close(gpt(tokens[row : row + 1, :-1], alone), together[row : row + 1])


@pytest.mark.parametrize("pattern", KINDS)
def test_what_lies_in_the_padding_changes_nothing(pattern):
    gpt, tokens, condition = (
        _gpt(layer_pattern=pattern, code_predictor_dim=3, code_predictor_local=2),
        _tokens(),
        _condition(),
    )
    garbage = Condition(
        condition.embeddings.masked_fill(~condition.mask[..., None], torch.nan), condition.mask
    )
    assert torch.equal(gpt(tokens[:, :-1], garbage), gpt(tokens[:, :-1], condition))
    assert torch.equal(gpt.prefill(garbage)[0], gpt.prefill(condition)[0])


@token_or_cell
@pytest.mark.parametrize("mask", [FULL, ("xx....", ".xx.xx", "xxxxxx")], ids=["full", "ragged"])
def test_gradients_reach_every_parameter_and_equal_those_of_single_rows(mask, n):
    gpt, tokens, condition = _gpt(tokens_per_step=n), _tokens(), _condition(mask)
    dropped = torch.tensor([False, False, True])

    def gradients(rows: list[slice]) -> dict[str, torch.Tensor]:
        gpt.zero_grad()
        for row in rows:
            part = Condition(condition.embeddings[row], condition.mask[row])
            gpt(tokens[row, :-1], part, dropped[row]).square().sum().backward()
        return {name: p.grad.clone() for name, p in gpt.named_parameters()}

    together, alone = gradients([slice(0, 3)]), gradients([slice(i, i + 1) for i in range(3)])
    for name, gradient in together.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradient, alone[name])


@token_or_cell
@pytest.mark.parametrize("pattern", KINDS)
@pytest.mark.parametrize("t", [0, 3, T - 2])
def test_a_token_changes_only_what_comes_after_it_and_all_of_that(pattern, t, n):
    gpt, tokens, condition = _gpt(layer_pattern=pattern, tokens_per_step=n), _tokens(), _condition()
    before = gpt(tokens[:, :-1], condition)
    tokens[:, t] = (tokens[:, t] + 1) % V
    after = gpt(tokens[:, :-1], condition)
    torch.testing.assert_close(before[:, : t + 1], after[:, : t + 1], rtol=1e-12, atol=1e-12)
    assert ((before - after)[:, t + 1 :].abs().amax(-1) > 1e-6).all()


def test_the_condition_reaches_linear_layers_unless_the_prefix_is_zero():
    tokens, one, other = _tokens(), _condition(FULL, seed=3), _condition(FULL, seed=4)
    for prefix, reaches in (("identity", True), ("zero", False)):
        gpt = _gpt(layer_pattern="L", prefix_rope=prefix)
        difference = (
            (gpt(tokens[:, :-1], one) - gpt(tokens[:, :-1], other)).abs().amax(-1)
        )  # (B, T)
        assert (
            difference[:, 0] > 1e-3
        ).all()  # the last prefix position predicts the first token, through its residual
        assert (difference[:, 1:] > 1e-3).all() if reaches else (difference[:, 1:] == 0).all()


def test_reference_and_chunked_backends_agree():
    tokens, condition = _tokens(), _condition()
    chunked, reference = _gpt(), _gpt(linear_backend="reference")
    torch.testing.assert_close(
        chunked(tokens[:, :-1], condition), reference(tokens[:, :-1], condition)
    )


def test_null_rows_ignore_their_condition_and_a_shorter_batch_gets_the_whole_null_prefix():
    gpt, tokens = _gpt(), _tokens(2)
    null = torch.tensor([True, False])
    long, short = _condition(("xxxxxx", "xxx...")), _condition(("x..", "xxx"))
    short = Condition(torch.cat([short.embeddings[:1], long.embeddings[1:, :3]]), short.mask)
    torch.testing.assert_close(gpt(tokens[:, :-1], long, null), gpt(tokens[:, :-1], short, null))
    as_condition = Condition(
        gpt.null_prefix.detach().expand(2, P, E), torch.ones(2, P, dtype=torch.bool)
    )
    torch.testing.assert_close(
        gpt(tokens[:, :-1], as_condition)[0], gpt(tokens[:, :-1], long, null)[0]
    )


def test_dropout_rate_is_observed_and_repeats_with_the_generator():
    gpt = _gpt(condition_dropout=0.1)
    drops = gpt.drop_rows(20_000, torch.Generator().manual_seed(0))
    assert drops.dtype == torch.bool and abs(drops.double().mean() - 0.1) < 0.01
    assert torch.equal(drops, gpt.drop_rows(20_000, torch.Generator().manual_seed(0)))
    assert not _gpt(condition_dropout=0.0).drop_rows(1000, torch.Generator().manual_seed(0)).any()


def test_forward_draws_nothing():
    gpt, tokens, condition = _gpt(), _tokens(), _condition()
    state = torch.get_rng_state()
    assert torch.equal(gpt(tokens[:, :-1], condition), gpt(tokens[:, :-1], condition))
    assert torch.equal(torch.get_rng_state(), state)


def test_bfloat16_autocast_is_close_and_keeps_the_state_in_float32():
    gpt, tokens, condition = _gpt(), _tokens(), _condition()
    gpt.float().init_weights(torch.Generator().manual_seed(0))
    exact = gpt(tokens[:, :-1], condition)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = gpt(tokens[:, :-1], condition)
        logits, cache = gpt.prefill(condition, tokens[:, :3])
        decoded = gpt.decode(tokens[:, 3], cache)
    assert (rounded.float() - exact).norm() < 0.03 * exact.norm()
    for got, i in ((logits, 3), (decoded, 4)):
        assert got.dtype == torch.float32
        assert (got - exact[:, i]).norm() < 0.03 * exact[:, i].norm()
    assert [c.state.dtype for c in cache.layers if isinstance(c, StateCache)] == [torch.float32] * 3
    assert [c.keys.dtype for c in cache.layers if isinstance(c, KVCache)] == [torch.bfloat16]


@pytest.mark.parametrize("n", [1, 3])
def test_init_follows_its_table(n):
    gpt = GPT(
        GPTConfig(
            num_layers=8,
            width=192,
            num_heads=4,
            grid_size=2,
            codebook_size=256,
            condition_tokens=8,
            condition_width=64,
            tokens_per_step=n,
        )
    )
    gpt.init_weights(torch.Generator().manual_seed(0))
    for name, parameter in gpt.named_parameters():
        if "norm" in name or "gain" in name:
            assert (parameter == 1).all(), name
            continue
        if name.startswith("position_embedding."):
            assert (parameter == 0).all(), name
            continue
        expected = 0.02 / 4 if name.endswith(("attention.o.weight", ".down.weight")) else 0.02
        if name == "merge.weight" or name.startswith("cell_head.before."):
            expected = parameter.shape[1] ** -0.5
        assert abs(parameter.std() / expected - 1) < 0.15, name
    if gpt.merge is not None and gpt.cell_head is not None:
        # A merged step is as large as a token, and so is a token that the head knows.
        tokens = gpt.token_embedding(torch.randint(256, (500, 3)))
        for made in (gpt.merge(tokens.flatten(1)), gpt.cell_head.before[1](tokens[:, 1])):
            assert abs(made.std() / 0.02 - 1) < 0.1
    copy = GPT(gpt.config)
    copy.init_weights(torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(gpt.parameters(), copy.parameters(), strict=True))


def test_parameter_count_and_layer_pattern():
    gpt = _gpt(layer_pattern="LLLF", num_layers=6)
    assert [isinstance(b.attention, LinearAttention) for b in gpt.blocks] == [
        True,
        True,
        True,
        False,
        True,
        True,
    ]
    w = 24
    block = 4 * w * w + 3 * w * mlp_width(w) + 2 * w + 2 * 12  # with q and k gains of head width 12
    inner = 6 * block + 5 * (w * w + 12) + E * w + w * w + w
    places = (2 + 2 + 3) * w  # rows, columns, planes
    assert gpt.num_parameters(embeddings=False) == inner
    assert gpt.num_parameters() == inner + 2 * V * w + P * E + places
    assert (
        _gpt(layer_pattern="LLLF", num_layers=6, absolute_positions=False).num_parameters()
        == inner + 2 * V * w + P * E
    )
    assert all(s.is_floating_point() for s in gpt.state_dict().values())


@pytest.mark.parametrize(("width", "hidden"), [(192, 512), (768, 2048), (1024, 2752), (1280, 3456)])
def test_mlp_width(width, hidden):
    assert mlp_width(width) == hidden


def test_without_a_gate_a_linear_layer_has_one_matrix_less():
    assert (
        _gpt(layer_pattern="L").num_parameters()
        - _gpt(layer_pattern="L", linear_gate=False).num_parameters()
        == 4 * 24**2
    )


def test_cells_are_a_third_of_the_positions_and_of_the_cache():
    condition = _condition(FULL)
    one, three = (
        _gpt(layer_pattern="F", tokens_per_step=n).prefill(condition)[1].layers[0].keys
        for n in (1, 3)
    )
    assert (one.shape[2], three.shape[2]) == (P + T - 1, P + T // 3 - 1)
    with pytest.raises(ValueError, match="tokens_per_step is 2, allowed are 1 and 3"):
        GPTConfig(tokens_per_step=2)


@token_or_cell
def test_decoding_stops_at_the_last_token(n):
    gpt, tokens, condition = _gpt(tokens_per_step=n), _tokens(), _condition()
    _, cache = gpt.prefill(condition, tokens[:, :-1])
    with pytest.raises(ValueError, match="already predicted"):
        gpt.decode(tokens[:, -1], cache)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: g(_tokens(), _condition()), r"pass tokens\[:, :-1\]"),
        (lambda g: g(_tokens(2)[:, :-1], _condition()), "as many rows"),
        (lambda g: g(_tokens(3)[:, 0], _condition()), "as many rows"),
        (lambda g: g.prefill(_condition(), _tokens(3)[:, 0]), "as many rows"),
        (lambda g: g(None, _condition(("xx....", "......"))), "no valid prefix position"),
        (lambda g: g(None, _condition(("x" * 7,))), "at most 6"),
        (
            lambda g: g(None, Condition(torch.zeros(1, 2, 9), torch.ones(1, 2, dtype=torch.bool))),
            "9 wide, this GPT takes 5",
        ),
        (lambda g: g(None, _condition(), torch.tensor([True])), r"\(3,\) bool"),
    ],
)
def test_bad_inputs_are_refused_with_a_remedy(call, message):
    with pytest.raises(ValueError, match=message):
        call(_gpt())


def test_sizes_by_name():
    for name, (layers, width, heads) in GPT_SIZES.items():
        config = gpt_config(name, grid_size=8)
        assert (config.num_layers, config.width, config.num_heads, config.num_tokens) == (
            layers,
            width,
            heads,
            192,
        )
    with pytest.raises(ValueError, match="GPT-tiny, GPT-B"):
        gpt_config("GPT-S")
    with pytest.raises(ValueError, match="gridsize: no such field"):
        gpt_config("GPT-B", gridsize=3)
    with pytest.raises(ValueError, match="even number"):
        GPTConfig(width=36, num_heads=12)


def test_start_from_codes_gives_near_codes_near_embeddings_and_logits():
    gpt = GPT(
        GPTConfig(
            num_layers=1,
            width=64,
            num_heads=2,
            grid_size=2,
            codebook_size=3,
            condition_tokens=1,
            condition_width=4,
        )
    )
    codes = torch.tensor([[1.0, 0.0, 0.0], [0.99, 0.14, 0.0], [-1.0, 0.0, 0.0]])
    gpt.start_from_codes(codes, torch.Generator().manual_seed(0))
    for table in (gpt.token_embedding.weight, gpt.head.weight):
        similarity = torch.nn.functional.cosine_similarity(table[:1], table)
        assert similarity[1] > 0.9 and similarity[2] < -0.99
        assert 0.5 * INIT_STD < table.std() < 2 * INIT_STD
    assert not torch.equal(gpt.token_embedding.weight, gpt.head.weight)


@pytest.mark.parametrize("mask", [FULL, ("xx....", ".xx.xx", "xxxxxx")], ids=["full", "ragged"])
def test_a_hint_goes_to_the_position_that_predicts_its_token_and_to_none_before(mask):
    gpt, tokens, condition = (
        _gpt(layer_pattern="LF", code_predictor_dim=3),
        _tokens(),
        _condition(mask),
    )
    before = gpt(tokens[:, :-1], condition)
    with torch.no_grad():
        gpt.code_predictor.mlp[-1].bias.view(T, 3)[5] += (
            1.0  # the prediction for token 5 of every row
        )
    after = gpt(tokens[:, :-1], condition)
    assert torch.equal(before[:, :5], after[:, :5])
    assert (before[:, 5] - after[:, 5]).abs().amax(-1).min() > 1e-3


def test_how_long_a_prediction_is_does_not_matter():
    """Its loss is a cosine: trained alone it grows to any length, and hints as long would drown the
    tokens."""
    tokens, condition, gpt = (
        _tokens(),
        _condition(FULL),
        _gpt(layer_pattern="LF", code_predictor_dim=3),
    )
    before = gpt(tokens[:, :-1], condition)
    for longer, same in (
        (30.0, True),
        (-30.0, False),
    ):  # turned round they are other predictions, and those matter
        with torch.no_grad():
            for parameter in gpt.code_predictor.mlp[-1].parameters():
                parameter *= longer
        moved = float((before - gpt(tokens[:, :-1], condition)).abs().max())
        assert moved < 1e-5 if same else moved > 1e-2


@token_or_cell
@pytest.mark.parametrize("code_predictor", [0, 3], ids=["plain", "code_predictor"])
def test_full_prefixes_may_be_packed_like_those_of_different_length(monkeypatch, n, code_predictor):
    """As a training step on a GPU does, which does not wait for the lengths."""
    gpt = _gpt(code_predictor_dim=code_predictor, tokens_per_step=n)
    tokens, condition = _tokens(), _condition(FULL)
    expected = gpt(tokens[:, :-1], condition)
    monkeypatch.setattr("tar3d.gpt.model.all_full", lambda *_: False)
    torch.testing.assert_close(gpt(tokens[:, :-1], condition), expected)


@pytest.mark.parametrize("chosen", ["float32", "autocast"])
def test_layers_add_to_a_sum_of_the_chosen_dtype_in_training_alone(chosen):
    gpt = _gpt(residual_dtype=chosen).float()
    tokens, condition = _tokens(), Condition.of(_condition(FULL).embeddings.float())
    plain, seen = gpt.hidden(tokens[:, :-1], condition), []
    for block in gpt.blocks:
        block.register_forward_hook(lambda _, inputs, output: seen.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        hidden = gpt.hidden(tokens[:, :-1], condition)
        hidden.sum().backward()
        gpt.prefill(condition)[0].sum()
    assert set(seen) == {torch.bfloat16 if chosen == "autocast" else torch.float32}
    assert hidden.dtype == torch.float32 and (hidden - plain).norm() < 0.1 * plain.norm()
    seen.clear()
    assert torch.equal(gpt.hidden(tokens[:, :-1], condition), plain)
    assert set(seen) == {torch.float32}
