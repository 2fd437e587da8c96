"""The benchmarks: cases run in their own process and give whole records; ratios and tables."""

import inspect
import json
import re
import sys

import pytest
import torch

from benchmarks import measure
from benchmarks.measure import Case, Ceilings, Work, roofline
from benchmarks.run import SUITES, main, run_suite, select_cases, table
from benchmarks.suites import attention, data, decode, extract, tokenizer, train
from tar3d.config import ACTIVATION_CHECKPOINTING, GPTConfig, VQVAEConfig, gpt_config, load
from tar3d.data.datasets.shapes import ShapeDataset
from tar3d.gpt.engine import Engine
from tar3d.gpt.model import GPT
from tar3d.tokenizer.vqvae import VQVAE
from tar3d.training.memory import LiveTensors

CPU = torch.device("cpu")
TAKES_LONG = re.compile("(256|384|512|1024)$")  # of the suite extract
CEILINGS = Ceilings(
    copy_bytes_per_second=50.0,
    sum_bytes_per_second=100.0,
    product_bytes_per_second=80.0,
    flops_per_second=1000.0,
)


class Clock:
    """Stands where the module `time` does; a work moves it on."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def work(self, log: list[str], name: str, seconds: list[float], **fields) -> Work:
        """Takes the next of `seconds` at each call; the first is the warm-up's."""
        left = iter(seconds)

        def call() -> None:
            log.append(name)
            self.now += next(left)

        return Work(call, dtype="float32", **{"items": 1, **fields})


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(measure, "time", clock)
    monkeypatch.setattr(measure, "measure_ceilings", lambda device, dtype: CEILINGS)
    return clock


def test_a_case_gives_json_and_a_table(tmp_path, capsys):
    out = tmp_path / "results" / "one.json"
    status = main(["--only", "tiny/decode", "--repeats", "2", "--commit", "abc", "--out", str(out)])
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert status == 0 and json.loads(out.read_text()) == report and report["commit"] == "abc"
    assert {
        "suite",
        "date",
        "threads",
        "command",
        "machine",
        "torch",
        "python",
        "commit",
        "weights",
    } <= set(report)
    (record,) = report["cases"]
    assert (record["case"], record["dtype"], record["unit"]) == (
        "tiny/decode",
        "float32",
        "shapes",
    ) and record["threads"] >= 1
    assert len(record["seconds"]) == record["repeats"] == 2 and record["warmup"] >= 1
    assert record["min_seconds"] <= record["median_seconds"] <= max(record["seconds"])
    assert record["per_second"] == pytest.approx(record["items"] / record["median_seconds"])
    assert 50 < record["peak_resident_mib"] < 20_000 and record["peak_gpu_mib"] is None
    assert "1/1 stages tiny/decode" in printed.err and table(report) in printed.err


def test_a_failing_case_is_listed_and_the_rest_goes_on(capsys):
    status = main(["--only", "tiny/encode", "--limit", "0.01"])
    (record,) = json.loads(capsys.readouterr().out)["cases"]
    assert status == 1 and record == {"case": "tiny/encode", "error": "stopped after 0 s"}


def test_cases_without_time_are_left_out(monkeypatch):
    clock, limits, saved = Clock(), [], []

    def measure_apart(suite, case, device, repeats, limit) -> list[dict]:
        limits.append(limit)
        clock.now += min(limit, 7.0)
        return [{"case": case.id, "error": "stopped"}]

    monkeypatch.setattr("benchmarks.run.time", clock)
    monkeypatch.setattr("benchmarks.run._measure_apart", measure_apart)
    report = run_suite(
        "stages",
        "tiny",
        CPU,
        limit=10.0,
        budget=19.5,
        save=lambda report: saved.append(len(report["cases"])),
    )
    first, second, third, *others = report["cases"]
    assert limits == [10, 10, 5.5] and saved == [1, 2, 3]
    assert first["error"] == second["error"] == "stopped"
    assert third["left_out"] == "stopped when the 20 s for this suite were over"
    assert others and all(r["left_out"] == "the 20 s for this suite were over" for r in others)
    assert "tiny/generate_batch_4" in table(report) and "left out: the 20 s" in table(report)


def test_wrong_arguments_say_what_there_is(capsys):
    assert main(["--only", "tiny/knit"]) == 2
    assert "tiny/encode" in capsys.readouterr().err


