"""The cross-entropy without logits against the plain one: value and gradients, in parts of any
size, with one or several codes a target, under autocast, and that no tensor of all positions x
codes is ever made."""

import pytest
import torch
import torch.nn.functional as F
from test_memory import Tensors
from torch._subclasses.fake_tensor import FakeTensorMode

from tar3d.config import GPTConfig
from tar3d.contracts import Condition
from tar3d.gpt import loss
from tar3d.gpt.loss import SoftTargets, cross_entropy, soft_cross_entropy, token_nll
from tar3d.gpt.model import GPT

B, T, D, V = 3, 17, 8, 29


def inputs(dtype=torch.float32, device="cpu", positions=(B, T), codes=V, width=D):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(*positions, width, generator=generator).to(device, dtype).requires_grad_()
    weight = torch.randn(codes, width, generator=generator).to(device, dtype).requires_grad_()
    return hidden, weight, torch.randint(codes, positions, generator=generator).to(device)


def plain(hidden, weight, targets):
    logits = F.linear(hidden, weight)
    return F.cross_entropy(
        logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32)), targets.flatten()
    )


@pytest.mark.parametrize("at_once", [1, 3 * V, 7 * V + 5, 1 << 24])
def test_value_and_gradients_are_the_plain_ones(monkeypatch, at_once):
    monkeypatch.setattr(loss, "LOGITS_AT_ONCE", at_once)
    results = []
    for form in (cross_entropy, plain):
        hidden, weight, targets = inputs(torch.float64)
        value = form(hidden, weight, targets)
        (3.0 * value).backward()  # as where a loss is one of several terms
        results.append((value.detach(), hidden.grad, weight.grad))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(token_nll(hidden, weight, targets).mean(), results[1][0])


def test_a_gpu_takes_more_logits_at_once(monkeypatch):
    """Parts of the positions are as equal as they can be, and no larger than the device takes."""
    monkeypatch.setattr(loss, "LOGITS_AT_ONCE", 8 * V)
    hidden, weight, _ = inputs(positions=(33,))
    assert [p.stop - p.start for p in loss._parts(hidden, weight)] == [6, 7, 6, 7, 7]
    with FakeTensorMode():
        hidden, weight = (torch.empty(x.shape, device="cuda") for x in (hidden, weight))
        assert [p.stop - p.start for p in loss._parts(hidden, weight)] == [16, 17]


def soft_targets(targets, count, codes=V):
    """The tokens and the codes after them, the weights random."""
    ids = (targets[..., None] + torch.arange(count)) % codes
    weights = torch.rand(ids.shape, generator=torch.Generator().manual_seed(1)).double()
    return SoftTargets(ids, weights / weights.sum(-1, keepdim=True))


@pytest.mark.parametrize("at_once", [3 * V, 1 << 24])
def test_soft_targets_are_class_probabilities(monkeypatch, at_once):
    monkeypatch.setattr(loss, "LOGITS_AT_ONCE", at_once)
    hidden, weight, targets = inputs(torch.float64)
    soft = soft_targets(targets, 5)
    value, nll = soft_cross_entropy(hidden, weight, soft)
    (3.0 * value + nll).backward()  # the NLL is reported and gives no gradient
    mine = value.detach(), nll, hidden.grad, weight.grad
    hidden, weight, _ = inputs(torch.float64)
    logits = F.linear(hidden, weight).flatten(0, 1)
    dense = torch.zeros_like(logits).scatter(1, soft.ids.flatten(0, 1), soft.weights.flatten(0, 1))
    value = F.cross_entropy(logits, dense)
    (3.0 * value).backward()
    nll = F.cross_entropy(logits, targets.flatten())
    for found, true in zip(mine, (value, nll, hidden.grad, weight.grad), strict=True):
        torch.testing.assert_close(found, true.detach(), rtol=1e-12, atol=1e-14)


def test_all_weight_on_the_token_is_the_plain_loss_to_the_bit():
    found = []
    for count in (0, 1, 4):
        hidden, weight, targets = inputs()
        soft = soft_targets(targets, count or 1)
        soft.weights.zero_()[..., 0] = 1
        form = cross_entropy(hidden, weight, targets)
        value, nll = soft_cross_entropy(hidden, weight, soft) if count else (form, form.detach())
        value.backward()
        found.append((value.detach(), nll, hidden.grad, weight.grad))
    for others in found[1:]:
        assert all(torch.equal(*pair) for pair in zip(found[0], others, strict=True))


DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


