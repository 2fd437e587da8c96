"""The draw of a token as one Triton kernel, for `tar3d.gpt.decode_triton`.

`decode_ops.draw_token`, and with it `sampling.sample`, is what it means. A program holds the logits
of one item: temperature, filters, sum and draw are passes over its registers, so that an item's
tokens cannot depend on its batch mates. Where the plain form sorts, this one searches the bits of
the least probability that is kept; where that cumulates all codes in float64, this one cumulates
float32 sums of 128 codes each, then the codes of one. The token is the same unless the draw is
within 1e-6 of the end of a token's part of [0, 1), or what a filter compares with its limit is
within 1e-6 of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from tar3d.gpt import decode_ops
from tar3d.gpt.sampling import MASS_TOLERANCE
from tar3d.gpt.triton_inputs import OPTIONS, check

if TYPE_CHECKING:
    from tar3d.config import SamplingConfig

MOST_CODES = 1 << 15  # that the registers of one program hold; larger codebooks take the plain form
LANES = 128  # codes that are summed before the rest is cumulated
CODES_A_WARP = 1024
LEAST_MASS = 1e-30  # a `top_p` below the tolerance keeps the best token


def draw_token(
    logits: Tensor,
    sampling: SamplingConfig,
    draws: Tensor,
    position: Tensor,
    logit_sums: Tensor,
    ids: Tensor,
) -> Tensor:
    """Draws the tokens (B,) int64 of `position` (1,) from logits (B, V) float32.

    They are decided by draws (B, T) float32 in [0, 1), and stored in ids (B, T) int64; the sum of
    the logits is added to logit_sums (B,) float32. Logits that are not finite give token 0.
    """
    B, V = logits.shape
    if V > MOST_CODES:
        return decode_ops.draw_token(logits, sampling, draws, position, logit_sums, ids)
    check(logits, draws, position, logit_sums, ids)
    if draws.shape != ids.shape or len(ids) != B or logit_sums.shape != (B,):
        raise ValueError(
            f"logits {tuple(logits.shape)}, draws {tuple(draws.shape)}, sums "
            f"{tuple(logit_sums.shape)} and ids {tuple(ids.shape)} do not belong together"
        )
    token = torch.empty(B, dtype=torch.int64, device=logits.device)
    codes = max(2 * LANES, triton.next_power_of_2(V))
    _draw_kernel[B,](
        logits,
        draws,
        position,
        logit_sums,
        ids,
        token,
        V,
        ids.shape[1],
        float(sampling.temperature),
        float(sampling.top_k),
        max(sampling.top_p - MASS_TOLERANCE, LEAST_MASS),
        float(sampling.min_p),
        GREEDY=sampling.temperature == 0,
        TOP_K=sampling.top_k > 0,
        TOP_P=sampling.top_p < 1,
        MIN_P=sampling.min_p > 0,
        GROUPS=codes // LANES,
        LANES=LANES,
        num_warps=max(1, min(32, codes // CODES_A_WARP)),
        **OPTIONS,
    )
    return token


@triton.jit
# longer than 60 lines: a kernel is one function
def _draw_kernel(  # noqa: PLR0913  arguments of a launch
    logits_ptr,
    draws_ptr,
    position_ptr,
    sums_ptr,
    ids_ptr,
    token_ptr,
    num_codes,
    num_tokens,
    temperature,
    top_k,
    top_p,
    min_p,
    GREEDY: tl.constexpr,
    TOP_K: tl.constexpr,
    TOP_P: tl.constexpr,
    MIN_P: tl.constexpr,
    GROUPS: tl.constexpr,
    LANES: tl.constexpr,
):
    """The token of one item: GROUPS groups of LANES codes."""
    item = tl.program_id(0).to(tl.int64)
    group, lane = tl.arange(0, GROUPS), tl.arange(0, LANES)
    code = group[:, None] * LANES + lane[None, :]
    inside = code < num_codes
    logit = tl.load(logits_ptr + item * num_codes + code, mask=inside, other=0.0)
    place = item * num_tokens + tl.load(position_ptr)
    tl.store(sums_ptr + item, tl.load(sums_ptr + item) + tl.sum(logit))
    logit = tl.where(inside, logit, float("-inf"))
    if GREEDY:
        best = tl.max(logit)
        token = tl.min(tl.where(logit == best, code, num_codes))
    else:
        draw = tl.load(draws_ptr + place)
        logit = tl.div_rn(logit, tl.zeros_like(logit) + temperature)  # rounded as PyTorch does
        best = tl.max(logit)
        mass = tl.exp(logit - best)  # of the best 1
        if TOP_K:
            mass = _best(mass, top_k, True)
        if TOP_P:
            mass = _best(mass, top_p * tl.sum(mass), False)
        if MIN_P:
            mass = tl.where(mass >= min_p, mass, 0.0)
        group_mass = tl.sum(mass, 1)
        reached = tl.cumsum(group_mass, 0)
        target = draw * tl.max(reached, 0)
        its_group = _first_past(reached, group_mass, target, group, GROUPS)
        before = tl.sum(tl.where(group == its_group - 1, reached, 0.0), 0)
        its_mass = tl.sum(tl.where((group == its_group)[:, None], mass, 0.0), 0)  # (LANES,)
        reached = before + tl.cumsum(its_mass, 0)
        token = its_group * LANES + _first_past(reached, its_mass, target, lane, LANES)
    token = tl.where(token < num_codes, token, 0).to(tl.int64)  # no code is the best of NaN
    tl.store(ids_ptr + place, token)
    tl.store(token_ptr + item, token)


@triton.jit
def _best(mass, enough, COUNT: tl.constexpr):
    """The mass of as few of the best codes as make up `enough`, 0 for the others.

    `enough` (more than 0) is a number of codes if COUNT, else a mass. Of equal codes the first are
    kept. Masses are from 0 to 1, where floats are in the order of their bits.
    """
    bits = mass.to(tl.int32, bitcast=True)
    weight = tl.full(mass.shape, 1.0, tl.float32) if COUNT else mass
    least = 0  # the most bits at which codes from there on make up enough: of the last one kept
    for k in range(30):
        higher = least | (1 << (29 - k))
        least = tl.where(tl.sum(tl.where(bits >= higher, weight, 0.0)) >= enough, higher, least)
    equal = (bits == least).to(tl.int32)
    in_group = tl.sum(equal, 1)
    mass = tl.where(bits >= least, mass, 0.0)
    if tl.sum(in_group, 0) > 1:
        above = tl.sum(tl.where(bits > least, weight, 0.0))
        rank = (tl.cumsum(in_group, 0) - in_group)[:, None] + tl.cumsum(equal, 1) - equal
        mass = tl.where((equal > 0) & (above + rank.to(tl.float32) * weight >= enough), 0.0, mass)
    return mass


@triton.jit
def _first_past(reached, mass, target, place, COUNT: tl.constexpr):
    """The first of COUNT places with a mass where what is `reached` is past the target.

    The last with a mass where rounding leaves none, and 0 where nothing has one.
    """
    first = tl.min(tl.where((reached > target) & (mass > 0), place, COUNT), 0)
    last = tl.max(tl.where(mass > 0, place, 0), 0)
    return tl.where(first < COUNT, first, last)
