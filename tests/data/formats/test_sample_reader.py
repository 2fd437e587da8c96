"""A layout of one's own: one class, one line in a table, and everything reads it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tar3d.config import TokenizerConfig
from tar3d.data.datasets.sampler import TrainingOrder
from tar3d.data.datasets.shapes import ShapeDataset
from tar3d.data.formats import captions, samples
from tar3d.data.formats.captions import captions_of
from tar3d.data.formats.sample_reader import ChooseRows, SampleReader
from tar3d.data.formats.samples import SampleFolder, open_samples
from tar3d.data.tokens.token_maker import TokenMaker
from tar3d.tokenizer.vqvae import VQVAE

RADII = {"train": {"small": 0.4, "large": 0.9, "middle": 0.6}, "val": {"other": 0.5}, "test": {}}
TINY = TokenizerConfig(
    grid_size=2,
    width=8,
    num_heads=2,
    num_frequencies=2,
    encoder="plane_pool",
    encoder_layers=0,
    point_width=8,
    codebook_size=16,
    code_dim=4,
    decoder_layers=0,
    plane_channels=4,
    upsample_stages=1,
    occupancy_width=8,
    occupancy_layers=2,
)


class Spheres(SampleReader):
    """A set of spheres whose radii stand in one file; their samples are computed when asked for."""

    name = "spheres.json"

    @classmethod
    def holds(cls, folder: Path) -> bool:
        return (folder / "spheres.json").is_file()

    def __init__(self, folder: str | Path) -> None:
        self.folder, self.advice = Path(folder), "add radii to spheres.json"
        self.splits = json.loads((self.folder / "spheres.json").read_text())
        self.radii = {i: r for spheres in self.splits.values() for i, r in spheres.items()}

    def ids(self, split: str) -> list[str]:
        return list(self.splits[split])

    def categories(self) -> dict[str, str]:
        return dict.fromkeys(self.radii, "sphere")

    def where(self, shape_id: str) -> str:
        return f"{self.folder / 'spheres.json'}:{shape_id}"

    def arrays(self, shape_id: str, choose: ChooseRows) -> dict[str, np.ndarray]:
        rng, radius = np.random.default_rng(0), self.radii[shape_id]
        surface = self.surface(shape_id)[choose("surface", 300)]
        volume = rng.uniform(-1, 1, (200, 3)).astype(np.float32)[choose("volume", 200)]
        near = surface[:, :3] + 0.05 * rng.standard_normal(surface[:, :3].shape)
        near = near.astype(np.float32).clip(-1, 1)
        near = near[choose("near", len(near))]
        points = np.concatenate([volume, near])
        return {
            "surface": surface,
            "points": points,
            "inside": np.linalg.norm(points, axis=1) < radius,
            "is_near": np.arange(len(points)) >= len(volume),
            "transform": np.eye(4),
        }

    def surface(self, shape_id: str) -> np.ndarray:
        normals = np.random.default_rng(1).standard_normal((300, 3))
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        return np.concatenate([normals * self.radii[shape_id], normals], 1).astype(np.float32)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(samples, "SAMPLE_READERS", (*samples.SAMPLE_READERS, Spheres))
    (tmp_path / "spheres.json").write_text(json.dumps(RADII))
    return tmp_path


def test_a_layout_of_ones_own_trains_a_tokenizer(folder):
    assert isinstance(open_samples(folder), Spheres)
    assert isinstance(open_samples(folder.parent), SampleFolder)
    dataset = ShapeDataset(
        folder, "train", surface_points=128, volume_points=64, near_points=32, seed=0
    )
    assert dataset.ids == ["small", "large", "middle"]
    order = TrainingOrder(len(dataset), 3, seed=0, start=0, stop=2)
    torch.manual_seed(0)
    model = VQVAE(TINY)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    losses = []
    for batch in torch.utils.data.DataLoader(dataset, batch_sampler=order):
        logits = model(batch["surface"], batch["points"], quantize=True).logits
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            logits, batch["inside"].float().view_as(logits)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert len(losses) == 2 and np.isfinite(losses).all()
    assert batch["surface"].shape == (3, 128, 6) and batch["is_near"].sum(1).tolist() == [32] * 3


def test_a_layout_of_ones_own_becomes_tokens(folder):
    assert TokenMaker(folder, VQVAE(TINY), [], torch.device("cpu")).run() == 4
    index = json.loads((folder / "tokens" / "train-00000" / "index.json").read_text())
    assert index["ids"] == ["small", "large", "middle"]


def test_an_empty_split_of_a_layout_of_ones_own_is_named(folder):
    with pytest.raises(ValueError, match="no samples for split 'test'.*add radii to spheres.json"):
        ShapeDataset(folder, "test", surface_points=1, volume_points=1, near_points=1, seed=0)


def test_a_reader_that_lacks_a_method_is_refused():
    class Incomplete(SampleReader):
        @classmethod
        def holds(cls, folder: Path) -> bool:
            return True

    with pytest.raises(TypeError, match="abstract"):
        Incomplete("folder")


def test_captions_in_a_file_of_ones_own(tmp_path, monkeypatch):
    def read(path: Path) -> dict[str, list[str]]:
        return {i: [text] for i, text in json.loads(path.read_text()).items()}

    monkeypatch.setitem(captions.CAPTION_FILES, "texts.json", read)
    (tmp_path / "texts.json").write_text('{"small": "a small sphere"}')
    assert captions_of(tmp_path) == {"small": ["a small sphere"]}
    (tmp_path / "captions.csv").write_text("id,caption\nsmall,a ball\n")
    assert captions_of(tmp_path) == {"small": ["a ball"]}, "captions.csv goes before all others"
    with pytest.raises(ValueError, match=r"captions file .*captions\.csv does not exist"):
        captions_of(tmp_path / "none")