def test_a_suite_that_lacks_a_package_says_so(monkeypatch):
    monkeypatch.delitem(sys.modules, "benchmarks.suites.evaluation", raising=False)
    monkeypatch.setitem(sys.modules, "trimesh", None)
    with pytest.raises(ValueError, match="suite evaluation cannot be loaded here: .*trimesh"):
        select_cases("evaluation", "all", CPU)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("suite", SUITES)
def test_case_names_are_unique_and_cases_can_be_called(suite, device):
    cases = select_cases(suite, "all", torch.device(device))
    assert len(cases) == len({case.id for case in cases})
    for case in cases:
        inspect.signature(case.build).bind(torch.device(device))


def test_variants_run_in_turn_and_are_compared_pair_by_pair(clock):
    log = []
    works = {
        "slow": clock.work(log, "slow", [9, 2, 4, 6]),
        "fast": clock.work(log, "fast", [9, 1, 4, 2]),
        "two": clock.work(log, "two", [9, 2, 2, 2], items=2),
        "absent": "is not installed",
    }
    slow, fast, two, absent = measure.measure(
        Case("race", "tiny", "laps", lambda device: works), CPU
    )
    assert log == ["slow", "fast", "two"] * 4
    assert (
        slow["variant"] == "slow"
        and slow["seconds"] == [2, 4, 6]
        and slow["peak_resident_mib"] is None
    )
    assert slow["speedup"] == {"median": 1, "min": 1, "max": 1}
    assert fast["speedup"] == {"median": 2, "min": 1, "max": 3}
    assert two["speedup"] == {"median": 4, "min": 2, "max": 6}, "by item, not by call"
    assert absent == {"case": "tiny/race", "variant": "absent", "left_out": "is not installed"}


def test_a_variant_that_fails_takes_no_other_with_it(clock):
    def fail(error: Exception) -> Work:
        def call() -> None:
            raise error

        return Work(call, 1, "float32")

    works = {
        "good": clock.work([], "good", [1, 1, 1, 1]),
        "bad": fail(RuntimeError("no kernel\nfor this GPU")),
        "refused": fail(ValueError("it runs on CUDA only")),
    }
    good, bad, refused = measure.measure(Case("race", "tiny", "laps", lambda device: works), CPU)
    assert bad["error"] == "RuntimeError: no kernel" and good["speedup"]["median"] == 1
    assert refused["left_out"] == "it runs on CUDA only"
    with pytest.raises(RuntimeError, match="no kernel"):
        measure.measure(Case("alone", "tiny", "laps", lambda device: works["bad"]), CPU)


@pytest.mark.parametrize(
    "moved, flops, bound, least",
    [(300, 1000, "memory", 3), (100, 5000, "arithmetic", 5), (300, None, "memory", 3)],
)
def test_roofline(moved, flops, bound, least):
    work = Work(lambda: None, 1, "float32", bytes_moved=moved, flops=flops)
    found = roofline(work, 10.0, CEILINGS)
    assert (found["bound"], found["roofline_seconds"], found["fraction"]) == (
        bound,
        least,
        pytest.approx(least / 10),
    )


def test_the_ceilings_are_a_machine_s(monkeypatch):
    monkeypatch.setattr(measure, "PROBE_SIZES", {"cpu": (1 << 20, 128, 1)})
    found = measure.measure_ceilings.__wrapped__(CPU, torch.float32)
    assert (
        found.bytes_per_second >= found.copy_bytes_per_second > 1e8 and found.flops_per_second > 1e8
    )


def test_the_table_has_ratios_limits_and_goals(clock):
    works = {
        "F": clock.work(
            [],
            "F",
            [1, 4],
            bytes_moved=200,
            goals={"seconds": 3.0, "speedup": 1.5},
            settings={"batch": 8},
        ),
        "LLLF": clock.work(
            [],
            "LLLF",
            [1, 2],
            bytes_moved=100,
            goals={"seconds": 3.0, "speedup": 1.5, "gpu_mib": 9.0},
        ),
    }
    records = measure.measure(Case("race", "full", "tokens", lambda device: works), CPU, repeats=1)
    text = table(
        {
            "suite": "decode",
            "machine": "m",
            "device": "cpu",
            "threads": 1,
            "torch": "2",
            "commit": "c",
            "date": "d",
            "weights": "random",
            "cases": [*records, {"case": "full/x", "error": "stopped"}],
        }
    )
    assert (
        "matrix product 1e-06 GFLOP/s" in text
        and "full/race LLLF" in text
        and "2.00 (2.00-2.00)" in text
        and "50%" in text
    )
    assert (
        "full/race F: 3 s not reached, 4 s" in text and "full/race LLLF: 3 s reached, 2 s" in text
    )
    assert (
        "full/race LLLF: 1.50 times the baseline's speed reached, 2.00 times" in text
        and "full/race F: 1.50 times" in text
    )
    assert "GPU memory" not in text, "a machine without a GPU has no such goal"
    assert "failed: stopped" in text and max(map(len, text.splitlines())) <= 130


