import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from modfast import data
from modfast.data import DataError, Dataset, load_dataset

Image = pytest.importorskip("PIL.Image", reason="needs the extra `experiments`")

CLASSES = ("cat", "dog")


def make_pixels(split, label, number, shape):
    seed = (split == "test") * 1000 + label * 100 + number
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def make_tree(root, *, shape=(6, 5, 3), suffix=".png", train=4, test=2):
    for split, count in (("train", train), ("test", test)):
        for label, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                image = Image.fromarray(make_pixels(split, label, number, shape))
                image.save(folder / f"{number:03}{suffix}")
    return root


@pytest.fixture
def tree(tmp_path):
    return make_tree(tmp_path / "tree")


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def no_decoding(monkeypatch):
    """Call it, and decoding fails from then on."""

    def forbid():
        def decode(*_):
            raise AssertionError("decoded although the cache holds the images")

        monkeypatch.setattr(data, "_decode_image", decode)

    return forbid


def load(tree, cache, **options):
    return load_dataset(f"imagefolder:{tree}", cache_dir=cache, **options)


def assert_same(first, second):
    for name in ("train_images", "train_labels", "test_images", "test_labels"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name
    assert first.classes == second.classes
    assert first.fingerprint() == second.fingerprint()


# --- Dataset ---


def tiny_dataset(**changes):
    images = torch.tensor([0, 51, 102, 255], dtype=torch.uint8).reshape(4, 1, 1, 1)
    labels = torch.tensor([0, 1, 1, 0])
    arguments = {
        "name": "tiny",
        "train_images": images,
        "train_labels": labels,
        "test_images": images[:2],
        "test_labels": labels[:2],
        "classes": ("a", "b"),
    }
    return Dataset(**{**arguments, **changes})


def test_normalize_scales_then_standardizes():
    images = tiny_dataset().train_images
    plain = tiny_dataset().normalize(images)
    assert plain.dtype == torch.float32
    assert plain.flatten().tolist() == pytest.approx([0, 0.2, 0.4, 1])
    published = tiny_dataset(mean=0.1307, std=0.3081).normalize(images)
    assert published.flatten().tolist() == pytest.approx([(x - 0.1307) / 0.3081 for x in (0, 0.2, 0.4, 1)])
    assert images.flatten().tolist() == [0, 51, 102, 255]


def test_normalize_matches_division_for_every_pixel_value():
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(tiny_dataset().normalize(images), images.float() / 255)


def test_normalize_refuses_normalized_images():
    dataset = tiny_dataset()
    with pytest.raises(ValueError, match=r"images must be a uint8 tensor, got a float32 tensor"):
        dataset.normalize(dataset.normalize(dataset.train_images))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_images": torch.zeros(4, 1, 1, 1)}, "train_images must be a uint8 tensor"),
        ({"test_images": torch.zeros(2, 1, 1, dtype=torch.uint8)}, "test_images must be a uint8 tensor"),
        (
            {"test_images": torch.zeros(2, 3, 1, 1, dtype=torch.uint8)},
            "test_images must have images of shape",
        ),
        ({"test_images": torch.zeros(0, 1, 1, 1, dtype=torch.uint8)}, "test_images must hold at least one"),
        ({"train_labels": torch.zeros(3, dtype=torch.int64)}, r"train_labels must be an int64 .* \(4,\)"),
        ({"train_labels": torch.zeros(4)}, "train_labels must be an int64 tensor"),
        ({"test_labels": torch.tensor([0, 2])}, r"test_labels must lie in \[0, 2\)"),
        ({"test_labels": torch.tensor([-1, 0])}, r"test_labels must lie in \[0, 2\)"),
        ({"classes": ()}, "classes must be"),
        ({"std": 0.0}, "std must be positive"),
        ({"mean": float("nan")}, "mean must be finite"),
    ],
)
def test_dataset_names_the_bad_field(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_dataset(**changes)


def test_fingerprint_depends_on_contents_and_not_on_the_name():
    fingerprint = tiny_dataset().fingerprint()
    assert len(fingerprint) == 16
    assert tiny_dataset(name="other").fingerprint() == fingerprint
    changed = [
        tiny_dataset(train_labels=torch.tensor([0, 1, 1, 1])),
        tiny_dataset(train_images=tiny_dataset().train_images.flip(0)),
        tiny_dataset(classes=("a", "c")),
        tiny_dataset(std=2.0),
    ]
    assert len({fingerprint, *(dataset.fingerprint() for dataset in changed)}) == 5


# --- what needs no files ---


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "Digits",
        "digit",
        "digits:8",
        "imagefolder",
        "imagefolder:",
        "folder:/tmp",
        "mnist:",
        None,
        Path("fake"),
    ],
)
def test_unknown_spec_names_it_and_what_is_allowed(spec):
    with pytest.raises(
        ValueError, match=r"data must be one of digits, cifar10, mnist, imagefolder:PATH, fake"
    ) as info:
        load_dataset(spec)
    assert repr(spec) in str(info.value)


