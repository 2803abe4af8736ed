from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from vitlab.data.decoding import decode_files, image_suffixes, read_image, to_square


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20), "red")
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").size == (20, 40)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK"])
def test_white_is_white_in_every_mode(tmp_path: Path, mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((8, 8), 65535, dtype=np.uint16))
    else:
        image = Image.new("RGB", (8, 8), "white").convert(mode)
    file = tmp_path / ("white.tif" if mode == "CMYK" else "white.png")
    image.save(file)
    assert np.asarray(read_image(file)).tolist() == [[[255] * 3] * 8] * 8


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.uint16])
@pytest.mark.parametrize("white", [1, 255, 4095, 65535])
def test_grey_of_many_bits_is_scaled_by_its_range(dtype: type, white: int, tmp_path: Path) -> None:
    if white == 1 and dtype != np.float32:
        pytest.skip("0 and 1 of integers mean black, as in 8 bits")
    ramp = np.linspace(0, white, 8)[None].astype(dtype)
    Image.fromarray(ramp).save(tmp_path / "ramp.tif")
    image = read_image(tmp_path / "ramp.tif")
    expected = np.rint(ramp / (white / 255)).astype(int)
    assert np.asarray(image)[:, :, 0].tolist() == np.asarray(image)[:, :, 2].tolist() == expected.tolist()
    assert f"{white:,}" in image.info["remark"]


@pytest.mark.parametrize(
    "values", [[-1.0, 1.0], [0.0, 1e6], [0.0, float("nan")], [0.0, float("inf")], [-5, 200], [0, 2**31 - 1]], ids=str
)
def test_values_without_a_known_white_are_refused_with_their_range(values: list[float], tmp_path: Path) -> None:
    dtype = np.float32 if isinstance(values[0], float) else np.int32
    Image.fromarray(np.array([values], dtype=dtype)).save(tmp_path / "odd.tif")
    with pytest.raises(ValueError, match=r"values from .* to .* white"):
        read_image(tmp_path / "odd.tif")


@pytest.mark.parametrize("suffix", ["jpg", "webp", "bmp", "gif", "tif", "avif"])
def test_every_orientation_and_format_is_read_upright(suffix: str, tmp_path: Path) -> None:
    if not features.check("avif") and suffix == "avif":
        pytest.skip("this Pillow has no AVIF")
    image = Image.new("RGB", (16, 8), "black")
    image.paste("white", (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image.save(tmp_path / f"a.{suffix}", exif=exif)
    turned = np.asarray(read_image(tmp_path / f"a.{suffix}"))[..., 0]
    left, right = turned[:, :6].mean(), turned[:, -6:].mean()
    assert (left < right) == (suffix not in ("bmp", "gif"))  # these hold no orientation


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "pip install pillow-heif"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"no image", "not an image"),
    ],
)
def test_what_is_no_image_is_named(
    content: bytes, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.init()
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)  # as without the extra
    monkeypatch.setattr(Image, "ID", [kind for kind in Image.ID if kind != "HEIF"])
    (tmp_path / "photo.jpg").write_bytes(content)
    (file,) = decode_files([tmp_path / "photo.jpg"], 8)
    assert file.pixels is None
    assert reason in file.remark


def test_heic_is_read_with_its_extra(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "photo.heic", quality=90)
    (tmp_path / "photo.heic").rename(tmp_path / "photo.jpg")  # as phones send it
    assert ".heic" in image_suffixes()
    assert np.allclose(read_image(tmp_path / "photo.jpg").getpixel((32, 32)), (255, 0, 0), atol=8)


def test_files_are_decoded_in_order_and_few_at_a_time(tmp_path: Path) -> None:
    for number in range(200):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number:03d}.png")
    asked = []
    decoded = decode_files((asked.append(file) or file for file in sorted(tmp_path.iterdir())), 8)
    assert next(decoded).pixels is not None
    assert len(asked) < 200
    values = [file.pixels[0, 0, 0] for file in decoded if file.pixels is not None]
    assert values == list(range(1, 200))


def test_sixteen_bit_grey_keeps_its_tones(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 257 * 100, 65535]], dtype=np.uint16)).save(tmp_path / "grey.png")
    assert np.asarray(read_image(tmp_path / "grey.png"))[0, :, 0].tolist() == [0, 100, 255]


def test_transparent_pixels_are_white_whatever_their_colour(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert read_image(tmp_path / "clear.png").getpixel((1, 1)) == (255, 255, 255)
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([0, 0, 0] * 256)
    palette.save(tmp_path / "palette.png", transparency=0)
    assert read_image(tmp_path / "palette.png").getpixel((1, 1)) == (255, 255, 255)


def test_an_image_is_cropped_to_its_centre() -> None:
    wide = Image.new("RGB", (300, 100), "black")
    wide.paste("white", (100, 0, 200, 100))
    square = to_square(wide, 32)
    assert square.shape == (3, 32, 32)
    assert square[:, :, 2:-2].min() == 255


def test_an_image_of_the_right_size_is_unchanged() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert np.array_equal(to_square(Image.fromarray(pixels), 32), pixels.transpose(2, 0, 1))
