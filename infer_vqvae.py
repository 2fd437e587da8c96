"""Reconstructs meshes and point clouds through the tokenizer and measures how close the result is:

    python infer_vqvae.py
    python infer_vqvae.py --input_file FILE|DIR --output_dir OUT --model MODEL
    python infer_vqvae.py --input_file FILE|DIR --output_dir OUT --save-tokens
    python infer_vqvae.py --input_file OUT/tokens --output_dir FINE --resolution 512

The third also writes OUT/tokens/<name>.tokens.npz, the last makes meshes of such files. Each input
gives OUT/<name>.glb and an image of both; report.csv has a row for each, report.md the summary. An
input that cannot be used is listed with the reason, the rest goes on, and the exit status is 1.

Meshes are .glb .gltf .obj .ply .stl .off. Point clouds are .ply without faces; .xyz and .txt (a
point a line: x y z, or x y z nx ny nz; in a folder, no .txt is looked for); .npz (points, and
normals if it has them, or the samples that tar3d.data.make_samples writes); .npy. Points should be
uniform over the surface, not the vertices of a mesh. Missing normals are estimated and oriented,
which the report notes, as it does a ground plane, a sky dome and stray parts far from the object.
A cloud is scored against its own points, and has neither IoU nor floor.
Tokens (tar3d/data/formats/token_file.py), of this script or of run.py, are decoded, and have no
scores.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tar3d.config import EvalProtocol
from tar3d.config.flags import seed_number
from tar3d.contracts import Mesh
from tar3d.data.datasets.spread import spread
from tar3d.data.formats.dataset_folder import read_categories
from tar3d.data.formats.token_file import FOLDER, SUFFIX, TokenFiles, is_token_file
from tar3d.folders import find_files, length_problem, name_problem, printable, probe_output
from tar3d.mesh.export import FORMATS, save_mesh
from tar3d.mesh.render import contact_sheet, render_preview
from tar3d.paths import find_local
from tar3d.runtime import (
    add_machine_arguments,
    add_model_argument,
    cell_count,
    choose_device,
    command,
    command_parser,
    extraction_bar,
    positive_int,
    progress_bar,
)

if TYPE_CHECKING:
    import argparse

    import torch

    from tar3d.placement import Placement
    from tar3d.tokenizer.vqvae import VQVAE

PROTOCOL = EvalProtocol()
MAX_POINTS_DRAWN = 20_000  # in the image of a cloud
MAX_PRINTED = 10  # notes and failures on the screen; report.csv has all


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    inputs = parser.add_argument_group("what to reconstruct")
    inputs.add_argument(
        "--input_file",
        type=Path,
        default=Path("assets/sample_mesh.glb"),
        help="mesh, point cloud or tokens, or folder of them (default: %(default)s)",
    )
    inputs.add_argument(
        "--limit", type=positive_int, help="at most so many inputs, spread evenly over the folder"
    )
    inputs.add_argument(
        "--pc_size",
        type=positive_int,
        default=8192,
        help="surface points that the encoder sees; all of a cloud with fewer; more make tokens "
        "more certain, and cost time (default: %(default)s)",
    )
    inputs.add_argument(
        "--seed", type=seed_number, default=0, help="draws other surface points (default: 0)"
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--output_dir", type=Path, default=Path("outputs/reconstruct"), help="default: %(default)s"
    )
    output.add_argument(
        "--resolution",
        type=cell_count,
        default=128,
        help="extraction cells along each axis: more show finer detail (default: %(default)s)",
    )
    output.add_argument(
        "--format",
        choices=[f[1:] for f in FORMATS],
        default="glb",
        help="file format of the meshes (default: %(default)s)",
    )
    output.add_argument(
        "--frame",
        choices=["normalized", "source"],
        default="source",
        help="source puts the mesh where the input is, normalized in the cube [-1, 1]^3 (default: "
        "%(default)s)",
    )
    output.add_argument(
        "--save-tokens",
        action="store_true",
        help=f"also OUT/{FOLDER}/<name>{SUFFIX}: the shape in a few kB, an input of this script",
    )
    output.add_argument(
        "--no-pictures", action="store_true", help="write no images, which is faster"
    )
    machine = parser.add_argument_group("model and machine")
    add_model_argument(machine, "of a tokenizer", "--ckpt_path")
    add_machine_arguments(machine, precision=False)
    return parser.parse_args(argv)


@command
def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    import torch  # and what loads it, which --help does without

    from tar3d import checkpoint
    from tar3d.evaluation.reconstruction import FIELDS, write_reconstruction_report
    from tar3d.placement import Placement

    source = find_local(args.input_file)
    try:
        probe_output(args.output_dir, "--output_dir")
        inputs, notes = find_inputs(source, args.limit, args.output_dir)
        categories, problem = known_categories(source)
        for note in [*notes, *filter(None, [problem])]:
            print(f"note: {note}", file=sys.stderr)
        device = choose_device(args.device, args.low_vram)
        vqvae = checkpoint.load_tokenizer(args.model).to("cpu" if args.low_vram else device)
        if args.output_dir.resolve() in {file.path.parent.resolve() for file in inputs}:
            raise ValueError(
                f"--output_dir {args.output_dir} holds the input, which could be overwritten: "
                "choose another folder"
            )
    except ValueError as e:
        print(e, file=sys.stderr)
        return 2
    reconstructor = FileReconstructor(
        vqvae,
        Placement(device, args.low_vram),
        resolution=args.resolution,
        surface_points=args.pc_size,
        seed=args.seed,
        frame=args.frame,
        save_tokens=args.save_tokens,
        images=not args.no_pictures,
    )
    rows, code_counts = [], torch.zeros(vqvae.config.codebook_size, dtype=torch.int64)
    for file in progress_bar(inputs, unit="shape", desc="reconstruct", disable=len(inputs) == 1):
        row = dict.fromkeys(FIELDS, "") | {
            "id": file.shape_id,
            "file": printable(file.path),
            "kind": file.kind,
            "category": categories.get(file.shape_id, ""),
        }
        start = time.perf_counter()
        try:
            target = args.output_dir / f"{file.shape_id}.{args.format}"
            scores, ids = reconstructor.write(file, target)
            row |= {"status": "ok", "tokens": len(ids)} | scores
            code_counts += torch.bincount(ids.cpu(), minlength=len(code_counts))
        # What this library refuses: a bad mesh, an empty field, a truth that encloses nothing.
        except ValueError as e:
            row |= {"status": "failed", "reason": str(e)}
        rows.append(row | {"seconds": time.perf_counter() - start})
    settings = f"{args.model}, {args.pc_size} points, {args.resolution}^3 cells, seed {args.seed}"
    print(
        write_reconstruction_report(args.output_dir, rows, code_counts, settings, PROTOCOL, device)
    )
    return print_outcome(rows, args.output_dir)


def print_outcome(rows: list[dict], out: Path) -> int:
    """Prints what was written, noted and refused; returns the exit status."""
    good = [row for row in rows if row["status"] == "ok"]
    failed = [row for row in rows if row["status"] != "ok"]
    if good:
        tokens = good[0]["tokens"]
        print(f"{tokens} tokens a shape; meshes, images and report.csv in {out}")
    for row in [row for row in rows if row["note"]][:MAX_PRINTED]:
        print(f"note: {row['id']}: {row['note']}", file=sys.stderr)
    for row in failed[:MAX_PRINTED]:
        print(f"failed: {row['id']}: {row['reason']}", file=sys.stderr)
    return 1 if failed else 0


@dataclass(frozen=True)
class InputFile:
    """A file to reconstruct; `kind` is "mesh", "points" or "tokens".

    `problem` is the reason why it cannot be used, "" if it can be.
    """

    shape_id: str
    path: Path
    kind: str
    problem: str = ""


def kind_of(path: Path) -> str:
    """The kind of an input file, by its suffix; a .ply is a mesh if it declares faces."""
    from tar3d.mesh.point_cloud import is_cloud

    if is_token_file(path):
        return "tokens"
    return "points" if is_cloud(path) else "mesh"


def find_inputs(
    path: Path, limit: int | None = None, output_dir: Path | None = None
) -> tuple[list[InputFile], list[str]]:
    """The file, or the files of a folder, and sentences about what is left out of it.

    Files of `output_dir` are no inputs. Raises ValueError if there is none.
    """
    if not path.exists():
        raise ValueError(f"--input_file {path} does not exist")
    if path.is_file():
        name = without_suffix(path).name
        problem = name_problem(path) or _length_problem(name)
        return [InputFile(printable(name), path, kind_of(path), problem)], []
    inputs, notes = inputs_in(path, output_dir)
    if limit is not None and limit < len(inputs):
        inputs = [inputs[i] for i in spread(len(inputs), limit)]
    return inputs, notes


def _length_problem(name: str) -> str:
    return length_problem(f"{name}{SUFFIX}")  # the longest name of an output


def known_categories(source: Path) -> tuple[dict[str, str], str]:
    """Categories by id from manifest.csv in or beside the input, and why they are not known."""
    try:
        return read_categories(source) or read_categories(source.parent), ""
    except ValueError as e:
        return {}, f"categories are not known: {e}"


def without_suffix(path: Path) -> Path:
    if is_token_file(path):
        return path.with_name(path.name[: -len(SUFFIX)])
    return path.with_suffix("")


def inputs_in(folder: Path, output_dir: Path | None) -> tuple[list[InputFile], list[str]]:
    """Meshes, point clouds and tokens of a folder, with ids that are made for all as for meshes.

    A table that lists meshes (manifest.csv) says which of the meshes are read.
    """
    from tar3d.data.prepare.mesh_list import mesh_root, path_ids, read_mesh_list, usable_files
    from tar3d.mesh.load import BESIDE_MESHES, SUPPORTED
    from tar3d.mesh.point_cloud import ONLY_POINTS

    root, searched = mesh_root(folder), (*SUPPORTED, *ONLY_POINTS)
    try:
        found = find_files(root, searched, beside=BESIDE_MESHES, leave_out=output_dir)
    except OSError as e:
        raise ValueError(f"--input_file {root} cannot be read ({e.strerror or e})") from e
    if not found.files and not found.unusable:
        looked_for = (
            f"{root} holds no meshes, point clouds or tokens; looked for {', '.join(searched)} at "
            "any depth"
        )
        raise ValueError("; ".join([looked_for, *found.notes()]))
    usable, refused = usable_files(found)
    meshes = [path for path in usable if path.suffix.lower() in SUPPORTED]
    paths, notes = path_ids(meshes, root), found.notes()
    if meshes and (listed := read_mesh_list(folder)).table is not None:
        if unlisted := len(meshes) - len({*meshes} & {*listed.meshes.values()}):
            notes.append(f"{unlisted:,} meshes are left out, which {listed.table} does not list")
        paths, refused = dict(listed.meshes), refused | listed.refused
    for path in (path for path in usable if path.suffix.lower() in ONLY_POINTS):
        relative = path.relative_to(root)
        short = "__".join(without_suffix(relative).parts)
        paths["__".join(relative.parts) if short in paths else short] = path
    inputs = [
        InputFile(name, path, kind_of(path), _length_problem(name))
        for name, path in sorted(paths.items(), key=lambda item: item[1])
    ]
    inputs += [InputFile(name, path, "mesh", why) for name, (path, why) in refused.items()]
    return inputs, notes


@dataclass(frozen=True)
class FileReconstructor:
    """Writes the mesh that the tokenizer makes of a file."""

    vqvae: VQVAE
    placement: Placement
    resolution: int = 128  # extraction cells along each axis
    surface_points: int = 8192
    seed: int = 0
    frame: str = "source"  # or "normalized"
    save_tokens: bool = False
    images: bool = True

    @cached_property
    def token_files(self) -> TokenFiles:
        return TokenFiles(self.vqvae)

    def write(self, file: InputFile, target: Path) -> tuple[dict, torch.Tensor]:
        """The scores (with a "note" for mesh and cloud) and tokens (T,) of the mesh written.

        Raises ValueError for a file that cannot be used, and for an empty field.
        """
        if file.problem:
            raise ValueError(file.problem)
        if file.kind == "tokens":
            return {}, self.decode_file(file.path, target)
        return self.reconstruct_file(file.path, target, is_cloud=file.kind == "points")

    def reconstruct_file(
        self, path: Path, target: Path, *, is_cloud: bool = False
    ) -> tuple[dict, torch.Tensor]:
        """Rebuilds a mesh or cloud; the scores are those of the file that was written."""
        from tar3d.evaluation.reconstruction import SCORES, score_cloud, score_mesh
        from tar3d.mesh.background import scene_note
        from tar3d.mesh.load import SUPPORTED, check_file, load_mesh
        from tar3d.mesh.point_cloud import ONLY_POINTS, load_points, splats
        from tar3d.mesh.points import outer_surface
        from tar3d.pipeline import reconstruct

        check_file(path, (*SUPPORTED, *ONLY_POINTS, ".txt"))
        truth = load_points(path) if is_cloud else load_mesh(path)
        rng = np.random.default_rng(self.seed)
        if isinstance(truth, Mesh):
            surface, notes = outer_surface(truth, self.surface_points, rng), []
            scene = scene_note(truth, surface[:, :3])
        else:
            surface, notes = truth.draw(self.surface_points, rng), [*truth.notes]
            scene = scene_note(None, truth.points)
        with extraction_bar(path.name) as progress:
            rebuilt, tokens = reconstruct(
                self.vqvae, surface, self.resolution, placement=self.placement, progress=progress
            )
        assert tokens is not None  # quantized, so there are tokens
        ids, to_source = tokens.ids[0], truth.to_source
        rebuilt = Mesh(rebuilt.vertices, rebuilt.faces, to_source)
        save_mesh(rebuilt, target, frame=self.frame)
        if self.save_tokens:
            self.token_files.save(
                target.parent, target.stem, ids, to_source=to_source, sampled=False
            )
        if self.images:
            if isinstance(truth, Mesh):
                drawn = truth
            else:
                drawn = splats(surface[:: -(-len(surface) // MAX_POINTS_DRAWN)])
            sheet = contact_sheet(
                [[render_preview(drawn), render_preview(rebuilt)]], ["input", "rebuilt"]
            )
            sheet.save(target.with_suffix(".png"))
        protocol = dataclasses.replace(PROTOCOL, seed=self.seed)
        written = load_mesh(target)
        if self.frame == "normalized":
            to_input = to_source @ written.to_source
            written = Mesh(written.vertices, written.faces, to_input)
        if isinstance(truth, Mesh):
            scores = score_mesh(written, truth, protocol)
        else:
            scores = score_cloud(written, truth, protocol)
        note = "; ".join(filter(None, [*notes, scene]))
        return {"note": note, **{name: scores[name] for name in SCORES if name in scores}}, ids

    def decode_file(self, path: Path, target: Path) -> torch.Tensor:
        """Makes the mesh of a file of tokens again, and returns the tokens (T,)."""
        from tar3d.mesh.extract import drop_small_components
        from tar3d.pipeline import MIN_COMPONENT_SHARE, mesh_from_tokens

        stored = self.token_files.load(path)
        with extraction_bar(path.name) as progress:
            mesh = mesh_from_tokens(
                self.vqvae,
                stored.tokens,
                self.resolution,
                placement=self.placement,
                progress=progress,
            )
        if stored.sampled:
            mesh = drop_small_components(mesh, MIN_COMPONENT_SHARE)
        save_mesh(Mesh(mesh.vertices, mesh.faces, stored.to_source), target, frame=self.frame)
        if self.images:
            contact_sheet([[render_preview(mesh)]], ["decoded"]).save(target.with_suffix(".png"))
        return stored.tokens.ids[0]


if __name__ == "__main__":
    sys.exit(main())
