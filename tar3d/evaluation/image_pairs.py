"""Where the images of a pair come from, and which of them belong together.

Images are rendered from fixed cameras (`RenderedImages`) or read from two folders (`ImageFolders`);
both are an `ImageProvider`. Letters: H, W height and width of an image, S its side where it is
square.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from PIL import Image

from tar3d.condition.background import PLAIN_TOLERANCE
from tar3d.condition.foreground import VISIBLE_ALPHA
from tar3d.condition.image import IMAGE_SUFFIXES, load_image
from tar3d.evaluation.arguments import FILTERS
from tar3d.evaluation.mesh_pairs import Pair
from tar3d.evaluation.mesh_report import in_view
from tar3d.folders import FoundFiles, find_files, name_problem, printable
from tar3d.mesh.cameras import Camera
from tar3d.mesh.load import load_mesh
from tar3d.mesh.render import Renderer
from tar3d.metrics.geometry import in_frame

if TYPE_CHECKING:
    from pathlib import Path

    from tar3d.contracts import Mesh

# How the foreground of an image was found.
FOREGROUNDS = {
    "coverage": f"the object covers at least {VISIBLE_ALPHA} / 255 of the pixel in either render",
    "alpha": f"alpha is at least {VISIBLE_ALPHA} of 255 in either image "
    "(both have an alpha channel in use)",
    "difference": f"a channel of either image differs by more than {PLAIN_TOLERANCE} of 255 "
    "from the background",
}


@dataclass(frozen=True)
class ImageMaps:
    """One image: `maps` by name, (H, W, 3) uint8 each, over the background.

    `cutout` (H, W) bool is where the object is, None where the file does not say; `foreground` is
    the key of FOREGROUNDS that it was found by.
    """

    name: str
    maps: dict[str, np.ndarray]
    cutout: np.ndarray | None
    foreground: str


class MatchedImages(NamedTuple):
    """Prediction and truth of one name, with the union of their foregrounds.

    `mask` (H, W) bool is that union, `foreground` the key of FOREGROUNDS that it was found by.
    """

    pred: ImageMaps
    truth: ImageMaps
    mask: np.ndarray
    foreground: str


class ImageProvider(Protocol):
    """Gives the images of a pair, of prediction and truth, in the order of their names."""

    @property
    def background(self) -> tuple[int, int, int]: ...

    @property
    def maps(self) -> tuple[str, ...]: ...

    def truth(self, pair: Pair) -> list[ImageMaps]: ...

    def prediction(self, pair: Pair) -> list[ImageMaps]: ...


@dataclass(frozen=True)
class RenderedImages:
    """Renders of S = `size` pixels, shaded and normals, from each of `cameras`.

    The truth fills the image, and the prediction is moved and scaled with it; in the `frame` "each"
    by its own bounding box (EvalProtocol.frame). Normals are the unit normals in the frame of the
    truth, coloured 255 (n + 1) / 2, mixed with the background at the edges.
    """

    cameras: tuple[Camera, ...]
    size: int
    background: tuple[int, int, int]
    frame: str
    maps: tuple[str, ...] = ("shaded", "normal")

    def truth(self, pair: Pair) -> list[ImageMaps]:
        truth = load_mesh(pair.files()[1])
        truth = in_frame(truth, truth, self.frame)[1]
        return self.render(in_view(truth, truth))

    def prediction(self, pair: Pair) -> list[ImageMaps]:
        pred, truth = (load_mesh(path) for path in pair.files())
        pred, truth = in_frame(pred, truth, self.frame)
        return self.render(in_view(pred, truth))

    def render(self, mesh: Mesh) -> list[ImageMaps]:
        """The mesh from every camera, named by the camera's number."""
        renderer, images = Renderer(mesh), []
        for k, camera in enumerate(self.cameras):
            render = renderer.render(camera, self.size, background=self.background)
            cover = render.mask[..., None]
            normal = (render.normal + 1) / 2 * 255 * cover + np.array(
                self.background, dtype=np.float32
            ) * (1 - cover)
            maps = {"shaded": render.color, "normal": np.rint(normal.clip(0, 255)).astype(np.uint8)}
            images.append(ImageMaps(str(k), maps, render.mask * 255 >= VISIBLE_ALPHA, "coverage"))
        return images


