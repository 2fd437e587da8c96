"""The code predictor of a GPT, trained alone, with the layers, and under them."""

from __future__ import annotations

import math

import pytest
import torch
from run_files import rows
from script_runs import CODE_PREDICTOR, GPT, code_predictor_objective, random_rows, train_gpt_in
from torch.utils.flop_counter import FlopCounterMode

from tar3d import checkpoint
from tar3d import config as configuration
from tar3d.conditional_gpt import ConditionalGPT, load_gpt
from tar3d.config import GPTRunConfig
from tar3d.data.tokens.make_tokens import encoders_of
from tar3d.runtime import start_fabric
from tar3d.training.gpt_init import init_code_predictor_from
from tar3d.training.gpt_objective import CODE_PREDICTOR_STAGE


@pytest.mark.parametrize("local", [0, 3])
def test_the_code_predictor_loss_teaches_the_image_encoder_and_not_the_rest_of_the_gpt(
    vqvae_run, local
):
    config, objective = code_predictor_objective(
        checkpoint.load_tokenizer(vqvae_run / "model"), f"gpt.code_predictor_local={local}"
    )
    batch = random_rows(config, 5)
    tokens = batch["tokens"]
    losses = objective(tokens, tokens[:2, :-1], batch["condition"], torch.tensor([False, True]))
    assert losses["nll"].item() == pytest.approx(math.log(config.gpt.codebook_size), rel=0.1)
    losses["code_distance"].backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0
        for p in objective.model.conditioner.parameters()
    )
    touched = {name for name, p in objective.model.gpt.named_parameters() if p.grad is not None}
    expected = {
        f"code_predictor.mlp.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")
    }
    assert touched == expected | (
        {"code_predictor.local.weight", "code_predictor.local_norm.weight"} if local else set()
    )


def test_the_weight_counts_where_the_code_predictor_is_trained_alone(vqvae_run):
    vqvae = checkpoint.load_tokenizer(vqvae_run / "model")
    alone = "train.stage=code_predictor"
    for weight in (1.0, 0.25):
        weighted = f"train.code_predictor_weight={weight}"
        config, objective = code_predictor_objective(vqvae, alone, weighted)
        batch = random_rows(config, 2)
        tokens = batch["tokens"]
        losses = objective(tokens, tokens[:, :-1], batch["condition"], torch.tensor([False, True]))
        assert set(losses) == {"code_distance"}
        assert torch.equal(objective.total(losses), weight * losses["code_distance"])
    with pytest.raises(ValueError, match="nothing would be learnt: write train.code_predictor_w"):
        code_predictor_objective(vqvae, alone, "train.code_predictor_weight=0")


def test_the_code_predictor_is_trained_alone_and_a_gpt_goes_on_from_it(
    script_data, fabric, vqvae_run, tmp_path
):
    alone = [*CODE_PREDICTOR, "train.stage=code_predictor"]
    metrics = train_gpt_in(
        tmp_path / "code_predictor", script_data, fabric, vqvae_run / "model", alone
    )
    assert (
        set(metrics) == {"code_distance", "code_distance_shuffled"}
        and 0 < metrics["code_distance"] < 2
    )
    assert "nll" not in rows(tmp_path / "code_predictor" / "train.csv")[0]
    folder = tmp_path / "code_predictor" / "model" / "gpt_i23d"
    assert "not trained: go on" in (folder / "README.md").read_text()
    assert list((tmp_path / "code_predictor").glob("preview_*.png")) and not list(
        (tmp_path / "code_predictor").glob("nll_*.png")
    )
    trained = load_gpt(folder)
    torch.manual_seed(trained.config.train.seed)
    fresh = ConditionalGPT(trained.config, encoders_of(trained.config, script_data))
    codes = checkpoint.load_tokenizer(vqvae_run / "model").quantizer.codebook
    fresh.gpt.start_from_codes(codes, torch.Generator().manual_seed(0))
    before, after = fresh.state_dict(), trained.state_dict()
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert (
        all(name.startswith(("conditioner.", "gpt.code_predictor.")) for name in moved)
        and len(moved) > 4
    )

    _, objective = code_predictor_objective(
        checkpoint.load_tokenizer(vqvae_run / "model"),
        *CODE_PREDICTOR,
        "gpt.num_layers=3",
        "gpt.width=32",
    )
    anew = {name: value.clone() for name, value in objective.model.state_dict().items()}
    init_code_predictor_from(objective.model, str(folder))
    for name, value in objective.model.state_dict().items():
        assert torch.equal(
            value, (after if name.startswith(CODE_PREDICTOR_STAGE) else anew)[name]
        ), name
    _, without = code_predictor_objective(
        checkpoint.load_tokenizer(vqvae_run / "model"), "gpt.code_predictor_dim=0"
    )
    with pytest.raises(
        ValueError,
        match="has gpt.code_predictor_dim 4, but this GPT 0: write gpt.code_predictor_dim=4",
    ):
        init_code_predictor_from(without.model, str(folder))
    assert "nll" in train_gpt_in(
        tmp_path / "gpt",
        script_data,
        fabric,
        vqvae_run / "model",
        CODE_PREDICTOR,
        init_code_predictor=str(folder),
    )


