"""Pictures in every form that users bring give the right pixels or one clear sentence."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFile, ImageFilter

from tar3d.condition.foreground import find_foreground
from tar3d.condition.image import (
    MAX_PIXELS,
    ImageError,
    find_images,
    load_image,
    preprocess,
    to_rgba,
)
from tar3d.config import ImageEncoderConfig

CONFIG = ImageEncoderConfig(model="trained", image_size=64, foreground_fill=0.75, patch_size=8)
RED, GREEN = (200, 30, 30), (20, 160, 60)


def picture_with_box(
    background=(255, 255, 255), size=(100, 80), box=(20, 30, 60, 50), colour=RED
) -> Image.Image:
    image = Image.new("RGB", size, background)
    image.paste(colour, box)
    return image


def cut_out(hidden=(0, 0, 0)) -> Image.Image:
    """The same box as a transparent picture; `hidden` is the invisible colour behind alpha 0."""
    image = Image.new("RGBA", (100, 80), (*hidden, 0))
    image.paste((*RED, 255), (20, 30, 60, 50))
    return image


def ramp16() -> np.ndarray:
    return np.linspace(0, 65_535, 100 * 80).astype(np.uint16).reshape(80, 100)


def save(image: Image.Image, path: Path, **options) -> Path:
    image.save(path, **options)
    return path


def test_object_is_centred_and_fills_the_stated_share():
    pixels = preprocess(cut_out(), CONFIG).pixels
    assert pixels.shape == (64, 64, 3) and pixels.dtype == np.uint8
    rows, columns = np.nonzero((pixels != 255).any(axis=2))
    assert (columns.min(), columns.max()) == (8, 55)  # 48 = 0.75 x 64 pixels, centred
    assert (rows.min(), rows.max()) == (20, 43)  # 24: the aspect 40 x 20 is kept
    assert (pixels[rows, columns] == RED).all()


@pytest.mark.parametrize(
    "image",
    [picture_with_box(), picture_with_box((130, 130, 130)), picture_with_box((0, 0, 0)), cut_out()],
)
def test_same_object_on_any_plain_or_transparent_background_gives_the_same_pixels(image):
    np.testing.assert_array_equal(
        preprocess(image, CONFIG).pixels, preprocess(cut_out(), CONFIG).pixels
    )


@pytest.mark.parametrize("background", [(255, 255, 255), (130, 130, 130), (0, 0, 0)])
def test_background_beside_and_within_the_object_becomes_white(background):
    ring, cut = picture_with_box(background), cut_out()
    for notch in ((50, 30, 60, 40), (25, 35, 35, 45)):
        ring.paste(background, notch)
        cut.paste((0, 0, 0, 0), notch)
    np.testing.assert_array_equal(preprocess(ring, CONFIG).pixels, preprocess(cut, CONFIG).pixels)


def test_resize_averages_what_it_shrinks():
    fine = np.indices((480, 480)).sum(axis=0) % 2 * 255  # a checkerboard of single pixels
    middle = preprocess(Image.fromarray(fine.astype(np.uint8)), CONFIG).pixels[12:52, 12:52]
    assert np.abs(middle.astype(int) - 128).max() <= 4


def test_foreground_is_told_from_content_and_a_full_frame_warns():
    assert preprocess(cut_out(), CONFIG).foreground == "alpha"
    assert preprocess(picture_with_box(), CONFIG).foreground == "plain background"
    assert preprocess(cut_out(), CONFIG).warning is None
    noise = np.random.default_rng(0).integers(0, 255, (80, 100, 3), dtype=np.uint8)
    full = preprocess(Image.fromarray(noise), CONFIG)
    assert (
        full.foreground == "frame" and "fills the frame" in full.warning and "rembg" in full.warning
    )
    assert (full.pixels != 255).any(axis=2).any(axis=0).sum() == 48


def test_white_background_keeps_the_lightest_parts_of_the_object():
    image = picture_with_box()
    image.paste((250, 250, 250), (30, 35, 50, 45))  # differs from white by less than the tolerance
    assert (preprocess(image, CONFIG).pixels[32, 32] == 250).all()


def test_hidden_colour_of_transparent_pixels_does_not_bleed_into_the_edge():
    """The defect is a dark fringe: straight-alpha resizing mixes the black behind alpha 0 into the
    object's edge."""
    odd = CONFIG.image_size - 1  # an uneven scale, so that edges fall between pixels
    config = ImageEncoderConfig(model="trained", image_size=odd, foreground_fill=0.73, patch_size=1)
    disc = np.zeros((101, 101, 4), np.uint8)
    y, x = np.mgrid[:101, :101] - 50
    disc[..., 3] = np.clip(45 - np.hypot(x, y), 0, 1) * 255
    disc[..., :3] = np.where(disc[..., 3:] > 0, 230, 0)
    dark = preprocess(Image.fromarray(disc), config).pixels
    disc[..., :3] = np.where(disc[..., 3:] > 0, 230, 255)
    np.testing.assert_array_equal(dark, preprocess(Image.fromarray(disc), config).pixels)
    assert dark.min() >= 225  # nothing darker than the disc, up to the filter's ringing


