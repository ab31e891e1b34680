import io
import os
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest

from npref import datasets
from npref.datasets import TINY_IMAGENET

Image = pytest.importorskip("PIL.Image", reason="needs Pillow")
CLASSES = [f"n{(i * 7919) % 1000:08d}" for i in range(200)]  # not in alphabetical order
CACHE = "npref-uint8.h5"


def jpeg(colour, size=(64, 64), mode="RGB", kind="JPEG"):
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, kind, quality=95)
    return buffer.getvalue()


def colour(label, kind):
    return (label, 255 - label, kind)


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """Two training images and one validation image a class, in the official layout; a colour tells class and kind."""
    folder = tmp_path_factory.mktemp("tiny") / TINY_IMAGENET.folder
    (folder / "val" / "images").mkdir(parents=True)
    (folder / "wnids.txt").write_text("\n".join(CLASSES))
    (folder / "words.txt").write_text("n00000000\tentity\n")
    lines = []
    for label, name in enumerate(CLASSES):
        images = folder / "train" / name / "images"
        images.mkdir(parents=True)
        (images.parent / f"{name}_boxes.txt").write_text("")
        for k in range(2):
            (images / f"{name}_{k}.JPEG").write_bytes(jpeg(colour(label, 100 * k)))
        (folder / "val" / "images" / f"val_{199 - label}.JPEG").write_bytes(jpeg(colour(label, 200)))
        lines.append(f"val_{199 - label}.JPEG\t{name}\t0\t0\t63\t63")
    (folder / "val" / "val_annotations.txt").write_text("\n".join(sorted(lines)) + "\n")
    return folder


@pytest.fixture
def folder(official, tmp_path):
    """A copy of it to spoil: links to all files."""
    copy = tmp_path / TINY_IMAGENET.folder
    shutil.copytree(official, copy, copy_function=os.link)
    (copy / CACHE).unlink(missing_ok=True)
    return copy


def replace(path, content):
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def load(folder):
    return datasets.load("tiny-imagenet", folder.parent)


def assert_right(data):
    assert data.x_train.shape == (400, 3, 64, 64) and data.x_test.shape == (200, 3, 64, 64) and data.x_train.dtype == np.uint8
    for x, y, kind in ((data.x_train[:200], data.y_train[:200], 0), (data.x_train[200:], data.y_train[200:], 100),
                       (data.x_test, data.y_test, 200)):
        assert np.array_equal(y, np.arange(200))  # every class once, then again
        expected = np.array([colour(label, kind) for label in y])
        assert np.abs(x.mean(axis=(2, 3)) - expected).max() < 4


def test_layout(folder):
    left = folder / f"{CACHE}.1.part"  # by a decoding that was killed
    left.write_text("half")
    os.utime(left, (0, 0))
    data = load(folder)
    assert_right(data)
    assert (data.name, data.classes, data.inputs, data.source) == ("tiny-imagenet", 200, "standard", str(folder))
    assert data.completeness == "400 of 100000 + 200 of 10000"
    assert datasets.load("tiny-imagenet", folder, 10, 5).completeness == "10 of 100000 + 5 of 10000"
    assert (folder / CACHE).exists() and not [p for p in folder.iterdir() if p.name.endswith(".part")]


def test_the_order_of_annotations_does_not_count(folder):
    """A class's images go by their names, as in training."""
    other = jpeg((9, 9, 9))
    for k, name in enumerate(("val_30.JPEG", "val_3.JPEG")):  # 30 after 3 there, and each after one of its own
        (folder / "val" / "images" / name).unlink()
        (folder / "val" / "images" / name).write_bytes(jpeg((100 * k, 0, 0)))
    path = folder / "val" / "val_annotations.txt"
    lines = [line for line in path.read_text().splitlines() if not line.startswith(("val_30.", "val_3."))]
    replace(path, "\n".join([f"val_30.JPEG\t{CLASSES[0]}", f"val_3.JPEG\t{CLASSES[0]}", *lines]))
    replace(folder / "val" / "images" / "val_169.JPEG", other)  # classes 169 and 196 have lost their only one
    data = load(folder)
    first = np.flatnonzero(data.y_test == 0)
    assert len(first) == 3  # val_199, val_3, val_30
    assert [round(float(x[0].mean()), -1) for x in data.x_test[first]] == [0, 100, 0] and data.x_test[first[0], 2].mean() > 150