@dataclass(frozen=True)
class ImageFolders:
    """Image files laid over `background`.

    With `size`, square images are resized to it with `filter` (a key of FILTERS); without, they
    stay as they are.
    """

    background: tuple[int, int, int]
    size: int | None = None
    filter: str | None = None
    maps: tuple[str, ...] = ("image",)

    def truth(self, pair: Pair) -> list[ImageMaps]:
        return self._read(pair.files()[1])

    def prediction(self, pair: Pair) -> list[ImageMaps]:
        return self._read(pair.files()[0])

    def _read(self, path: Path) -> list[ImageMaps]:
        if not path.is_dir():
            return [self._image("", path)]
        return [self._image(name, file) for name, file in sorted(files_by_stem(path).items())]

    def _image(self, name: str, path: Path) -> ImageMaps:
        rgba = load_image(path)
        alpha = rgba.getchannel("A")
        is_cut_out = bool(np.asarray(alpha).min() < 255)
        image = Image.new("RGB", rgba.size, self.background)
        image.paste(rgba, mask=alpha)
        if self.size is not None and image.size != (self.size, self.size):
            if image.width != image.height:
                raise ValueError(
                    f"{path} has {image.width} x {image.height} pixels, and --size {self.size} "
                    "would distort it: crop or pad the images to squares first"
                )
            resampling = FILTERS[self.filter or "bicubic"]
            image, alpha = (x.resize((self.size, self.size), resampling) for x in (image, alpha))
        pixels = np.array(image)
        if is_cut_out:
            return ImageMaps(name, {"image": pixels}, np.asarray(alpha) >= VISIBLE_ALPHA, "alpha")
        return ImageMaps(name, {"image": pixels}, None, "difference")


def read_cameras(path: Path) -> tuple[Camera, ...]:
    """Cameras from a JSON list as `tar3d.data.formats.views` writes it.

    Raises ValueError where the file is missing or is no such list.
    """
    if not path.is_file():
        raise ValueError(f"cameras file {path} does not exist")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        cameras = tuple(Camera.from_json(value) for value in values)
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise ValueError(
            f"{path} is not a list of cameras, each with position, target, up (three numbers) and "
            f"field_of_view in degrees ({type(e).__name__}: {e})"
        ) from e
    if not cameras:
        raise ValueError(f"{path} lists no camera; one or more are needed")
    return cameras


def files_by_stem(folder: Path) -> dict[str, Path]:
    """The images directly inside a folder by name without suffix.

    Raises ValueError when two share a name, and for a folder or image that cannot be read.
    """
    return _by_stem(_images_in(folder))


def _by_stem(found: FoundFiles) -> dict[str, Path]:
    for path, reason in found.unusable.items():
        raise ValueError(f"{printable(path)}: {reason}")
    named: dict[str, Path] = {}
    for path in found.files:
        if path.stem in named:
            raise ValueError(
                f"{found.root} has two images named {path.stem}: {named[path.stem].name} "
                f"and {path.name}"
            )
        named[path.stem] = path
    return named


def _images_in(folder: Path) -> FoundFiles:
    try:
        return find_files(folder, IMAGE_SUFFIXES, deep=False)
    except OSError as e:
        raise ValueError(f"{printable(folder)} cannot be read ({e.strerror or e})") from e


