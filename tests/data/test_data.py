import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from data_helpers import assert_same, make_tree

from modfast.data import load_dataset


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
def test_missing_library_says_what_to_install(spec, module, monkeypatch, tmp_path):
    if spec == "imagefolder":
        spec = f"imagefolder:{make_tree(tmp_path / 'tree')}"
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r'pip install "modfast\[experiments\]"'):
        load_dataset(spec, cache_dir=tmp_path / "cache")


def test_default_cache_folder(tmp_path, monkeypatch):
    tree = make_tree(tmp_path / "tree")
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
        (file,) = expected.iterdir()
        assert file.suffix == ".cache"