def test_a_gpt_can_be_given_a_code_predictor_of_another_shape(
    script_data, fabric, vqvae_run, tmp_path, capsys
):
    """Layers from one model, encoders and code predictor from another."""
    still = ["optim.muon_lr=1e-9", "optim.adamw_lr=1e-9"]
    old, new, both = tmp_path / "old", tmp_path / "new", tmp_path / "both"
    train_gpt_in(
        old,
        script_data,
        fabric,
        vqvae_run / "model",
        [*CODE_PREDICTOR, "gpt.code_predictor_local=0", "gpt.code_predictor_hidden=9"],
    )
    given = str(old / "model" / "gpt_i23d")
    train_gpt_in(
        new,
        script_data,
        fabric,
        vqvae_run / "model",
        [*CODE_PREDICTOR, *still, "train.stage=code_predictor"],
        init=given,
    )
    assert "which start from scratch: the network of the code predictor" in capsys.readouterr().out
    code_predictor = str(new / "model" / "gpt_i23d")
    train_gpt_in(
        both,
        script_data,
        fabric,
        vqvae_run / "model",
        [*CODE_PREDICTOR, *still],
        init=given,
        init_code_predictor=code_predictor,
    )
    first, second, found = (
        load_gpt(folder).state_dict()
        for folder in (given, code_predictor, both / "model" / "gpt_i23d")
    )
    for name, value in found.items():
        expected = (second if name.startswith(CODE_PREDICTOR_STAGE) else first)[name]
        assert torch.allclose(value, expected, atol=1e-6), name


def test_a_gpt_without_a_code_predictor_goes_on_with_one_and_one_with_a_code_predictor_without(
    script_data, fabric, vqvae_run, tmp_path, capsys
):
    still = ["optim.muon_lr=1e-9", "optim.adamw_lr=1e-9"]
    train_gpt_in(tmp_path / "none", script_data, fabric, vqvae_run / "model", [])
    init = str(tmp_path / "none" / "model" / "gpt_i23d")
    train_gpt_in(
        tmp_path / "with",
        script_data,
        fabric,
        vqvae_run / "model",
        [*CODE_PREDICTOR, *still],
        init=init,
    )
    assert "which start from scratch: the code predictor" in capsys.readouterr().out
    init = str(tmp_path / "with" / "model" / "gpt_i23d")
    train_gpt_in(tmp_path / "again", script_data, fabric, vqvae_run / "model", still, init=init)
    assert "scratch" not in capsys.readouterr().out
    first, second, third = (
        load_gpt(tmp_path / name / "model" / "gpt_i23d").state_dict()
        for name in ("none", "with", "again")
    )
    assert first.keys() == third.keys() and {name for name in second if name not in first} == {
        name for name in second if name.startswith("gpt.code_predictor.")
    }
    for name, value in first.items():
        assert torch.allclose(second[name], value, atol=1e-6) and torch.allclose(
            third[name], value, atol=1e-6
        ), name


