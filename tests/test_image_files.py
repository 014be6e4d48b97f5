"""Real-world image files: 16 bits, EXIF orientation, transparency, animations, several formats."""

import keras
import numpy as np
import pytest

import tf_packnet as tp
from tests.conftest import blobs, compile_model
from tf_packnet.system.images import UnsupportedImageError, read_image
from tf_packnet.system.limits import Bound

Image = pytest.importorskip("PIL.Image")

RAMP = np.linspace(0, 255, 48).astype("uint8").reshape(6, 8)


def read(path, mode=None, size=(None, None)):
    return read_image(path, mode, *size, Bound())


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_the_range_of_16_bits_is_scaled(suffix, tmp_path):
    path = tmp_path / f"x{suffix}"
    Image.fromarray(RAMP.astype("uint16") * 257).save(path)
    np.testing.assert_array_equal(read(path), RAMP)
    np.testing.assert_array_equal(read(path, "RGB"), np.repeat(RAMP[..., np.newaxis], 3, axis=2))


def test_16_bits_are_rounded(tmp_path):
    pixels = np.array([[0, 128, 129, 32767, 65406, 65407, 65535, 257]], "uint16")
    Image.fromarray(pixels).save(tmp_path / "x.png")
    np.testing.assert_array_equal(read(tmp_path / "x.png"), [[0, 0, 1, 127, 254, 255, 255, 1]])


def test_a_transparent_value_of_16_bits_is_white(tmp_path):
    pixels = np.array([[1000, 1001, 2570]], "uint16")
    Image.fromarray(pixels).save(tmp_path / "x.png", transparency=1000)
    np.testing.assert_array_equal(read(tmp_path / "x.png"), [[255, 4, 10]])