@pytest.mark.parametrize("background", [(255, 255, 255), (90, 120, 200), None])
def test_opaque_alpha_and_rgb_twins_are_the_same(background):
    if background is None:
        rgb = Image.fromarray(
            np.random.default_rng(1).integers(0, 255, (50, 70, 3), dtype=np.uint8)
        )
    else:
        rgb = picture_with_box(background)
    one, other = preprocess(rgb, CONFIG), preprocess(rgb.convert("RGBA"), CONFIG)
    np.testing.assert_array_equal(one.pixels, other.pixels)
    assert one.foreground == other.foreground


def test_grey_twins_of_every_mode_are_the_same(tmp_path):
    grey = picture_with_box(colour=(77, 77, 77)).convert("L")
    wide = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    twins = {
        "L": grey,
        "LA": grey.convert("LA"),
        "RGB": grey.convert("RGB"),
        "P": grey.convert("RGB").quantize(4),
        "I;16": wide,
    }
    expected = np.asarray(to_rgba(grey))
    for mode, image in twins.items():
        assert image.mode == mode
        loaded = load_image(save(image, tmp_path / f"{mode.replace(';', '')}.png"))
        np.testing.assert_array_equal(np.asarray(loaded), expected, err_msg=mode)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bit_is_scaled_and_rounded_not_clipped(tmp_path, suffix):
    path = save(Image.fromarray(ramp16()), tmp_path / f"ramp.{suffix}")
    grey = np.asarray(load_image(path))
    np.testing.assert_array_equal(grey[..., 0], np.round(ramp16() / 257).astype(np.uint8))
    assert (grey[..., 3] == 255).all()


def test_palette_with_transparency_becomes_alpha(tmp_path):
    palette = Image.new("P", (100, 80), 0)
    palette.putpalette([9, 9, 9, *RED, *GREEN])
    palette.paste(1, (20, 30, 60, 50))
    for name, options in (
        ("index", {"transparency": 0}),
        ("table", {"transparency": bytes([0, 255, 255])}),
    ):
        loaded = load_image(save(palette, tmp_path / f"{name}.png", **options))
        assert loaded.getpixel((0, 0))[3] == 0 and loaded.getpixel((30, 40)) == (*RED, 255)
        np.testing.assert_array_equal(
            preprocess(loaded, CONFIG).pixels, preprocess(cut_out(), CONFIG).pixels
        )


def test_colour_keys_become_alpha(tmp_path):
    rgb = load_image(
        save(picture_with_box((1, 2, 3)), tmp_path / "rgb.png", transparency=(1, 2, 3))
    )
    assert rgb.getpixel((0, 0))[3] == 0 and rgb.getpixel((30, 40)) == (*RED, 255)
    wide = np.full((80, 100), 1000, np.uint16)
    wide[30:50, 20:60] = 40_000
    grey = load_image(save(Image.fromarray(wide), tmp_path / "wide.png", transparency=1000))
    assert grey.getpixel((0, 0))[3] == 0 and grey.getpixel((30, 40)) == (156, 156, 156, 255)


