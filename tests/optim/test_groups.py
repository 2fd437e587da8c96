import pytest
import torch
from torch import nn

from tar3d.config import GPTConfig, OptimConfig
from tar3d.gpt.model import GPT
from tar3d.optim.groups import HIDDEN_OPTIMIZERS, build_optimizers, routes, routing_table
from tar3d.optim.muon import Muon, orthogonalise


class _Tokenizer(nn.Module):
    """One of each: learned queries, a matrix with a bias, convolutions, a norm, a table, frozen and
    shared parameters."""

    adamw_parameters = ("decode.1",)

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(12, 16))
        self.table = nn.Embedding(10, 16)
        self.decode = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 4))
        self.tied = nn.Linear(16, 10, bias=False)
        self.tied.weight = self.table.weight
        self.conv = nn.Conv2d(4, 8, 3)
        self.up = nn.ConvTranspose2d(8, 4, 2)
        self.norm = nn.LayerNorm(16)
        self.frozen = nn.Linear(16, 16).requires_grad_(False)


def _gpt() -> GPT:
    return GPT(
        GPTConfig(
            num_layers=4,
            width=24,
            num_heads=2,
            grid_size=2,
            codebook_size=16,
            condition_tokens=4,
            condition_width=8,
        )
    )


def _vit() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    return transformers.ViTModel(
        transformers.ViTConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=16,
            patch_size=8,
        )
    )


def _kinds(module: nn.Module) -> dict[str, str]:
    return {route.name: route.kind for route in routes(module)}


def test_kinds_of_the_gpt():
    kinds = _kinds(_gpt())
    assert kinds["head.weight"] == "matrix"
    for name in (
        "token_embedding.weight",
        "null_prefix",
        "norm.weight",
        "blocks.0.attention.qk_gain",
        "blocks.0.attention.o_norm.weight",
        "blocks.3.mlp_norm.weight",
    ):
        assert kinds[name] == "vector", name
    for name in (
        "blocks.0.attention.q.weight",
        "blocks.0.attention.gate.weight",
        "blocks.3.attention.k.weight",
        "blocks.0.mlp.down.weight",
        "condition_mlp.fc1.weight",
    ):
        assert kinds[name] == "muon", name


def test_kinds_of_a_tokenizer():
    assert _kinds(_Tokenizer()) == {
        "queries": "vector",
        "table.weight": "vector",
        "decode.0.weight": "muon",
        "decode.0.bias": "vector",
        "decode.1.weight": "matrix",
        "decode.1.bias": "vector",
        "conv.weight": "matrix",
        "conv.bias": "vector",
        "up.weight": "matrix",
        "up.bias": "vector",
        "norm.weight": "vector",
        "norm.bias": "vector",
    }


def test_kinds_of_a_vit():
    for name, kind in _kinds(_vit()).items():
        if name.endswith("bias") or "norm" in name or "token" in name or "position" in name:
            assert kind == "vector", name
        else:
            assert kind == ("matrix" if "projection" in name else "muon"), name


@pytest.mark.parametrize("make", [_gpt, _Tokenizer, _vit, lambda: [_gpt(), _Tokenizer()]])
def test_every_trainable_parameter_is_in_exactly_one_group(make):
    modules = make()
    muon, adamw = build_optimizers(modules, OptimConfig())
    grouped = [id(p) for o in (muon, adamw) for g in o.param_groups for p in g["params"]]
    roots = modules if isinstance(modules, list) else [modules]
    assert sorted(grouped) == sorted(
        id(p) for m in roots for p in m.parameters() if p.requires_grad
    )


def test_first_muon_update_is_near_orthogonal_and_of_the_promised_size():
    layer = nn.Linear(48, 32, bias=False)
    muon, _ = build_optimizers(layer, OptimConfig(muon_lr=0.1, weight_decay=0.0))
    before = layer.weight.detach().clone()
    layer.weight.grad = torch.randn(32, 48, generator=torch.Generator().manual_seed(0))
    muon.step()
    update = (before - layer.weight.detach()) / (
        0.1 * 0.2 * 48**0.5
    )  # match_rms_adamw: 0.2 sqrt(max(rows, cols))
    singular = torch.linalg.svdvals(update)
    assert singular.min() > 0.6 and singular.max() < 1.3


def test_both_rates_and_the_decay_are_respected():
    module, config = _Tokenizer(), OptimConfig(muon_lr=0.02, adamw_lr=0.005, weight_decay=0.5)
    muon, adamw = build_optimizers(module, config)
    before = {route.name: route.parameter.detach().clone() for route in routes(module)}
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    muon.step()
    adamw.step()
    for route in routes(module):
        shrink = {"muon": 1 - 0.02 * 0.5, "matrix": 1 - 0.005 * 0.5, "vector": 1.0}[route.kind]
        torch.testing.assert_close(
            route.parameter.detach(), before[route.name] * shrink, rtol=1e-6, atol=1e-8
        )
    module.queries.grad = torch.ones_like(module.queries)
    start = module.queries.detach().clone()
    muon, adamw = build_optimizers(module, config)
    adamw.step()
    torch.testing.assert_close(
        start - module.queries.detach(), torch.full((12, 16), 0.005), rtol=1e-3, atol=0
    )


