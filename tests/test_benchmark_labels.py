"""benchmarks/labels.py tells meshes whose labels keep their shape from those that lose it, and goes
on where it was stopped."""

import csv
import json

import trimesh

from benchmarks.labels import main


def test_it_tells_what_keeps_its_shape(tmp_path, capsys):
    meshes, out = tmp_path / "meshes", tmp_path / "out"
    meshes.mkdir()
    trimesh.creation.icosphere(3, 1.0).export(meshes / "ball.ply")
    box = trimesh.creation.box(
        (1, 1, 1)
    )  # without its floor, which the labels close: wrong surface
    trimesh.Trimesh(box.vertices, box.faces[box.face_normals[:, 1] > -0.5]).export(
        meshes / "no_floor.ply"
    )
    trimesh.creation.box((1, 0.0, 1)).export(meshes / "plate.ply")
    (meshes / "broken.obj").write_text("v 0 0 0\n")
    command = [str(meshes), "--out", str(out), "--cells", "200"]
    assert main(command) == 1  # one cannot be read
    with (out / "labels.csv").open(newline="") as f:
        rows = {row["id"]: row for row in csv.DictReader(f)}
    assert float(rows["ball"]["outer"]) > 0.97 and float(rows["plate"]["outer"]) > 0.97
    assert float(rows["no_floor"]["outer"]) < 0.97 and float(rows["no_floor"]["precision"]) < float(
        rows["no_floor"]["recall"]
    )
    assert rows["broken"]["status"] == "failed" and "triangles" in rows["broken"]["reason"]
    assert [p.name for p in (out / "pictures").iterdir()] == ["no_floor.png"] and (
        out / "labels.png"
    ).is_file()
    assert json.loads((out / "labels.json").read_text())["kept"]["outer"] == 0.5
    assert "50.0% keep at least 97%" in capsys.readouterr().out

    lines = (out / "rows.jsonl").read_text().splitlines()
    (out / "rows.jsonl").write_text("".join(f"{line}\n" for line in lines if '"ball"' not in line))
    assert main([*command, "--limit", "4"]) == 1
    assert len((out / "rows.jsonl").read_text().splitlines()) == 4
