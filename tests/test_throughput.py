"""What the meter of a training says, the peak it refers to, and that the models count their
operations as PyTorch does."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tar3d import throughput
from tar3d.condition.image_encoders import build_image_encoder
from tar3d.config import GPTConfig, ImageEncoderConfig
from tar3d.contracts import Condition
from tar3d.gpt.model import GPT
from tar3d.throughput import Meter, Peak, clock, matmul_rate

CPU = torch.device("cpu")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def now(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(throughput, "time", clock)
    return clock


def test_the_meter_knows_work_waiting_and_pauses(now):
    def loader():
        for k in range(6):
            now.now += 0.5  # the loader's
            yield k

    meter = Meter(10, 16, items=300, unit="tokens", flops=1e9, peak=Peak(4e9, "a test"))
    figures, seen = [], []
    for step, batch in enumerate(meter.batches(loader()), start=11):
        seen.append(batch)
        now.now += 1.5  # the training step's
        if step % 2 == 0:
            figures.append(meter.read(step))
        meter.pause()
        if step == 11:
            assert meter.progress(step) == "0.50 steps/s, 0:00:02 of training, ETA 0:00:10", (
                "before anything was read"
            )
        now.now += 100.0  # validation
        meter.resume()
    assert seen == list(range(6)) and len(figures) == 3
    for reading in figures:
        assert reading == pytest.approx(
            {
                "steps_per_second": 0.5,
                "tokens_per_second": 150.0,
                "model_flops_per_second": 5e8,
                "mfu": 0.125,
                "waiting_share": 0.25,
            }
        )
    assert meter.line(figures[0]) == "150 tokens/s, 0.5 GFLOP/s, MFU 12.5%, waiting 25.0%"
    assert meter.progress(16) == "0.50 steps/s, 0:00:12 of training, ETA 0:00:00"


def test_clock():
    assert [clock(s) for s in (0, 59.6, 3661)] == ["0:00:00", "0:01:00", "1:01:01"]


def test_the_peak_of_a_known_gpu_is_its_data_sheet_s_and_others_are_measured(monkeypatch):
    monkeypatch.setattr(throughput, "PROBE_SIDES", {"cpu": 64, "cuda": 64})
    find_peak = throughput.find_peak.__wrapped__  # what was measured before is not taken
    found = find_peak(CPU, torch.float32)
    assert found.flops_per_second > 1e7 and "float32 matrix product measured here" in found.source
    monkeypatch.setattr(throughput, "matmul_rate", lambda *a: 5e12)
    names = {
        "NVIDIA H200": 989e12,
        "NVIDIA GH200 480GB": 989e12,
        "NVIDIA H100 80GB HBM3": 989e12,
        "NVIDIA H100 PCIe": 756e12,
        "NVIDIA A100-SXM4-80GB": 312e12,
        "NVIDIA GeForce RTX 4090": 165e12,
        "NVIDIA GeForce RTX 4090 Laptop GPU": 5e12,
        "Some other card": 5e12,
    }
    for name, flops in names.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert find_peak(torch.device("cuda"), torch.bfloat16).flops_per_second == flops, name
        assert find_peak(torch.device("cuda"), torch.float32).flops_per_second == 5e12, (
            "data sheets speak of bfloat16"
        )


def test_a_matrix_product_is_timed():
    assert 1e7 < matmul_rate(CPU, torch.float32, 128) < 1e14


CONFIGS = {
    "hybrid": {},
    "linear": {"layer_pattern": "L", "linear_gate": False},
    "full": {"layer_pattern": "F"},
    "cell": {"tokens_per_step": 3},
    "code_predictor": {"code_predictor_dim": 4},
    "local": {"code_predictor_dim": 4, "code_predictor_local": 2, "code_predictor_hidden": 24},
    "cell and code predictor": {"tokens_per_step": 3, "code_predictor_dim": 4},
}


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
def test_a_gpt_counts_its_matrices_as_pytorch_does(changes):
    config = GPTConfig(
        **{
            "num_layers": 4,
            "width": 32,
            "num_heads": 2,
            "grid_size": 3,
            "codebook_size": 50,
            "condition_tokens": 5,
            "condition_width": 12,
            **changes,
        }
    )
    gpt, rows, T = GPT(config), 2, config.num_tokens
    with FlopCounterMode(display=False) as counter:
        gpt(torch.zeros(rows, T - 1, dtype=torch.int64), Condition.of(torch.randn(rows, 5, 12)))
    counts = counter.get_flop_counts()["Global"]
    matrices = sum(counts.get(op, 0) for op in (torch.ops.aten.mm, torch.ops.aten.addmm))
    S, L = (
        5 + config.num_steps - 1,
        sum(config.layer_pattern[i % len(config.layer_pattern)] == "L" for i in range(4)),
    )
    recurrence, softmax = L * 2 * 2 * 32 * 16 * S, (4 - L) * 2 * 2 * 32 * S * (S + 1) / 2
    assert rows * gpt.flops(5, T) == matrices + rows * (recurrence + softmax)


def test_a_picture_encoder_counts_its_matrices_and_attention():
    config = ImageEncoderConfig(
        model="trained", image_size=32, patch_size=8, width=16, num_layers=2, num_heads=2
    )
    encoder, pictures = build_image_encoder(config), 3
    with FlopCounterMode(display=False) as counter:
        encoder(torch.zeros(pictures, 32, 32, 3, dtype=torch.uint8))
    counts = counter.get_flop_counts()["Global"]
    matrices = sum(counts.get(op, 0) for op in (torch.ops.aten.mm, torch.ops.aten.addmm))
    P = encoder.num_tokens
    assert pictures * encoder.flops() == matrices + pictures * 2 * (2 * P * P * 16 * 2)