def test_exif_rotation_is_applied(tmp_path):
    image = Image.new("RGB", (40, 20), RED)
    image.paste(GREEN, (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown rotated by 90 degrees clockwise
    loaded = load_image(save(image, tmp_path / "phone.png", exif=exif))
    assert loaded.size == (20, 40)
    assert loaded.getpixel((10, 5)) == (*GREEN, 255) and loaded.getpixel((10, 35)) == (*RED, 255)


def test_cmyk_is_converted(tmp_path):
    image = picture_with_box().convert("CMYK")
    loaded = load_image(save(image, tmp_path / "print.tif"))
    np.testing.assert_array_equal(np.asarray(loaded)[..., :3], np.asarray(picture_with_box()))
    jpeg = np.asarray(load_image(save(image, tmp_path / "print.jpg", quality=95)))[
        40, 40, :3
    ].astype(int)
    assert np.abs(jpeg - RED).max() < 8


def test_jpeg_noise_does_not_move_the_frame(tmp_path):
    path = save(
        picture_with_box((250, 250, 252), size=(400, 320), box=(80, 120, 240, 200)),
        tmp_path / "shop.jpg",
        quality=80,
    )
    prepared = preprocess(load_image(path), CONFIG)
    clean = preprocess(picture_with_box(size=(400, 320), box=(80, 120, 240, 200)), CONFIG)
    assert prepared.foreground == "plain background"
    assert np.abs(prepared.pixels.astype(int) - clean.pixels).mean() < 4


def test_very_wide_pictures_work_in_bounded_memory(tmp_path):
    wide = Image.new("RGB", (20_000, 100), (255, 255, 255))
    wide.paste(RED, (100, 20, 19_900, 80))
    prepared = preprocess(load_image(save(wide, tmp_path / "wide.png")), CONFIG)
    assert prepared.pixels.shape == (64, 64, 3)
    assert (prepared.pixels != 255).any(axis=2).any(axis=0).sum() == 48


@pytest.mark.parametrize("side", [8_001, 10_000, 14_000])
def test_too_many_pixels_are_refused_before_decoding(tmp_path, side, monkeypatch, recwarn):
    path = save(Image.new("1", (side, side)), tmp_path / "poster.png")
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ImageError, match=f"poster.png has .*{MAX_PIXELS:,}"):
        load_image(path)
    assert not recwarn.list


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "gif"])
def test_truncated_files_are_refused(tmp_path, suffix):
    noise = np.random.default_rng(2).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    whole = save(Image.fromarray(noise), tmp_path / f"whole.{suffix}").read_bytes()
    for share in (0.0, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9):
        path = tmp_path / f"cut.{suffix}"
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ImageError, match="cut") as error:
            load_image(path)
        assert "\n" not in str(error.value)


def test_noise_on_a_plain_background_is_background():
    noise = np.random.default_rng(3).integers(-4, 5, (80, 100, 3))
    grainy = Image.fromarray(
        (np.asarray(picture_with_box((120, 130, 140))) + noise).astype(np.uint8)
    )
    prepared = preprocess(grainy, CONFIG)
    assert prepared.foreground == "plain background"
    assert np.abs(prepared.pixels.astype(int) - preprocess(cut_out(), CONFIG).pixels).max() <= 8


@pytest.mark.parametrize(
    "error",
    [OSError, SyntaxError, EOFError, IndexError, TypeError, RuntimeError, struct.error, zlib.error],
)
def test_whatever_a_decoder_raises_becomes_one_sentence(tmp_path, monkeypatch, error):
    path = save(picture_with_box(), tmp_path / "strange.png")

    def fail(self):
        raise error("bad stream")

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(ImageError, match="strange.png is truncated or damaged: bad stream"):
        load_image(path)


def test_damaged_png_is_refused(tmp_path):
    path = save(Image.fromarray(ramp16()), tmp_path / "bits.png")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(ImageError, match="bits.png"):
        load_image(path)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_animations_and_pages_are_refused_with_the_remedy(tmp_path, suffix):
    frames = [picture_with_box(colour=c) for c in (RED, GREEN)]
    path = save(frames[0], tmp_path / f"moving.{suffix}", save_all=True, append_images=frames[1:])
    with pytest.raises(ImageError, match="moving.*several frames.*still image"):
        load_image(path)


