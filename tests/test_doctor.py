"""The doctor looks at a machine and says what can be done there."""

from __future__ import annotations

import pytest
import torch

from tar3d import doctor, doctor_report
from tar3d.config import GPTConfig, OptimConfig, VQVAEConfig, load
from tar3d.gpt import decode_ops
from tar3d.training import memory


def test_a_machine_is_described_and_both_models_are_tried(monkeypatch, capsys):
    monkeypatch.setattr(doctor_report, "GPT_SIZES", {"GPT-tiny": (6, 192, 3)})
    monkeypatch.setattr(doctor_report, "TOKENIZERS", ("vqvae3d_tiny",))
    assert doctor.main([]) == 0
    output = capsys.readouterr().out
    for part in (
        f"torch {torch.__version__}",
        "cpu: ",
        "gpt.linear_backend=fla: ",
        "gpt.attention_backend=flash_attn: ",
        "shapes/s encoded and decoded",
        "tokens/s forward",
        "decoding=plain: 768 of 768 tokens",
        "fits cpu",
        "GPT-tiny, 3,072 tokens",
        "RTX 4090",
        "all that was tried works",
    ):
        assert part in output, part


def test_decoding_that_is_not_the_forward_pass_is_a_sentence_and_a_status(monkeypatch, capsys):
    attend = decode_ops.linear_attend

    def forgetful(*args):
        args[-1].mul_(0.5)  # of the state
        return attend(*args)

    monkeypatch.setattr(decode_ops, "linear_attend", forgetful)
    assert not doctor_report.try_models(doctor.MODEL, torch.device("cpu"))
    assert (
        "tokens are those of a forward pass: what this machine decodes is wrong"
        in capsys.readouterr().out
    )


def test_models_that_do_not_run_are_a_sentence_and_a_status(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(doctor_report, "GPT_SIZES", {})
    monkeypatch.setattr(doctor_report, "TOKENIZERS", ())
    assert doctor.main(["--model", str(tmp_path)]) == 1
    output = capsys.readouterr().out
    assert (
        "the models do not run here: ValueError" in output
        and "something that should work does not: cpu" in output
    )


def test_counted_memory_grows_with_what_is_kept():
    config = GPTConfig(
        num_layers=4,
        width=64,
        num_heads=2,
        grid_size=8,
        codebook_size=64,
        condition_tokens=4,
        condition_width=8,
    )
    sizes = {
        how: memory.gpt_step_bytes(config, OptimConfig(), 8, how)
        for how in ("none", "cheap", "blocks")
    }
    assert sizes["none"] > sizes["cheap"] > sizes["blocks"]
    one, four = (memory.gpt_step_bytes(config, OptimConfig(), rows, "none") for rows in (1, 4))
    assert 2 < four / one < 4
    tokenizer = load(VQVAEConfig, "configs/vqvae3d_tiny.yaml")
    one, four = (memory.tokenizer_step_bytes(tokenizer, shapes, "none") for shapes in (1, 4))
    assert 2 < four / one < 4


def test_hours_are_model_flops_over_the_rate_assumed_and_only_where_a_row_fits(monkeypatch, capsys):
    monkeypatch.setattr(
        doctor_report,
        "training_flops",
        lambda: {"small": (1000, 8, 989e12), "large": (2000, 4, 989e12 * 36)},
    )
    doctor_report.print_hours({"small": 2**30, "large": 100 * 2**30})
    small, large = (line.split() for line in capsys.readouterr().out.splitlines()[-2:])
    assert small == [
        "small",
        "1,000",
        "8",
        "989",
        "4.2",
        "2.2",
        "0.69",
        "0.69",
    ]  # 1,000 s / 0.4 at 989 TFLOP/s
    assert large == ["large", "2,000", "4", "35,604", "-", "-", "-", "50"]


def test_operations_of_whole_trainings_are_those_of_their_configs(monkeypatch):
    monkeypatch.setattr(doctor_report, "TOKENIZERS", ("vqvae3d", "vqvae3d_fast"))
    monkeypatch.setattr(doctor_report, "GPT_SIZES", {"GPT-B": None})
    paper, fast, gpt = doctor_report.training_flops().values()
    assert paper[:2] == (200_000, 32) and paper[2] * 200_000 == pytest.approx(
        3.93e19, rel=2e-3
    )  # docs/speed.md
    assert fast[2] / paper[2] == pytest.approx(0.249, abs=1e-3)
    assert gpt[:2] == (400_000, 64) and gpt[2] == pytest.approx(3 * 64 * 0.7226e12, rel=2e-3)