def test_planes_and_greyscale(folder):
    ramp = np.zeros((64, 64, 3), dtype=np.uint8)
    ramp[:, 32:, 0] = 200  # red on the right
    buffer = io.BytesIO()
    Image.fromarray(ramp).save(buffer, "JPEG", quality=95, subsampling=0)
    replace(folder / "train" / CLASSES[0] / "images" / f"{CLASSES[0]}_0.JPEG", buffer.getvalue())
    replace(folder / "train" / CLASSES[1] / "images" / f"{CLASSES[1]}_0.JPEG", jpeg(90, mode="L"))
    x = load(folder).x_train
    assert abs(x[0, 0, :, 40:].mean() - 200) < 5 and x[0, 0, :, :24].mean() < 5 and x[0, 1:].mean() < 5
    assert np.all(x[1] == 90)  # three equal channels


def no_decoding(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("decoded again")

    monkeypatch.setattr(Image, "open", fail)


def test_decoded_once(folder, monkeypatch):
    first = load(folder)
    no_decoding(monkeypatch)
    again = load(folder)
    assert again.fingerprint() == first.fingerprint() and again.source == first.source


@pytest.mark.parametrize("what", ["size", "time"])
def test_cache_follows_the_images(folder, what):
    load(folder)
    path = folder / "train" / CLASSES[3] / "images" / f"{CLASSES[3]}_1.JPEG"
    before = path.stat()
    content = jpeg((250, 250, 0)) + b"x" * 1000  # what follows the picture does not count
    replace(path, content if what == "size" else content[: before.st_size])
    os.utime(path, ns=(1, before.st_mtime_ns if what == "size" else before.st_mtime_ns + 1))
    assert (path.stat().st_size != before.st_size) == (what == "size")
    data = load(folder)
    assert f"(decoded anew, as the images are not those that {CACHE} was made from)" in data.source
    assert abs(data.x_train[203, 0].mean() - 250) < 4
    assert load(folder).source == str(folder)  # and kept
    replace(path, None)
    assert load(folder).completeness == "399 of 100000 + 200 of 10000"


def test_cache_follows_validation_images_and_names(folder):
    load(folder)
    replace(folder / "val" / "images" / "val_3.JPEG", jpeg((1, 2, 3)) + b"x")
    data = load(folder)
    assert "decoded anew" in data.source and data.x_test[196].mean() < 4
    one, other = (folder / "train" / CLASSES[5] / "images" / f"{CLASSES[5]}_{k}.JPEG" for k in range(2))
    for path in one, other:
        content = jpeg(colour(5, 100 * (path == other)))
        replace(path, content + b"x" * (2000 - len(content)))
        os.utime(path, ns=(1, 1))
    load(folder)
    one.rename(folder / "x")
    other.rename(one)
    (folder / "x").rename(other.with_name("z.JPEG"))  # of one size and time: the names alone tell
    data = load(folder)
    assert "decoded anew" in data.source and abs(data.x_train[5, 2].mean() - 100) < 4


def spoil_html(path):
    path.write_text("<html>404</html>")


def spoil_cut(path):
    path.write_bytes(path.read_bytes()[:-100_000])


def spoil_byte(path):
    with h5py.File(path) as file:
        offset = file["x_train"].id.get_chunk_info(2).byte_offset
    with open(path, "r+b") as file:
        file.seek(offset + 1000)
        byte = file.read(1)
        file.seek(offset + 1000)
        file.write(bytes([byte[0] ^ 1]))


def spoil_shape(path):
    with h5py.File(path, "r+") as file:
        del file["x_test"]
        file["x_test"] = np.zeros((200, 3, 64, 63), dtype=np.uint8)


def spoil_shape_of_training(path):
    with h5py.File(path, "r+") as file:
        del file["x_train"]
        file["x_train"] = np.zeros((399, 3, 64, 64), dtype=np.uint8)


def spoil_missing(path):
    with h5py.File(path, "r+") as file:
        del file["x_test"]


def spoil_attribute(path):
    with h5py.File(path, "r+") as file:
        del file.attrs["made_from"]


@pytest.mark.parametrize("spoil", [spoil_html, spoil_cut, spoil_byte, spoil_shape, spoil_shape_of_training, spoil_missing, spoil_attribute])
def test_damaged_cache_is_rebuilt(folder, spoil):
    load(folder)
    spoil(folder / CACHE)
    data = load(folder)
    assert_right(data)
    assert f"(decoded anew, as {CACHE} is damaged: " in data.source and "\n" not in data.source
    assert load(folder).source == str(folder)


def test_cache_that_cannot_be_written(folder, monkeypatch):
    (folder / CACHE).mkdir()  # stands in for a folder without permission, which root would not notice
    (folder / CACHE / "x").write_text("")
    data = load(folder)
    assert_right(data)
    assert f"(decoded in memory only, as {CACHE} cannot be written: " in data.source and "\n" not in data.source
    assert not [p for p in folder.iterdir() if p.name.endswith(".part")]


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="needs posix_fallocate")
def test_cache_that_has_no_room(folder):
    """As on a full disk, which HDF5 itself does not survive; a limit on the size of files stands in for it."""
    code = ("import resource, signal, sys\n"
            "from npref import datasets\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))\n"
            "print(datasets.load('tiny-imagenet', sys.argv[1]).source)\n")
    run = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "") and f"(decoded in memory only, as {CACHE} cannot be written: " in run.stdout, run
    assert not [p for p in folder.iterdir() if "npref" in p.name]


