"""Measures how far a shape's tokens depend on the surface points that happened to be drawn.

    python -m benchmarks.token_noise --model pretrained/tiny --out outputs/token_noise
    python -m benchmarks.token_noise --model outputs/vqvae/model --real DATASET/manifest.csv

Each shape is sampled several times. The table (token_noise.md, token_noise.json) has the share of
codes that differ between two samplings, the entropy of a token given its mesh, what IoU is left
when codes are replaced by their neighbours, and IoU against the number of points; with a GPT beside
the tokenizer, its NLL by how much a position moves, and how far its expected code is from the
latent without noise. token_noise.png draws the last two. Shapes are procedural ones of a seed that
nothing is trained on, and with --real those of a folder or table of meshes.

The latent without noise is the mean over samplings, and its nearest codes are the canonical tokens.
Entropies are sums over positions, which share points: that of all tokens together is lower.
"""

from __future__ import annotations

import itertools
import sys
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from tar3d import checkpoint
from tar3d.conditional_gpt import ConditionalGPT, load_gpt
from tar3d.config import PointSamplingConfig, ViewConfig
from tar3d.contracts import Mesh, ShapeSamples, Triplane
from tar3d.data.datasets.spread import spread
from tar3d.data.prepare.mesh_list import mesh_ids
from tar3d.data.toy.shapes import generate
from tar3d.io import write_json
from tar3d.layouts.triplane import to_planes, to_sequence
from tar3d.mesh.cameras import orbit_cameras
from tar3d.mesh.load import MeshError, load_mesh
from tar3d.mesh.points import sample_shape
from tar3d.mesh.render import render, rgba
from tar3d.metrics.summary import markdown_table
from tar3d.runtime import (
    choose_device,
    command,
    command_line,
    command_parser,
    describe_machine,
    positive_int,
    progress_bar,
)
from tar3d.tokenizer.loss import intersection_over_union

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from tar3d.tokenizer.vqvae import VQVAE

SEED = 77  # of the procedural shapes
QUERY_POINTS = 8192  # of each kind
COUNTS = (2048, 8192, 32_768, 81_920)  # numbers of points that IoU is compared for
NEIGHBOURS = (1, 3, 15)  # codes this many neighbours away from the canonical ones
# Edges of the classes of positions, by the entropy of their token in nats.
CLASSES = (0.0, 1e-9, 0.5, 1.0, 1.5, 2.0, np.inf)


