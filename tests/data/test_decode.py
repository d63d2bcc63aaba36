"""Whatever comes in, upright 8-bit RGB comes out, or a sentence with the file's name."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from segflax.data import decode
from segflax.data.decode import load_image, load_mask
from segflax.errors import UserError

H, W = 24, 40


@pytest.fixture
def picture() -> np.ndarray:
  """Smooth (JPEG keeps it) and different in every direction and channel."""
  y, x = np.mgrid[:H, :W]
  return np.stack([x * 6, y * 10, 255 - x * 3 - y * 4], -1).astype(np.uint8)


def encoded(image: Image.Image, form: str, **options) -> bytes:
  buffer = io.BytesIO()
  image.save(buffer, form, **options)
  return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
  def chunk(kind, content):
    crc = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + crc

  header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
  body = chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
  return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body


@pytest.mark.parametrize("form", decode.FORMATS)
def test_reads_every_allowed_format_from_bytes_paths_and_pictures(form, picture, tmp_path):
  options = {"quality": 95} if form in ("JPEG", "WEBP") else {}
  content = encoded(Image.fromarray(picture), form, **options)
  path = tmp_path / f"picture.{form.lower()}"
  path.write_bytes(content)
  loaded = [load_image(content), load_image(path), load_image(str(path))]
  loaded.append(load_image(Image.open(path)))
  for image in loaded:
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), np.asarray(loaded[0]))
  error = np.abs(np.asarray(loaded[0]).astype(int) - picture)
  assert error.mean() < (4 if options else 1e-9)


# EXIF orientation -> how the stored pixels are made from the upright ones (NumPy, EXIF 2.3 4.6.4).
STORED = {
  1: lambda a: a,
  2: lambda a: a[:, ::-1],
  3: lambda a: a[::-1, ::-1],
  4: lambda a: a[::-1],
  5: lambda a: a.swapaxes(0, 1),
  6: lambda a: np.rot90(a, 1),
  7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
  8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_is_applied_to_picture_and_mask(orientation, picture):
  exif = Image.Exif()
  exif[0x0112] = orientation
  stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](picture)))
  np.testing.assert_array_equal(np.asarray(load_image(encoded(stored, "PNG", exif=exif))), picture)

  mask = np.where(picture[..., 0] > 90, 255, 0).astype(np.uint8)
  stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](mask)))
  np.testing.assert_array_equal(np.asarray(load_mask(encoded(stored, "PNG", exif=exif))), mask)


def test_grey_palette_and_one_bit(picture):
  image = Image.fromarray(picture)
  grey = image.convert("L")
  expected = np.repeat(np.asarray(grey)[..., None], 3, -1)
  np.testing.assert_array_equal(np.asarray(load_image(encoded(grey, "PNG"))), expected)
  palette = image.quantize(64)
  expected = np.asarray(palette.convert("RGB"))
  np.testing.assert_array_equal(np.asarray(load_image(encoded(palette, "PNG"))), expected)
  bits = grey.point(lambda v: 255 * (v > 100)).convert("1")
  expected = np.repeat(np.asarray(bits)[..., None] * np.uint8(255), 3, -1)
  np.testing.assert_array_equal(np.asarray(load_image(encoded(bits, "PNG"))), expected)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bits_are_scaled_not_clipped(form):
  values = np.linspace(0, 65535, H * W).reshape(H, W).astype(np.uint16)
  loaded = np.asarray(load_image(encoded(Image.fromarray(values), form)))
  np.testing.assert_array_equal(loaded[..., 0], np.round(values / 257).astype(np.uint8))
  np.testing.assert_array_equal(loaded[..., 0], loaded[..., 2])


def test_transparency_is_laid_on_white(picture):
  alpha = np.full((H, W, 1), 255, np.uint8)
  alpha[:, :10], alpha[:, 10:20] = 0, 128
  loaded = np.asarray(
    load_image(encoded(Image.fromarray(np.concatenate([picture, alpha], -1)), "PNG"))
  )
  share = alpha / 255
  expected = picture * share + 255 * (1 - share)
  np.testing.assert_allclose(loaded, expected, atol=1)

  palette = Image.fromarray(picture).quantize(16)
  palette.info["transparency"] = 3
  loaded = np.asarray(load_image(encoded(palette, "PNG", transparency=3)))
  assert (loaded[np.asarray(palette) == 3] == 255).all()


def test_cmyk_jpeg_has_its_colours():
  red = Image.new("RGB", (16, 16), (200, 30, 30)).convert("CMYK")
  loaded = np.asarray(load_image(encoded(red, "JPEG", quality=95))).astype(int)
  assert np.abs(loaded - (200, 30, 30)).max() < 12


def test_at_least_decodes_a_large_jpeg_smaller_but_never_too_small():
  big = encoded(Image.new("RGB", (640, 480), "grey"), "JPEG")
  assert load_image(big, at_least=120).size == (160, 120)
  assert load_image(big, at_least=121).size == (320, 240)
  assert load_image(big, at_least=480).size == (640, 480)
  assert load_image(big).size == (640, 480)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bombs_are_refused_from_the_header():
  with pytest.raises(UserError, match=r"huge.png is 9500x9500, more than 89478485 pixels"):
    load_image(png_header(9500, 9500), name="huge.png")
  with pytest.raises(UserError, match=r"bomb.png has more than"):  # Pillow's own check is first.
    load_image(png_header(60000, 60000), name="bomb.png")


def test_other_formats_are_refused_by_name(tmp_path):
  path = tmp_path / "animation.gif"
  Image.new("RGB", (8, 8)).save(path)
  with pytest.raises(UserError, match=r"animation.gif is none of JPEG, PNG, WEBP, TIFF"):
    load_image(path)
  with pytest.raises(UserError, match="none of JPEG"):
    load_image(b"%!PS-Adobe-3.0 EPSF-3.0\n")


def test_missing_and_truncated_files_are_named(picture, tmp_path):
  with pytest.raises(UserError, match=r"nowhere.jpg cannot be read"):
    load_image(tmp_path / "nowhere.jpg")
  with pytest.raises(UserError, match="cannot be read"):
    load_image(tmp_path)
  path = tmp_path / "cut.jpg"
  path.write_bytes(encoded(Image.fromarray(picture), "JPEG")[:-40])
  with pytest.raises(UserError, match=r"cut.jpg is damaged \(.*\); replace or remove it"):
    load_image(path)
  lazy = Image.open(path)
  with pytest.raises(UserError, match=r"cut.jpg is damaged"):
    load_image(lazy)


def test_float_pixels_are_refused():
  with pytest.raises(UserError, match="16 bits"):
    load_image(encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"))


@pytest.mark.parametrize("form", decode.FORMATS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_bytes_never_raise_anything_else(form, picture):
  content = encoded(Image.fromarray(picture), form)
  rng = np.random.default_rng(0)
  refused = 0
  for _ in range(150):
    damaged = bytearray(content)
    for at in rng.integers(len(damaged), size=rng.integers(1, 6)):
      damaged[at] = rng.integers(256)
    damaged = bytes(damaged[: rng.integers(1, len(damaged) + 1)] if rng.random() < 0.5 else damaged)
    try:
      assert load_image(damaged).mode == "RGB"
    except UserError:
      refused += 1
  assert refused > 20


@pytest.mark.parametrize("low, high", [(0, 255), (0, 1)])
def test_masks_of_both_conventions(low, high):
  truth = np.random.default_rng(0).random((H, W)) < 0.3
  stored = Image.fromarray(np.where(truth, high, low).astype(np.uint8))
  mask = load_mask(encoded(stored, "PNG"))
  assert mask.mode == "L"
  np.testing.assert_array_equal(np.asarray(mask), np.where(truth, 255, 0))


def test_masks_in_colour_palette_and_one_bit():
  truth = np.random.default_rng(1).random((H, W)) < 0.3
  expected = np.where(truth, 255, 0)
  colour = np.where(truth[..., None], (0, 128, 20), 0).astype(np.uint8)
  inverted = Image.fromarray(np.where(truth, 0, 1).astype(np.uint8)).convert("P")
  inverted.putpalette([200, 0, 0, 0, 0, 0])  # Index 1 is black: the background.
  for stored in (Image.fromarray(colour), inverted, Image.fromarray(truth)):
    np.testing.assert_array_equal(np.asarray(load_mask(encoded(stored, "PNG"))), expected)


def test_masks_with_other_values_are_refused():
  with pytest.raises(UserError, match=r"mask a has the values \[0, 7, 255\]; it must hold"):
    load_mask(encoded(Image.fromarray(np.array([[0, 7, 255]], np.uint8)), "PNG"), name="a")
  colours = np.array([[[0, 0, 0], [255, 0, 0], [0, 255, 0]]], np.uint8)
  with pytest.raises(UserError, match="one mask per concept"):
    load_mask(encoded(Image.fromarray(colours), "PNG"))