def test_the_layers_are_trained_on_a_code_predictor_that_stays_as_it_is(
    script_data, fabric, vqvae_run, tmp_path
):
    train_gpt_in(
        tmp_path / "code_predictor",
        script_data,
        fabric,
        vqvae_run / "model",
        [*CODE_PREDICTOR, "train.stage=code_predictor"],
    )
    code_predictor = str(tmp_path / "code_predictor" / "model" / "gpt_i23d")
    layers = [
        *CODE_PREDICTOR,
        "train.stage=transformer",
        "train.code_predictor_weight=0",
        "train.code_predictor_rows=0",
    ]
    metrics = train_gpt_in(
        tmp_path / "layers",
        script_data,
        fabric,
        vqvae_run / "model",
        layers,
        init_code_predictor=code_predictor,
    )
    assert metrics["nll"] > 0
    row = rows(tmp_path / "layers" / "train.csv")[0]
    assert "nll" in row and "code_distance" not in row
    before, after = (
        load_gpt(folder).state_dict()
        for folder in (code_predictor, tmp_path / "layers" / "model" / "gpt_i23d")
    )
    same = {name for name in after if torch.equal(before[name], after[name])}
    assert {name for name in after if name.startswith(CODE_PREDICTOR_STAGE)} == same
    assert "gpt.code_predictor.project.weight" in after and "gpt.null_prefix" in after.keys() - same
    with pytest.raises(
        ValueError, match="goes on from encoders and a code predictor that are trained"
    ):
        train_gpt_in(tmp_path / "none", script_data, fabric, vqvae_run / "model", layers)
    with pytest.raises(
        ValueError,
        match="train.code_predictor_weight 1, train.code_predictor_rows 8 and",
    ):
        configuration.load(GPTRunConfig, None, [*GPT, *CODE_PREDICTOR, "train.stage=transformer"])


def test_the_code_predictor_alone_needs_one_and_something_to_be_told():
    for overrides in ((), ("gpt.code_predictor_dim=4", "conditions=[]")):
        with pytest.raises(
            ValueError, match="train.stage is code_predictor, but the GPT has no code predictor"
        ):
            configuration.load(GPTRunConfig, None, [*GPT, "train.stage=code_predictor", *overrides])


def test_code_predictor_rows_need_a_code_predictor_and_divide_over_the_forward_passes(
    script_data, vqvae_run, tmp_path
):
    with pytest.raises(ValueError, match="train a code predictor, but gpt.code_predictor_dim is 0"):
        configuration.load(GPTRunConfig, None, [*GPT, "train.code_predictor_rows=4"])
    fabric = start_fabric(None, 1, "32-true")
    with pytest.raises(
        ValueError, match="2 forward passes .* the 3 rows .*: write train.micro_batch_size=4"
    ):
        train_gpt_in(
            tmp_path / "odd",
            script_data,
            fabric,
            vqvae_run / "model",
            [*CODE_PREDICTOR, "train.code_predictor_rows=3"],
        )


def test_operations_of_a_step_are_those_of_its_products(vqvae_run):
    """Each stage counts the code predictor of every row, as torch counts it."""
    vqvae = checkpoint.load_tokenizer(vqvae_run / "model")
    found = {}
    for stage in ("code_predictor", "transformer", "gpt"):
        more = ["train.code_predictor_weight=1"] if stage != "transformer" else []
        config, objective = code_predictor_objective(
            vqvae, f"train.stage={stage}", "gpt.code_predictor_local=2", *more
        )
        found[stage] = objective.flops(4, 8), objective.flops(4, 0)
    rows = random_rows(config, 12)
    model = objective.model
    condition = model.condition(rows["condition"], 12)
    with FlopCounterMode(display=False) as counter:
        model.gpt.code_predictor(condition.embeddings, condition.mask)
    encoders = 12 * model.conditioner.encoder("image").flops()
    assert found["code_predictor"][0] == 3 * (encoders + counter.get_total_flops())
    for whole, few in found.values():
        assert whole > few
    told = found["code_predictor"][0] / 3
    assert found["gpt"][0] - found["transformer"][0] == pytest.approx(2 * told)