# What each value of EXIF's orientation says about how the stored pixels are turned.
STORED = {
    1: lambda x: x,
    2: np.fliplr,
    3: lambda x: np.rot90(x, 2),
    4: np.flipud,
    5: lambda x: np.swapaxes(x, 0, 1),
    6: lambda x: np.rot90(x, 1),
    7: lambda x: np.rot90(np.swapaxes(x, 0, 1), 2),
    8: lambda x: np.rot90(x, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_images_are_upright(orientation, suffix, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    colours = np.stack([RAMP, RAMP.T.reshape(6, 8), 255 - RAMP], axis=2)
    stored = np.ascontiguousarray(STORED[orientation](colours))
    Image.fromarray(stored).save(tmp_path / f"x{suffix}", exif=exif, lossless=True)
    np.testing.assert_array_equal(read(tmp_path / f"x{suffix}"), colours)
    assert read(tmp_path / f"x{suffix}", size=(3, 4)).shape == (3, 4, 3)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_are_blended_with_white(mode, tmp_path):
    grey, alpha = np.full((2, 3), 100, "uint8"), np.array([[0, 51, 255]] * 2, "uint8")
    colours = [grey] * (3 if mode == "RGBA" else 1)
    Image.fromarray(np.stack([*colours, alpha], axis=2), mode).save(tmp_path / "x.png")
    expected = np.array([[255, 224, 100]] * 2)  # 51 of 255 are a fifth
    seen = read(tmp_path / "x.png")
    assert seen.ndim == (3 if mode == "RGBA" else 2)
    np.testing.assert_array_equal(seen if seen.ndim == 2 else seen[..., 1], expected)


def test_a_transparent_colour_of_a_palette_is_white(tmp_path):
    image = Image.fromarray(np.array([[0, 1]], "uint8"), "P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.save(tmp_path / "x.gif", transparency=1)
    np.testing.assert_array_equal(read(tmp_path / "x.gif"), [[[10, 20, 30], [255, 255, 255]]])


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".tif"])
def test_animations_are_refused(suffix, tmp_path):
    frames = [Image.fromarray(np.roll(RAMP, number)) for number in range(3)]
    frames[0].save(tmp_path / f"x{suffix}", save_all=True, append_images=frames[1:])
    with pytest.raises(UnsupportedImageError, match="an animation, or a stack of several images"):
        read(tmp_path / f"x{suffix}")


def test_floats_are_refused(tmp_path):
    Image.fromarray(RAMP.astype("float32")).save(tmp_path / "x.tif")
    with pytest.raises(UnsupportedImageError, match="floating-point numbers"):
        read(tmp_path / "x.tif")


def folder_of(path, suffix=".png"):
    for name in "ab":
        (path / name).mkdir(parents=True)
        for number in range(8):
            Image.fromarray(np.roll(RAMP, number)).save(path / name / f"{number}{suffix}")
    return path


def test_a_folder_with_unread_images_is_refused(tmp_path):
    folder = folder_of(tmp_path / "data")
    (folder / "b/photo.HEIC").write_bytes(b"")
    with pytest.raises(tp.ArgumentError, match=r"only images that can be read \(.png, .jpg.*photo.HEIC"):
        tp.tasks.from_folder(folder, batch_size=2)


def test_a_folder_with_an_animation_is_refused(tmp_path):
    folder = folder_of(tmp_path / "data")
    frames = [Image.fromarray(np.roll(RAMP, number)) for number in range(3)]
    frames[0].save(folder / "a/moving.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(tp.ArgumentError, match=r"single images of 8 or 16 bits \(an animation, .*moving.gif"):
        tp.tasks.from_folder(folder, batch_size=2)


X, NAMES = np.eye(20, 3) + np.arange(20)[:, np.newaxis], np.array(["cat", "dog"] * 10)


@pytest.mark.parametrize("labels", [NAMES, NAMES.astype("S"), NAMES.astype(object), NAMES.astype("S").astype(object)])
def test_labels_become_clean_names(labels):
    task = tp.tasks.from_arrays("pets", X, labels, batch_size=2, test=(X[:2], labels[:2]))
    assert task.class_names == ("cat", "dog")
    assert sorted(task.splits["test"].y) == [0, 1]


@pytest.mark.parametrize(
    ("names", "message"), [(["x", "x"], "a different name for each class"), (["x"], "2, one for each label in y")]
)
def test_bad_class_names(names, message):
    with pytest.raises(tp.ArgumentError, match=f"`class_names`: expected {message}"):
        tp.tasks.from_arrays("pets", X, NAMES, class_names=names, batch_size=2)


@pytest.mark.parametrize(
    ("images", "warning"),
    [
        (np.linspace(0, 255, 20 * 9).reshape(20, 3, 3), "float64 values up to 255, .* scale=1/255 makes"),
        (
            np.arange(20 * 9).reshape(20, 3, 3).astype("uint16") * 300,
            "uint16 values up to 53,700, .* scale=1/65535 makes",
        ),
        (np.arange(20 * 9).reshape(20, 3, 3).astype("int32") * 9, "int32 values up to 1,611, .* scale=1/4095 makes"),
    ],
)
def test_a_range_that_is_not_scaled_is_reported(images, warning):
    with pytest.warns(UserWarning, match=warning):
        tp.tasks.from_arrays("pets", images, NAMES, batch_size=2)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("images", "scale"),
    [
        (np.random.default_rng(0).normal(size=(20, 3, 3)), None),  # standardized
        (np.linspace(0, 255, 20 * 9).reshape(20, 3, 3), 1 / 255),
        (np.arange(20 * 9).reshape(20, 3, 3).astype("uint8"), None),
        (np.arange(20 * 3).reshape(20, 3), None),  # a table
    ],
)
def test_other_ranges_are_not(images, scale):
    tp.tasks.from_arrays("pets", images, NAMES, batch_size=2, scale=scale)


def fit_with(scale, *factors):
    layers = [*(keras.layers.Rescaling(factor) for factor in factors), keras.layers.Dense(4), keras.layers.Dense(2)]
    packed = compile_model(tp.pack(keras.Sequential([keras.Input((6,)), *layers])))
    x, y = blobs(0)
    packed.fit(tp.tasks.StreamedBatches(x, y, scale, batch_size=16), verbose=0)


def test_a_second_scaling_is_reported():
    with pytest.warns(UserWarning, match="again by layer 'rescaling.*' of the model"):
        fit_with(1 / 255, 1 / 255)


@pytest.mark.filterwarnings("error:examples are multiplied")
@pytest.mark.parametrize(("scale", "factors"), [(1.0, [1 / 255]), (1 / 255, [255.0, 1 / 255]), (1 / 255, [2.0])])
def test_a_single_scaling_is_not(scale, factors):
    fit_with(scale, *factors)