def test_still_gif_and_phone_mpo_are_read(tmp_path):
    assert load_image(save(picture_with_box(), tmp_path / "still.gif")).size == (100, 80)
    frames = [picture_with_box(), picture_with_box((0, 0, 0))]
    mpo = load_image(
        save(frames[0], tmp_path / "phone.mpo", save_all=True, append_images=frames[1:])
    )
    assert min(mpo.getpixel((0, 0))) > 250  # the first frame is the picture


def test_what_is_no_picture_is_refused(tmp_path):
    (tmp_path / "notes.png").write_text("not a picture")
    with pytest.raises(ImageError, match="notes.png is not an image"):
        load_image(tmp_path / "notes.png")
    with pytest.raises(ImageError, match="does not exist"):
        load_image(tmp_path / "absent.png")
    with pytest.raises(ImageError, match="is a folder"):
        load_image(tmp_path)
    with pytest.raises(ImageError, match="no defined white"):
        load_image(save(Image.new("F", (8, 8)), tmp_path / "depth.tif"))
    with pytest.raises(ImageError, match="La cannot be converted"):
        to_rgba(Image.new("La", (8, 8)))
    with pytest.raises(ImageError, match="from -5 to -5"):
        load_image(save(Image.new("I", (8, 8), -5), tmp_path / "signed.tif"))


def test_pictures_without_an_object_are_refused():
    with pytest.raises(ImageError, match="fully transparent"):
        preprocess(Image.new("RGBA", (10, 10), (50, 60, 70, 0)), CONFIG)
    with pytest.raises(ImageError, match="single colour"):
        preprocess(Image.new("RGB", (10, 10), (50, 60, 70)), CONFIG)


def test_find_images_is_sorted_and_never_empty(tmp_path):
    for name in ("b.PNG", "a.jpg", "._a.jpg", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [p.name for p in find_images(tmp_path).files] == ["a.jpg", "b.PNG"]
    assert find_images(tmp_path / "notes.txt").files == [tmp_path / "notes.txt"]
    with pytest.raises(ImageError, match="holds no images"):
        find_images(tmp_path / "folder.png")
    with pytest.raises(ImageError, match="does not exist"):
        find_images(tmp_path / "absent")


def photograph(kind: str) -> Image.Image:
    """The box at 400 x 320, shaded, on what real pictures have around an object."""
    rng = np.random.default_rng(5)
    image = Image.new("RGBA", (400, 320), (0, 0, 0, 0))
    image.paste((90, 90, 90, 255), (80, 120, 240, 200))
    image.paste((140, 140, 140, 255), (80, 120, 240, 150))
    if kind == "clean":
        return image
    if kind == "stray alpha":
        image.paste((60, 60, 60, 255), (2, 2, 5, 5))
        return image
    backgrounds = {"noise": (200, 205, 210), "green": (30, 200, 60), "rounded": (90, 120, 200)}
    plain = Image.new("RGB", image.size, backgrounds.get(kind, (255, 255, 255)))
    if kind == "shadow":
        shadow = Image.new("L", image.size, 0)
        shadow.paste(110, (60, 190, 260, 225))
        shadow = shadow.filter(ImageFilter.GaussianBlur(8))
        plain.paste((0, 0, 0), mask=shadow)
    plain.paste(image, mask=image.getchannel("A"))
    if kind == "noise":
        noisy = np.asarray(plain) + rng.normal(0, 4, (320, 400, 3))
        return Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8))
    if kind == "green":
        stream = io.BytesIO()
        plain.save(stream, "JPEG", quality=50)
        return Image.open(stream)
    if kind == "speck":
        plain.putpixel((10, 300), (20, 20, 20))
    if kind == "frame line":
        ImageDraw.Draw(plain).rectangle((0, 0, 399, 319), outline=(0, 0, 0), width=2)
    if kind == "bars":
        plain.paste((0, 0, 0), (0, 0, 400, 30))
    if kind == "rounded":
        corners = Image.new("L", image.size, 0)
        ImageDraw.Draw(corners).rounded_rectangle((0, 0, 399, 319), 60, fill=255)
        plain.putalpha(corners)
    return plain


