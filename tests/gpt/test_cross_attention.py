"""Blocks that look at the prefix again: decoding, padding, guidance, gradients and cost."""

import pytest
import torch
from networks import draw_large_weights, small_gpt

from tar3d.config import GPTConfig, SamplingConfig
from tar3d.contracts import Condition
from tar3d.gpt.cross_attention import CrossBlock
from tar3d.gpt.engine import Engine
from tar3d.gpt.packed import fastest_backend
from tar3d.gpt.sampling import guide, sample, uniform_draws

T, B = 12, 3
MASKS = {"full": ("xxxxxx",) * B, "ragged": ("xx....", ".xx.xx", "xxxxxx")}
masks = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)


def new_gpt(**changes):
    return draw_large_weights(small_gpt(cross_attention=2, **changes).double()).eval()


def new_condition(mask) -> Condition:
    generator = torch.Generator().manual_seed(2)
    embeddings = torch.randn(B, 6, 5, generator=generator, dtype=torch.float64)
    return Condition(embeddings, torch.tensor([[c == "x" for c in row] for row in mask]))


def new_tokens() -> torch.Tensor:
    return torch.randint(11, (B, T), generator=torch.Generator().manual_seed(1))


@masks
@pytest.mark.parametrize("n", [1, 3])
def test_prefill_and_decode_are_the_full_forward(mask, n):
    gpt, tokens, condition = new_gpt(tokens_per_step=n), new_tokens(), new_condition(mask)
    assert [isinstance(block, CrossBlock) for block in gpt.blocks] == [False, True] * 2
    dropped = torch.tensor([False, True, False])
    full = gpt(tokens[:, :-1], condition, dropped)
    for split in (0, 4, T - 1):
        logits, cache = gpt.prefill(condition, tokens[:, :split], dropped)
        torch.testing.assert_close(logits, full[:, split].float(), rtol=1e-5, atol=1e-5)
        for i in range(split, T - 1):
            logits = gpt.decode(tokens[:, i], cache)
            torch.testing.assert_close(logits, full[:, i + 1].float(), rtol=1e-5, atol=1e-5)


def test_a_row_is_the_row_alone_and_padding_is_not_looked_at():
    gpt, tokens, condition = new_gpt(), new_tokens(), new_condition(MASKS["ragged"])
    together = gpt(tokens[:, :-1], condition)
    garbage = condition.embeddings.masked_fill(~condition.mask[..., None], torch.nan)
    assert torch.equal(gpt(tokens[:, :-1], Condition(garbage, condition.mask)), together)
    for row in range(B):
        valid = condition.mask[row]
        alone = Condition.of(condition.embeddings[row : row + 1, valid])
        torch.testing.assert_close(gpt(tokens[row : row + 1, :-1], alone)[0], together[row])


@masks
@pytest.mark.parametrize("scale", [1.0, 2.5], ids=["alone", "guided"])
def test_the_engine_draws_what_the_plain_calls_do(mask, scale):
    gpt, condition = new_gpt().float(), new_condition(mask)
    condition = Condition(condition.embeddings.float(), condition.mask)
    sampling, draws = SamplingConfig(top_p=0.9, cfg_scale=scale), uniform_draws([0, 1, 2], T)
    both = Condition(condition.embeddings.repeat(2, 1, 1), condition.mask.repeat(2, 1))
    with torch.inference_mode():
        logits, cache = gpt.prefill(both, null=torch.arange(2 * B) >= B)
        ids = []
        for i in range(T):
            if i:
                logits = gpt.decode(ids[-1].repeat(2), cache)
            conditional, null = logits.chunk(2)
            scores = guide(conditional, null, scale) if scale != 1 else conditional
            ids.append(sample(scores, sampling, draws[:, i]))
        assert torch.equal(Engine(gpt).run(condition, sampling, draws), torch.stack(ids, 1))
    for backend in ("compiled", "triton"):
        with pytest.raises(
            ValueError, match="CrossBlock has none of its own: choose plain or auto|CUDA"
        ):
            Engine(gpt, backend)


def test_auto_is_plain_on_a_gpu_too(monkeypatch):
    """Its layers have kernels, the block has not."""
    gpt, plain = small_gpt(cross_attention=2), small_gpt()
    for model in (gpt, plain):
        model.head.weight = torch.nn.Parameter(model.head.weight.detach())
    monkeypatch.setattr("tar3d.gpt.packed.kernel_fault", lambda *_: None)
    cuda = type("Weight", (), {"device": torch.device("cuda")})()
    for model, expected in ((plain, "triton"), (gpt, "plain")):
        del model.head.weight
        model.head.__dict__["weight"] = cuda
        assert fastest_backend(model, torch.bfloat16) == expected


def test_every_parameter_gets_a_gradient_and_the_cost_is_counted():
    gpt = new_gpt()
    dropped = torch.tensor([False, False, True])
    gpt(new_tokens()[:, :-1], new_condition(MASKS["full"]), dropped).square().mean().backward()
    assert not [name for name, p in gpt.named_parameters() if p.grad is None or not p.grad.any()]
    D, P, positions = 48, 6, 6 + T - 1
    cross = 2 * D * D * (positions + P) + 2 * positions * P * D
    assert gpt.flops(P, T) - small_gpt().flops(P, T) == 2 * 2 * cross


def test_more_than_the_layers_is_refused():
    with pytest.raises(ValueError, match="cross_attention 5 is more than the 4 layers"):
        GPTConfig(num_layers=4, cross_attention=5)
