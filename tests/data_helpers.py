"""Image folders to load and data sets to compare, for all tests of data."""

import numpy as np
import pytest
import torch

CLASSES = ("cat", "dog")


def make_pixels(split, label, number, shape):
    seed = (split == "test") * 1000 + label * 100 + number
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def make_tree(root, *, shape=(6, 5, 3), suffix=".png", train=4, test=2):
    image_module = pytest.importorskip("PIL.Image", reason="needs the extra `experiments`")
    for split, count in (("train", train), ("test", test)):
        for label, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                image = image_module.fromarray(make_pixels(split, label, number, shape))
                image.save(folder / f"{number:03}{suffix}")
    return root


def assert_same(first, second):
    for name in ("train_images", "train_labels", "test_images", "test_labels"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name
    assert first.classes == second.classes
    assert first.fingerprint() == second.fingerprint()
