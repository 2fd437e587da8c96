"""The codebook moves when it is told to and at no other time, and gradients pass it as if it were
not there."""

import itertools
import threading

import pytest
import torch

from tar3d.config import TokenizerConfig
from tar3d.tokenizer import ema_quantizer
from tar3d.tokenizer.ema_quantizer import (
    EMA_DECAY,
    EMAQuantizer,
    draw_without_replacement,
    normalize,
)
from tar3d.tokenizer.quantizer import codebook_usage


def quantizer(codes: int = 32, dim: int = 4) -> EMAQuantizer:
    torch.manual_seed(0)
    return EMAQuantizer(TokenizerConfig(codebook_size=codes, code_dim=dim))


def latents(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def state(q: EMAQuantizer) -> list[torch.Tensor]:
    return [q.codebook.clone(), q.ema_count.clone(), q.ema_sum.clone()]


def unmoved(q: EMAQuantizer, before: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(state(q), before, strict=True))


def test_indices_to_codes_to_indices_is_the_identity():
    q, ids = quantizer().eval(), torch.arange(32).view(2, 16)
    codes = q.lookup(ids)
    assert codes.shape == (2, 16, 4)
    assert torch.equal(q(codes).ids, ids)
    assert torch.equal(q(7.0 * codes).ids, ids)  # latents of any scale


def test_codes_are_the_nearest_in_cosine(monkeypatch):
    q, z = quantizer().eval(), latents(50, 4)
    similarity = normalize(z) @ q.codebook.T
    expected = torch.tensor([max(range(32), key=row.__getitem__) for row in similarity])
    assert torch.equal(q(z).ids, expected)
    monkeypatch.setattr(ema_quantizer, "CHUNK", 7)
    assert torch.equal(q(z).ids, expected)


@pytest.mark.parametrize("ids", [[-1, 3], [3, 32]])
def test_ids_outside_the_codebook_are_refused(ids):
    with pytest.raises(ValueError, match=r"leave the codebook 0\.\.31"):
        quantizer().lookup(torch.tensor(ids))


def test_forward_alone_never_moves_the_codebook():
    q = quantizer()
    before = state(q)
    for mode in (True, False):
        q.train(mode)
        q(latents(100, 4))
        assert unmoved(q, before)


def test_eval_leaves_nothing_for_the_next_step():
    q = quantizer().eval()
    q(latents(100, 4))
    with pytest.raises(RuntimeError, match="training mode"):
        q.step(generator())


def test_a_step_moves_once_whatever_the_number_of_forwards(monkeypatch):
    monkeypatch.setattr(
        ema_quantizer, "DEAD_BELOW", 0.0
    )  # what is revived depends on the draw, so nobody dies here
    z, whole, parts = latents(96, 4), quantizer(), quantizer()
    whole(z)
    for part in z.split(32):
        parts(part)
    assert whole.step(generator()) == parts.step(generator()) == 0
    for a, b in zip(state(whole), state(parts), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert not torch.allclose(whole.codebook, quantizer().codebook)
    with pytest.raises(RuntimeError):
        whole.step(generator())  # what was seen is used up


def test_a_step_is_the_moving_average(monkeypatch):
    monkeypatch.setattr(ema_quantizer, "DEAD_BELOW", 0.0)
    q, z = quantizer(), normalize(latents(200, 4))
    before = state(q)
    ids = q(z).ids
    q.step(generator())
    for code in range(32):
        mine = z[ids == code]
        count = EMA_DECAY * before[1][code] + (1 - EMA_DECAY) * len(mine)
        total = EMA_DECAY * before[2][code] + (1 - EMA_DECAY) * mine.sum(0)
        assert q.ema_count[code].item() == pytest.approx(count.item(), abs=1e-5)
        assert torch.allclose(q.ema_sum[code], total, atol=1e-5)
        assert torch.allclose(q.codebook[code], normalize(total), atol=1e-5)


def test_processes_that_share_a_batch_get_the_codebook_of_one():
    """Revived codes too: each process knows the latents of all, in the order of the batch."""
    z = normalize(latents(1, 4)).expand(6 * 16, 4) + 0.01 * latents(
        6 * 16, 4, seed=2
    )  # most codes are dead
    z = z.view(6, 16, 4)
    whole, halves, threads = quantizer(), [quantizer(), quantizer()], 2
    for q in (whole, *halves):
        q.ema_count[4:20], q.ema_sum[4:20] = 1e-6, q.codebook[4:20] * 1e-6
    whole(z)
    for q, part in zip(halves, z.chunk(2), strict=True):
        q(part)
    revived = whole.step(generator())
    barrier, shared = threading.Barrier(threads), {}

    def run(rank: int) -> None:
        calls = itertools.count()

        def gather(tensor: torch.Tensor) -> torch.Tensor:
            call = next(calls)
            shared[call, rank] = tensor.clone()
            barrier.wait(timeout=20)
            return torch.stack([shared[call, r] for r in range(threads)])

        shared["revived", rank] = halves[rank].step(generator(), gather)

    workers = [threading.Thread(target=run, args=(rank,)) for rank in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert revived >= 16 and [shared["revived", r] for r in range(threads)] == [revived] * 2
    for q in halves:
        assert all(
            torch.allclose(a, b, atol=1e-5) for a, b in zip(state(whole), state(q), strict=True)
        )


def test_dead_codes_are_revived_with_a_fresh_count_and_sum():
    q = quantizer()
    z = normalize(latents(1, 4)).expand(64, 4) + 0.01 * latents(
        64, 4, seed=2
    )  # all near one direction
    dead = torch.zeros(32, dtype=torch.bool)
    dead[5:9] = True
    q.ema_count[dead], q.ema_sum[dead] = 1e-6, q.codebook[dead] * 1e-6
    survivors = ~dead
    before = q.codebook[survivors].clone()
    q(z)
    assert q.step(generator()) == 4
    even = q.ema_count[survivors].sum() / 28  # of the codes that stayed
    assert (
        torch.allclose(q.ema_count[dead], q.ema_count[dead][:1].expand(4))
        and q.ema_count[dead][0] > 0.5 * even
    )
    assert torch.allclose(q.ema_sum[dead], q.codebook[dead] * q.ema_count[dead][:, None])
    distance = (normalize(z)[:, None] - q.codebook[dead][None]).norm(dim=-1).min(0).values
    assert distance.max() < 1e-6  # they sit on latents that were seen
    assert (q.codebook[survivors] - before).abs().max() < 0.5
    revived = q.codebook[dead].clone()
    q(z)
    q.step(generator())
    assert (q.codebook[dead] - revived).norm(
        dim=-1
    ).max() < 0.1  # the average does not drag them back


def near_first_code(q: EMAQuantizer, *shape: int, seed: int = 1) -> torch.Tensor:
    """Latents near the first code; all others are dead, and far from them."""
    if seed == 1:
        q.codebook[1:] = -q.codebook[0]
        q.ema_count[1:], q.ema_sum[1:] = 1e-6, q.codebook[1:] * 1e-6
    return normalize(q.codebook[0] + 0.1 * latents(*shape, 4, seed=seed))


@pytest.mark.parametrize("grid", [12, 16, 18, 20, 24, 32])
def test_dead_codes_come_back_from_everywhere_in_the_grid_and_no_two_on_one_latent(grid):
    q, shapes, tokens = quantizer(257), 3, 3 * grid**2
    z = near_first_code(q, shapes, tokens)
    q(z)
    assert q.step(generator()) == 256
    similarity, index = (q.codebook[1:] @ z.view(-1, 4).T).max(1)
    assert similarity.min() > 1 - 1e-5 and len(index.unique()) == 256
    token = index % tokens
    plane, row, column = token // grid**2, token // grid % grid, token % grid
    for place, count in ((plane, 3), (row, grid), (column, grid), (index // tokens, shapes)):
        assert len(place.unique()) == count
    assert torch.bincount(plane).min() > 60  # of 85 on average


def test_more_dead_codes_than_latents_wait_for_the_next_step():
    q = quantizer(64)
    for seed, revived in ((1, 25), (2, 25), (3, 13)):
        q(near_first_code(q, 25, seed=seed))
        assert q.step(generator()) == revived
    assert len(q.codebook.unique(dim=0)) == 64


def test_float32_under_autocast_and_finite_for_huge_latents():
    q = quantizer()
    z = latents(200, 4).to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        out, ids = q(z), q.nearest(normalize(z))
    plain = q(z.float())
    assert out.codes.dtype == out.commitment.dtype == torch.float32
    assert torch.equal(out.ids, plain.ids) and torch.equal(ids, plain.ids)
    huge = q(1e30 * latents(10, 4))
    assert torch.isfinite(huge.codes).all() and torch.isfinite(huge.commitment)
    zero = q(torch.zeros(3, 4))
    assert torch.isfinite(zero.codes).all() and torch.isfinite(zero.commitment)


def test_straight_through_gradient_is_the_identity():
    q, z = quantizer(), normalize(latents(20, 4)).requires_grad_()
    out = q(z)
    assert torch.allclose(out.codes, q.codebook[out.ids], atol=1e-6)
    weight = latents(20, 4, seed=3)
    tangent = (
        weight - (weight * z.detach()).sum(-1, keepdim=True) * z.detach()
    )  # normalising a unit vector keeps only this
    (gradient,) = torch.autograd.grad((out.codes * weight).sum(), z)
    assert torch.allclose(gradient, tangent, atol=1e-5)


def test_commitment_pulls_latents_to_their_codes_and_leaves_the_codebook_alone():
    q, z = quantizer(), normalize(latents(20, 4)).requires_grad_()
    out = q(z)
    expected = (z.detach() - q.codebook[out.ids]).square().sum(-1).mean()
    assert out.commitment.item() == pytest.approx(expected.item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(out.commitment, z)
    assert q(z - 0.5 * gradient).commitment < out.commitment
    assert not q.codebook.requires_grad and not list(q.parameters())


def error(q: EMAQuantizer, z: torch.Tensor) -> float:
    return (z - q.codebook[q.nearest(z)]).square().sum(-1).mean().item()


def test_kmeans_start_improves_the_quantization_error():
    q, z = (
        quantizer(),
        normalize(latents(40, 4)[:, None] + 0.05 * latents(40, 30, 4, seed=2)).reshape(-1, 4),
    )
    at_random = error(q, z)
    q.init_from_latents(z, generator(), iterations=1)
    once = error(q, z)
    q.init_from_latents(z, generator())
    assert error(q, z) < once < 0.5 * at_random
    assert torch.allclose(q.codebook.norm(dim=-1), torch.ones(32), atol=1e-5)
    assert torch.allclose(q.ema_sum, q.codebook * q.ema_count[:, None])
    assert q.ema_count.mean().item() == pytest.approx(1.0, rel=1e-4)


def test_kmeans_fills_codes_that_nothing_is_near():
    q, z = quantizer(8), normalize(torch.cat([latents(1, 4).expand(60, 4), latents(10, 4, seed=2)]))
    q.init_from_latents(z, generator(), iterations=5)
    assert torch.isfinite(q.codebook).all() and (q.ema_count > 0).all()


def test_rows_are_drawn_without_replacement():
    rows = torch.arange(40.0)[:, None]
    drawn = draw_without_replacement(rows, 30, generator())
    assert len(drawn.unique()) == 30 and not torch.equal(drawn, drawn.sort(0).values)
    assert torch.equal(draw_without_replacement(rows, 99, generator()).sort(0).values, rows)


def test_kmeans_refuses_too_few_latents():
    with pytest.raises(ValueError, match="at least 32 latents .* got 31"):
        quantizer().init_from_latents(latents(31, 4), generator())


def test_usage_and_perplexity_by_hand():
    assert codebook_usage(torch.tensor([5, 5, 5, 5])) == pytest.approx((1.0, 4.0))
    assert codebook_usage(torch.tensor([8, 0, 0, 0])) == pytest.approx((0.25, 1.0))
    usage, perplexity = codebook_usage(torch.tensor([2, 1, 1, 0]))
    assert usage == 0.75 and perplexity == pytest.approx(2**1.5)  # entropy 1.5 bits
    assert codebook_usage(torch.zeros(4, dtype=torch.int64)) == pytest.approx((0.0, 1.0))
