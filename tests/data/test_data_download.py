import gzip
import hashlib
import struct
import sys
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from data_helpers import assert_same

from modfast.data import DataError, load_dataset
from modfast.data.download import DOWNLOADABLE


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


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
    source = DOWNLOADABLE[spec]
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


@pytest.mark.parametrize("spec", ["mnist", "cifar10"])
def test_what_a_user_keeps_beside_a_damaged_data_set_stays(spec, torchvision, cache):
    first = load_dataset(spec, cache_dir=cache)
    contents = cache / spec / DOWNLOADABLE[spec].contents
    own = {"notes.txt": "mine", "annotations/boxes.json": "[]", "part 3": "more"}
    for name, text in own.items():
        (contents / name).parent.mkdir(exist_ok=True)
        (contents / name).write_text(text)
    (contents / "part 2").write_text("my own labels")
    with pytest.warns(RuntimeWarning, match="keeping what differs under another name"):
        assert_same(first, load_dataset(spec, cache_dir=cache))
    assert {name: (contents / name).read_text() for name in own} == own
    (renamed,) = (path for path in contents.iterdir() if path.name.startswith("part 2."))
    assert renamed.read_text() == "my own labels"
    assert {path.name for path in (cache / spec).iterdir()} == {contents.name}


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


@pytest.fixture
def no_network(monkeypatch):
    def unreachable(*_, **__):
        raise AssertionError("used the network")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)


def idx_files():
    """The four files of an MNIST with six training and four test images: their names and contents."""
    for split, count in (("train", 6), ("t10k", 4)):
        pixels = np.random.default_rng(count).integers(0, 256, count * 784, dtype=np.uint8).tobytes()
        yield f"{split}-images-idx3-ubyte", struct.pack(">4i", 0x803, count, 28, 28) + pixels
        yield f"{split}-labels-idx1-ubyte", struct.pack(">2i", 0x801, count) + bytes(range(count))


def test_archives_put_in_place_by_hand_are_unpacked_without_a_network(cache, monkeypatch, no_network):
    datasets = pytest.importorskip("torchvision.datasets")
    folder = cache / "mnist" / "MNIST" / "raw"
    folder.mkdir(parents=True)
    resources = []
    for name, contents in idx_files():
        archive = gzip.compress(contents)
        (folder / f"{name}.gz").write_bytes(archive)
        resources.append((f"{name}.gz", hashlib.md5(archive).hexdigest()))
    monkeypatch.setattr(datasets.MNIST, "resources", resources)
    dataset = load_dataset("mnist", cache_dir=cache)
    assert dataset.train_labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert dataset.test_images.shape == (4, 1, 28, 28)
    assert_same(dataset, load_dataset("mnist", cache_dir=cache, download=False))


@pytest.mark.parametrize("download", [False, True])
def test_unpacked_files_of_mnist_suffice(download, cache, no_network):
    pytest.importorskip("torchvision.datasets")
    folder = cache / "mnist" / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name, contents in idx_files():
        (folder / name).write_bytes(contents)
    dataset = load_dataset("mnist", cache_dir=cache, download=download)
    files = dict(idx_files())
    for split, images, labels in (
        ("train", dataset.train_images, dataset.train_labels),
        ("t10k", dataset.test_images, dataset.test_labels),
    ):
        assert images.numpy().tobytes() == files[f"{split}-images-idx3-ubyte"][16:]
        assert bytes(labels.tolist()) == files[f"{split}-labels-idx1-ubyte"][8:]
    assert sorted(path.name for path in folder.iterdir()) == sorted(files), "nothing was added"


def test_unpacked_files_of_mnist_that_are_cut_off(cache):
    pytest.importorskip("torchvision.datasets")
    folder = cache / "mnist" / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name, contents in idx_files():
        (folder / name).write_bytes(contents[:-1])
    with pytest.raises(DataError, match=r"reading .*MNIST[\s\S]*by hand"):
        load_dataset("mnist", cache_dir=cache, download=False)
