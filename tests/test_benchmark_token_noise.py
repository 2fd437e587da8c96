"""The benchmark of token noise: its figures on tokens whose answer is known, and one small run."""

import json
import math

import pytest
import torch

from benchmarks import token_noise


def test_entropies_and_shares_of_known_tokens():
    ids = torch.tensor([[5, 0], [5, 1], [5, 0], [5, 1]])  # a position that stays, one that flips
    plug_in, miller_madow = token_noise.entropies(ids)
    assert plug_in.tolist() == pytest.approx([0, math.log(2)])
    assert miller_madow.tolist() == pytest.approx([0, math.log(2) + 1 / 8])
    assert token_noise.pairs_that_differ(ids) == pytest.approx(1 / 3)  # 4 of 6 pairs, half of T
    assert token_noise.pairs_that_differ(ids[:, :1]) == 0


def test_nll_is_split_by_the_entropy_of_positions():
    entropy, nll = torch.tensor([0.0, 0.0, 0.7, 3.0]), torch.tensor([0.1, 0.1, 0.8, 3.0])
    same = dict.fromkeys(("expected", "token"), torch.zeros(4))
    summary = token_noise.gpt_summary([{"nll": nll, "entropy": entropy, **same}])
    shares = [c["share_of_nll"] for c in summary["by_entropy"]]
    assert shares == pytest.approx([0.05, 0.2, 0.75]) and summary["nll_of_a_shape"] == 4
    assert summary["correlation_of_nll_and_entropy"] is None  # of a single shape


def test_a_small_run_writes_table_figures_and_plot(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(token_noise, "COUNTS", (512, 1024))
    monkeypatch.setattr(token_noise, "QUERY_POINTS", 500)
    flags = ["--shapes", "1", "--samplings", "2", "--points", "1024", "--out", str(tmp_path)]
    assert token_noise.main(flags) == 0
    report = json.loads((tmp_path / "token_noise.json").read_text())
    figures = report["sets"]["procedural"]
    assert 0.1 < figures["codes_that_differ"] < 0.9 and figures["iou_canonical"][0] > 0.8
    assert figures["iou_512_points"] != figures["iou_1024_points"]
    assert 0 < figures["gpt"]["distance_expected_code_to_mean"] < 0.1
    assert (tmp_path / "token_noise.md").read_text().strip() in capsys.readouterr().out
    assert (tmp_path / "token_noise.png").stat().st_size > 1000
    with pytest.raises(SystemExit, match="2"):
        token_noise.main(["--samplings", "1"])
