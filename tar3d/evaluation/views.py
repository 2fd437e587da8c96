"""Pairs -> pictures -> one row of 2D scores a pair.

Pictures are rendered from fixed cameras (`Renders`) or read from two folders (`Folders`). PSNR and
SSIM are computed in worker processes, what needs a network (`Networks`) in this one. A pair that
cannot be scored has a row with status "failed" and the reason; it is never skipped. A row depends
on its pair and the settings alone: the number of workers and the order of the files change nothing.
Letters: H, W height and width of a picture, S its side where it is square.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np
from PIL import Image
from tqdm import tqdm

from tar3d.condition.image import IMAGE_SUFFIXES, PLAIN_TOLERANCE, VISIBLE_ALPHA, load_image
from tar3d.evaluation.pairs import Pair
from tar3d.evaluation.report import in_view
from tar3d.mesh.load import load_mesh
from tar3d.mesh.render import Camera, Renderer
from tar3d.metrics.clip import Clip
from tar3d.metrics.geometry import in_frame
from tar3d.metrics.images import FEATURE_METRICS, image_scores
from tar3d.metrics.lpips import LPIPS
from tar3d.metrics.perceptual import cosine, crop_to
from tar3d.parallel.processes import results

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tar3d.contracts import Mesh

BACKGROUNDS = {"white": (255, 255, 255), "black": (0, 0, 0), "grey": (128, 128, 128)}
FILTERS = {
    name: Image.Resampling[name.upper()] for name in ("bicubic", "lanczos", "bilinear", "box")
}
CLIP_SCORES = ("clip_image", "clip_image_fg")
TEXT_SCORES = ("clip_text", "clip_text_fg")
SET_SCORES = tuple(f"{name}_clip" for name in FEATURE_METRICS)
NO_CLIP = "there is no CLIP model"
FOREGROUNDS = {
    "coverage": f"the object covers at least {VISIBLE_ALPHA} / 255 of the pixel in either render",
    "alpha": f"alpha is at least {VISIBLE_ALPHA} of 255 in either picture (both have an alpha channel in use)",
    "difference": f"a channel of either picture differs by more than {PLAIN_TOLERANCE} of 255 from the background",
}
_MESHES_AT_ONCE = 64  # whose pictures wait for the networks: 20 views of 224 px are 7 MB a mesh


@dataclass(frozen=True)
class Picture:
    """`maps` by name, (H, W, 3) uint8 each, finished on the background; `cutout` (H, W) bool is
    where the object is, None where the file does not say; `told_by` is the key of FOREGROUNDS that
    the cut-out is from."""

    name: str
    maps: dict[str, np.ndarray]
    cutout: np.ndarray | None
    told_by: str


class Source(Protocol):
    """Where the pictures of a pair come from; both lists are in the order of the pictures'
    names."""

    background: tuple[int, int, int]

    @property
    def maps(self) -> tuple[str, ...]: ...

    def truth(self, pair: Pair) -> list[Picture]: ...

    def prediction(self, pair: Pair) -> list[Picture]: ...


@dataclass(frozen=True)
class Renders:
    """S = `size` pixel renders, shaded and normals, from each of `cameras`. The truth fills the
    picture, and the prediction is moved and scaled with it; in the `frame` "each" by its own
    bounding box (EvalProtocol.frame).

    Normals are the unit normals in the frame of the truth, coloured 255 (n + 1) / 2, mixed with the
    background at the edges.
    """

    cameras: tuple[Camera, ...]
    size: int
    background: tuple[int, int, int]
    frame: str
    maps: tuple[str, ...] = ("shaded", "normal")

    def truth(self, pair: Pair) -> list[Picture]:
        truth = load_mesh(pair.truth)
        truth = in_frame(truth, truth, self.frame)[1]
        return self.render(in_view(truth, truth))

    def prediction(self, pair: Pair) -> list[Picture]:
        pred, truth = in_frame(load_mesh(pair.pred), load_mesh(pair.truth), self.frame)
        return self.render(in_view(pred, truth))

    def render(self, mesh: Mesh) -> list[Picture]:
        renderer, pictures = Renderer(mesh), []
        for k, camera in enumerate(self.cameras):
            render = renderer.render(camera, self.size, background=self.background)
            cover = render.mask[..., None]
            normal = (render.normal + 1) / 2 * 255 * cover + np.array(
                self.background, dtype=np.float32
            ) * (1 - cover)
            maps = {"shaded": render.color, "normal": np.rint(normal.clip(0, 255)).astype(np.uint8)}
            pictures.append(Picture(str(k), maps, render.mask * 255 >= VISIBLE_ALPHA, "coverage"))
        return pictures


@dataclass(frozen=True)
class Folders:
    """Picture files laid over `background`. With `size`, square pictures are resized to it with
    `filter` (a key of FILTERS); without, they stay as they are."""

    background: tuple[int, int, int]
    size: int | None = None
    filter: str | None = None
    maps: tuple[str, ...] = ("image",)

    def truth(self, pair: Pair) -> list[Picture]:
        return self._read(pair.truth)

    def prediction(self, pair: Pair) -> list[Picture]:
        return self._read(pair.pred)

    def _read(self, path: Path) -> list[Picture]:
        if not path.is_dir():
            return [self._picture("", path)]
        return [self._picture(name, file) for name, file in sorted(files_by_stem(path).items())]

    def _picture(self, name: str, path: Path) -> Picture:
        rgba = load_image(path)
        alpha = rgba.getchannel("A")
        cut = alpha.getextrema()[0] < 255
        image = Image.new("RGB", rgba.size, self.background)
        image.paste(rgba, mask=alpha)
        if self.size is not None and image.size != (self.size, self.size):
            if image.width != image.height:
                raise ValueError(
                    f"{path} has {image.width} x {image.height} pixels, and --size {self.size} would distort it: "
                    "crop or pad the pictures to squares first"
                )
            image, alpha = (
                x.resize((self.size, self.size), FILTERS[self.filter]) for x in (image, alpha)
            )
        pixels = np.array(image)
        if cut:
            return Picture(name, {"image": pixels}, np.asarray(alpha) >= VISIBLE_ALPHA, "alpha")
        return Picture(name, {"image": pixels}, None, "difference")


def read_cameras(path: Path) -> tuple[Camera, ...]:
    """Cameras from a JSON list as `tar3d.data.formats.views` writes it; a ValueError when it is none."""
    if not path.is_file():
        raise ValueError(f"cameras file {path} does not exist")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        cameras = tuple(Camera.from_json(value) for value in values)
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise ValueError(
            f"{path} is no list of cameras, each with position, target, up (three numbers) and field_of_view in "
            f"degrees ({type(e).__name__}: {e})"
        ) from e
    if not cameras:
        raise ValueError(f"{path} lists no camera; one or more are needed")
    return cameras


def files_by_stem(folder: Path) -> dict[str, Path]:
    """The pictures directly inside a folder by name without suffix; a ValueError when two share
    one."""
    named: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if (
            path.is_file()
            and path.suffix.lower() in IMAGE_SUFFIXES
            and not path.name.startswith(".")
        ):
            if path.stem in named:
                raise ValueError(
                    f"{folder} has two pictures named {path.stem}: {named[path.stem].name} and {path.name}"
                )
            named[path.stem] = path
    return named


def picture_ids(folder: Path) -> dict[str, Path]:
    """Ids of a folder of pictures: a file's name without suffix, or the name of a sub-folder that
    holds pictures."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder of pictures")
    named = files_by_stem(folder)
    for path in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")):
        if files_by_stem(path):
            if path.name in named:
                raise ValueError(
                    f"{folder} has both a picture and a sub-folder named {path.name}: which one is meant?"
                )
            named[path.name] = path
    if not named:
        raise ValueError(
            f"{folder} holds no pictures, and no sub-folders of pictures; looked for {', '.join(IMAGE_SUFFIXES)}"
        )
    return named