def _engine(**changes) -> Engine:
    return Engine(
        GPT(
            gpt_config(
                "GPT-tiny",
                num_layers=4,
                grid_size=4,
                condition_tokens=5,
                codebook_size=64,
                **changes,
            )
        ).eval()
    )


def test_decoding_starts_at_the_position_each_time():
    engine = _engine()
    work = decode.from_position(engine, "GPT-tiny", 2, None)
    for _ in range(2):
        work.call()
        assert engine.buffers.step.item() == engine.config.num_steps - 1, (
            "the last tokens are drawn"
        )
        assert engine.buffers.slot.item() == engine.capacity
    assert work.items == 2 * 4 and work.settings["position"] == 43
    engine = _engine()
    engine.static = True  # as on CUDA: one window, and a mask over it
    decode.from_position(engine, "GPT-tiny", 1, 10).call()
    assert engine.window_for(1) == engine.capacity
    assert engine.buffers.valid[0, 0, 0].tolist() == [True] * (5 + 10 + 4) + [False] * (
        engine.capacity - 19
    )
    cell = decode.from_position(_engine(tokens_per_step=3), "GPT-tiny", 1, 10)
    cell.call()
    assert cell.items == 12 and cell.settings["position"] == 9


def test_a_hybrid_keeps_a_quarter_of_the_keys_and_values():
    sizes = {}
    for pattern in decode.PATTERNS:
        engine = _engine(layer_pattern=pattern)
        engine.prepare(2, decode.SAMPLING)
        sizes[pattern] = decode.memory_bytes(engine)
    positions, rows, width, head_dim = 5 + 48 - 1, 4, 192, 64
    assert sizes["F"] == {"kv_bytes": 4 * 2 * rows * width * positions * 4, "state_bytes": 0}
    assert sizes["LLLF"]["kv_bytes"] * 4 == sizes["F"]["kv_bytes"] and sizes["L"]["kv_bytes"] == 0
    assert sizes["L"]["state_bytes"] == 4 * rows * width * head_dim * 4


def test_step_cost_counts_each_weight_and_slot_once():
    config = GPTConfig(
        num_layers=1,
        width=32,
        num_heads=2,
        grid_size=2,
        codebook_size=8,
        condition_tokens=2,
        condition_width=4,
        layer_pattern="F",
    )
    matrices, gains = 4 * 32 * 32 + 3 * 32 * 128 + 8 * 32, 3 * 32 + 2 * 16
    moved, flops = decode.step_cost(GPT(config), torch.bfloat16, rows=2, filled=9)
    assert moved == 2 * matrices + 4 * gains + 2 * (2 * 32 * 10) * 2
    assert flops == 2 * 2 * matrices + 4 * 2 * 32 * 10


def test_the_engine_and_the_plain_decoding_are_given_the_same_work():
    plain, engine = decode.plain_and_engine("GPT-tiny", decode.TINY_POSITION, CPU).values()
    plain.call()
    engine.call()
    assert (plain.items, plain.bytes_moved, plain.flops) == (
        engine.items,
        engine.bytes_moved,
        engine.flops,
    )
    assert plain.settings.items() <= engine.settings.items()


def test_attention_forms_are_counted_alike():
    works = attention.compare(32, True, CPU)
    assert (
        tuple(works) == attention.ON_CPU and len({work.bytes_moved for work in works.values()}) == 1
    )
    for work in works.values():
        work.call()
    assert works["sdpa"].flops == 3 * 2 * 2 * 12 * 64 * (32 * 33 / 2), (
        "two products of half a square"
    )
    assert works["delta_chunked"].flops == works["chunked"].flops * 3 / 2, (
        "three products of the recurrence"
    )
    longer = attention.compare(attention.LONGEST_REFERENCE["cpu"] + 1, False, CPU)
    assert set(longer) == set(attention.ON_CPU) - {"reference"}


