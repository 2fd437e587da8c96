import math

import pytest
import torch
import torch.nn.functional as F

from tar3d.config import GPTConfig, OptimConfig, SamplingConfig
from tar3d.contracts import Condition
from tar3d.gpt.generate import generate
from tar3d.gpt.model import GPT
from tar3d.optim.groups import build_optimizers

P, E, V, GRID = 5, 8, 16, 2
T = 3 * GRID**2
GREEDY = SamplingConfig(temperature=0)


def _gpt(seed: int = 0, **options) -> GPT:
    gpt = GPT(
        GPTConfig(
            num_layers=4,
            width=32,
            num_heads=2,
            grid_size=GRID,
            codebook_size=V,
            condition_tokens=P,
            condition_width=E,
            chunk_size=4,
            **options,
        )
    )
    gpt.init_weights(torch.Generator().manual_seed(seed))
    return gpt


def _condition(lengths: tuple[int, ...] = (P, 2, 4, P)) -> Condition:
    embeddings = torch.randn(len(lengths), P, E, generator=torch.Generator().manual_seed(1))
    return Condition(embeddings, torch.arange(P) < torch.tensor(lengths)[:, None])


@pytest.fixture(scope="module")
def overfitted() -> tuple[GPT, Condition, torch.Tensor]:
    """A GPT that has seen four random sequences, each with its own condition, and the null prefix
    in between."""
    gpt, condition = _gpt(), _condition()
    tokens = torch.randint(V, (4, T), generator=torch.Generator().manual_seed(2))
    optimizers = [
        o
        for o in build_optimizers(gpt, OptimConfig(muon_lr=5e-3, adamw_lr=5e-3, weight_decay=0.0))
        if o
    ]
    generator = torch.Generator().manual_seed(3)
    for _ in range(150):
        logits = gpt(tokens[:, :-1], condition, gpt.drop_rows(4, generator))
        F.cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return gpt, condition, tokens


@torch.no_grad()
def _nll(
    gpt: GPT, tokens: torch.Tensor, condition: Condition, dropped: torch.Tensor | None = None
) -> float:
    return float(
        F.cross_entropy(gpt(tokens[:, :-1], condition, dropped).flatten(0, 1), tokens.flatten())
    )


def test_overfits_four_sequences_and_regenerates_them_greedily(overfitted):
    gpt, condition, tokens = overfitted
    assert _nll(gpt, tokens, condition) < 0.1
    assert torch.equal(generate(gpt, condition, GREEDY, [0] * 4).ids, tokens)


def test_the_condition_matters_after_training(overfitted):
    gpt, condition, tokens = overfitted
    shuffled = Condition(condition.embeddings.roll(1, 0), condition.mask.roll(1, 0))
    right, wrong = _nll(gpt, tokens, condition), _nll(gpt, tokens, shuffled)
    null = _nll(gpt, tokens, condition, torch.ones(4, dtype=torch.bool))
    assert right + 0.5 < wrong
    assert (
        math.log(4) / T < null < wrong
    )  # without a condition four sequences cost at least ln 4 in all
    assert not torch.equal(generate(gpt, shuffled, GREEDY, [0] * 4).ids, tokens)


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_guidance_equals_full_forwards_without_a_cache(overfitted, scale):
    gpt, condition, _ = overfitted
    null = torch.ones(4, dtype=torch.bool)
    ids = torch.empty(4, 0, dtype=torch.int64)
    with torch.no_grad():
        for _ in range(T):
            conditional, free = gpt(ids, condition)[:, -1], gpt(ids, condition, null)[:, -1]
            logits = free + scale * (conditional - free)
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
    assert torch.equal(
        generate(gpt, condition, SamplingConfig(temperature=0, cfg_scale=scale), [0] * 4).ids, ids
    )


def test_without_guidance_the_null_prefix_plays_no_part():
    gpt, condition = _gpt(), _condition()
    before = generate(gpt, condition, SamplingConfig(), [1, 2, 3, 4]).ids
    with torch.no_grad():
        gpt.null_prefix.fill_(torch.nan)
    assert torch.equal(generate(gpt, condition, SamplingConfig(), [1, 2, 3, 4]).ids, before)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_an_item_depends_on_its_seed_and_condition_alone(scale):
    gpt, condition, sampling = _gpt(), _condition(), SamplingConfig(top_p=0.9, cfg_scale=scale)
    together = generate(gpt, condition, sampling, [5, 6, 7, 8]).ids
    assert torch.equal(generate(gpt, condition, sampling, [5, 6, 7, 8]).ids, together)
    for row in (1, 3):
        alone = Condition(condition.embeddings[row : row + 1], condition.mask[row : row + 1])
        assert torch.equal(generate(gpt, alone, sampling, [5 + row]).ids, together[row : row + 1])
        assert not torch.equal(
            generate(gpt, alone, sampling, [50 + row]).ids, together[row : row + 1]
        )


def test_makes_exactly_all_tokens_and_reports_them():
    for n in (1, 3):
        reports = []
        tokens = generate(
            _gpt(tokens_per_step=n),
            _condition((3,)),
            SamplingConfig(),
            [0],
            progress=lambda done, total, to=reports: to.append((done, total)),
        )
        assert tokens.ids.shape == (1, T) and tokens.ids.min() >= 0 and tokens.ids.max() < V
        assert reports == [(i, T) for i in range(n, T + 1, n)]


def test_the_tokens_may_be_trained_on():
    gpt, condition = _gpt(), _condition()
    ids = generate(gpt, condition, GREEDY, [0] * 4).ids
    gpt(ids[:, :-1], condition).sum().backward()
    assert gpt.token_embedding.weight.grad is not None


def test_each_row_needs_a_seed():
    with pytest.raises(ValueError, match="3 seeds for 4 condition rows"):
        generate(_gpt(), _condition(), GREEDY, [0, 1, 2])


def test_the_code_predictor_scale_moves_tokens_towards_the_codes_that_the_code_predictor_predicts():
    gpt, condition = _gpt(code_predictor_dim=3), _condition()
    codes = F.normalize(torch.randn(V, 3, generator=torch.Generator().manual_seed(4)), dim=-1)
    nearest = (gpt.code_predictor(condition.embeddings, condition.mask) @ codes.T).argmax(-1)
    agreement = [
        float(
            (
                generate(
                    gpt, condition, SamplingConfig(code_predictor_scale=scale), [0] * 4, codes=codes
                ).ids
                == nearest
            )
            .float()
            .mean()
        )
        for scale in (0.0, 5.0, 1e6)
    ]
    assert agreement[0] < agreement[1] < agreement[2] == 1.0
    guided = SamplingConfig(code_predictor_scale=1e6, cfg_scale=3.0)
    assert torch.equal(generate(gpt, condition, guided, [0] * 4, codes=codes).ids, nearest)


def test_a_code_predictor_scale_needs_a_code_predictor_and_its_codes():
    with pytest.raises(
        ValueError, match="code_predictor_scale is 2, but this GPT has no code predictor"
    ):
        generate(
            _gpt(),
            _condition(),
            SamplingConfig(code_predictor_scale=2.0),
            [0] * 4,
            codes=torch.randn(V, 3),
        )
    with pytest.raises(ValueError, match="code_predictor_scale is 2, but the codes are missing"):
        generate(
            _gpt(code_predictor_dim=3),
            _condition(),
            SamplingConfig(code_predictor_scale=2.0),
            [0] * 4,
        )
