import math

import pytest
import torch

from tar3d.tokenizer.loss import intersection_over_union, tokenizer_loss

LOGITS = torch.tensor([[0.0, math.log(3.0), -math.log(3.0), 0.0]])
INSIDE = torch.tensor([[True, True, True, False]])
IS_NEAR = torch.tensor([[False, False, True, True]])
COMMITMENT = torch.tensor(0.5)


def test_volume_and_near_points_are_averaged_apart():
    loss = tokenizer_loss(
        LOGITS, INSIDE, IS_NEAR, COMMITMENT, near_weight=0.1, commitment_weight=0.25
    )
    volume = (math.log(2) + math.log(4 / 3)) / 2  # -log sigmoid(0), -log sigmoid(log 3)
    near = (math.log(4) + math.log(2)) / 2
    assert loss.volume.item() == pytest.approx(volume, rel=1e-5)
    assert loss.near.item() == pytest.approx(near, rel=1e-5)
    assert loss.total.item() == pytest.approx(volume + 0.1 * near + 0.25 * 0.5, rel=1e-5)


def test_more_near_points_do_not_change_the_balance():
    once = tokenizer_loss(
        LOGITS, INSIDE, IS_NEAR, COMMITMENT, near_weight=0.1, commitment_weight=0.25
    )
    more = [torch.cat([t, t[:, 2:], t[:, 2:]], dim=1) for t in (LOGITS, INSIDE, IS_NEAR)]
    crowded = tokenizer_loss(*more, COMMITMENT, near_weight=0.1, commitment_weight=0.25)
    assert crowded.total.item() == pytest.approx(once.total.item(), rel=1e-5)


def test_without_near_points_only_the_volume_counts():
    loss = tokenizer_loss(
        LOGITS,
        INSIDE,
        torch.zeros_like(IS_NEAR),
        COMMITMENT,
        near_weight=0.1,
        commitment_weight=0.0,
    )
    assert loss.near.item() == 0.0 and torch.isfinite(loss.total) and loss.total == loss.volume


def test_gradient_pushes_logits_towards_the_labels():
    logits = LOGITS.clone().requires_grad_()
    tokenizer_loss(
        logits, INSIDE, IS_NEAR, COMMITMENT, near_weight=1.0, commitment_weight=0.0
    ).total.backward()
    assert torch.equal(logits.grad < 0, INSIDE)


def test_iou_by_hand():
    logits = torch.tensor([[1.0, 1.0, -1.0, -1.0, 1.0], [-1.0] * 5, [1.0] * 5])
    inside = torch.tensor([[True, False, True, False, True], [False] * 5, [True] * 5])
    everywhere = torch.ones_like(inside)
    assert intersection_over_union(logits, inside, everywhere).tolist() == pytest.approx(
        [0.5, 1.0, 1.0]
    )
    only = torch.tensor([[True, True, False, False, True]] * 3)
    assert intersection_over_union(logits, inside, only).tolist() == pytest.approx(
        [2 / 3, 1.0, 1.0]
    )
