"""The ablations: rates are tuned before anything counts, the grid grows where its end is best,
results outlive a run, and tables say what the results hold."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import ablate
from benchmarks.ablate import main
from benchmarks.ablation import tables, trials
from benchmarks.ablation.trials import Trial, best_rate, missing, missing_sweep
from benchmarks.ablation.variants import CONFIG, MODEL, STUDIES, TOKENIZER_CONFIG, VARIANTS
from benchmarks.ablation.variants import TOKENIZER as STUDY_TOKENIZER
from tar3d import checkpoint
from tar3d.config import TokenizerConfig, VQVAEConfig, load, load_gpt_run
from tar3d.data.formats.dataset_folder import mesh_path

TOKENIZER = TokenizerConfig(grid_size=4, codebook_size=32)


def record(trial: Trial, nll: float, **more) -> dict:
    return {
        "arm": trial.variant.name,
        "rate": trial.rate,
        "seed": trial.seed,
        "sweep": trial.sweep,
        "nll": nll,
        "hours": 0.1,
        **more,
    }


def tried(name: str, nll: dict[float, float]) -> dict[str, dict]:
    sweeps = {rate: Trial(VARIANTS[name], rate, trials.SWEEP_SEED, sweep=True) for rate in nll}
    return {t.key: record(t, nll[rate]) for rate, t in sweeps.items()}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_a_config_that_trains_on_equal_terms(name):
    default = load_gpt_run(CONFIG, "GPT-tiny", TOKENIZER, list(MODEL))
    trial = Trial(VARIANTS[name], 4e-3, 1, sweep=False)
    config = load_gpt_run(CONFIG, "GPT-tiny", TOKENIZER, trial.overrides(7))
    assert config.gpt.num_layers == 12 and config.train.seed == 1 and config.train.steps == 7
    for key in ("global_batch_size", "token_noise", "validation_shapes"):
        assert getattr(config.train, key) == getattr(default.train, key)
    changed = config.optim.adamw_lr if config.optim.optimizer == "adamw" else config.optim.muon_lr
    assert changed == 4e-3
    if VARIANTS[name].tokenizer is not None:
        recipe = load(VQVAEConfig, TOKENIZER_CONFIG, [*STUDY_TOKENIZER, *VARIANTS[name].tokenizer])
        assert f"r{recipe.tokenizer.grid_size}_k{recipe.tokenizer.codebook_size}" == name
        return
    assert (
        name == "hybrid"
        or VARIANTS[name].share < 1
        or config.gpt != default.gpt
        or config.train.token_samplings != default.train.token_samplings
        or config.optim.optimizer == "adamw"
    )


def test_studies_name_variants_and_a_variant_takes_the_rate_of_one_that_is_tuned():
    for study in STUDIES.values():
        assert set(study.variants) <= set(VARIANTS) and len(set(study.variants)) == len(
            study.variants
        )
    assert all(
        not VARIANTS[variant.rate_of].rate_of for variant in VARIANTS.values() if variant.rate_of
    )
    assert set(VARIANTS) == {name for study in STUDIES.values() for name in study.variants}


def test_rates_are_tried_before_seeds_are_run():
    full = VARIANTS["full"]
    assert [t.rate for t in missing(full, {}, 3)] == list(full.rates) and all(
        t.sweep for t in missing(full, {}, 3)
    )
    runs = tried("full", {8e-3: 1.2, 1.6e-2: 1.0, 3.2e-2: 1.1})
    left = missing(full, runs, 3)
    assert [(t.rate, t.seed, t.sweep) for t in left] == [(1.6e-2, seed, False) for seed in range(3)]
    runs[left[0].key] = record(left[0], 0.9)
    assert [t.seed for t in missing(full, runs, 3)] == [1, 2]


@pytest.mark.parametrize(
    ("nll", "further"),
    [
        ({8e-3: 1.0, 1.6e-2: 1.1, 3.2e-2: 1.2}, 4e-3),
        ({8e-3: 1.2, 1.6e-2: 1.1, 3.2e-2: 1.0}, 6.4e-2),
        ({8e-3: 1.2, 1.6e-2: 1.0, 3.2e-2: 1.1}, None),
    ],
)
def test_the_grid_grows_where_its_end_is_best(nll, further):
    runs = tried("full", nll)
    left = missing_sweep(VARIANTS["full"], runs)
    assert [t.rate for t in left] == ([] if further is None else [further])


def test_the_grid_does_not_grow_for_ever():
    runs = tried("full", {8e-3 * 2**k: 2.0 - 0.1 * k for k in range(trials.MOST_RATES)})
    assert (
        missing_sweep(VARIANTS["full"], runs) == []
        and best_rate(VARIANTS["full"], runs) == 8e-3 * 2**5
    )


def test_a_variant_without_rates_of_its_own_waits_for_the_one_whose_rate_it_takes():
    assert {t.variant.name for t in missing(VARIANTS["muon_050"], {}, 3)} == {"hybrid"}
    left = missing(VARIANTS["muon_050"], tried("hybrid", {8e-3: 1.2, 1.6e-2: 1.0, 3.2e-2: 1.1}), 2)
    assert [(t.variant.name, t.rate) for t in left] == [("muon_050", 1.6e-2)] * 2


class Commands:
    """In the place of `_command`: writes what the two programs would."""

    def __init__(self, broken: str = "") -> None:
        self.calls: list[list[str]] = []
        self.broken = broken

    def __call__(self, arguments: list[str], log: Path, threads: int) -> None:
        self.calls.append(arguments)
        out = Path(arguments[arguments.index("--out") + 1]) if "--out" in arguments else log
        if self.broken and self.broken in str(out):
            raise RuntimeError("python train_gpt.py ended with 1; the log ends with: out of memory")
        if arguments[0] == "train_gpt.py":
            model = out / "model" / "gpt_i23d"
            model.mkdir(parents=True, exist_ok=True)
            rate = float(
                next(a for a in arguments if a.startswith("optim.adamw_lr=")).split("=")[1]
            )
            nll = 1 + abs(math.log(rate / 1.5e-2))
            (out / "validation.csv").write_text(
                f"step,nll,nll_shuffled,nll_null\n1,9,9,9\n2,{nll},{nll + 1},{nll + 0.5}\n"
            )
            (model / "metrics.json").write_text('{"hours": 0.1}')
            if "train.stage=code_predictor" in arguments:
                (out / "validation.csv").write_text("step,code_distance\n900,0.12\n")
        elif arguments[0] == "train_vqvae.py":
            (out / "model").mkdir(parents=True)
            (out / "validation.csv").write_text(
                "step,iou_volume,iou_near,codebook_usage,perplexity\n800,0.9,0.7,0.95,900\n"
            )
        elif "benchmarks.sampling" in arguments:
            out.mkdir(parents=True, exist_ok=True)
            found = {"fscore": {"mean": 0.25}, "chamfer": {"mean": 0.05, "missing": 1}}
            bound = {"fscore": {"mean": 0.8}}
            (out / "sampling.json").write_text(
                json.dumps(
                    {
                        "results": {
                            "as saved": found,
                            "code_predictor_scale=0": {"fscore": {"mean": 0.15}},
                            "reconstruction": bound,
                        }
                    }
                )
            )


@pytest.fixture
def arguments(tmp_path, monkeypatch) -> list[str]:
    sides = {"model": 8}  # of a tokenizer that is trained here; the shipped one's is 4

    def tokenizer(source: str) -> SimpleNamespace:
        return SimpleNamespace(
            config=TokenizerConfig(grid_size=sides.get(Path(source).name, 4), codebook_size=32)
        )

    monkeypatch.setattr(checkpoint, "load_tokenizer", tokenizer)
    data = tmp_path / "toy"
    (data / "samples").mkdir(parents=True)
    (data / "splits.json").write_text("{}")
    (data / "bed.glb").touch()
    (data / "report.csv").write_text(f"id,file\nbed,{data / 'bed.glb'}\n")
    return [
        "--out",
        str(tmp_path / "out"),
        "--results",
        str(tmp_path / "results.json"),
        "--data",
        str(data),
    ]


def test_a_study_is_tuned_run_scored_and_not_run_again(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(trials, "_command", commands := Commands())
    assert main(["order", *arguments, "--seeds", "2"]) == 0
    runs = json.loads((tmp_path / "results.json").read_text())["runs"]
    variants = STUDIES["order"].variants
    assert len(runs) == len(variants) * (3 + 2) and sum(
        r["sweep"] for r in runs.values()
    ) == 3 * len(variants)
    counted = [r for r in runs.values() if not r["sweep"]]
    assert {r["rate"] for r in counted} == {1.6e-2} and all(
        r["fscore"] == 0.25 and r["empty"] == 1 for r in counted
    )
    assert all(r["fscore_alone"] == 0.15 for r in counted), (
        "under the same seeds, without what code_predictor_scale adds"
    )
    assert all(r["nll_shuffled"] == pytest.approx(r["nll"] + 1) for r in runs.values())
    code_predictors = [call for call in commands.calls if "train.stage=code_predictor" in call]
    assert len(code_predictors) == 2, (
        "one for the order of the cells, one for that of the planes, whoever asks first"
    )
    began = {
        call[call.index("--init-code-predictor") + 1]
        for call in commands.calls
        if "--init-code-predictor" in call
    }
    code_predictor = tmp_path / "out" / "code_predictors"
    assert began == {
        str(code_predictor / name / "run" / "model" / "gpt_i23d")
        for name in ("shipped", "shipped-planes")
    }
    before = len(commands.calls)
    assert main(["order", *arguments, "--seeds", "2"]) == 0 and len(commands.calls) == before


def test_a_variant_with_a_tokenizer_has_tokens_of_its_own_and_steps_that_cost_the_same(
    arguments, tmp_path, monkeypatch
):
    monkeypatch.setattr(trials, "_command", commands := Commands())
    monkeypatch.setitem(STUDIES, "tokens", replace(STUDIES["tokens"], variants=("r8_k4096",)))
    assert main(["tokens", *arguments, "--seeds", "1"]) == 0
    runs = json.loads((tmp_path / "results.json").read_text())["runs"]
    own = tmp_path / "out" / "r8_k4096" / "tokenizer" / "data"
    assert (
        (own / "samples").is_symlink()
        and (own / "splits.json").is_symlink()
        and not (own / "views").exists()
    )
    assert mesh_path(own, "bed") == tmp_path / "toy" / "bed.glb", (
        "shapes are scored against their meshes"
    )
    trained = next(r for r in runs.values() if r["arm"] == "r8_k4096" and not r["sweep"])
    assert trained["tokenizer"]["iou_volume"] == 0.9
    usual = next(r for r in runs.values() if r["arm"] == "hybrid")
    assert trained["tokens"] == 192 and trained["reconstruction"] == 0.8
    assert 2 * usual["steps"] * usual["gflop_a_step"] == pytest.approx(
        trained["steps"] * trained["gflop_a_step"], rel=0.02
    )
    made = next(call for call in commands.calls if "tar3d.data.make_tokens" in call)
    assert str(own) in made and commands.calls.index(made) > 0


def test_variants_with_the_same_tokens_share_them_and_their_code_predictor(
    arguments, tmp_path, monkeypatch
):
    monkeypatch.setattr(trials, "_command", commands := Commands())
    few = replace(STUDIES["targets"], variants=("canonical", "soft", "soft_cross"))
    monkeypatch.setitem(STUDIES, "targets", few)
    assert main(["targets", *arguments, "--seeds", "1"]) == 0
    own = str(tmp_path / "out" / "tokens" / "shipped-samplings8" / "data")
    (made,) = (call for call in commands.calls if "tar3d.data.make_tokens" in call)
    assert own in made and "train.token_samplings=8" in made
    trained = [call for call in commands.calls if call[0] == "train_gpt.py"]
    assert all(own in call and "train.token_samplings=8" in call for call in trained)
    assert sum("train.stage=code_predictor" in call for call in trained) == 1
    runs = json.loads((tmp_path / "results.json").read_text())["runs"].values()
    canonical, soft, cross = (
        next(r for r in runs if r["arm"] == name and not r["sweep"]) for name in few.variants
    )
    assert soft["steps"] == canonical["steps"] > cross["steps"]
    assert cross["steps"] * cross["gflop_a_step"] == pytest.approx(
        canonical["steps"] * canonical["gflop_a_step"], rel=0.02
    )


def test_the_first_seed_of_every_variant_comes_before_the_second_of_any():
    variants = [VARIANTS[name] for name in STUDIES["tokens"].variants]
    tuned = tried("hybrid", {8e-3: 1.0, 1.6e-2: 1.1, 3.2e-2: 1.2, 4e-3: 1.1})
    left = trials.first_seeds_first(variants, tuned, 2)
    assert [t.seed for t in left] == [0] * len(variants) + [1] * len(variants) and [
        t.variant for t in left[: len(variants)]
    ] == variants


def test_another_size_is_asked_for_by_name(arguments, monkeypatch, tmp_path):
    monkeypatch.setattr(trials, "_command", commands := Commands())
    assert main(["order", *arguments, "--seeds", "1", "--gpt-model", "GPT-B"]) == 0
    trained = [call for call in commands.calls if call[0] == "train_gpt.py"]
    assert any("train.stage=code_predictor" in call for call in trained)
    assert all(
        call[call.index("--gpt-model") + 1] == "GPT-B" and "gpt.width=768" in call
        for call in trained
    )
    runs = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert next(iter(runs.values()))["million_parameters"] > 80


def test_what_fails_is_listed_and_the_rest_is_run(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trials, "_command", Commands(broken="planes/rate0.016-seed1"))
    assert main(["order", *arguments]) == 1
    assert "planes/rate0.016-seed1: python train_gpt.py ended with 1" in capsys.readouterr().err
    runs = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert "planes/rate0.016-seed2" in runs and "planes/rate0.016-seed1" not in runs


def test_results_of_another_recipe_are_not_added_to(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trials, "_command", Commands())
    assert main(["order", *arguments, "--seeds", "1"]) == 0
    monkeypatch.setattr(trials, "SHAPES", trials.SHAPES + 1)
    with pytest.raises(SystemExit):
        main(["order", *arguments, "--seeds", "2"])
    assert "holds runs of another recipe" in capsys.readouterr().err


def test_nothing_is_begun_when_time_is_up(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(trials, "_command", commands := Commands())
    assert main(["order", *arguments, "--minutes", "0"]) == 0
    assert commands.calls == []


def test_a_command_that_fails_says_how_its_log_ends(tmp_path):
    with pytest.raises(RuntimeError, match=r"ended with 3; .* ends with: the reason"):
        trials._command(["-c", "print('the reason'); raise SystemExit(3)"], tmp_path / "log", 1)


def test_an_unknown_study_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["colour"])
    assert "there are attention, optimizer" in capsys.readouterr().err


def test_tables_hold_means_and_differences_by_seed(tmp_path):
    runs = {}
    for name, shift in (("hybrid", 0.0), ("planes", 0.5)):
        for seed in range(3):
            trial = Trial(VARIANTS[name], 4e-3, seed, sweep=False)
            runs[trial.key] = record(
                trial,
                1 + seed + shift,
                nll_shuffled=2 + seed + shift,
                fscore=0.4,
                fscore_alone=0.3 - shift / 10,
                million_parameters=1.4,
                gflop_a_step=60.0,
            )
    document = tmp_path / "ablations.md"
    document.write_text(
        "a\n" + "".join(f"<!-- study {name} -->\nold\n<!-- end -->\nb\n" for name in STUDIES)
    )
    speeds = tmp_path / "speeds.json"
    timed = {
        "case": "full/order",
        "variant": "planes",
        "speedup": {"median": 0.9, "min": 0.88, "max": 0.912},
    }
    speeds.write_text(json.dumps({"cases": [timed, timed | {"case": "tiny/order", "speedup": {}}]}))
    tables.write_tables({"runs": runs | tried("hybrid", {2e-3: 1.2, 4e-3: 1.0})}, document, speeds)
    text = document.read_text()
    table = text[text.index("study order") :]
    assert (
        "| 60.0 |  | 2.000 ± 2.484 |  | 0.300 ± 0.000 |  | 0.400 ± 0.000 |" in table
    )  # t 4.303, sd 1, root of 3
    planes = "| 60.0 | 0.90 (0.88-0.91) | 2.500 ± 2.484 | +0.500 ± 0.000 | 0.250 ± 0.000 |"
    assert f"{planes} -0.050 ± 0.000 |" in table
    assert text.startswith("a\n") and text.count("\nb\n") == len(STUDIES)
    assert (
        "<!-- study linear -->\nold\n<!-- end -->" in text
        and not (tmp_path / "ablations" / "linear.png").exists()
    )  # one arm
    assert (tmp_path / "ablations" / "order.png").stat().st_size > 5000


def test_variants_with_tokenizers_are_compared_by_what_they_generate():
    trained = {"iou_volume": 0.91, "codebook_usage": 0.97}
    runs = {}
    for name, tokens, fscore in (("r16_k4096", 768, 0.3), ("r8_k4096", 192, 0.2)):
        for seed in range(2):
            trial = Trial(VARIANTS[name], 4e-3, seed, sweep=False)
            runs[trial.key] = record(
                trial,
                1.5,
                nll_shuffled=2.0,
                fscore=fscore,
                reconstruction=0.8,
                tokens=tokens,
                steps=300,
                tokenizer=trained,
            )
    first, second = tables.rows_of(STUDIES["tokens"], runs, {})
    assert len(first) == len(tables.TOKEN_HEAD) and first[6:9] == [
        "0.300 ± 0.000",
        "",
        "0.375 ± 0.000",
    ]
    assert second[2:5] == ["0.910", "97%", "0.800"] and second[7:] == [
        "-0.100 ± 0.000",
        "0.250 ± 0.000",
        "96.000 ± 0.000",
    ]


def test_a_document_without_a_place_for_a_table_is_refused(tmp_path):
    both = [Trial(VARIANTS[name], 4e-3, 0, sweep=False) for name in ("hybrid", "full")]
    runs = {
        t.key: record(
            t,
            1.0,
            nll_shuffled=2.0,
            fscore=0.3,
            fscore_alone=0.2,
            million_parameters=1.4,
            gflop_a_step=60.0,
        )
        for t in both
    }
    (tmp_path / "ablations.md").write_text("nothing")
    with pytest.raises(ValueError, match="0 places for the study attention"):
        tables.write_tables({"runs": runs}, tmp_path / "ablations.md")


def test_the_stored_results_are_of_todays_recipe():
    """A key that is renamed changes the hash: write the new one into the file of results."""
    assert ablate.load_results(ablate.RESULTS)["recipe"] == ablate.recipe()


def test_the_document_is_what_the_results_say(tmp_path):
    document = Path("docs/ablations.md").read_text(encoding="utf-8")
    (tmp_path / "ablations.md").write_text(document, encoding="utf-8")
    tables.write_tables(ablate.load_results(ablate.RESULTS), tmp_path / "ablations.md")
    assert (tmp_path / "ablations.md").read_text(encoding="utf-8") == document
