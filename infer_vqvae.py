"""Reconstructs meshes and point clouds through the tokenizer and says how close the result is:

    python infer_vqvae.py
    python infer_vqvae.py --input_file FILE|DIR --output_dir OUT --model MODEL
    python infer_vqvae.py --input_file FILE|DIR --output_dir OUT --save-tokens        also OUT/tokens/<name>.tokens.npz
    python infer_vqvae.py --input_file OUT/tokens --output_dir FINE --resolution 512  meshes of such files

Each input gives OUT/<name>.glb and a picture of both; report.csv has a row for each, report.md the
summary. An input that cannot be used is listed with the reason, the rest goes on, and the exit
status is 1.

Meshes are .glb .gltf .obj .ply .stl .off. Point clouds are .ply without faces; .xyz and .txt (a
point a line: x y z, or x y z nx ny nz; in a folder, no .txt is looked for); .npz (points, and
normals if it has them, or the samples that tar3d.data.make_samples writes); .npy. Points should be
uniform over the surface, not the vertices of a mesh. Missing normals are estimated and oriented,
which is said. A cloud is scored against its own points, and has neither IoU nor floor. Tokens
(tar3d/data/formats/token_file.py), of this script or of run.py, are decoded, and have no scores.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from tar3d import checkpoint
from tar3d.config import EvalProtocol
from tar3d.contracts import CUBE_FILL, Mesh
from tar3d.data.datasets.sampler import spread
from tar3d.data.formats.dataset_folder import read_categories
from tar3d.data.formats.token_file import FOLDER, SUFFIX, TokenFiles, is_token_file
from tar3d.data.prepare.mesh_list import mesh_ids
from tar3d.io import write_csv, write_json
from tar3d.mesh.export import FORMATS, save_mesh
from tar3d.mesh.extract import drop_small_components
from tar3d.mesh.load import SUPPORTED, check_file, list_meshes, load_mesh
from tar3d.mesh.point_cloud import ESTIMATED, ONLY_POINTS, PointCloud, is_cloud, load_points, splats
from tar3d.mesh.points import outer_surface
from tar3d.mesh.render import contact_sheet, picture
from tar3d.metrics.geometry import (
    compare_points,
    describe,
    in_frame,
    point_scores,
    surface_cloud,
    transformed,
    volume_iou,
)
from tar3d.pipeline import MIN_COMPONENT_SHARE, Placement, mesh_from_tokens, reconstruct
from tar3d.runtime import choose_device, describe_machine, extraction_bar, peak_memory, positive_int
from tar3d.tokenizer.quantizer import codebook_usage

if TYPE_CHECKING:
    from tar3d.tokenizer.vqvae import VQVAE

PROTOCOL = EvalProtocol()
SCORES = ["chamfer", "fscore@0.02", "iou", "floor_chamfer", "floor_fscore@0.02"]
FIELDS = [
    "id",
    "file",
    "kind",
    "category",
    "status",
    "reason",
    "note",
    "tokens",
    *SCORES,
    "seconds",
]
SEARCHED = (*SUPPORTED, *ONLY_POINTS)
POINTS_DRAWN = 20_000  # in the picture of a cloud, at most


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--input_file",
        type=Path,
        default=Path("assets/sample_mesh.glb"),
        help="mesh, point cloud or tokens, or folder of them (default: %(default)s)",
    )
    parser.add_argument(
        "--output_dir", type=Path, default=Path("outputs/reconstruct"), help="default: %(default)s"
    )
    parser.add_argument(
        "--model",
        "--ckpt_path",
        dest="model",
        default="pretrained/tiny",
        help="model directory or Hub id (default: %(default)s)",
    )
    parser.add_argument(
        "--pc_size",
        type=positive_int,
        default=8192,
        help="surface points given to the encoder; of a cloud with fewer, all (default: %(default)s)",
    )
    parser.add_argument(
        "--resolution",
        type=positive_int,
        default=128,
        help="extraction cells along each axis (default: %(default)s)",
    )
    parser.add_argument(
        "--format",
        choices=[f[1:] for f in FORMATS],
        default="glb",
        help="of the meshes written (default: %(default)s)",
    )
    parser.add_argument(
        "--frame",
        choices=["normalized", "source"],
        default="source",
        help="write in the cube's frame or in the input's (default: %(default)s)",
    )
    parser.add_argument(
        "--save-tokens",
        action="store_true",
        help=f"also write each shape's tokens, OUT/{FOLDER}/<name>{SUFFIX}",
    )
    parser.add_argument(
        "--limit", type=positive_int, help="only so many inputs, spread evenly over the folder"
    )
    parser.add_argument("--no-pictures", action="store_true", help="write no pictures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--low-vram",
        action="store_true",
        help="for small GPUs: a part of the model is on the GPU only while it works, feature planes are float16",
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    try:
        device = choose_device(args.device, args.low_vram)
        vqvae = checkpoint.load_tokenizer(args.model).to("cpu" if args.low_vram else device)
        inputs = find_inputs(args.input_file, args.limit)
        if args.output_dir.resolve() in {p.parent.resolve() for p in inputs.values()}:
            raise ValueError(
                f"--output_dir {args.output_dir} holds the input, which could be overwritten: choose another folder"
            )
    except ValueError as e:
        print(e, file=sys.stderr)
        return 2
    categories = read_categories(args.input_file) or read_categories(args.input_file.parent)
    rows, counts = [], torch.zeros(vqvae.config.codebook_size, dtype=torch.int64)
    files, placement = TokenFiles(vqvae), Placement(device, args.low_vram)
    for shape_id, path in tqdm(
        inputs.items(), unit="shape", desc="reconstruct", disable=len(inputs) == 1
    ):
        kind = kind_of(path)
        row = dict.fromkeys(FIELDS, "") | {
            "id": shape_id,
            "file": str(path),
            "kind": kind,
            "category": categories.get(shape_id, ""),
        }
        start, make = time.perf_counter(), decode_file if kind == "tokens" else reconstruct_file
        try:
            scores, ids = make(
                vqvae, files, path, args.output_dir / f"{shape_id}.{args.format}", placement, args
            )
            row |= {"status": "ok", "tokens": len(ids)} | scores
            counts += torch.bincount(ids.cpu(), minlength=len(counts))
        # what this library refuses: a bad mesh, an empty field, a truth that encloses nothing
        except ValueError as e:
            row |= {"status": "failed", "reason": str(e)}
        rows.append(row | {"seconds": time.perf_counter() - start})
    report(rows, counts, args, device)
    failed = [r for r in rows if r["status"] != "ok"]
    for row in [r for r in rows if r["note"]][:10]:
        print(f"note: {row['id']}: {row['note']}", file=sys.stderr)
    for row in failed[:10]:
        print(f"failed: {row['id']}: {row['reason']}", file=sys.stderr)
    return 1 if failed else 0


def kind_of(path: Path) -> str:
    return "tokens" if is_token_file(path) else "points" if is_cloud(path) else "mesh"


def without_suffix(path: Path) -> Path:
    return (
        path.with_name(path.name[: -len(SUFFIX)]) if is_token_file(path) else path.with_suffix("")
    )


def find_inputs(path: Path, limit: int | None) -> dict[str, Path]:
    if not path.exists():
        raise ValueError(f"--input_file {path} does not exist")
    inputs = {without_suffix(path).name: path} if path.is_file() else inputs_of(path)
    names = list(inputs)
    if limit is not None and limit < len(names):
        names = [names[i] for i in spread(len(names), limit)]
    return {name: inputs[name] for name in names}


def inputs_of(folder: Path) -> dict[str, Path]:
    """Ids of the meshes, point clouds and tokens of a folder: the meshes' as everywhere, and the
    others named alike."""
    root = folder / "meshes" if (folder / "meshes").is_dir() else folder
    others = sorted(
        p
        for p in root.rglob("*")
        if p.suffix.lower() in ONLY_POINTS and p.is_file() and not p.name.startswith(".")
    )
    inputs = mesh_ids(folder) if list_meshes(root) else {}
    if not inputs and not others:
        raise ValueError(
            f"{root} holds no meshes, point clouds or tokens; looked for {', '.join(SEARCHED)} at any depth"
        )
    for path in others:
        relative = path.relative_to(root)
        short = "__".join(without_suffix(relative).parts)
        inputs["__".join(relative.parts) if short in inputs else short] = path
    return dict(sorted(inputs.items(), key=lambda named: named[1]))


def reconstruct_file(
    vqvae: VQVAE,
    files: TokenFiles,
    path: Path,
    target: Path,
    placement: Placement,
    args: argparse.Namespace,
) -> tuple[dict, torch.Tensor]:
    """Writes the reconstruction (and picture) of one mesh or cloud; returns its scores, taken in
    the normalised frame, and its tokens (T,)."""
    check_file(path, (*SEARCHED, ".txt"))
    truth = load_points(path) if is_cloud(path) else load_mesh(path)
    rng = np.random.default_rng(args.seed)
    surface = (
        outer_surface(truth, args.pc_size, rng)
        if isinstance(truth, Mesh)
        else truth.draw(args.pc_size, rng)
    )
    with extraction_bar(path.name) as progress:
        rebuilt, tokens = reconstruct(
            vqvae, surface, args.resolution, placement=placement, progress=progress
        )
    rebuilt = Mesh(rebuilt.vertices, rebuilt.faces, truth.to_source)
    save_mesh(rebuilt, target, frame=args.frame)
    if args.save_tokens:
        files.save(
            target.parent, target.stem, tokens.ids[0], to_source=truth.to_source, sampled=False
        )
    if not args.no_pictures:
        given = (
            truth
            if isinstance(truth, Mesh)
            else splats(surface[:: -(-len(surface) // POINTS_DRAWN)])
        )
        contact_sheet([[picture(given), picture(rebuilt)]], ["input", "rebuilt"]).save(
            target.with_suffix(".png")
        )
    protocol = dataclasses.replace(PROTOCOL, seed=args.seed)
    scores = (
        scores_of_mesh(rebuilt, truth, protocol)
        if isinstance(truth, Mesh)
        else scores_of_cloud(rebuilt, truth, protocol)
    )
    note = "" if isinstance(truth, Mesh) else "; ".join(truth.notes)
    return {"note": note, **{name: scores[name] for name in SCORES if name in scores}}, tokens.ids[
        0
    ]


def decode_file(
    vqvae: VQVAE,
    files: TokenFiles,
    path: Path,
    target: Path,
    placement: Placement,
    args: argparse.Namespace,
) -> tuple[dict, torch.Tensor]:
    """Writes the mesh (and picture) of a file of tokens, which are returned, beside no scores."""
    stored = files.load(path)
    with extraction_bar(path.name) as progress:
        mesh = mesh_from_tokens(
            vqvae, stored.tokens, args.resolution, placement=placement, progress=progress
        )
    if stored.sampled:
        mesh = drop_small_components(mesh, MIN_COMPONENT_SHARE)
    save_mesh(Mesh(mesh.vertices, mesh.faces, stored.to_source), target, frame=args.frame)
    if not args.no_pictures:
        contact_sheet([[picture(mesh)]], ["decoded"]).save(target.with_suffix(".png"))
    return {}, stored.tokens.ids[0]


def scores_of_mesh(rebuilt: Mesh, truth: Mesh, protocol: EvalProtocol) -> dict[str, float | None]:
    rebuilt, truth = in_frame(rebuilt, truth, protocol.frame)
    return compare_points(rebuilt, truth, protocol) | {
        "iou": volume_iou(rebuilt, truth, protocol.iou_points, protocol.seed)
    }


def scores_of_cloud(rebuilt: Mesh, cloud: PointCloud, protocol: EvalProtocol) -> dict[str, float]:
    """Samples of `rebuilt` against the cloud's own points, in the unit of the protocol's frame
    "truth"."""
    unit = 1 / CUBE_FILL
    rebuilt = transformed(rebuilt, np.diag([unit, unit, unit, 1.0]))
    points = surface_cloud(rebuilt, protocol.points, (protocol.seed, 0))[:, :3]
    return point_scores(points, cloud.points * unit, protocol.thresholds)


def mean(values: list[float | None]) -> float | None:
    """Over the values that are there; None if none is."""
    present = [v for v in values if isinstance(v, float)]
    return float(np.mean(present)) if present else None


def table_row(name: str, m: dict) -> str:
    fscore, floor = m["fscore@0.02"], m["floor_fscore@0.02"]
    cells = [
        (m["chamfer"], ".4f"),
        (m["floor_chamfer"], ".4f"),
        (fscore, ".3f"),
        (floor, ".3f"),
        (fscore / floor if floor else None, ".1%"),
        (m["iou"], ".3f"),
    ]
    return f"| {name} | {m['shapes']} | {' | '.join('-' if v is None else f'{v:{form}}' for v, form in cells)} |"


def report(
    rows: list[dict], counts: torch.Tensor, args: argparse.Namespace, device: torch.device
) -> None:
    """report.csv, report.md, summary.json, and the same on the screen; `counts` (V,) is how often
    each code was used."""
    args.output_dir.mkdir(parents=True, exist_ok=True)
    write_csv(
        args.output_dir / "report.csv",
        FIELDS,
        [{k: f"{v:.6f}" if isinstance(v, float) else v for k, v in r.items()} for r in rows],
    )
    good = [r for r in rows if r["status"] == "ok"]
    meshes, clouds = ([r for r in good if r["kind"] == kind] for kind in ("mesh", "points"))
    groups = {
        "all meshes" if clouds else "all": meshes,
        "point clouds": clouds,
    }  # their scores do not compare
    by_category = defaultdict(list)
    for row in meshes:
        by_category[row["category"]].append(row)
    if len(by_category) > 1:
        groups |= dict(sorted(by_category.items()))
    table = {
        name: {"shapes": len(group), **{s: mean([r[s] for r in group]) for s in SCORES}}
        for name, group in groups.items()
        if group
    }
    blocks = []
    if table:
        blocks.append(
            "\n".join(
                [
                    "| | shapes | Chamfer | (floor) | F-score@0.02 | (floor) | share of floor | volume IoU |",
                    "|---|---|---|---|---|---|---|---|",
                    *(table_row(name or "no category", means) for name, means in table.items()),
                ]
            )
        )
    if hollow := sum(r["iou"] is None for r in meshes):
        blocks.append(
            f"{hollow} shapes enclose none of the points and have no IoU; its mean is over the others."
        )
    if clouds:
        estimated = sum(ESTIMATED in r["note"] for r in clouds)
        blocks.append(
            f"Point clouds are scored against their own points; {estimated} of {len(clouds)}: {ESTIMATED}."
        )
    if decoded := sum(r["kind"] == "tokens" for r in good):
        blocks.append(
            f"{decoded} decoded from tokens, which tell of no truth to be scored against."
        )
    usage, perplexity = codebook_usage(counts) if good else (None, None)
    if good:
        blocks.append(
            f"{counts.sum():,} tokens use {usage:.1%} of the {len(counts):,} codes, perplexity {perplexity:,.0f}."
        )
    machine = describe_machine(device)
    kinds = "meshes" if all(r["kind"] == "mesh" for r in rows) else "inputs"
    head = (
        f"{len(good)} of {len(rows)} {kinds} reconstructed by {args.model}, {args.pc_size} points, "
        f"{args.resolution}^3 cells, seed {args.seed}; "
        f"{sum(r['seconds'] for r in rows):.1f} s, peak memory {peak_memory(device)}; "
        f"{machine['machine']}, commit {machine['commit']}"
    )
    text = "\n\n".join([head, *blocks])
    page = f"# Reconstruction\n\n{text}\n" + (
        f"\n```\n{describe(PROTOCOL)}\n```\n" if table else ""
    )
    (args.output_dir / "report.md").write_text(page, encoding="utf-8")
    write_json(
        args.output_dir / "summary.json",
        {
            "means": table,
            "of": len(rows),
            "codebook_usage": usage,
            "perplexity": perplexity,
            "machine": machine,
        },
    )
    print(text)
    if good:
        print(
            f"{good[0]['tokens']} tokens a shape; meshes, pictures and report.csv in {args.output_dir}"
        )


if __name__ == "__main__":
    sys.exit(main())