@pytest.mark.parametrize(
    ("kind", "warning"),
    [
        ("noise", None),
        ("green", None),
        ("speck", "small piece"),
        ("stray alpha", "small piece"),
        ("shadow", "shadow"),
        ("rounded", "plate"),
        ("frame line", "frame"),
        ("bars", "bars"),
    ],
)
def test_what_surrounds_the_object_does_not_move_the_frame(kind, warning):
    seen, clean = (preprocess(photograph(k), CONFIG) for k in (kind, "clean"))
    assert np.abs(seen.pixels.astype(int) - clean.pixels).mean() < 6
    assert clean.warning is None
    assert warning in seen.warning if warning else seen.warning is None


@pytest.mark.parametrize(
    ("box", "colour", "warning"),
    [
        ((60, 30, 100, 50), RED, "touches the right"),
        ((20, 30, 28, 34), RED, "8 pixels"),
        ((20, 30, 60, 50), (240, 240, 240), "nearly white"),
        ((20, 30, 60, 50), (20, 20, 20), "nearly black"),
    ],
)
def test_an_uncertain_object_draws_a_warning(box, colour, warning):
    assert warning in preprocess(picture_with_box(box=box, colour=colour), CONFIG).warning


@pytest.mark.parametrize("background", [None, (255, 255, 255)])
def test_the_faces_of_a_box_are_no_plate(background):
    """A crate with a dark hollow fills the frame as a card does, but its faces are shaded."""
    shades = np.linspace(190, 130, 96).astype(np.uint8)
    crate = np.repeat(np.repeat(shades[:, None, None], 96, 1), 3, 2)
    crate[44:52, 44:52] = 70
    image = Image.new("RGBA", (128, 128), (0, 0, 0, 0))
    image.paste(Image.fromarray(crate), (16, 16))
    whole = np.asarray(image.getchannel("A")) > 0
    if background:
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), image)
    assert (find_foreground(image).mask & whole).sum() > 0.95 * whole.sum()


@pytest.mark.parametrize(
    ("box", "part", "looked_through", "note"),
    [
        ((40, 20, 216, 236), (180, 120, 190, 130), False, ""),  # a door with a knob
        ((4, 4, 252, 252), (220, 120, 230, 130), False, "plate or card"),  # the same, larger
        ((40, 20, 216, 236), (80, 50, 176, 146), False, "plate or card"),  # with a window
        ((4, 4, 252, 252), (80, 50, 176, 146), True, "was taken to be"),  # a card
    ],
)
def test_only_a_plate_as_large_as_the_frame_is_looked_through(box, part, looked_through, note):
    image = picture_with_box(size=(256, 256), box=box, colour=(150, 150, 150))
    image.paste((60, 60, 60), part)
    found = find_foreground(image.convert("RGBA"))
    assert found.box == (part if looked_through else box)
    assert note in "; ".join(found.notes) if note else not found.notes


def test_a_card_that_was_cut_out_stays_and_draws_a_warning():
    image = Image.new("RGBA", (256, 256), (0, 0, 0, 0))
    image.paste((240, 240, 240, 255), (20, 20, 236, 236))
    image.paste((60, 60, 60, 255), (80, 50, 176, 146))
    found = find_foreground(image)
    assert found.box == (20, 20, 236, 236) and "plate or card" in found.notes[0]


@pytest.mark.parametrize("quality", [None, 85])
@pytest.mark.parametrize(
    ("colour", "shadow", "floor", "doubt"),
    [
        ((90, 90, 90), 150, False, True),
        ((90, 90, 90), 215, False, True),
        ((200, 60, 40), 60, False, True),
        ((200, 60, 40), 170, True, True),
        ((90, 90, 90), 255, False, False),
        ((200, 60, 40), 255, True, False),
    ],
)
def test_a_hard_shadow_draws_a_warning(colour, shadow, floor, doubt, quality):
    image = Image.new("RGB", (256, 256), (255, 255, 255))
    draw = ImageDraw.Draw(image)
    draw.ellipse((50, 180, 200, 210) if floor else (100, 75, 220, 195), fill=(shadow,) * 3)
    draw.ellipse((65, 65, 185, 185), fill=colour)
    if quality:
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=quality)
        image = Image.open(stream)
    notes = find_foreground(image.convert("RGBA")).notes
    assert any("shadow" in note for note in notes) == doubt


