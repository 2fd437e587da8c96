"""The doctor looks at a machine and says what can be done there."""

from __future__ import annotations

import torch

from tar3d import doctor
from tar3d.config import GPTConfig, OptimConfig, VQVAEConfig, load


def test_a_machine_is_described_and_both_models_are_tried(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "SECONDS", 0.01)
    monkeypatch.setattr(doctor, "GPT_SIZES", {"GPT-tiny": (6, 192, 3)})
    monkeypatch.setattr(doctor, "TOKENIZERS", ("vqvae3d_tiny",))
    assert doctor.main([]) == 0
    output = capsys.readouterr().out
    for part in (f"torch {torch.__version__}", "cpu: ", "gpt.linear_backend=fla: ", "gpt.attention_backend=flash_attn: ",
                 "shapes/s encoded and decoded", "tokens/s forward", "fits cpu", "GPT-tiny, 3,072 tokens",
                 "all that was tried works"):
        assert part in output, part


def test_models_that_do_not_run_are_a_sentence_and_a_status(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "GPT_SIZES", {})
    monkeypatch.setattr(doctor, "TOKENIZERS", ())
    assert doctor.main(["--model", str(tmp_path)]) == 1
    output = capsys.readouterr().out
    assert "the models do not run here: ValueError" in output and "something that should work does not: cpu" in output


def test_counted_memory_grows_with_what_is_kept():
    config = GPTConfig(num_layers=4, width=64, num_heads=2, grid_size=8, codebook_size=64, condition_tokens=4, condition_width=8)
    sizes = {how: doctor.gpt_step_bytes(config, OptimConfig(), 8, how) for how in ("none", "cheap", "blocks")}
    assert sizes["none"] > sizes["cheap"] > sizes["blocks"]
    one, four = (doctor.gpt_step_bytes(config, OptimConfig(), rows, "none") for rows in (1, 4))
    assert 2 < four / one < 4
    tokenizer = load(VQVAEConfig, "configs/vqvae3d_tiny.yaml")
    one, four = (doctor.tokenizer_step_bytes(tokenizer, shapes, "none") for shapes in (1, 4))
    assert 2 < four / one < 4

