"""Pictures of a shape are found by id, in the order of their numbers, loose or packed."""

import io

import numpy as np
import pytest
from PIL import Image
from trimesh.creation import box

from tar3d.condition.image import ImageError
from tar3d.config import ViewConfig
from tar3d.data.formats.shards import write_shard
from tar3d.data.formats.views import Views, mesh_images, view_files
from tar3d.mesh.cameras import orbit
from tar3d.mesh.load import MeshError, normalize
from tar3d.mesh.render import render, rgba


def png(grey: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), (grey, grey, grey)).save(stream, format="PNG")
    return stream.getvalue()


CONTENT = {f"a/{k}.png": png(k) for k in (0, 1, 2, 10)} | {
    "b/0.png": png(50),
    "a/deeper/0.png": png(60),
    "a/cameras.json": b"[]",
}


@pytest.mark.parametrize("packed", [False, True])
def test_pictures_are_those_of_the_shape_in_order(tmp_path, packed):
    if packed:
        write_shard(tmp_path / "views" / "00000.tar", CONTENT)
    for name, content in () if packed else CONTENT.items():
        path = tmp_path / "views" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    views = Views(tmp_path)
    assert views.names("a") == ["a/0.png", "a/1.png", "a/2.png", "a/10.png"]
    assert views.names("b") == ["b/0.png"] and views.names("c") == []
    assert [np.asarray(views.load(name))[0, 0].tolist() for name in views.names("a")] == [
        [k, k, k, 255] for k in (0, 1, 2, 10)
    ]


def test_a_bad_picture_in_a_shard_is_named(tmp_path):
    write_shard(tmp_path / "views" / "00000.tar", {"a/0.png": png(1)[:40]})
    with pytest.raises(ImageError, match=r"00000\.tar:a/0\.png is not an image"):
        Views(tmp_path).load("a/0.png")


def test_pictures_of_meshes_are_blank_where_none_are_known(tmp_path):
    (picture,) = mesh_images(tmp_path, ["a"])
    assert picture.shape == (192, 192, 3) and (picture == 255).all()
    (tmp_path / "report.csv").write_text("id,file\nb,b.glb\n")
    with pytest.raises(ValueError, match="no row for 'a'"):
        mesh_images(tmp_path, ["a"])


def test_a_mesh_that_no_pixel_shows_is_refused():
    needle = normalize(box(extents=(1e-6, 1e-6, 1)).vertices, box().faces)
    with pytest.raises(MeshError, match="its view 0 of 32 pixels shows nothing"):
        view_files(needle, ViewConfig(count=1, size=32), np.random.default_rng(0))


def test_varied_views_are_the_same_again_and_plain_ones_are_not_touched():
    mesh = normalize(*(lambda b: (b.vertices, b.faces))(box((1, 2, 3))))

    def files(seed: int, **settings: object) -> dict[str, bytes]:
        return view_files(mesh, ViewConfig(size=32, **settings), np.random.default_rng(seed))

    varied, plain = files(3, variety=1.0, count=3), files(3, count=3)
    assert varied == files(3, variety=1.0, count=3)
    assert varied.keys() == plain.keys()
    assert all(varied[name] != plain[name] for name in varied)
    # a shape's plain views draw what they drew before there was any variety
    rng = np.random.default_rng(3)
    camera = orbit(rng.uniform(-60, 60), rng.uniform(5, 35), 5.5, 35.0)
    seen = np.asarray(Image.open(io.BytesIO(plain["0.png"])))
    assert np.array_equal(seen, rgba(render(mesh, camera, 32)))