def test_two_objects_draw_a_warning():
    image = picture_with_box()
    image.paste(GREEN, (75, 30, 95, 50))
    assert "2 separate pieces" in preprocess(image, CONFIG).warning


@pytest.mark.parametrize(("side", "warning"), [(80, "far from the object"), (30, "small piece")])
def test_a_smaller_object_far_away_draws_a_warning(side, warning):
    image = picture_with_box(size=(512, 512), box=(10, 60, 290, 340))
    image.paste(GREEN, (400, 400, 400 + side, 400 + side))
    assert warning in preprocess(image, CONFIG).warning


@pytest.mark.parametrize("alpha", [None, 255, 30])
@pytest.mark.parametrize("share", [0.002, 0.01, 0.05])
def test_dust_all_over_does_not_move_the_frame(alpha, share):
    image = picture_with_box(size=(256, 256), box=(70, 80, 180, 200))
    dust = np.random.default_rng(0).random((256, 256)) < share
    if alpha:
        opaque = np.where((np.asarray(image)[..., 1] < 255), 255, np.where(dust, alpha, 0))
        image.putalpha(Image.fromarray(opaque.astype(np.uint8)))
    else:
        image.paste((0, 0, 0), mask=Image.fromarray(dust))
    found = find_foreground(image.convert("RGBA"))
    assert np.abs(np.subtract(found.box, (70, 80, 180, 200))).max() <= 4
    assert "small pieces" in found.notes[-1]


@pytest.mark.parametrize("form", ["PNG", "JPEG", "cut-out"])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("start", "stop"), [(120, 121), (120, 123), (110, 126), (40, 43)])
def test_a_line_from_side_to_side_is_left_out(start, stop, turned, form):
    y, x = np.mgrid[:256, :256]
    object_ = np.hypot(x - 120, y - 130) < 70
    line = (y >= start) & (y < stop)
    pixels = np.where(object_, 90, 255)
    pixels[line] = 210
    image = Image.fromarray(np.repeat(pixels[..., None], 3, 2).astype(np.uint8)).convert("RGBA")
    if form == "cut-out":
        image.putalpha(Image.fromarray(((object_ | line) * 255).astype(np.uint8)))
    if form == "JPEG":
        stream = io.BytesIO()
        image.convert("RGB").save(stream, "JPEG", quality=85)
        image = Image.open(stream).convert("RGBA")
    if turned:
        image = image.transpose(Image.Transpose.TRANSPOSE)
    found, expected = find_foreground(image), object_.T if turned else object_
    assert (found.mask & expected).sum() > 0.97 * (found.mask | expected).sum()
    assert any("from side to side was left out" in note for note in found.notes)


def test_a_table_top_that_the_image_is_cropped_to_stays():
    table = picture_with_box(box=(0, 30, 100, 36))
    for x in (10, 85):
        table.paste(RED, (x, 36, x + 5, 70))
    found = find_foreground(table.convert("RGBA"))
    assert found.box == (0, 30, 100, 70) and "may not belong" in found.notes[0]


def test_a_chain_of_dots_is_no_part_of_the_object_but_a_broken_rod_is():
    image = picture_with_box(size=(256, 256), box=(30, 30, 120, 120))
    for x in range(124, 250, 8):
        image.paste(RED, (x, 70, x + 2, 72))
    for y in range(121, 220, 3):
        image.paste(RED, (60, y, 61, y + 2))
    assert find_foreground(image.convert("RGBA")).box == (30, 30, 126, 219)


def test_exif_rotation_is_applied_to_an_image_that_python_opened(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(picture_with_box(), tmp_path / "phone.png", exif=exif)
    with Image.open(path) as opened:
        seen = preprocess(opened, CONFIG).pixels
    np.testing.assert_array_equal(seen, preprocess(load_image(path), CONFIG).pixels)