def test_a_form_that_is_not_installed_is_left_out(monkeypatch):
    def absent():
        raise ValueError("the package is absent")

    monkeypatch.setitem(attention.FORMS, "chunked", absent)
    case = Case(
        "alone", "tiny", "positions", lambda device: attention.one("chunked", 8, False, device)
    )
    assert measure.measure(case, CPU) == [
        {"case": "tiny/alone", "variant": "", "left_out": "the package is absent"}
    ]


@pytest.mark.parametrize(
    "suite, case",
    [
        (suite, case)
        for suite in SUITES
        if suite != "evaluation"
        for case in select_cases(suite, "tiny", CPU)
        if not TAKES_LONG.search(case.name)
    ],
    ids=lambda x: x if isinstance(x, str) else x.name,
)
def test_tiny_cases_run(suite, case, monkeypatch):
    monkeypatch.setattr(data, "BATCHES", 1)
    built = case.build(CPU)
    works = list(built.values()) if isinstance(built, dict) else [built]
    if not hasattr(torch.nn.functional, "linear_cross_entropy"):  # torch 2.11
        works = [work for work in works if work != "this PyTorch has no linear_cross_entropy"]
    for work in works:
        work.call()
        assert work.dtype in measure.DTYPES and work.items >= 1 and work.settings
    assert len({work.items for work in works}) == 1 or case.name == "cell"
    if suite == "tokenizer" and case.name.startswith("train"):
        assert [work.whole_run for work in works] == [16 * 2000] * 2


@pytest.mark.parametrize("size", ["tiny", "full"])
def test_extraction_is_compared_with_the_dense_lattice(size, monkeypatch):
    monkeypatch.setattr(extract, "COARSE", 16)
    dense, refined = (work.call() for work in extract.compare(64, size, CPU).values())
    assert dense["query_share"] == 1 and dense["queries"] == 65**3
    assert refined["faces"] == dense["faces"] > 1000 and refined["query_share"] < 0.5


@pytest.mark.parametrize("encoder", tokenizer.ENCODERS)
def test_an_encoder_s_step_is_counted_three_times_its_forward(encoder):
    work = tokenizer.encoder_one(encoder, "tiny", 100, 8, CPU)
    model = VQVAE(
        load(
            VQVAEConfig,
            tokenizer.TINY_CONFIG,
            [f"tokenizer.encoder={encoder}", "tokenizer.grid_size=8"],
        ).tokenizer
    )
    assert work.flops == 3 * model.encoder.flops(100) and work.settings["grid_size"] == 8


def test_the_hours_of_a_run_follow_from_the_rate(clock):
    work = clock.work([], "train", [1, 2, 2, 2], items=4, whole_run=7200)
    (record,) = measure.measure(Case("train", "tiny", "shapes", lambda device: work), CPU)
    assert record["notes"] == {"estimated_hours": 1.0}
    config = load(VQVAEConfig, "configs/vqvae3d_fast.yaml")
    assert tokenizer.shapes_of_run(config) / tokenizer.needed_rate(config) / 3600 == pytest.approx(
        59 / 4
    )


def test_a_plain_item_is_a_draw_from_the_same_file(samples):
    shapes = ShapeDataset(
        samples, "train", surface_points=200, volume_points=300, near_points=100, seed=0
    )
    plain, item = data.plain_item(shapes, (4, 1)), shapes[(4, 1)]
    assert plain["is_near"].tolist() == item["is_near"].tolist()
    for name in ("surface", "points"):  # everything is drawn, in other orders
        assert sorted(plain[name].tolist()) == sorted(item[name].tolist())


def test_live_tensors_are_those_that_somebody_holds():
    with LiveTensors() as live:
        a = torch.zeros(1000)
        b = a + 1
        c = b.view(10, 100) + 1
        assert live.now == live.peak == 3 * 4000, "a view holds nothing of its own"
        del a, b
        assert live.now == 4000
        d = c.sum()
    assert live.peak == 3 * 4000 and live.now == 4004 and d.ndim == 0


def test_whether_a_step_fits_is_told_without_computing_it(monkeypatch):
    monkeypatch.setitem(train.GOAL_MIB, "GPT-tiny", 100)
    needed = {
        how: train.fits("GPT-tiny", 1, how, CPU).call()["tensor_mib"]
        for how in ACTIVATION_CHECKPOINTING
    }
    assert needed["none"] > needed["cheap"] > needed["blocks"] > 50