def picture_pairs(pred: Path, truth: Path) -> list[Pair]:
    """Pairs of two folders of pictures by id; an id that only one of them has is a pair with a
    reason."""
    predicted, true = picture_ids(pred), picture_ids(truth)
    if not predicted.keys() & true.keys():
        raise ValueError(
            f"no id of {pred} is one of {truth}: ids are names of pictures without suffix or of sub-folders, e.g. "
            f"{min(predicted)!r} and {min(true)!r}"
        )
    reasons = dict.fromkeys(true.keys() - predicted.keys(), f"{pred} holds no prediction for it")
    reasons |= dict.fromkeys(
        predicted.keys() - true.keys(), f"{truth} holds no true picture for it"
    )
    return [
        Pair(i, predicted.get(i), true.get(i), "", reasons.get(i, ""))
        for i in sorted(predicted.keys() | true.keys())
    ]


@dataclass(frozen=True)
class Job:
    """Pairs (with the name of their set) of one id that share their truth, so that it is rendered
    once."""

    pairs: tuple[tuple[str, Pair], ...]


@dataclass(frozen=True)
class Scored:
    """A row, and the pictures it is of when a network wants them: prediction, truth and foreground
    of each."""

    set_name: str
    row: dict
    pictures: list[tuple[Picture, Picture, np.ndarray]] = field(default_factory=list)


