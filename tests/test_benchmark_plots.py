"""The figures of how cost grows, from what the suites write."""

import json

from PIL import Image

from benchmarks import curves, plot
from benchmarks.suites.tokenizer import ENCODERS

ORIGIN = {"machine": "m", "threads": 2, "torch": "2", "commit": "c", "date": "2026-01-02T03:04:05"}


def decode_report() -> dict:
    """As far as the figure needs it; a token costs what it would if bytes alone counted."""
    parameters = {"GPT-tiny": 3.0, "GPT-B": 110.0, "GPT-L": 330.0}
    sizes = [
        ("GPT-B", 768, 1),
        ("GPT-B", 3072, 1),
        ("GPT-B", 12_288, 1),
        ("GPT-B", 3072, 2),
        ("GPT-B", 3072, 8),
        ("GPT-tiny", 3072, 1),
        ("GPT-L", 3072, 1),
    ]
    records = []
    for model, tokens, batch in sizes:
        for pattern, share in (("F", 1.0), ("LLLF", 0.25), ("L", 0.0)):
            ms = parameters[model] * (0.3 / batch + share * tokens / 12_288)
            settings = {
                "model": model,
                "tokens": tokens,
                "batch": batch,
                "million_parameters": parameters[model],
            }
            records.append(
                {
                    "case": f"full/growth_{model}_{tokens}_{batch}",
                    "variant": pattern,
                    "settings": settings,
                    "items": batch,
                    "dtype": "float32",
                    "ms_per_item": ms,
                    "roofline_seconds": ms * batch / 1300,
                }
            )
    return {"suite": "decode", "cases": records, **ORIGIN}


def growth_report(suite: str) -> dict:
    def record(case: str, setting: str, x: int, variant: str = "") -> dict:
        return {
            "case": case,
            "variant": variant,
            "median_seconds": x / 10,
            "settings": {setting: x, "batch": 1},
            "peak_resident_mib": 400.0 + x,
            "peak_gpu_mib": None,
        }

    def compared(
        time: str, memory: str, setting: str, values: tuple[int, int], variants: tuple[str, ...]
    ) -> list[dict]:
        return [
            r
            for x in values
            for v in variants
            for r in (
                record(f"full/{time}_{x}", setting, x, v),
                record(f"full/{memory}_{x}_{v}", setting, x),
            )
        ]

    cases = {
        "tokenize": [
            *compared("points", "memory_points", "surface_points", (8192, 81_920), ENCODERS),
            *compared("grid", "memory_grid", "grid_size", (16, 48), ENCODERS),
        ],
        "train": [
            *compared("growth", "memory_grid", "grid_size", (16, 48), ("F", "LLLF")),
            *(record(f"full/memory_size_{x}", "million_parameters", x) for x in (3, 100)),
        ],
        "extract": [
            record(f"{size}/growth_{x}", "resolution", x)
            for size in ("tiny", "full")
            for x in (128, 1024)
        ],
    }
    return {"suite": suite, "cases": cases[suite], **ORIGIN}


def test_the_figure_of_decoding_is_drawn(tmp_path, capsys):
    results, out = tmp_path / "results.json", tmp_path / "docs" / "growth.png"
    results.write_text(json.dumps(decode_report()))
    assert plot.main([str(results), "--out", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG") and out.stat().st_size > 20_000
    results.write_text(json.dumps(decode_report() | {"cases": []}))
    assert (
        plot.main([str(results), "--out", str(out)]) == 2
        and "no case growth_" in capsys.readouterr().err
    )


def test_the_figure_of_growth_is_drawn_from_the_suites_that_are_given(tmp_path, capsys):
    paths = [tmp_path / f"{suite}.json" for suite in ("tokenize", "train", "extract")]
    for path in paths:
        path.write_text(json.dumps(growth_report(path.stem)))
    for given in (paths, paths[1:2]):
        out = tmp_path / f"{len(given)}.png"
        assert plot.main([*map(str, given), "--out", str(out)]) == 0 and out.stat().st_size > 20_000
    for changes, complaint in (({"cases": []}, "run it whole"), ({"suite": "data"}, "got data")):
        paths[0].write_text(json.dumps(growth_report("tokenize") | changes))
        assert (
            plot.main([str(paths[0]), "--out", str(out)]) == 2
            and complaint in capsys.readouterr().err
        )


def test_curves_of_two_runs_are_one_figure(tmp_path):
    vqvae, gpt = tmp_path / "vqvae", tmp_path / "gpt"
    for folder, config in (
        (vqvae, {"tokenizer": {"codebook_size": 16}}),
        (gpt, {"gpt": {"codebook_size": 16}}),
    ):
        folder.mkdir()
        (folder / "run.json").write_text(json.dumps({"config": config}))
    (vqvae / "train.csv").write_text(
        "step,loss,volume,near,commitment\n1,1,1,1,0\n2,0.5,0.5,0.5,0.1\n"
    )
    (vqvae / "validation.csv").write_text(
        "step,iou_volume,iou_near,codebook_usage,perplexity\n1,0.5,0.4,0,0\n2,0.6,0.5,0.9,12\n"
    )
    (gpt / "train.csv").write_text("step,nll\n1,2.7\n2,2\n")
    (gpt / "validation.csv").write_text(
        "step,nll,nll_shuffled,nll_null,nll_xy,nll_xz,nll_yz,nll_first8\n2,2,2.2,2.1,2,2,2,2\n"
    )
    out = tmp_path / "docs" / "curves.png"
    assert curves.main(["--vqvae", str(vqvae), "--gpt", str(gpt), "--out", str(out)]) == 0
    with Image.open(out) as image:
        assert image.size == (1560, 840) and len(set(image.convert("L").getdata())) > 20
    assert curves.main(["--vqvae", str(tmp_path), "--gpt", str(gpt), "--out", str(out)]) == 2