def first(folder):
    return folder / "train" / CLASSES[0] / "images" / f"{CLASSES[0]}_0.JPEG"


def annotations(change):
    def spoil(folder):
        path = folder / "val" / "val_annotations.txt"
        replace(path, change(path.read_text()))
    return spoil


@pytest.mark.parametrize("spoil, error, words", [
    (lambda f: replace(first(f), "<html>404</html>"), ValueError, "_0.JPEG: cannot be decoded as JPEG"),
    (lambda f: replace(first(f), jpeg(0, kind="PNG")), ValueError, "_0.JPEG: cannot be decoded as JPEG"),
    (lambda f: replace(first(f), ""), ValueError, "_0.JPEG: cannot be decoded as JPEG"),
    (lambda f: replace(first(f), first(f).read_bytes()[:-200]), ValueError, "_0.JPEG: cannot be decoded as JPEG .*[Tt]runcated"),
    (lambda f: replace(first(f), jpeg(0, (64, 63))), ValueError, "_0.JPEG: expected 64x64 pixels, got 64x63"),
    (lambda f: replace(first(f), jpeg(0, (32, 32), "L")), ValueError, "_0.JPEG: expected 64x64 pixels, got 32x32"),
    (lambda f: (f / "train" / "n99999999").mkdir(), ValueError, "n99999999: not a class of wnids.txt; remove it, or get"),
    (lambda f: (f / "train" / CLASSES[7]).rename(f / "train" / "n99999999"), ValueError,
     f"train does not fit .*wnids.txt: it has n99999999, and has no {CLASSES[7]}; get it again"),
    (lambda f: [replace(first(f), None), first(f).symlink_to("nowhere")], FileNotFoundError, "_0.JPEG: a link to a file that is missing"),
    (lambda f: [replace(first(f), None), os.mkfifo(first(f))], ValueError, "_0.JPEG: expected a file; remove it, or get it again"),
    (lambda f: shutil.rmtree(f / "train" / CLASSES[7]), FileNotFoundError, f"{CLASSES[7]}/images: missing"),
    (lambda f: [replace(p, None) for p in first(f).parent.iterdir()], FileNotFoundError, f"{CLASSES[0]}/images: no .JPEG files"),
    (lambda f: replace(first(f).with_suffix(".png"), "x"), ValueError, "_0.png: expected .JPEG files only; remove it, or get"),
    (lambda f: replace(f / "wnids.txt", None), FileNotFoundError, "wnids.txt: missing"),
    (lambda f: replace(f / "wnids.txt", "<html>404</html>"), ValueError, "wnids.txt: expected 200 different class names, got 1 in 1"),
    (lambda f: replace(f / "wnids.txt", "\n".join(CLASSES[:-1] + CLASSES[:1])), ValueError, "expected 200 .* got 199 in 200"),
    (lambda f: replace(f / "val" / "val_annotations.txt", None), FileNotFoundError, "val_annotations.txt: missing"),
    (lambda f: shutil.rmtree(f / "val"), FileNotFoundError, "val/images: missing"),
    (lambda f: replace(f / "val" / "images" / "val_3.JPEG", None), FileNotFoundError,
     "val_3.JPEG: missing, though line 124 of val_annotations.txt names it"),
    (lambda f: replace(f / "val" / "images" / "val_300.JPEG", jpeg(0)), ValueError, "val_300.JPEG: not annotated in val_annotations.txt"),
    (annotations(lambda text: text.replace(CLASSES[5], "n99999999")), ValueError,
     "val_annotations.txt: line 107: expected a file name and a class of wnids.txt, got 'val_194.JPEG"),
    (annotations(lambda text: "<html>404</html>"), ValueError, "val_annotations.txt: line 1: expected a file name and a class"),
    (annotations(lambda text: text + text.splitlines()[0]), ValueError, "line 201: val_0.JPEG is annotated twice"),
    (annotations(lambda text: text[: len(text) // 2].rpartition("\n")[0]), ValueError, "not annotated in val_annotations.txt"),
])
def test_damage_is_named(folder, spoil, error, words):
    spoil(folder)
    with pytest.raises(error, match=words) as caught:
        load(folder)
    message = str(caught.value)
    assert f"get it again with python -m npref.datasets fetch tiny-imagenet --data-dir {folder.parent}" in message
    assert "\n" not in message and str(folder) in message and not (folder / CACHE).exists()


def test_hidden_files_are_no_data(folder):
    for place in (folder, folder / "train", first(folder).parent, folder / "val" / "images"):
        (place / ".DS_Store").write_text("")
    assert_right(load(folder))


def test_a_byte_order_mark_is_no_name(folder):
    """As some editors put it at the beginning of a text."""
    for path in folder / "wnids.txt", folder / "val" / "val_annotations.txt":
        replace(path, b"\xef\xbb\xbf" + path.read_bytes())
    assert_right(load(folder))


def test_without_pillow(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ValueError, match=r'need Pillow .*: pip install -e ".\[examples\]"'):
        load(folder)


def test_real_tiny_imagenet(tiny_imagenet_dir):
    data = datasets.load_tiny_imagenet(tiny_imagenet_dir)
    assert len(set(np.bincount(data.y_train))) == len(set(np.bincount(data.y_test))) == 1 and data.y_train.max() == 199
    assert data.completeness == f"{len(data.x_train)} of 100000 + {len(data.x_test)} of 10000"
    pixels = data.x_train[:2000] / np.float32(255)
    assert np.allclose(pixels.mean(axis=(0, 2, 3)), [0.480, 0.448, 0.397], atol=0.02)