def score_job(job: Job, *, source: Source, keep_pictures: bool) -> list[Scored]:
    done, truth = [], None
    for set_name, pair in job.pairs:
        row = pair.row() | {"pictures": 0, "foreground": ""}
        try:
            if pair.reason:
                raise ValueError(pair.reason)
            truth = truth or source.truth(pair)
            matched = matched_pictures(source.prediction(pair), truth, source.background)
            row |= pixel_scores(matched, source.maps)
            row |= {
                "pictures": len(matched),
                "foreground": "+".join(sorted({told_by for *_, told_by in matched})),
            }
            pictures = [m[:3] for m in matched] if keep_pictures else []
        except (
            ValueError
        ) as e:  # a mesh or picture that cannot be used, or a score that is not defined
            row, pictures = row | {"status": "failed", "reason": str(e)}, []
        done.append(Scored(set_name, row, pictures))
    return done


def matched_pictures(
    pred: list[Picture], truth: list[Picture], background: tuple[int, int, int]
) -> list[tuple[Picture, Picture, np.ndarray, str]]:
    """Pictures of one name beside each other, with the union of their foregrounds (H, W) bool and
    what it was told by."""
    others = {p.name: p for p in pred}
    if ("" in others) != (truth[0].name == ""):
        raise ValueError(
            "one of prediction and truth is a single picture and the other a folder of pictures"
        )
    only = sorted({p.name for p in truth} ^ others.keys())
    if only:
        side = "prediction" if only[0] in others else "truth"
        raise ValueError(
            f"only the {side} has the picture {only[0]!r} (of {len(pred)} predicted and {len(truth)} true ones): "
            "pictures of an id are paired by their names without suffix"
        )
    matched = []
    for t in truth:
        p = others[t.name]
        (a, b), named = (
            (next(iter(x.maps.values())) for x in (p, t)),
            f"picture {t.name}: " if t.name else "",
        )
        if a.shape != b.shape:
            raise ValueError(
                f"{named}the prediction has {a.shape[1]} x {a.shape[0]} pixels and the truth {b.shape[1]} x "
                f"{b.shape[0]}; --size N --filter NAME resizes square pictures"
            )
        if p.cutout is not None and t.cutout is not None:
            union, told_by = p.cutout | t.cutout, p.told_by
        else:
            union, told_by = _differs(a, background) | _differs(b, background), "difference"
        if not union.any():
            raise ValueError(f"{named}there is no foreground: {FOREGROUNDS[told_by]} nowhere")
        matched.append((p, t, union, told_by))
    return matched


def _differs(picture: np.ndarray, background: tuple[int, int, int]) -> np.ndarray:
    return (
        np.abs(picture.astype(np.int16) - np.array(background, dtype=np.int16)) > PLAIN_TOLERANCE
    ).any(-1)


def pixel_scores(matched: Sequence[tuple], maps: Sequence[str]) -> dict[str, float]:
    """Means over the pictures of a pair: shaded_psnr, shaded_psnr_fg, shaded_ssim, ..."""
    scores: dict[str, float] = {}
    for name in maps:
        each = [
            image_scores(p.maps[name], t.maps[name], foreground) for p, t, foreground, _ in matched
        ]
        scores |= {f"{name}_{key}": float(np.mean([s[key] for s in each])) for key in each[0]}
    return scores


@dataclass(frozen=True)
class Networks:
    """What is there of the networks, and the features of the captions by id."""

    lpips: LPIPS | None = None
    clip: Clip | None = None
    texts: dict[str, np.ndarray] | None = None


@dataclass
class SetFeatures:
    """CLIP features (K, E) of the first map of each scored pair by id, for scores of whole sets."""

    pred: dict[str, np.ndarray] = field(default_factory=dict)
    truth: dict[str, np.ndarray] = field(default_factory=dict)