def entropies(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Entropy (T,) in nats of the tokens (k, T) of k samplings: plug-in, and Miller-Madow.

    The second adds (number of different tokens - 1) / 2k (Miller 1955).
    """
    one_hot = F.one_hot(ids.T).sum(1).double()  # (T, V)
    share = one_hot / len(ids)
    plug_in = -torch.special.xlogy(share, share).sum(1)
    return plug_in, plug_in + ((one_hot > 0).sum(1) - 1) / (2 * len(ids))


def pairs_that_differ(ids: torch.Tensor) -> float:
    """Mean share of the tokens (k, T) that two of k > 1 samplings have differently."""
    same = (ids[:, None] == ids[None]).double().mean(-1)  # (k, k)
    k = len(ids)
    return float(1 - (same.sum() - k) / (k * (k - 1)))


def mean_latent(tokenizer: VQVAE, latents: torch.Tensor) -> torch.Tensor:
    """The mean of latents (k, T, K); a unit vector where codes are."""
    mean = latents.mean(0)
    norms = tokenizer.quantizer.codebook.norm(dim=-1)
    return F.normalize(mean, dim=-1) if bool(((norms - 1).abs() < 1e-3).all()) else mean


class Shape:
    """A shape's samplings, and what they say about a tokenizer."""

    def __init__(self, tokenizer: VQVAE, samples: ShapeSamples, samplings: int, count: int) -> None:
        self.tokenizer = tokenizer
        device = tokenizer.to_code.weight.device
        # Rounded as samples are stored.
        self.surface = torch.from_numpy(samples.surface).half().float().to(device)
        self.points = torch.from_numpy(samples.points)[None].to(device)
        self.inside = torch.from_numpy(samples.inside)[None].to(device)
        self.is_near = torch.from_numpy(samples.is_near)[None].to(device)
        parts = self.surface[: samplings * count].view(samplings, 1, count, 6)
        with torch.inference_mode():
            self.latents = torch.cat([to_sequence(tokenizer.encode(part)) for part in parts])
            self.ids = torch.stack([tokenizer.quantizer.nearest(z) for z in self.latents])
            self.mean = mean_latent(tokenizer, self.latents)  # (T, K)
            distance = torch.cdist(self.mean, tokenizer.quantizer.codebook)
            nearest = distance.topk(max(NEIGHBOURS) + 1, largest=False).indices
        self.canonical, self.neighbours = nearest[:, 0], nearest[:, 1:]

    def iou(self, ids: torch.Tensor) -> list[float]:
        """IoU of the tokens (T,) on volume points, and on points near the surface."""
        t = self.tokenizer
        with torch.inference_mode():
            codes = to_planes(t.quantizer.lookup(ids)[None], t.config.grid_size)
            logits = t.query(Triplane(t.decoder(codes)), self.points)
        kinds = (~self.is_near, self.is_near)
        return [float(intersection_over_union(logits, self.inside, kind)) for kind in kinds]

    def figures(self) -> dict[str, float | list[float]]:
        """All figures of the tokenizer for this shape, by name."""
        plug_in, miller_madow = entropies(self.ids)
        codes = self.tokenizer.quantizer.codebook[self.ids]
        others = (self.latents.sum(0) - self.latents) / (len(self.latents) - 1)
        moves = plug_in > 0
        result: dict[str, float | list[float]] = {
            "codes_that_differ": pairs_that_differ(self.ids),
            "positions_that_never_change": 1 - float(moves.float().mean()),
            "entropy_plug_in": float(plug_in.sum()),
            "entropy_miller_madow": float(miller_madow.sum()),
            "distance_latent_to_mean": float(distances(self.latents, others).mean()),
            "distance_latent_to_code": float(distances(self.latents, codes).mean()),
            "distance_token_to_mean": float(distances(codes, others).mean()),
            "iou_one_sampling": self.iou(self.ids[0]),
            "iou_canonical": self.iou(self.canonical),
        }
        generator = torch.Generator().manual_seed(0)
        for count in NEIGHBOURS:
            result[f"iou_neighbour_{count}"] = self.iou(self.neighbours[:, count - 1])
            if count > 1:
                among = torch.cat([self.canonical[:, None], self.neighbours[:, :count]], dim=1)
                drawn = torch.randint(count + 1, (len(among), 1), generator=generator)
                random = among.gather(1, drawn.to(among.device))[:, 0]
                result[f"iou_any_of_{count + 1}_nearest"] = self.iou(random)
        for count in COUNTS:
            if count <= len(self.surface):
                ids = self.tokenizer.tokenize(self.surface[None, :count]).ids[0]
                result[f"iou_{count}_points"] = self.iou(ids)
        return result


def distances(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """1 - cosine of vectors (..., K)."""
    return 1 - F.cosine_similarity(a, b, dim=-1)


@torch.inference_mode()
def gpt_figures(gpt: ConditionalGPT, shape: Shape, mesh: Mesh, rng: np.random.Generator) -> dict:
    """Figures of a GPT on the tokens of one sampling, under a view of the mesh if it takes images.

    For each position the NLL, and 1 - cosine between the code that is expected under true context
    and the latent without noise.
    """
    inputs, device = {}, shape.ids.device
    if "image" in gpt.config.conditions:
        view = render(mesh, orbit_cameras(ViewConfig(count=1), rng)[0], ViewConfig().size)
        pixels = gpt.prepare_image(to_image(rgba(view))).pixels
        inputs = {"image": torch.from_numpy(pixels)[None].to(device)}
    tokens = gpt.gpt.to_model_order(shape.ids[:1])
    hidden = gpt.gpt.hidden(tokens[:, :-1], gpt.condition(inputs, 1))
    logits = gpt.gpt.head(hidden).float()
    nll = F.cross_entropy(logits[0], tokens[0], reduction="none")[None]
    expected = logits.softmax(-1) @ shape.tokenizer.quantizer.codebook
    nll, expected = (gpt.gpt.to_raster_order(x)[0] for x in (nll, expected))
    codes = shape.tokenizer.quantizer.codebook[shape.ids[0]]
    others = mean_latent(shape.tokenizer, shape.latents[1:])
    return {
        "nll": nll.cpu(),
        "entropy": entropies(shape.ids)[1].cpu(),
        "expected": distances(expected, others).cpu(),
        "token": distances(codes, others).cpu(),
    }


def to_image(pixels: np.ndarray):
    """A picture of (S, S, 4) uint8."""
    from PIL import Image

    return Image.fromarray(pixels)


def gpt_summary(positions: list[dict[str, torch.Tensor]]) -> dict[str, object]:
    """Means over the positions of all shapes, by classes of the entropy of their token."""
    joined = {k: torch.cat([p[k] for p in positions]).numpy() for k in positions[0]}
    nll, entropy = joined["nll"], joined["entropy"]
    classes = []
    for low, high in itertools.pairwise(CLASSES):
        chosen = (entropy >= low) & (entropy < high)
        if chosen.any():
            classes.append(
                {
                    "entropy_from": low,
                    "entropy_to": high if np.isfinite(high) else None,
                    "share_of_positions": float(chosen.mean()),
                    "share_of_nll": float(nll[chosen].sum() / nll.sum()),
                    "nll": float(nll[chosen].mean()),
                    "entropy": float(entropy[chosen].mean()),
                }
            )
    of_shapes = np.array([[float(p[k].sum()) for k in ("nll", "entropy")] for p in positions])
    correlated = len(positions) > 2 and (of_shapes.std(0) > 0).all()
    return {
        "nll": float(nll.mean()),
        "nll_of_a_shape": float(of_shapes[:, 0].mean()),
        "correlation_of_nll_and_entropy": float(np.corrcoef(of_shapes.T)[0, 1])
        if correlated
        else None,
        "distance_expected_code_to_mean": float(joined["expected"].mean()),
        "distance_token_to_mean": float(joined["token"].mean()),
        "by_entropy": classes,
    }


def procedural_meshes(count: int) -> Iterator[tuple[str, Mesh]]:
    for index in range(count):
        shape = generate(index, SEED)
        yield shape.id, shape.mesh


def real_meshes(source: Path, count: int) -> Iterator[tuple[str, Mesh]]:
    """`count` meshes of a folder or table, spread over its ids; others are named and passed over.

    Raises ValueError where there is none.
    """
    paths = mesh_ids(source)
    names = sorted(paths)
    for name in (names[i] for i in spread(len(names), min(count, len(names)))):
        try:
            yield name, load_mesh(paths[name])
        except MeshError as e:
            print(f"{name}: {e}", file=sys.stderr)


def measure(
    tokenizer: VQVAE,
    gpt: ConditionalGPT | None,
    meshes: Iterator[tuple[str, Mesh]],
    args: argparse.Namespace,
) -> dict[str, object]:
    """Means over shapes, and each shape's own figures."""
    rows: dict[str, dict] = {}
    positions = []
    surface_points = max(args.samplings * args.points, *COUNTS)
    config = PointSamplingConfig(
        surface_points=surface_points, volume_points=QUERY_POINTS, near_points=QUERY_POINTS
    )
    for number, (name, mesh) in enumerate(progress_bar(meshes, total=args.shapes, unit="shape")):
        try:
            samples, _ = sample_shape(mesh, config, SEED)
        except MeshError as e:
            print(f"{name}: {e}", file=sys.stderr)
            continue
        shape = Shape(tokenizer, samples, args.samplings, args.points)
        rows[name] = shape.figures()
        if gpt is not None:
            rng = np.random.default_rng([SEED, number])
            positions.append(gpt_figures(gpt, shape, mesh, rng))
    if not rows:
        raise ValueError("no mesh could be sampled: see the lines above")
    means = {
        key: np.mean([row[key] for row in rows.values()], axis=0).tolist()
        for key in next(iter(rows.values()))
    }
    result: dict[str, object] = {"count": len(rows), **means}
    if positions:
        result["gpt"] = gpt_summary(positions)
    return result | {"shapes": rows}


TABLE = {
    "codes that differ between two samplings": ("codes_that_differ", ".3f"),
    "positions that never change": ("positions_that_never_change", ".3f"),
    "entropy of a shape's tokens, nats: plug-in": ("entropy_plug_in", ".0f"),
    "... Miller-Madow": ("entropy_miller_madow", ".0f"),
    "1 - cosine: a latent, the mean of the others": ("distance_latent_to_mean", ".4f"),
    "... a latent, its code": ("distance_latent_to_code", ".4f"),
    "... a code, the mean of the other latents": ("distance_token_to_mean", ".4f"),
    "IoU (volume, near): one sampling": ("iou_one_sampling", ".3f"),
    "... canonical tokens": ("iou_canonical", ".3f"),
    **{
        f"... of these, {text}": (f"iou_{name}", ".3f")
        for text, name in (
            ("the nearest neighbours", "neighbour_1"),
            ("the 3rd neighbours", "neighbour_3"),
            ("any of the 4 nearest", "any_of_4_nearest"),
            ("the 15th neighbours", "neighbour_15"),
            ("any of the 16 nearest", "any_of_16_nearest"),
        )
    },
    **{f"IoU from {count:,} points": (f"iou_{count}_points", ".4f") for count in COUNTS},
}
GPT_TABLE = {
    "the GPT's NLL, nats a token": ("nll", ".3f"),
    "... nats a shape": ("nll_of_a_shape", ".0f"),
    "... correlation with the entropy, over shapes": ("correlation_of_nll_and_entropy", ".2f"),
    "1 - cosine: its expected code, the mean latent": ("distance_expected_code_to_mean", ".4f"),
    "... the true token, the same": ("distance_token_to_mean", ".4f"),
}


def cell(value: object, form: str) -> str:
    if value is None:
        return ""
    return ", ".join(f"{v:{form}}" for v in (value if isinstance(value, list) else [value]))


def table(report: dict) -> str:
    """The report as Markdown."""
    sets: dict[str, dict] = report["sets"]
    head = ["", *(f"{s['count']} {name} shapes" for name, s in sets.items())]
    rows = [
        [text, *(cell(s.get(key), form) for s in sets.values())]
        for text, (key, form) in TABLE.items()
    ]
    if any("gpt" in s for s in sets.values()):
        rows += [
            [text, *(cell(s.get("gpt", {}).get(key), form) for s in sets.values())]
            for text, (key, form) in GPT_TABLE.items()
        ]
    lines = [
        f"{report['model']}: {report['samplings']} samplings of {report['points']:,} points; "
        f"`{report['command']}`, commit {report['commit']}, {report['machine']}, {report['date']}",
        "",
        *markdown_table(head, rows),
    ]
    for name, s in sets.items():
        if "gpt" in s:
            lines += ["", f"NLL by the entropy of a position's token, {name} shapes:", ""]
            lines += markdown_table(
                ["entropy", "share of positions", "share of NLL", "NLL", "mean entropy"],
                [
                    [
                        "0"
                        if c["entropy_to"] == CLASSES[1]
                        else f"{c['entropy_from']:.1f} to "
                        + (f"{c['entropy_to']:.1f}" if c["entropy_to"] else "..."),
                        *(f"{c[k]:.3f}" for k in ("share_of_positions", "share_of_nll")),
                        *(f"{c[k]:.2f}" for k in ("nll", "entropy")),
                    ]
                    for c in s["gpt"]["by_entropy"]
                ],
            )
    return "\n".join(lines)


def draw(report: dict, out: Path) -> None:
    """A figure: NLL over the entropy of a position's token, and IoU of neighbours and of points."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    near = [("canonical", 0), *((f"neighbour_{n}", n) for n in NEIGHBOURS)]
    for name, s in report["sets"].items():
        if "gpt" in s:
            of = s["gpt"]["by_entropy"]
            axes[0].plot([c["entropy"] for c in of], [c["nll"] for c in of], "o-", label=name)
        axes[1].plot([n for _, n in near], [s[f"iou_{k}"][0] for k, _ in near], "o-", label=name)
        counts = [n for n in COUNTS if f"iou_{n}_points" in s]
        axes[2].plot(counts, [s[f"iou_{n}_points"][0] for n in counts], "o-", label=name)
    axes[0].axline((0, 0), slope=1, color="#999999", linestyle=":")
    labels = (
        "entropy of a token given its mesh, nats",
        "codes so many neighbours from the canonical ones",
        "surface points",
    )
    for axis, label, side in zip(axes, labels, ("NLL of the GPT, nats", "IoU", "IoU"), strict=True):
        axis.set(xlabel=label, ylabel=side)
        axis.grid(color="#dddddd")
        axis.legend(frameon=False)
    axes[2].set_xscale("log")
    axes[2].set_xticks(COUNTS, [f"{n:,}" for n in COUNTS])
    axes[2].minorticks_off()
    figure.savefig(out, dpi=120)
    plt.close(figure)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument(
        "--model",
        default="pretrained/tiny",
        help="model directory or Hub id, of a tokenizer or with a GPT (default: %(default)s)",
    )
    parser.add_argument("--real", type=Path, help="folder of meshes, or table id,file (.csv)")
    parser.add_argument(
        "--shapes", type=positive_int, default=16, help="of each kind (default: %(default)s)"
    )
    parser.add_argument(
        "--samplings", type=positive_int, default=12, help="of a shape (default: %(default)s)"
    )
    parser.add_argument(
        "--points", type=positive_int, default=8192, help="of a sampling (default: %(default)s)"
    )
    parser.add_argument("--device", help="cpu, cuda, ... (default: a GPU where there is one)")
    parser.add_argument(
        "--out", type=Path, default=Path("outputs/token_noise"), help="default: %(default)s"
    )
    args = parser.parse_args(argv)
    if args.samplings < 2:
        parser.exit(2, f"--samplings must be at least 2, got {args.samplings}\n")
    return args


@command
def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    try:
        device = choose_device(args.device)
        tokenizer = checkpoint.load_tokenizer(args.model).to(device)
        gpt = find_gpt(args.model)
        sets = {"procedural": procedural_meshes(args.shapes)}
        if args.real:
            sets["real"] = real_meshes(args.real, args.shapes)
        report = {
            **describe_machine(device),
            "date": str(date.today()),
            "command": command_line(),
            "model": args.model,
            "samplings": args.samplings,
            "points": args.points,
            "sets": {},
        }
        for name, meshes in sets.items():
            report["sets"][name] = measure(tokenizer, gpt.to(device) if gpt else None, meshes, args)
    except ValueError as e:
        print(e, file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(args.out / "token_noise.json", report)
    (args.out / "token_noise.md").write_text(table(report) + "\n", encoding="utf-8")
    draw(report, args.out / "token_noise.png")
    print(table(report))
    return 0


def find_gpt(model: str) -> ConditionalGPT | None:
    """The GPT that lies beside the tokenizer, in eval mode; None where there is none."""
    folder = checkpoint.find_tokenizer(model)
    if folder.name != checkpoint.TOKENIZER:
        return None
    found = next(iter(sorted(folder.parent.glob("gpt_*"))), None)
    return load_gpt(found).eval() if found else None


if __name__ == "__main__":
    sys.exit(main())