def images_by_id(folder: Path) -> tuple[dict[str, Path], list[tuple[str, str]]]:
    """Files and folders of a folder of images by id, and (name, reason) of what cannot be used.

    An id is a file's name without suffix, or the name of a sub-folder that holds images. Warnings
    count what is left out. Raises ValueError where there is none, or where a file and a sub-folder
    share one.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder of images")
    found = _images_in(folder)
    sub_folders, found.folders = found.folders, []
    unusable = dict(found.unusable)
    found.unusable.clear()
    named = _by_stem(found)
    for path in sub_folders:
        try:
            of_sub_folder = _images_in(path)
        except ValueError as e:
            unusable[path] = str(e)
            continue
        if of_sub_folder.files or of_sub_folder.unusable:
            if path.name in named:
                raise ValueError(
                    f"{folder} has both an image and a sub-folder named {path.name}: "
                    "which one is meant?"
                )
            named[path.name] = path
        found.add_left_out(of_sub_folder)
    for path in named.values():
        if problem := name_problem(path):
            unusable[path] = problem
    if not named and not unusable:
        looked_for = (
            f"{folder} holds no images, and no sub-folders of images; looked for "
            f"{', '.join(IMAGE_SUFFIXES)}"
        )
        raise ValueError("; ".join([looked_for, *found.notes()]))
    for note in found.notes():
        warnings.warn(note, stacklevel=2)
    return {name: path for name, path in named.items() if path not in unusable}, [
        (printable(path), reason) for path, reason in unusable.items()
    ]


def image_pairs(pred: Path, truth: Path) -> list[Pair]:
    """Pairs of two folders of images by id.

    An id that only one of them has is a pair with a reason, and so is what cannot be used. Raises
    ValueError where they have no id in common.
    """
    (predicted, unusable), (true, unusable_true) = images_by_id(pred), images_by_id(truth)
    if not predicted.keys() & true.keys():
        raise ValueError(
            f"no id of {pred} is one of {truth}: ids are names of images without suffix or of "
            f"sub-folders, e.g. {min(predicted)!r} and {min(true)!r}"
        )
    reasons = dict.fromkeys(true.keys() - predicted.keys(), f"{pred} holds no prediction for it")
    reasons |= dict.fromkeys(predicted.keys() - true.keys(), f"{truth} holds no true image for it")
    return [
        Pair(i, predicted.get(i), true.get(i), "", reasons.get(i, ""))
        for i in sorted(predicted.keys() | true.keys())
    ] + [Pair(name, None, None, "", reason) for name, reason in (*unusable, *unusable_true)]


def match_images(
    pred: list[ImageMaps], truth: list[ImageMaps], background: tuple[int, int, int]
) -> list[MatchedImages]:
    """Pairs the images of one id by name.

    Raises ValueError where a name is on one side only, sizes differ, or nothing is foreground.
    """
    others = {p.name: p for p in pred}
    if ("" in others) != (truth[0].name == ""):
        raise ValueError(
            "one of prediction and truth is a single image and the other a folder of images"
        )
    unmatched = sorted({p.name for p in truth} ^ others.keys())
    if unmatched:
        side = "prediction" if unmatched[0] in others else "truth"
        raise ValueError(
            f"only the {side} has the image {unmatched[0]!r} (of {len(pred)} predicted and "
            f"{len(truth)} true ones): images of an id are paired by their names without suffix"
        )
    return [_match(others[image.name], image, background) for image in truth]


def _match(pred: ImageMaps, truth: ImageMaps, background: tuple[int, int, int]) -> MatchedImages:
    a, b = (next(iter(x.maps.values())) for x in (pred, truth))
    label = f"image {truth.name}: " if truth.name else ""
    if a.shape != b.shape:
        raise ValueError(
            f"{label}the prediction has {a.shape[1]} x {a.shape[0]} pixels and the truth "
            f"{b.shape[1]} x {b.shape[0]}; --size N --filter NAME resizes square images"
        )
    if pred.cutout is not None and truth.cutout is not None:
        mask, foreground = pred.cutout | truth.cutout, pred.foreground
    else:
        mask, foreground = _differs(a, background) | _differs(b, background), "difference"
    if not mask.any():
        raise ValueError(f"{label}there is no foreground: {FOREGROUNDS[foreground]} nowhere")
    return MatchedImages(pred, truth, mask, foreground)


def _differs(image: np.ndarray, background: tuple[int, int, int]) -> np.ndarray:
    distance = np.abs(image.astype(np.int16) - np.array(background, dtype=np.int16))
    return np.asarray((distance > PLAIN_TOLERANCE).any(-1))