def score_sets(
    sets: dict[str, list[Pair]], source: Source, networks: Networks, workers: int
) -> tuple[dict[str, list[dict]], dict[str, dict]]:
    """Rows by set, in the order of its pairs, and the scores of whole sets (SET_SCORES, with the
    number of pictures)."""
    jobs: dict[tuple, list[tuple[str, Pair]]] = {}
    for name, pairs in sets.items():
        for pair in pairs:
            jobs.setdefault((pair.id, pair.truth), []).append((name, pair))
    grouped = [Job(tuple(pairs)) for pairs in jobs.values()]
    with_networks = bool(networks.lpips or networks.clip)
    run = partial(score_job, source=source, keep_pictures=with_networks)
    workers = min(workers, max(1, len(grouped) // 2))  # a process takes seconds to start
    # Pictures that wait for the networks take memory, so then the jobs are handed out a few at a
    # time.
    largest = max((len(job.pairs) for job in grouped), default=1) + 1
    window = max(workers, _MESHES_AT_ONCE // largest) if with_networks else max(1, len(grouped))
    rows: dict[str, dict[str, dict]] = {name: {} for name in sets}
    features = {name: SetFeatures() for name in sets}
    with tqdm(total=sum(map(len, sets.values())), unit="pair", desc="pictures") as bar:
        for start in range(0, len(grouped), window):
            for done in results(run, grouped[start : start + window], workers):
                for scored in done:
                    rows[scored.set_name][scored.row["id"]] = network_scores(
                        scored, source, networks, features[scored.set_name]
                    )
                    bar.update()
    ordered = {name: [rows[name][pair.id] for pair in pairs] for name, pairs in sets.items()}
    return ordered, {
        name: set_scores(ordered[name], features[name], networks.clip is not None) for name in sets
    }


def network_scores(
    scored: Scored, source: Source, networks: Networks, features: SetFeatures
) -> dict:
    """The row with LPIPS and CLIP, None where the network (or the caption) is not there."""
    row = scored.row
    if row["status"] != "ok":
        return row
    scores: dict[str, float | None] = {
        f"{m}_lpips{end}": None for m in source.maps for end in ("", "_fg")
    }
    scores |= dict.fromkeys(CLIP_SCORES) | (
        dict.fromkeys(TEXT_SCORES) if networks.texts is not None else {}
    )
    try:
        if networks.lpips:
            for name in source.maps:
                each = np.array(
                    [
                        networks.lpips.compare(p.maps[name], t.maps[name], f)
                        for p, t, f in scored.pictures
                    ]
                )
                scores |= {
                    f"{name}_lpips": float(each[:, 0].mean()),
                    f"{name}_lpips_fg": float(each[:, 1].mean()),
                }
    except ValueError as e:
        return row | {"status": "failed", "reason": str(e)}
    if networks.clip:
        first = source.maps[0]

        def embed(index: int) -> dict[str, np.ndarray]:
            whole = [m[index].maps[first] for m in scored.pictures]
            squares = [
                crop_to(m[index].maps[first], m[2], source.background) for m in scored.pictures
            ]
            return {
                "": networks.clip.image_features(whole),
                "_fg": networks.clip.image_features(squares),
            }

        pred, truth = embed(0), embed(1)
        for end in ("", "_fg"):
            scores[f"clip_image{end}"] = float(cosine(pred[end], truth[end]).mean())
            text = (networks.texts or {}).get(row["id"])
            if text is not None:
                scores[f"clip_text{end}"] = float(cosine(pred[end], text).mean())
        features.pred[row["id"]] = pred[""]
        features.truth[row["id"]] = truth[""]
    return row | scores


def set_scores(rows: list[dict], features: SetFeatures, with_clip: bool) -> dict:
    """fid_clip and kid_clip of the predicted against the true pictures (the reference) of all
    scored pairs, None with a reason where there are too few; and how many pictures there are on
    either side."""
    ids = [row["id"] for row in rows if row["status"] == "ok"]
    pictures = sum(row["pictures"] for row in rows if row["status"] == "ok")
    result: dict = {
        **dict.fromkeys(SET_SCORES),
        "pictures": pictures,
        "reference_pictures": pictures,
        "reasons": {},
    }
    if not with_clip:
        return result | {"reasons": dict.fromkeys(SET_SCORES, NO_CLIP)}
    if not ids:
        return result | {"reasons": dict.fromkeys(SET_SCORES, "no pair was scored")}
    pred, truth = (
        np.concatenate([by_id[i] for i in ids]) for by_id in (features.pred, features.truth)
    )
    for name, metric in zip(SET_SCORES, FEATURE_METRICS.values(), strict=True):
        try:
            result[name] = metric.measure(pred, truth)
        except ValueError as e:
            result["reasons"][name] = str(e)
    return result
