"""Soft targets and samples of the GPT itself in its loss."""

import pytest
import torch
from script_runs import code_predictor_objective, random_rows

from tar3d import checkpoint
from tar3d.config import GPTRunConfig, load
from tar3d.gpt.loss import cross_entropy
from tar3d.training.gpt_data import token_noise
from tar3d.training.gpt_objective import GPTObjective

ROWS = 2


@pytest.fixture(scope="module")
def vqvae(vqvae_run):
    return checkpoint.load_tokenizer(vqvae_run / "model")


def new_objective(vqvae, *overrides: str) -> tuple[GPTObjective, dict]:
    """An objective, and the arguments of its `forward` for two rows."""
    config, objective = code_predictor_objective(vqvae, *overrides)
    torch.manual_seed(1)
    batch = random_rows(config, ROWS)
    given = {
        "tokens": batch["tokens"],
        "inputs": batch["tokens"][:, :-1],
        "condition_inputs": batch["condition"],
        "dropped": torch.tensor([False, True]),
    }
    return objective, given


def gradients(objective: GPTObjective, **given) -> dict[str, torch.Tensor]:
    objective.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        losses = objective(**given)
    objective.total(losses).backward()
    return {n: p.grad.clone() for n, p in objective.named_parameters() if p.grad is not None}


def test_soft_targets_are_minimised_and_the_nll_of_the_tokens_is_reported(vqvae):
    plain, given = new_objective(vqvae)
    soft, _ = new_objective(vqvae, "train.target_codes=4", "train.target_temperature=0.5")
    latents = vqvae.quantizer.codebook[given["tokens"]]
    losses, hard = soft(**given, latents=latents), plain(**given)
    assert torch.equal(losses["nll"], hard["nll"]) and not losses["nll"].requires_grad
    assert list(losses) == ["soft_nll", "nll", "code_distance"]
    expected = losses["soft_nll"] + soft.weights["code_distance"] * losses["code_distance"]
    assert torch.equal(soft.total(losses), expected) and losses["soft_nll"] != losses["nll"]
    # Latents of other codes are other targets: each latent is that of its own token, in any order.
    cold, _ = new_objective(
        vqvae, "train.target_codes=4", "train.target_temperature=1e-5", "gpt.token_order=planes"
    )
    losses = cold(**given, latents=latents)
    torch.testing.assert_close(losses["soft_nll"].detach(), losses["nll"])


def test_own_samples_replace_inputs_and_leave_no_trace_in_the_gradient(vqvae):
    """Where no token is replaced, a step is as without the pass that samples, autocast included."""
    objective, given = new_objective(
        vqvae, "train.token_noise=0.5", "train.token_noise_kind=own", "gpt.token_order=planes"
    )
    none = torch.full(given["inputs"].shape, -1.0)
    without = gradients(objective, **given)
    with_none = gradients(objective, **given, draws=none)
    assert without.keys() == with_none.keys()
    assert all(torch.equal(without[name], with_none[name]) for name in without)
    draws = none.clone()
    draws[0, 3] = 0.5
    losses = objective(**given, draws=draws)
    gpt = objective.model.gpt
    prefix = objective.model.condition(given["condition_inputs"], ROWS)
    ordered = gpt.to_model_order(given["tokens"])
    place = int((gpt.permutation == 3).nonzero())
    logits = gpt(ordered[:, :-1], prefix, given["dropped"])[0, place]
    reached = logits.softmax(0).cumsum(0)
    inputs = ordered[:, :-1].clone()
    inputs[0, place] = int((reached <= 0.5 * reached[-1]).sum())
    assert not torch.equal(inputs, ordered[:, :-1])
    expected = cross_entropy(gpt.hidden(inputs, prefix, given["dropped"]), gpt.head.weight, ordered)
    torch.testing.assert_close(losses["nll"], expected)
    assert objective.flops(4, 0) > new_objective(vqvae)[0].flops(4, 0)


def test_a_configuration_chooses_the_noise(vqvae):
    kinds = {}
    for kind in ("uniform", "neighbours", "own"):
        chosen = ["train.token_noise=0.2", f"train.token_noise_kind={kind}"]
        config = load(GPTRunConfig, None, chosen)
        kinds[kind] = token_noise(config.train, vqvae)
    assert kinds["uniform"].neighbours is None and not kinds["uniform"].own
    assert kinds["neighbours"].neighbours.shape == (len(vqvae.quantizer.codebook), 16)
    assert kinds["own"].own and kinds["own"].neighbours is None
    with pytest.raises(ValueError, match="token_noise_kind is 'any', allowed are uniform, neigh"):
        load(GPTRunConfig, None, ["train.token_noise_kind=any"])
    with pytest.raises(ValueError, match="kind is own, but train.token_noise is 0, so no token"):
        load(GPTRunConfig, None, ["train.token_noise_kind=own"])
