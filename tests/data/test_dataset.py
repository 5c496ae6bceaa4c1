import pytest
import torch

from modfast.data import Dataset


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
