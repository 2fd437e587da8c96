"""Pairs of images -> one row of 2D scores a pair, and the scores of whole sets.

PSNR and SSIM are computed in worker processes, what needs a network (`Networks`) in this one. A
pair that cannot be scored has a row with status "failed" and the reason; it is never skipped. A row
depends on its pair and the settings alone: the number of workers and the order of the files change
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from tar3d.evaluation.image_pairs import ImageMaps, ImageProvider, MatchedImages, match_images
from tar3d.metrics.clip import Clip
from tar3d.metrics.images import FEATURE_METRICS, image_scores
from tar3d.metrics.lpips import GET_LPIPS, LPIPS, load_lpips
from tar3d.metrics.perceptual import cosine, crop_to
from tar3d.parallel.processes import results
from tar3d.runtime import progress_bar

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch

    from tar3d.evaluation.mesh_pairs import Pair

CLIP_SCORES = ("clip_image", "clip_image_fg")
TEXT_SCORES = ("clip_text", "clip_text_fg")
SET_SCORES = tuple(f"{name}_clip" for name in FEATURE_METRICS)
NO_CLIP = "there is no CLIP model"
_MESHES_AT_ONCE = 64  # rendered before the networks run: 20 views of 224 px are 7 MB a mesh


@dataclass(frozen=True)
class Networks:
    """The networks that are there, and the CLIP features of the captions by id."""

    lpips: LPIPS | None = None
    clip: Clip | None = None
    texts: dict[str, np.ndarray] | None = None


@dataclass(frozen=True)
class Omission:
    """Scores that are left out, and why."""

    scores: list[str]
    reason: str


def load_networks(
    lpips_path: Path | None,
    clip_path: str,
    maps: tuple[str, ...],
    device: torch.device,
    *,
    with_texts: bool,
) -> tuple[Networks, list[Omission]]:
    """LPIPS and CLIP, and the scores that are left out where one of them cannot be had."""
    lpips, clip, omissions = None, None, []
    lpips_scores = [f"{name}_lpips{end}" for name in maps for end in ("", "_fg")]
    if lpips_path is None:
        omissions.append(Omission(lpips_scores, f"there are no LPIPS weights; {GET_LPIPS}"))
    else:
        try:
            lpips = load_lpips(lpips_path, device)
        except ValueError as e:
            omissions.append(Omission(lpips_scores, str(e)))
    try:
        clip = Clip.load(clip_path, device)
    except ValueError as e:
        scores = [*CLIP_SCORES, *(TEXT_SCORES if with_texts else ()), *SET_SCORES]
        omissions.append(Omission(scores, str(e)))
    return Networks(lpips, clip), omissions


def add_captions(
    networks: Networks, captions: dict[str, str], path: Path, ids: list[str]
) -> tuple[Networks, list[Omission], int | None]:
    """Networks with the features of the captions of `ids`.

    -> the networks, the scores that are left out, and how many captions were cut to what CLIP reads
    (None without CLIP). Raises ValueError where no id has a caption.
    """
    own = {i: captions[i] for i in ids if i in captions}
    if not own:
        raise ValueError(f"{path} has no caption for any of the {len(ids)} ids, e.g. {ids[0]!r}")
    if networks.clip is None:
        return Networks(networks.lpips, None, {}), [], None
    omissions = []
    lacking = [i for i in ids if i not in captions]
    if lacking:
        reason = (
            f"{path} has no caption for {len(lacking)} of {len(ids)} ids, "
            f"e.g. {lacking[0]!r}; their text scores are null"
        )
        omissions.append(Omission(list(TEXT_SCORES), reason))
    try:
        texts, cut = networks.clip.text_features(own, networks.clip.load_tokenizer())
    except ValueError as e:
        without_texts = Networks(networks.lpips, networks.clip, {})
        return without_texts, [Omission(list(TEXT_SCORES), str(e))], None
    return Networks(networks.lpips, networks.clip, texts), omissions, len(cut)


@dataclass(frozen=True)
class PairsOfOneTruth:
    """Pairs, each with the name of its set, that share a truth, so that it is rendered once."""

    pairs: tuple[tuple[str, Pair], ...]


@dataclass(frozen=True)
class ScoredPair:
    """A row and, for the networks, the images that it is of."""

    set_name: str
    row: dict
    images: list[MatchedImages] = field(default_factory=list)


def score_pixels(
    group: PairsOfOneTruth, *, provider: ImageProvider, keep_images: bool
) -> list[ScoredPair]:
    """Rows with PSNR and SSIM; with `keep_images`, the images come along for the networks."""
    scored: list[ScoredPair] = []
    truth: list[ImageMaps] = []
    for set_name, pair in group.pairs:
        row = pair.row() | {"pictures": 0, "foreground": ""}
        try:
            pair.files()
            truth = truth or provider.truth(pair)
            images = match_images(provider.prediction(pair), truth, provider.background)
            row |= pixel_scores(images, provider.maps)
            found_by = sorted({image.foreground for image in images})
            row |= {"pictures": len(images), "foreground": "+".join(found_by)}
            images = images if keep_images else []
        except ValueError as e:  # an unusable mesh or image, or a score that is not defined
            row, images = row | {"status": "failed", "reason": str(e)}, []
        scored.append(ScoredPair(set_name, row, images))
    return scored


def pixel_scores(images: Sequence[MatchedImages], maps: Sequence[str]) -> dict[str, float]:
    """Means over the images of a pair: shaded_psnr, shaded_psnr_fg, shaded_ssim, ..."""
    scores: dict[str, float] = {}
    for name in maps:
        each = [image_scores(i.pred.maps[name], i.truth.maps[name], i.mask) for i in images]
        scores |= {f"{name}_{key}": float(np.mean([s[key] for s in each])) for key in each[0]}
    return scores


@dataclass
class SetFeatures:
    """CLIP features (K, E) of the first map of each scored pair by id, for scores of whole sets."""

    pred: dict[str, np.ndarray] = field(default_factory=dict)
    truth: dict[str, np.ndarray] = field(default_factory=dict)


def score_sets(
    sets: dict[str, list[Pair]], provider: ImageProvider, networks: Networks, workers: int
) -> tuple[dict[str, list[dict]], dict[str, dict]]:
    """Rows by set, in the order of its pairs, and the scores of whole sets (`clip_set_scores`)."""
    by_truth: dict[tuple, list[tuple[str, Pair]]] = {}
    for name, pairs in sets.items():
        for pair in pairs:
            by_truth.setdefault((pair.id, pair.truth), []).append((name, pair))
    groups = [PairsOfOneTruth(tuple(pairs)) for pairs in by_truth.values()]
    with_networks = bool(networks.lpips or networks.clip)
    run = partial(score_pixels, provider=provider, keep_images=with_networks)
    workers = min(workers, max(1, len(groups) // 2))  # a process takes seconds to start
    # Images that wait for the networks take memory, so then the jobs are handed out a few at a
    # time.
    largest = max((len(group.pairs) for group in groups), default=1) + 1
    window = max(workers, _MESHES_AT_ONCE // largest) if with_networks else max(1, len(groups))
    rows: dict[str, dict[str, dict]] = {name: {} for name in sets}
    features = {name: SetFeatures() for name in sets}
    with progress_bar(total=sum(map(len, sets.values())), unit="pair", desc="images") as bar:
        for start in range(0, len(groups), window):
            for group in results(run, groups[start : start + window], workers):
                for scored in group:
                    rows[scored.set_name][scored.row["id"]] = add_network_scores(
                        scored, provider, networks, features[scored.set_name]
                    )
                    bar.update()
    in_order = {name: [rows[name][pair.id] for pair in pairs] for name, pairs in sets.items()}
    return in_order, {
        name: clip_set_scores(in_order[name], features[name], networks.clip is not None)
        for name in sets
    }


def add_network_scores(
    scored: ScoredPair, provider: ImageProvider, networks: Networks, features: SetFeatures
) -> dict:
    """The row with LPIPS and CLIP, None where the network (or the caption) is not there.

    The pair's CLIP features are added to `features`.
    """
    row = scored.row
    if row["status"] != "ok":
        return row
    scores: dict[str, float | None] = {
        f"{m}_lpips{end}": None for m in provider.maps for end in ("", "_fg")
    }
    scores |= dict.fromkeys(CLIP_SCORES)
    scores |= dict.fromkeys(TEXT_SCORES) if networks.texts is not None else {}
    if networks.lpips:
        try:
            scores |= _lpips_scores(scored.images, provider.maps, networks.lpips)
        except ValueError as e:
            return row | {"status": "failed", "reason": str(e)}
    if networks.clip:
        images, masks = scored.images, [image.mask for image in scored.images]
        pred = _clip_features([i.pred for i in images], masks, provider, networks.clip)
        truth = _clip_features([i.truth for i in images], masks, provider, networks.clip)
        text = (networks.texts or {}).get(row["id"])
        for end in ("", "_fg"):
            scores[f"clip_image{end}"] = float(cosine(pred[end], truth[end]).mean())
            if text is not None:
                scores[f"clip_text{end}"] = float(cosine(pred[end], text).mean())
        features.pred[row["id"]] = pred[""]
        features.truth[row["id"]] = truth[""]
    return row | scores


def _lpips_scores(
    images: list[MatchedImages], maps: tuple[str, ...], lpips: LPIPS
) -> dict[str, float]:
    scores = {}
    for name in maps:
        each = np.array(
            [lpips.compare(i.pred.maps[name], i.truth.maps[name], i.mask) for i in images]
        )
        scores[f"{name}_lpips"] = float(each[:, 0].mean())
        scores[f"{name}_lpips_fg"] = float(each[:, 1].mean())
    return scores


def _clip_features(
    images: list[ImageMaps], masks: list[np.ndarray], provider: ImageProvider, clip: Clip
) -> dict[str, np.ndarray]:
    """CLIP features (K, E) of the first map: whole ("") and cropped to the foreground ("_fg")."""
    whole = [image.maps[provider.maps[0]] for image in images]
    squares = [
        crop_to(pixels, mask, provider.background)
        for pixels, mask in zip(whole, masks, strict=True)
    ]
    return {"": clip.image_features(whole), "_fg": clip.image_features(squares)}


def clip_set_scores(rows: list[dict], features: SetFeatures, with_clip: bool) -> dict:
    """fid_clip and kid_clip of the predicted against the true images of all scored pairs.

    A score that is not defined is None, with its reason. `pictures` and `reference_pictures` say
    how many images there are on either side.
    """
    ids = [row["id"] for row in rows if row["status"] == "ok"]
    count = sum(row["pictures"] for row in rows if row["status"] == "ok")
    result: dict = {
        **dict.fromkeys(SET_SCORES),
        "pictures": count,
        "reference_pictures": count,
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
