"""report.md says what is in report.csv, and its sheets show the shapes it names."""

import csv
import shutil

import numpy as np
import pytest
from PIL import Image

from tar3d.data.formats.shards import write_shard
from tar3d.data.make_samples import main
from tar3d.data.prepare.contact_sheets import TILE
from tar3d.data.prepare.make_samples import FIELDS
from tar3d.data.prepare.report import SHEET_SHAPES, reason_kind, scan_report, write_report

MADE = ["report.md", "report.png", "contact_sheet.png", "least_confident.png"]


def write_rows(out, rows, fields=(*FIELDS, "kind")):
    out.mkdir(exist_ok=True)
    with (out / "report.csv").open("w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, fields)
        writer.writeheader()
        writer.writerows(rows)
    return out


def good(k: int, **values) -> dict:
    return {
        "id": f"a{k:03}",
        "file": f"gone/a{k:03}.obj",
        "status": "ok",
        "faces": 10 * k,
        "label_confidence": 1 - k / 1000,
        "seconds": 0.5,
        "thin_share": "",
        "kind": "chair",
    } | values


def refused(k: int, reason: str) -> dict:
    return {
        "id": f"r{k}",
        "file": f"gone/r{k}.obj",
        "status": "refused",
        "reason": f"gone/r{k}.obj: {reason}",
        "seconds": 9.0,
    }


def cells(text: str, first: str) -> list[str]:
    """Cells of the table row that begins with `first`."""
    return next(
        [c.strip() for c in line.split("|")[1:-1]]
        for line in text.splitlines()
        if line.startswith(f"| {first} |")
    )


def listed(text: str) -> list[str]:
    return [line.split("`")[1] for line in text.splitlines() if line.startswith("| `")]


def test_counts_reasons_quantiles_and_the_extreme_shapes(tmp_path):
    rows = [good(k) for k in range(1, 101)] + [
        good(101, thin_share=0.25, seconds=77, label_confidence=0.1)
    ]
    rows += [refused(k, f"it has {k:,} bytes, allowed are 1 to 2,000") for k in range(10)]
    rows += [refused(10, "it has no | triangles")]
    write_report(write_rows(tmp_path, rows))
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "101 of 112 meshes were sampled. 101 ok, 11 refused." in text
    assert (
        cells(text, "10")[1] == "it has … bytes, allowed are … to …"
        and "`r0`, `r1`" in text
        and "and 2 more" in text
    )
    assert r"it has no \| triangles" in text
    assert cells(text, "faces")[1:] == [
        "101",
        "10",
        "20",
        "60",
        "510",
        "960",
        "1,000",
        "1,010",
        "510",
    ]
    assert cells(text, "thin_share")[1:3] == [
        "1",
        "0.25",
    ]  # a column it was not told of, mostly empty
    assert "| kind |" not in text  # words
    least, slowest = text[text.index("## Least certain") :].split("## Slowest")
    assert listed(least) == ["a101", *(f"a{k:03}" for k in range(100, 91, -1))]
    assert listed(slowest) == ["a101", *(f"r{k}" for k in range(9))]
    assert "They took 226 s" in text  # 100 x 0.5 + 77 + 11 x 9
    with Image.open(tmp_path / "contact_sheet.png") as sheet:
        assert (
            sheet.width == 8 * (TILE + 4) + 4 and sheet.height // (TILE + 50) == SHEET_SHAPES // 8
        )


def test_nothing_sampled(tmp_path):
    write_report(write_rows(tmp_path, [good(k) for k in range(3)]))
    assert all((tmp_path / name).is_file() for name in MADE)
    write_report(
        write_rows(
            tmp_path,
            [refused(0, "it has no triangles"), {"id": "x", "file": "f", "status": "refused"}],
        )
    )
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "0 of 2 meshes were sampled" in text and "no reason given" in text and ".png" not in text
    assert [name for name in MADE if (tmp_path / name).exists()] == [
        "report.md"
    ]  # nor what an earlier run left
    write_report(write_rows(tmp_path, []))
    assert "0 of 0 meshes were sampled" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_numbers_that_are_none(tmp_path):
    scan = scan_report(
        write_rows(tmp_path, [good(1, faces="inf"), good(2, faces=""), good(3)]) / "report.csv"
    )
    assert (
        np.isnan(scan.columns["faces"][:2]).all()
        and scan.columns["faces"][2] == 30
        and "kind" not in scan.columns
    )
    write_report(tmp_path)


@pytest.mark.parametrize(
    "reason, kind",
    [
        (
            "a/b.glb: its GLB header declares 49 bytes, but the file has 48",
            "its GLB header declares … bytes, but the file has …",
        ),
        (
            "a/b.glb: vertices reach 1.5e+30, allowed are -1 to 1.",
            "vertices reach …, allowed are … to ….",
        ),
        (
            "a/b.glb: the mesh's buffer 'x.bin' and the file's \"y.bin\" are gone",
            "the mesh's buffer … and the file's … are gone",
        ),
        ("it has no triangles", "it has no triangles"),
        ("", "no reason given"),
    ],
)
def test_reasons_of_one_kind_read_alike(reason, kind):
    assert reason_kind({"file": "a/b.glb", "reason": reason}) == kind


@pytest.mark.parametrize(
    "header, message", [(None, "is not there"), (["id", "file", "status"], "no column reason")]
)
def test_a_report_that_is_none(tmp_path, header, message):
    if header:
        write_rows(tmp_path, [], header)
    with pytest.raises(ValueError, match=message):
        write_report(tmp_path)


def test_make_samples_ends_with_a_report(meshes, tmp_path):
    (meshes / "broken.glb").write_bytes(b"glTF but no more")
    out = tmp_path / "out"
    points = ["surface_points=50", "volume_points=99", "near_points=50"]
    assert main([str(meshes), "--out", str(out), "--workers", "1", *points]) == 1
    assert "6 of 7 meshes were sampled" in (out / "report.md").read_text(encoding="utf-8")
    assert all((out / name).is_file() for name in MADE)


def tiles(path) -> list[np.ndarray]:
    with Image.open(path) as sheet:
        pixels = np.asarray(sheet)
    return [pixels[4 : 4 + TILE, x : x + TILE] for x in range(4, pixels.shape[1], TILE + 4)]


def test_a_sheet_shows_the_view_else_the_mesh_else_a_blank(samples, tmp_path):
    """Loose views and those in a shard give the same sheet."""
    out = tmp_path / "set"
    shutil.copytree(samples, out)
    write_report(out)
    loose = tiles(out / "contact_sheet.png")
    files = {
        p.relative_to(out / "views").as_posix(): p.read_bytes() for p in (out / "views").glob("*/*")
    }
    shutil.rmtree(out / "views")
    write_report(out)
    rendered = tiles(out / "contact_sheet.png")
    write_shard(out / "views" / "00000.tar", files)
    write_report(out)
    assert all(
        np.array_equal(a, b) for a, b in zip(loose, tiles(out / "contact_sheet.png"), strict=True)
    )
    shutil.rmtree(out / "views")
    with (out / "report.csv").open(newline="") as f:
        rows = list(csv.DictReader(f))
    write_rows(out, [row | {"file": "gone.obj"} for row in rows], FIELDS)
    write_report(out)
    blank = tiles(out / "contact_sheet.png")
    assert len(loose) == len(rows) == 6
    for a, b, c in zip(loose, rendered, blank, strict=True):
        assert (a.mean(-1) < 200).mean() > 0.01 < (b.mean(-1) < 200).mean() and not np.array_equal(
            a, b
        )
        assert np.array_equal(c, blank[0]) and not np.array_equal(c, b)