@pytest.mark.parametrize("workers", [0, -1, 1.5, True, "2"])
def test_bad_workers(workers):
    with pytest.raises(ValueError, match="workers must be"):
        load_dataset("fake", workers=workers)


def test_digits_are_the_real_ones_split_by_class():
    sklearn_datasets = pytest.importorskip("sklearn.datasets")
    digits = load_dataset("digits")
    assert len(digits.train_images) + len(digits.test_images) == 1797
    assert digits.image_shape == (1, 8, 8)
    assert digits.num_classes == 10
    assert digits.classes == tuple("0123456789")
    train, test = torch.bincount(digits.train_labels), torch.bincount(digits.test_labels)
    assert torch.equal(test, (train + test) // 5)
    original = sklearn_datasets.load_digits()
    values = digits.normalize(torch.cat([digits.train_images, digits.test_images])).numpy() * 16
    labels = torch.cat([digits.train_labels, digits.test_labels]).numpy()
    # Half a step of 1/255 is the largest error of rounding.
    assert np.abs(values - np.rint(values)).max() <= 16 * 0.5 / 255 + 1e-6

    def rows(images, targets):
        return sorted(
            (int(label), *image)
            for label, image in zip(targets, images.reshape(1797, 64).tolist(), strict=True)
        )

    assert rows(np.rint(values), labels) == rows(original.images, original.target)


def test_digits_and_fake_are_the_same_each_time():
    pytest.importorskip("sklearn")
    assert_same(load_dataset("digits"), load_dataset("digits"))
    before = torch.random.get_rng_state()
    torch.manual_seed(1)
    first = load_dataset("fake")
    torch.manual_seed(2)
    assert_same(first, load_dataset("fake"))
    torch.random.set_rng_state(before)
    load_dataset("fake")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_fake_classes_can_be_learned():
    fake = load_dataset("fake")
    assert fake.train_images.shape == (512, 3, 32, 32)
    assert fake.test_images.shape == (128, 3, 32, 32)
    assert fake.num_classes == 10
    train, test = fake.normalize(fake.train_images), fake.normalize(fake.test_images)
    means = torch.stack([train[fake.train_labels == label].mean(0) for label in range(10)])
    nearest = torch.cdist(test.flatten(1), means.flatten(1)).argmin(1)
    assert (nearest == fake.test_labels).float().mean() > 0.95


@pytest.mark.parametrize(
    ("spec", "module"),
    [("digits", "sklearn.datasets"), ("mnist", "torchvision.datasets"), ("imagefolder", "PIL.Image")],
)
def test_missing_library_says_what_to_install(spec, module, monkeypatch, tree, cache):
    monkeypatch.setitem(sys.modules, module, None)
    spec = f"imagefolder:{tree}" if spec == "imagefolder" else spec
    with pytest.raises(ImportError, match=r'pip install "modfast\[experiments\]"'):
        load_dataset(spec, cache_dir=cache)


# --- image folders ---


def test_imagefolder_holds_the_pixels_in_order(tree, cache):
    dataset = load(tree, cache)
    assert dataset.name == f"imagefolder:{tree}"
    assert dataset.classes == CLASSES
    assert dataset.image_shape == (3, 6, 5)
    assert dataset.train_labels.tolist() == [0] * 4 + [1] * 4
    assert dataset.test_labels.tolist() == [0] * 2 + [1] * 2
    for split, images in (("train", dataset.train_images), ("test", dataset.test_images)):
        expected = [
            make_pixels(split, label, number, (6, 5, 3)).transpose(2, 0, 1)
            for label in range(2)
            for number in range(len(images) // 2)
        ]
        assert np.array_equal(images.numpy(), np.stack(expected))


def test_imagefolder_agrees_with_torchvision(tree, cache):
    folder = pytest.importorskip("torchvision.datasets").ImageFolder
    nested = tree / "train" / "cat" / "more"
    nested.mkdir()
    shutil.copy(tree / "train" / "dog" / "000.png", nested / "A.PNG")
    (tree / "train" / "cat" / "notes.txt").write_text("no image")
    dataset = load(tree, cache)
    reference = folder(tree / "train")
    assert dataset.classes == tuple(reference.classes)
    assert dataset.train_labels.tolist() == reference.targets
    for image, (expected, _) in zip(dataset.train_images, reference, strict=True):
        assert np.array_equal(image.numpy(), np.asarray(expected).transpose(2, 0, 1))


def test_grey_images_keep_one_channel(tmp_path, cache):
    grey = load(make_tree(tmp_path / "grey", shape=(6, 5)), cache)
    assert grey.image_shape == (1, 6, 5)
    assert np.array_equal(grey.train_images[0, 0].numpy(), make_pixels("train", 0, 0, (6, 5)))


def test_other_modes_become_rgb(tree, cache):
    grey, transparent = tree / "train" / "cat" / "001.png", tree / "train" / "cat" / "000.png"
    Image.open(grey).convert("L").save(grey)
    Image.open(transparent).convert("RGBA").save(transparent)
    images = load(tree, cache).train_images
    assert images.shape[1:] == (3, 6, 5)
    assert torch.equal(images[1, 0], images[1, 2])
    assert np.array_equal(images[0].numpy(), make_pixels("train", 0, 0, (6, 5, 3)).transpose(2, 0, 1))


def test_colour_among_grey_images_is_named(tmp_path, cache):
    tree = make_tree(tmp_path / "grey", shape=(6, 5))
    odd = tree / "test" / "dog" / "001.png"
    Image.open(odd).convert("RGB").save(odd)
    with pytest.raises(DataError, match="mode RGB, but the first image is grey") as info:
        load(tree, cache)
    assert str(odd) in str(info.value)


def test_sixteen_bit_images_are_refused(tmp_path, cache):
    tree = make_tree(tmp_path / "deep")
    deep = tree / "train" / "dog" / "002.png"
    Image.fromarray(np.full((6, 5), 40_000, dtype=np.uint16)).save(deep)
    with pytest.raises(DataError, match="more than 8 bits") as info:
        load(tree, cache)
    assert str(deep) in str(info.value)


def test_other_size_is_named(tree, cache):
    odd = tree / "train" / "dog" / "003.png"
    Image.new("RGB", (6, 5)).save(odd)
    with pytest.raises(DataError, match="6 x 5 pixels, but the first image has 5 x 6") as info:
        load(tree, cache)
    assert str(odd) in str(info.value)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("place", ["train/cat/000.jpg", "train/dog/002.jpg", "test/dog/001.jpg"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_damaged_jpeg_is_named(damage, place, workers, tmp_path, cache, monkeypatch):
    # One image in a chunk, so that two workers have something to share.
    monkeypatch.setattr(data, "_CHUNK_IMAGES", 1)
    tree = make_tree(tmp_path / "jpeg", shape=(32, 32, 3), suffix=".jpg")
    bad = tree / place
    contents = bad.read_bytes()
    bad.write_bytes(
        {"truncated": contents[: len(contents) * 2 // 3], "empty": b"", "text": b"no image"}[damage]
    )
    with pytest.raises(DataError, match="missing, damaged or not an image") as info:
        load(tree, cache, workers=workers)
    assert str(bad) in str(info.value)
    assert not cache.exists()


def test_broken_link_is_named(tree, cache):
    link = tree / "train" / "cat" / "999.png"
    link.symlink_to(tree / "nowhere.png")
    with pytest.raises(DataError, match="cannot be read") as info:
        load(tree, cache)
    assert str(link) in str(info.value)


def test_image_that_vanishes_is_named(tree, cache, monkeypatch):
    gone = tree / "train" / "dog" / "000.png"
    decode_tree = data._decode_tree

    def remove_first(*arguments):
        gone.unlink()
        return decode_tree(*arguments)

    monkeypatch.setattr(data, "_decode_tree", remove_first)
    with pytest.raises(DataError) as info:
        load(tree, cache)
    assert str(gone) in str(info.value)


@pytest.mark.parametrize("missing", ["", "train", "test"])
def test_missing_folder_is_named(missing, tree, cache):
    shutil.rmtree(tree / missing)
    with pytest.raises(DataError, match="not a readable folder") as info:
        load(tree, cache)
    assert str(tree / (missing or "train")) in str(info.value)


def test_folder_without_classes_is_named(tree, cache):
    shutil.rmtree(tree / "train")
    (tree / "train").mkdir()
    with pytest.raises(DataError, match="no class folder here"):
        load(tree, cache)


def test_empty_class_is_named(tree, cache):
    empty = tree / "test" / "dog"
    shutil.rmtree(empty)
    empty.mkdir()
    with pytest.raises(DataError, match="no image here") as info:
        load(tree, cache)
    assert str(empty) in str(info.value)


def test_classes_of_train_and_test_must_agree(tree, cache):
    (tree / "test" / "dog").rename(tree / "test" / "fox")
    with pytest.raises(DataError, match=r"only in train: \['dog'\], only in test: \['fox'\]"):
        load(tree, cache)


def test_too_large_for_memory(tree, cache, monkeypatch):
    monkeypatch.setattr(data, "MAX_DECODED_BYTES", 12 * 90 - 1)
    with pytest.raises(DataError, match="too large: 12 images of 5 x 6 pixels"):
        load(tree, cache)
    monkeypatch.setattr(data, "MAX_DECODED_BYTES", 12 * 90)
    load(tree, cache)


def test_workers_and_progress_do_not_change_the_result(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_CHUNK_IMAGES", 5)
    calls = []
    serial = load(tree, tmp_path / "one", workers=1)
    parallel = load(
        tree, tmp_path / "two", workers=3, progress=lambda done, total: calls.append((done, total))
    )
    assert_same(serial, parallel)
    assert calls == [(5, 12), (10, 12), (12, 12)]


def test_interrupt_stops_the_workers_at_once(tree, cache, monkeypatch):
    monkeypatch.setattr(data, "_CHUNK_IMAGES", 1)
    # As a training script may do that ends cleanly on SIGTERM; its workers must end all the same.
    before = signal.signal(signal.SIGTERM, lambda *_: None)

    def interrupt(*_):
        assert len(multiprocessing.active_children()) == 2
        raise KeyboardInterrupt

    try:
        with pytest.raises(KeyboardInterrupt):
            load(tree, cache, workers=2, progress=interrupt)
        assert multiprocessing.active_children() == []
    finally:
        signal.signal(signal.SIGTERM, before)


def test_worker_that_dies_is_reported(tree, cache, monkeypatch):
    monkeypatch.setattr(data, "_CHUNK_IMAGES", 1)
    monkeypatch.setattr(data, "_decode_image", lambda *_: os._exit(3))
    with pytest.raises(DataError, match="process that decodes images died"):
        load(tree, cache, workers=2)


# --- the cache ---


def cache_file(cache):
    (file,) = cache.iterdir()
    return file


def test_second_load_does_not_decode(tree, cache, no_decoding):
    first = load(tree, cache)
    no_decoding()
    calls = []
    assert_same(first, load(tree, cache, progress=lambda *call: calls.append(call)))
    assert calls == []


def test_cache_is_found_under_another_spelling_of_the_path(tree, cache, no_decoding, monkeypatch):
    first = load(tree, cache)
    no_decoding()
    monkeypatch.chdir(tree.parent)
    assert_same(first, load("tree/../tree", cache))


def test_loaded_tensors_can_be_written_to(tree, cache):
    load(tree, cache)
    dataset = load(tree, cache)
    dataset.train_images.zero_()
    assert load(tree, cache).train_images.any()


@pytest.mark.parametrize("position", [0, 3, 8, 20, 40, 47, 60, 200, -1])
def test_flipped_byte_is_noticed_and_repaired(position, tree, cache, no_decoding):
    first = load(tree, cache)
    file = cache_file(cache)
    contents = bytearray(file.read_bytes())
    contents[position] ^= 1
    file.write_bytes(contents)
    with pytest.warns(RuntimeWarning, match="is damaged") as caught:
        assert_same(first, load(tree, cache))
    assert str(file) in str(caught[0].message)
    assert caught[0].filename == __file__
    no_decoding()
    assert_same(first, load(tree, cache))


@pytest.mark.parametrize("length", [0, 5, 8, 30, 44, 48, 100, -1])
def test_truncated_cache_is_noticed_and_repaired(length, tree, cache, no_decoding):
    first = load(tree, cache)
    file = cache_file(cache)
    file.write_bytes(file.read_bytes()[:length])
    with pytest.warns(RuntimeWarning, match="is damaged"):
        assert_same(first, load(tree, cache))
    no_decoding()
    assert_same(first, load(tree, cache))


def test_cache_that_is_a_folder_is_warned_of(tree, cache):
    first = load(tree, cache)
    file = cache_file(cache)
    file.unlink()
    (file / "inside").mkdir(parents=True)
    with pytest.warns(RuntimeWarning) as caught:
        assert_same(first, load(tree, cache))
    assert len(caught) == 2
    assert all(str(file) in str(warning.message) for warning in caught)


@pytest.mark.parametrize("change", ["contents", "time", "added", "removed", "moved", "renamed class"])
def test_changed_tree_is_decoded_again(change, tmp_path, cache, no_decoding):
    # Without compression, so that two pictures have files of one length.
    tree = make_tree(tmp_path / "tree", suffix=".bmp")
    before = load(tree, cache)
    victim = tree / "train" / "cat" / "001.bmp"
    if change == "contents":
        Image.new("RGB", (5, 6), "red").save(victim)
    elif change == "time":
        status = victim.stat()
        victim.write_bytes((tree / "train" / "cat" / "002.bmp").read_bytes())
        os.utime(victim, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        assert victim.stat().st_size == status.st_size
    elif change == "added":
        Image.new("RGB", (5, 6), "red").save(tree / "train" / "cat" / "004.bmp")
    elif change == "removed":
        victim.unlink()
    elif change == "moved":
        victim.rename(tree / "train" / "dog" / "001b.bmp")
    else:
        (tree / "train" / "dog").rename(tree / "train" / "fox")
        (tree / "test" / "dog").rename(tree / "test" / "fox")
    after = load(tree, cache)
    assert after.fingerprint() != before.fingerprint()
    assert after.fingerprint() == load(tree, tmp_path / "fresh").fingerprint()
    assert len(list(cache.iterdir())) == 1
    no_decoding()
    assert_same(after, load(tree, cache))


def test_two_trees_do_not_share_a_cache(tmp_path, cache):
    first = load(make_tree(tmp_path / "a"), cache)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    Image.new("RGB", (5, 6)).save(tmp_path / "b" / "train" / "cat" / "000.png")
    assert load(tmp_path / "b", cache).fingerprint() != first.fingerprint()
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("moment", ["decoding", "writing", "renaming"])
def test_interrupt_leaves_no_partial_cache(moment, tree, cache, monkeypatch, no_decoding):
    def interrupt(*_):
        raise KeyboardInterrupt

    class InterruptedFile:
        def __init__(self, path, mode):
            self.file = open(path, mode)  # noqa: SIM115
            self.writes = 0

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, contents):
            self.writes += 1
            if self.writes == 2:
                self.file.write(bytes(contents)[:100])
                interrupt()
            self.file.write(contents)

    with monkeypatch.context() as patch:
        if moment == "writing":
            patch.setattr(data, "open", InterruptedFile, raising=False)
        if moment == "renaming":
            patch.setattr(os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            load(tree, cache, progress=interrupt if moment == "decoding" else None)
    assert not cache.exists() or list(cache.iterdir()) == []
    first = load(tree, cache)
    no_decoding()
    assert_same(first, load(tree, cache))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux decodes in other processes")
def test_killed_process_leaves_neither_cache_nor_workers(tree, cache, tmp_path):
    pids = tmp_path / "pids"
    pids.mkdir()
    script = (
        "import os, sys, time\n"
        "from modfast import data\n"
        "def decode(*_):\n"
        "    open(os.path.join(sys.argv[3], str(os.getpid())), 'w').close()\n"
        "    time.sleep(600)\n"
        "data._decode_image, data._CHUNK_IMAGES = decode, 1\n"
        "data.load_dataset('imagefolder:' + sys.argv[1], cache_dir=sys.argv[2], workers=2)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, tree, cache, pids]) as process:
        wait_until(lambda: len(list(pids.iterdir())) == 2)
        process.kill()
    workers = [int(entry.name) for entry in pids.iterdir()]
    assert process.pid not in workers
    wait_until(lambda: not any(is_running(pid) for pid in workers))
    assert not cache.exists()


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def is_running(pid):
    try:
        # The state follows the name, which stands in parentheses; a zombie has ended.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_unwritable_cache_warns_and_goes_on(tree, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.warns(RuntimeWarning, match="cannot be kept in") as caught:
        dataset = load(tree, blocked / "cache")
    assert str(blocked) in str(caught[0].message)
    assert caught[0].filename == __file__
    assert_same(dataset, load(tree, tmp_path / "cache"))


def test_default_cache_folder(tree, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("MODFAST_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    steps = [
        (None, None, tmp_path / "home" / ".cache" / "modfast"),
        ("XDG_CACHE_HOME", "relative/is/ignored", tmp_path / "home" / ".cache" / "modfast"),
        ("XDG_CACHE_HOME", str(tmp_path / "xdg"), tmp_path / "xdg" / "modfast"),
        ("MODFAST_CACHE", str(tmp_path / "own"), tmp_path / "own"),
    ]
    for name, value, expected in steps:
        if name:
            monkeypatch.setenv(name, value)
        shutil.rmtree(expected, ignore_errors=True)
        load_dataset(f"imagefolder:{tree}")
        assert cache_file(expected).suffix == ".cache"


# --- downloads ---


class FakeTorchvision:
    """Stands in for torchvision.datasets: its classes read files that its "server" puts into place."""

    def __init__(self, error=None):
        self.error = error
        self.downloads = 0
        self.MNIST = self._make("MNIST", (28, 28))
        self.CIFAR10 = self._make("cifar-10-batches-py", (32, 32, 3))

    def _make(self, contents, shape):
        def make(root, train, download):
            folder = Path(root) / contents
            if download:
                self.downloads += 1
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "part 1").write_text("whole")
                if self.error:
                    raise self.error
                (folder / "part 2").write_text("whole")
            for part in ("part 1", "part 2"):
                if not (folder / part).exists() or (folder / part).read_text() != "whole":
                    raise RuntimeError("Dataset not found or corrupted.")
            count = 20 if train else 10
            images = np.random.default_rng(count).integers(0, 256, (count, *shape), dtype=np.uint8)
            return SimpleNamespace(data=images, targets=[number % 10 for number in range(count)])

        return make


@pytest.fixture
def torchvision(monkeypatch):
    fake = FakeTorchvision()
    monkeypatch.setitem(sys.modules, "torchvision.datasets", fake)
    return fake


@pytest.mark.parametrize(
    ("spec", "shape", "scaling"),
    [("mnist", (1, 28, 28), (0.1307, 0.3081)), ("cifar10", (3, 32, 32), (0.0, 1.0))],
)
def test_download_once_and_read_ever_after(spec, shape, scaling, torchvision, cache):
    first = load_dataset(spec, cache_dir=cache)
    assert first.image_shape == shape
    assert (first.mean, first.std) == scaling
    assert first.num_classes == 10
    assert len(first.train_images) == 20
    assert len(first.test_images) == 10
    assert first.train_images.is_contiguous()
    pixels = np.random.default_rng(20).integers(0, 256, (20, shape[1], shape[2], shape[0]), dtype=np.uint8)
    assert np.array_equal(first.train_images.numpy(), pixels.transpose(0, 3, 1, 2))
    torchvision.error = OSError("no network")
    assert_same(first, load_dataset(spec, cache_dir=cache))
    assert_same(first, load_dataset(spec, cache_dir=cache, download=False))
    assert torchvision.downloads == 1


@pytest.mark.parametrize("spec", ["mnist", "cifar10"])
@pytest.mark.parametrize("error", [OSError("unreachable"), RuntimeError("md5 differs"), EOFError("cut off")])
def test_failed_download_explains_and_is_never_taken_for_complete(spec, error, torchvision, cache):
    torchvision.error = error
    with pytest.raises(DataError) as info:
        load_dataset(spec, cache_dir=cache)
    message = str(info.value)
    source = data._DOWNLOADABLE[spec]
    for part in (
        spec,
        str(error),
        source.url,
        *source.archives,
        str(cache / spec),
        "digits",
        "imagefolder:PATH",
    ):
        assert part in message
    assert list((cache / spec).iterdir()) == []
    torchvision.error = None
    load_dataset(spec, cache_dir=cache)
    assert torchvision.downloads == 2


def test_interrupted_download_leaves_nothing(torchvision, cache):
    torchvision.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        load_dataset("mnist", cache_dir=cache)
    assert list((cache / "mnist").iterdir()) == []


def test_download_that_is_not_allowed(torchvision, cache):
    with pytest.raises(DataError, match="by hand"):
        load_dataset("cifar10", cache_dir=cache, download=False)
    assert torchvision.downloads == 0


def test_damaged_download_is_replaced_with_a_warning(torchvision, cache):
    first = load_dataset("cifar10", cache_dir=cache)
    (cache / "cifar10" / "cifar-10-batches-py" / "part 2").write_text("who")
    with pytest.warns(RuntimeWarning, match="incomplete or damaged") as caught:
        assert_same(first, load_dataset("cifar10", cache_dir=cache))
    assert caught[0].filename == __file__
    assert_same(first, load_dataset("cifar10", cache_dir=cache, download=False))


def test_download_into_an_unwritable_folder(torchvision, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DataError, match="by hand"):
        load_dataset("mnist", cache_dir=tmp_path / "file")


@pytest.mark.parametrize("spec", ["mnist", "cifar10"])
def test_real_torchvision_without_a_network(spec, cache, monkeypatch):
    pytest.importorskip("torchvision")
    import urllib.request
    from urllib.error import URLError

    def unreachable(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    with pytest.raises(DataError, match=r"no route to host[\s\S]*by hand"):
        load_dataset(spec, cache_dir=cache)
    assert list((cache / spec).iterdir()) == []


def test_archives_put_in_place_by_hand_are_unpacked_without_a_network(cache, monkeypatch):
    datasets = pytest.importorskip("torchvision.datasets")
    import gzip
    import hashlib
    import struct
    import urllib.request

    def unreachable(*_, **__):
        raise AssertionError("used the network")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    folder = cache / "mnist" / "MNIST" / "raw"
    folder.mkdir(parents=True)
    resources = []
    for split, count in (("train", 6), ("t10k", 4)):
        images = struct.pack(">4i", 0x803, count, 28, 28) + bytes(count * 784)
        labels = struct.pack(">2i", 0x801, count) + bytes(range(count))
        for name, contents in (("images-idx3", images), ("labels-idx1", labels)):
            archive = gzip.compress(contents)
            (folder / f"{split}-{name}-ubyte.gz").write_bytes(archive)
            resources.append((f"{split}-{name}-ubyte.gz", hashlib.md5(archive).hexdigest()))
    monkeypatch.setattr(datasets.MNIST, "resources", resources)
    dataset = load_dataset("mnist", cache_dir=cache)
    assert dataset.train_labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert dataset.test_images.shape == (4, 1, 28, 28)
    assert_same(dataset, load_dataset("mnist", cache_dir=cache, download=False))
