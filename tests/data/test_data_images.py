import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from data_helpers import CLASSES, assert_same, make_pixels, make_tree
from processes import FORKED, wait_until

from modfast.data import DataError, load_dataset
from modfast.data import image_folder as data_images

Image = pytest.importorskip("PIL.Image", reason="needs the extra `experiments`")


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

        monkeypatch.setattr(data_images, "_decode_image", decode)

    return forbid


def load(tree, cache, **options):
    return load_dataset(f"imagefolder:{tree}", cache_dir=cache, **options)


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
    monkeypatch.setattr(data_images, "_CHUNK_IMAGES", 1)
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
    decode_tree = data_images._decode_tree

    def remove_first(*arguments):
        gone.unlink()
        return decode_tree(*arguments)

    monkeypatch.setattr(data_images, "_decode_tree", remove_first)
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
    monkeypatch.setattr(data_images, "MAX_DECODED_BYTES", 12 * 90 - 1)
    with pytest.raises(DataError, match="too large: 12 images of 5 x 6 pixels"):
        load(tree, cache)
    monkeypatch.setattr(data_images, "MAX_DECODED_BYTES", 12 * 90)
    load(tree, cache)


def test_workers_and_progress_do_not_change_the_result(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(data_images, "_CHUNK_IMAGES", 5)
    calls = []
    serial = load(tree, tmp_path / "one", workers=1)
    parallel = load(
        tree, tmp_path / "two", workers=3, progress=lambda done, total: calls.append((done, total))
    )
    assert_same(serial, parallel)
    assert calls == [(5, 12), (10, 12), (12, 12)]


def test_interrupt_stops_the_workers_at_once(tree, cache, monkeypatch):
    monkeypatch.setattr(data_images, "_CHUNK_IMAGES", 1)
    first, decode = data_images._list_tree(tree).paths[0], data_images._decode_image

    def decode_or_wait(path, *rest):
        # A worker that has handed over all it had may have ended by itself before it is counted.
        if path != first:
            time.sleep(600)
        return decode(path, *rest)

    monkeypatch.setattr(data_images, "_decode_image", decode_or_wait)
    # As a training script may do that ends cleanly on SIGTERM; its workers must end all the same.
    before = signal.signal(signal.SIGTERM, lambda *_: None)

    others = set(multiprocessing.active_children())  # of tests that share this process

    def interrupt(*_):
        assert len(set(multiprocessing.active_children()) - others) == 2
        raise KeyboardInterrupt

    try:
        with pytest.raises(KeyboardInterrupt):
            load(tree, cache, workers=2, progress=interrupt)
        assert set(multiprocessing.active_children()) <= others
    finally:
        signal.signal(signal.SIGTERM, before)


def test_worker_that_dies_is_reported(tree, cache, monkeypatch):
    monkeypatch.setattr(data_images, "_CHUNK_IMAGES", 1)
    monkeypatch.setattr(data_images, "_decode_image", lambda *_: os._exit(3))
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
            patch.setattr(data_images, "open", InterruptedFile, raising=False)
        if moment == "renaming":
            patch.setattr(os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            load(tree, cache, progress=interrupt if moment == "decoding" else None)
    assert not cache.exists() or list(cache.iterdir()) == []
    first = load(tree, cache)
    no_decoding()
    assert_same(first, load(tree, cache))


def load_forever(tree, cache, pids):
    """Decoding begins, writes down in which process, and does not end."""

    def decode(*_):
        (pids / str(os.getpid())).touch()
        threading.Event().wait()

    data_images._decode_image, data_images._CHUNK_IMAGES = decode, 1
    load(tree, cache, workers=2)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux decodes in other processes")
def test_killed_process_leaves_neither_cache_nor_workers(tree, cache, tmp_path):
    pids = tmp_path / "pids"
    pids.mkdir()
    process = FORKED.Process(target=load_forever, args=(tree, cache, pids))
    process.start()
    wait_until(lambda: len(list(pids.iterdir())) == 2)
    process.kill()
    process.join()
    workers = [int(entry.name) for entry in pids.iterdir()]
    assert process.pid not in workers
    wait_until(lambda: not any(is_running(pid) for pid in workers))
    assert not cache.exists()


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