def test_table_lists_every_parameter_with_its_optimizer():
    gpt = _gpt()
    table = routing_table(gpt, OptimConfig(muon_lr=0.02, adamw_lr=0.003, weight_decay=0.1))
    lines = {line.split()[0]: line.split()[1:] for line in table.splitlines()[1:-1]}
    assert lines.keys() == dict(gpt.named_parameters()).keys()
    assert lines["head.weight"] == ["16x24", "adamw", "3.00e-03", "0.1"]
    assert lines["blocks.0.attention.q.weight"] == ["24x24", "muon", "2.00e-02", "0.1"]
    assert lines["norm.weight"] == ["24", "adamw", "3.00e-03", "0"]
    counts = [int(part.split()[1].replace(",", "")) for part in table.splitlines()[-1].split(", ")]
    assert sum(counts) == gpt.num_parameters()


def test_table_names_the_optimizer_of_the_hidden_matrices(monkeypatch):
    monkeypatch.setitem(HIDDEN_OPTIMIZERS, "sgd", lambda groups, config: None)
    config = OptimConfig()
    config.optimizer = "sgd"  # as if its name were in the configuration's list
    assert routing_table(nn.Linear(4, 4), config).splitlines()[1].split()[2] == "sgd"
    assert "sgd 16 parameters, adamw 4 parameters" in routing_table(nn.Linear(4, 4), config)
    config.optimizer = "adamw"
    assert routing_table(nn.Linear(4, 4), config).splitlines()[-1] == "adamw 20 parameters"


def test_missing_kinds_give_no_optimizer_and_nothing_trainable_is_refused():
    assert build_optimizers(nn.Linear(4, 4, bias=False), OptimConfig())[1] is None
    assert build_optimizers(nn.LayerNorm(4), OptimConfig())[0] is None
    with pytest.raises(ValueError, match="no trainable parameter"):
        build_optimizers(nn.Linear(4, 4).requires_grad_(False), OptimConfig())


def test_a_listed_name_that_does_not_exist_is_refused():
    module = _Tokenizer()
    module.adamw_parameters = ("decode.7",)
    with pytest.raises(ValueError, match="'decode.7'"):
        routes(module)


def test_orthogonalise_brings_singular_values_near_one_and_keeps_the_singular_vectors():
    for shape in ((3, 12, 40), (2, 40, 12), (1, 16, 16)):
        matrices = torch.randn(
            shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
        )
        results = orthogonalise(matrices, (3.4445, -4.775, 2.0315), 5, 1e-7)
        for matrix, result in zip(matrices, results, strict=True):
            u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
            singular = u.T @ result @ vh.T
            torch.testing.assert_close(singular, singular.diagonal().diag(), atol=1e-8, rtol=0)
            assert (
                result.dtype == torch.float64
                and singular.diagonal().min() > 0.3
                and singular.diagonal().max() < 1.3
            )


SHAPES = ((12, 40), (40, 12), (12, 40), (16, 16), (12, 40))


@pytest.mark.parametrize(
    "device, native",
    [("cpu", False), ("cpu", True), pytest.param("cuda", True, marks=pytest.mark.gpu)],
)
@pytest.mark.parametrize("stacked", [1, 1000, 1 << 25])
def test_muon_in_batches_is_torch_muon_up_to_rounding(monkeypatch, device, native, stacked):
    """Steps, momentum and decay, whatever goes through Newton-Schulz together, and a state that
    either form goes on with."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr("tar3d.optim.muon.STACKED", stacked)
    options = {"lr": 1e-2, "weight_decay": 0.1, "momentum": 0.95}

    def torch_muon(parameters, **options):
        return torch.optim.Muon(
            parameters, nesterov=True, adjust_lr_fn="match_rms_adamw", **options
        )

    results = []
    for kinds in ((Muon, Muon), (torch_muon, torch_muon), (Muon, torch_muon), (torch_muon, Muon)):
        generator = torch.Generator().manual_seed(0)
        parameters = [
            nn.Parameter(torch.randn(shape, generator=generator).to(device)) for shape in SHAPES
        ]
        starts, state = [p.detach().clone() for p in parameters], None
        for kind in kinds:
            optimizer = kind(parameters, **options)
            if state is not None:
                optimizer.load_state_dict(state)
            for _ in range(3):
                for p in parameters:
                    p.grad = torch.randn(p.shape, generator=generator).to(device)
                parameters[-1].grad = None  # as of a part that a step does not use
                optimizer.step()
            state = optimizer.state_dict()
        results.append([p.detach() - s for p, s in zip(parameters, starts, strict=True)])
    for other in results[1:]:
        for mine, theirs in zip(results[0][:-1], other, strict=False):
            assert (mine - theirs).norm() < 0.03 * theirs.norm()
        assert not other[-1].any()
    assert optimizer.state_dict()["state"][0].keys() == {"momentum_buffer"}


def test_fused_adamw_is_adamw():
    results = []
    for fused in (True, False):
        module, generator = _Tokenizer(), torch.Generator().manual_seed(0)
        for p in module.parameters():
            p.data.normal_(generator=generator)
        _, adamw = build_optimizers(module, OptimConfig(adamw_lr=0.01))
        for group in adamw.param_groups:
            group["fused"] = fused
        for _ in range(3):
            for p in module.parameters():
                p.grad = torch.randn(p.shape, generator=generator)
            adamw.step()
        results.append(list(module.parameters()))
    for fused, plain in zip(*results, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-6)
