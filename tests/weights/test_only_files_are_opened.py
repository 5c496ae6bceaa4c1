"""A pipe or a folder at the place of a file is refused by its name: nothing waits, nothing is skipped."""

import json
import os
import re

import pytest
import torch
from torch import nn

from modfast.circuits.folder import read_circuits
from modfast.cli import main
from modfast.data import DataError, load_dataset
from modfast.weights import read_weights


def put(kind, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "a named pipe":
        os.mkfifo(path)
    else:
        path.mkdir()


KINDS = pytest.mark.parametrize("kind", ["a named pipe", "a folder"])


@pytest.mark.parametrize("name", ["model.pt", "model.bin", "model.safetensors", "model.index.json"])
def test_a_pipe_is_no_model(name, tmp_path, capsys):
    if name.endswith("safetensors"):
        pytest.importorskip("safetensors")
    put("a named pipe", tmp_path / name)
    message = f"{tmp_path / name} is a named pipe, not a file"
    with pytest.raises(ValueError, match=re.escape(message)):
        read_weights(str(tmp_path / name))
    assert main(["cluster", str(tmp_path / name), "--out", str(tmp_path / "out")]) != 0
    assert message in capsys.readouterr().err


@KINDS
@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "checkpoint.pt",
        "config.json",
    ],
)
def test_what_lies_in_a_folder_of_a_model_must_be_a_file(name, kind, tmp_path):
    if name.endswith("safetensors"):
        pytest.importorskip("safetensors")
    put(kind, tmp_path / name)
    if name == "config.json":
        torch.save(nn.Sequential(nn.Linear(3, 2)).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises((ValueError, OSError), match=re.escape(f"{tmp_path / name} is {kind}, not a file")):
        read_weights(str(tmp_path))


@KINDS
def test_a_shard_must_be_a_file(kind, tmp_path):
    put(kind, tmp_path / "one.bin")
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"0.weight": "one.bin"}}))
    with pytest.raises((ValueError, OSError), match=rf"one.bin is {kind}, not a file"):
        read_weights(str(index))


@pytest.mark.parametrize("place", ["train/a/0.png", "test/a/1.png"])
def test_an_image_must_be_a_file(place, tmp_path):
    image = pytest.importorskip("PIL.Image")
    for part in ("train/a", "test/a"):
        (tmp_path / "images" / part).mkdir(parents=True)
        image.new("L", (4, 4)).save(tmp_path / "images" / part / "2.png")
    put("a named pipe", tmp_path / "images" / place)
    with pytest.raises(DataError, match=rf"{place}: .* is a named pipe"):
        load_dataset(f"imagefolder:{tmp_path / 'images'}", cache_dir=tmp_path / "cache", workers=1)


@pytest.mark.filterwarnings("error")
@KINDS
def test_a_cache_must_be_a_file(kind, tmp_path):
    image = pytest.importorskip("PIL.Image")
    for part in ("train/a", "test/a"):
        (tmp_path / "images" / part).mkdir(parents=True)
        image.new("L", (4, 4)).save(tmp_path / "images" / part / "2.png")
    spec, cache = f"imagefolder:{tmp_path / 'images'}", tmp_path / "cache"
    load_dataset(spec, cache_dir=cache, workers=1)
    (file,) = cache.iterdir()
    file.unlink()
    put(kind, file)
    with pytest.raises(RuntimeWarning, match=f"is {kind}, not a file"):
        load_dataset(spec, cache_dir=cache, workers=1)


@pytest.mark.parametrize(("name", "file"), [("mnist", "MNIST/raw/x"), ("cifar10", "cifar-10-batches-py/x")])
def test_a_downloaded_data_set_must_consist_of_files(name, file, tmp_path):
    pytest.importorskip("torchvision")
    put("a named pipe", tmp_path / name / file)
    with pytest.raises(DataError, match="x is a named pipe, not a file"):
        load_dataset(name, cache_dir=tmp_path, download=False)


TABLE = {"config": {"layers": ["fc"]}, "runs": [], "summary": {}, "claims": [], "note": ""}


@pytest.mark.parametrize(
    ("table", "missing"),
    [
        *(({key: part for key, part in TABLE.items() if key != name}, f"it lacks {name}") for name in TABLE),
        (TABLE | {"config": {}}, "its config lacks 'layers'"),
        (TABLE | {"config": None}, "its config lacks 'layers'"),
        (TABLE | {"config": {"layers": None}}, "its config lacks 'layers'"),
        (TABLE | {"config": {"layers": ["all"]}, "runs": [{}]}, "its runs lack a part .*'criteria'"),
    ],
)
def test_a_table_of_circuits_says_what_it_lacks(table, missing, tmp_path):
    (tmp_path / "circuits.json").write_text(json.dumps(table))
    with pytest.raises(ValueError, match=rf"circuits.json is .*: {missing}"):
        read_circuits(tmp_path)