@DEVICES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_it_is_as_exact_as_the_plain_form(monkeypatch, device, dtype):
    monkeypatch.setattr(loss, "LOGITS_AT_ONCE", 4 * V)
    exact, results = None, []
    for form in (plain, plain, cross_entropy):
        hidden, weight, targets = inputs(device=device)
        with torch.autocast(device, dtype, enabled=exact is not None):
            value = form(hidden, weight, targets)
        value.backward()
        found = (value.detach(), hidden.grad, weight.grad)
        assert all(x.dtype == torch.float32 for x in found)
        exact = exact or found
        results.append(
            [
                float((mine - true).norm() / true.norm())
                for mine, true in zip(found, exact, strict=True)
            ]
        )
    for mine, theirs in zip(results[2], results[1], strict=True):
        assert mine < 1.3 * theirs + 1e-3


@DEVICES
@pytest.mark.parametrize("at_once", [1000 * 256, 1 << 24])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_float16_keeps_the_gradient_of_many_positions(monkeypatch, device, at_once, dtype):
    """Entries of softmax / N are too small for float16 here, and the loss scale comes too late to
    save them. Softmax rows sum to 1, so the gradient of the head sums to 0 over the codes."""
    monkeypatch.setattr(loss, "LOGITS_AT_ONCE", at_once)
    found = []
    for form, scale in ((plain, 1.0), (cross_entropy, 65536.0)):
        kind = dtype if form is cross_entropy else torch.float32
        hidden, weight, targets = inputs(kind, device, (16, 1000), 256, 8)
        with torch.autocast(device, torch.float16, enabled=form is cross_entropy):
            value = form(hidden, weight, targets)
        (scale * value).backward()
        found.append((value.detach(), hidden.grad.float() / scale, weight.grad.float() / scale))
    for true, mine in zip(*found, strict=True):
        assert (mine - true).norm() < 1e-3 * true.norm()
    gradient = found[1][2]
    assert gradient.sum(0).norm() < 1e-3 * gradient.norm()


def test_float16_sums_over_positions_stay_finite():
    """16,000 positions of one code, whose hidden states are alike: 65,504 is near."""
    hidden = torch.full((16_000, 4), 8.0, requires_grad=True)
    weight, targets = torch.zeros(8, 4, requires_grad=True), torch.zeros(16_000, dtype=torch.int64)
    with torch.autocast("cpu", torch.float16):
        cross_entropy(hidden, weight, targets).backward()
    torch.testing.assert_close(weight.grad[0], torch.full((4,), -7.0), rtol=1e-3, atol=0)


def test_each_gradient_alone():
    hidden, weight, targets = inputs()
    cross_entropy(hidden, weight.detach(), targets).backward()
    cross_entropy(hidden.detach(), weight, targets).backward()
    reference = inputs()
    plain(*reference).backward()
    torch.testing.assert_close(hidden.grad, reference[0].grad)
    torch.testing.assert_close(weight.grad, reference[1].grad)
    assert not cross_entropy(hidden.detach(), weight.detach(), targets).requires_grad


def test_in_a_gpt_it_is_the_loss_of_its_logits_and_no_tensor_holds_them_all(monkeypatch):
    positions, codes = 2 * 27, 1000
    gpt = GPT(
        GPTConfig(
            num_layers=1,
            width=16,
            num_heads=2,
            grid_size=3,
            codebook_size=codes,
            condition_tokens=2,
            condition_width=4,
        )
    )
    condition, tokens = Condition.of(torch.randn(2, 2, 4)), torch.randint(codes, (2, 27))
    logits = gpt(tokens[:, :-1], condition)
    expected = F.cross_entropy(logits.flatten(0, 1), tokens.flatten())
    expected.backward()
    gradients = [p.grad.clone() for p in gpt.parameters() if p.grad is not None]
    gpt.zero_grad()
    monkeypatch.setattr(loss, "LOGITS_AT_ONCE", 10 * codes)
    with Tensors(positions) as made:
        found = cross_entropy(gpt.hidden(tokens[:, :-1], condition), gpt.head.weight, tokens)
        found.backward()
    torch.testing.assert_close(found, expected)
    for mine, theirs in zip(
        (p.grad for p in gpt.parameters() if p.grad is not None), gradients, strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    assert made.largest < positions * codes * 4 / 2


@pytest.mark.parametrize(
    "shapes", [((2, 3, 4), (5, 4), (2, 4)), ((2, 3, 4), (5, 3), (2, 3)), ((0, 4), (5, 4), (0,))]
)
def test_shapes_that_do_not_fit_are_refused(shapes):
    hidden, weight, targets = (torch.zeros(shape) for shape in shapes)
    for form in (cross_entropy, token_nll):
        with pytest.raises(ValueError, match="hidden states .* at least one target"):
            form(hidden, weight, targets.long())
