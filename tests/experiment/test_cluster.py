"""The command that finds the clusters of a network's layers, from the options to the files."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import textwrap

import pytest
import torch
from planted import planted
from report_helpers import is_picture
from torch import nn

import modfast
from modfast import Partition, load_partitions, reference
from modfast.cli import main
from modfast.cli.parsers.options import parse_counts
from modfast.experiment.eigengap import ClusterConfig, by_chance, cluster_layer
from modfast.spectral.eigengap import choose_count, gaps_after
from modfast.weights import read_weights

# What two layers hold, and the k that their eigengap must find.
PLANTED = {"one": planted([10, 12, 14], [16, 9, 13], seed=1), "deep.two": planted([8] * 4, [11] * 4, seed=2)}


def save_planted(path, **more):
    state = {f"{name}.weight": weight for name, (weight, _) in PLANTED.items()}
    torch.save({**state, "one.bias": torch.zeros(36), **more}, path)
    return path


def run(*arguments):
    return main(["cluster", "--shuffles", "3", *map(str, arguments)])


@pytest.fixture(scope="module")
def clustered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clustered")
    save_planted(folder / "model.pt")
    assert run(folder / "model.pt", "-k", "2..6", "--out", folder / "out") == 0
    return folder / "out"


@pytest.mark.parametrize(
    ("text", "counts"),
    [("4", (4,)), ("2..5", (2, 3, 4, 5)), ("8,2,4", (2, 4, 8)), ("2..4,3,7", (2, 3, 4, 7)), ("3..3", (3,))],
)
def test_numbers_of_clusters(text, counts):
    assert parse_counts(text) == counts


@pytest.mark.parametrize(
    "text", ["", "0", "-2", "2..", "..3", "5..2", "2...4", "two", "2,,3", "1.5", "2..9999999999"]
)
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError, match="clusters must be like"):
        parse_counts(text)


@pytest.mark.parametrize("text", ["1..2147483646", "1..100001", "1..50000,60000..110000"])
def test_more_numbers_than_memory_holds_are_refused_before_they_are_made(text):
    with pytest.raises(ValueError, match=f"clusters must be at most 100000 numbers, got '{text}'"):
        parse_counts(text)
    assert len(parse_counts("1..100000")) == 100_000


def test_the_largest_gap_is_chosen():
    gaps = gaps_after([1.0, 0.75, 0.5, 0.125], [2, 3, 4])
    assert gaps == {2: 0.25, 3: 0.375, 4: None}
    assert choose_count(gaps) == 3
    assert choose_count({2: 0.25, 3: 0.25}) == 2
    assert choose_count({4: None}) == 4
    assert choose_count({4: None, 2: 0.0}) == 2


def test_chance_is_that_of_a_constant_matrix():
    generator = torch.Generator().manual_seed(0)
    rows, cols = (torch.randint(0, 4, (size,), generator=generator) for size in (9, 13))
    partition = Partition(rows, cols, 5)
    expected = by_chance(partition)
    ones = torch.ones(9, 13, dtype=torch.float64)
    assert expected["clusterability"] == pytest.approx(float(modfast.clusterability(ones, partition)))
    assert expected["normalized_cut"] == pytest.approx(modfast.normalized_cut(ones, partition))
    # Rows and columns in no cluster are isolated ones.
    ones[2], ones[:, 5] = 0.0, 0.0
    rows[2], cols[5] = -1, -1
    partition = Partition(rows, cols, 5)
    expected = by_chance(partition)
    assert expected["clusterability"] == pytest.approx(float(modfast.clusterability(ones, partition)))
    assert expected["normalized_cut"] == pytest.approx(modfast.normalized_cut(ones, partition))


@pytest.mark.parametrize("affinity", ["abs", "square"])
def test_a_layer_s_record_is_what_its_partitions_have(affinity):
    weight, partition = PLANTED["one"]
    kernels = weight[:, :, None].expand(-1, -1, 3) * torch.tensor([1.0, -2.0, 0.5])
    steps = []
    record, found = cluster_layer(
        kernels, ClusterConfig((2, 3, 4, 99), shuffles=3, affinity=affinity), steps.append
    )
    assert record["chosen"] == 3
    assert torch.equal(found[3].mask(), partition.mask())
    assert steps == list(found) == [each["num_clusters"] for each in record["clusters"]] == [2, 3, 4]
    assert record["left_out"] == [99]
    similarity = kernels.double().abs() if affinity == "abs" else kernels.double().square()
    similarity = similarity.sum(2)
    scale = (similarity.sum(1, keepdim=True) * similarity.sum(0)).sqrt()
    values = torch.linalg.svdvals(similarity / scale)[:5].tolist()
    assert record["singular_values"] == pytest.approx(values, abs=1e-3)
    assert record["clusters"][1]["gap"] == pytest.approx(values[2] - values[3], abs=2e-3)
    for each in record["clusters"]:
        clusters = found[each["num_clusters"]]
        assert each["clusterability"] == pytest.approx(float(modfast.clusterability(kernels, clusters)))
        assert each["normalized_cut"] == pytest.approx(
            reference.normalized_cut(kernels, clusters, affinity=affinity), rel=1e-6
        )
        assert each["sizes"] == clusters.sizes().tolist()
    # Three blocks are cut off far better than what the search finds in the same weights shuffled. (Of their
    # clusterabilities that need not hold: one cluster of almost everything has a high one.)
    assert record["clusters"][1]["normalized_cut"] < 0.7 * record["shuffled"]["normalized_cut"]
    largest = record["shuffled"]["largest_gaps"]
    assert len(set(largest)) == 3
    assert largest[0] == max(gaps_after(record["shuffled"]["singular_values"], [2, 3, 4]).values())
    assert record["clusters"][1]["gap"] > 3 * max(largest)


def test_there_is_no_gap_after_the_last_singular_value():
    weight = torch.rand(3, 8)
    record, _ = cluster_layer(weight, ClusterConfig((3,), n_init=1))
    assert record["chosen"] == 3
    assert record["clusters"][0]["gap"] is None
    assert record["shuffled"]["largest_gaps"] == []
    assert len(record["singular_values"]) == 3
    record, _ = cluster_layer(weight, ClusterConfig((2, 3), n_init=1))
    assert record["chosen"] == 2


def test_a_layer_without_weights_or_with_too_few_neurons_has_no_clusters():
    for weight in (torch.zeros(8, 8), torch.ones(1, 8)):
        record, found = cluster_layer(weight, ClusterConfig((2, 3)))
        assert (record["chosen"], record["left_out"], found) == (None, [2, 3], {})


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"num_clusters": ()}, "num_clusters"),
        ({"num_clusters": (3, 2)}, "num_clusters"),
        ({"num_clusters": (0, 2)}, "num_clusters"),
        ({"affinity": "given"}, "affinity"),
        ({"n_init": 0}, "n_init"),
        ({"shuffles": 0}, "shuffles"),
        ({"tol": 0.0}, "tol"),
        ({"tol": float("nan")}, "tol"),
        ({"seed": -1}, "seed"),
        ({"threads": 0}, "threads"),
    ],
)
def test_settings_out_of_range(setting, message):
    with pytest.raises(ValueError, match=message):
        ClusterConfig(**setting)


class TestReadWeights:
    def test_state_dict(self, tmp_path):
        tied = torch.rand(4, 5)
        more = {
            "norm.weight": torch.ones(5),
            "steps.weight": torch.ones(4, 5, dtype=torch.int64),
            "attention.in_proj_weight": torch.rand(6, 2),
            "conv.weight": torch.rand(4, 3, 2, 2, dtype=torch.float16),
            "embedding.weight": tied,
            "head.weight": tied,
        }
        for suffix in ("pt", "pth", "bin"):
            path = save_planted(tmp_path / f"model.{suffix}", **more)
            weights = read_weights(str(path))
            assert list(weights) == ["one", "deep.two", "conv", "embedding"]
            assert torch.equal(weights["one"], PLANTED["one"][0])
        weights = read_weights(str(path), ["head", "attention*", "conv.weight"])
        assert list(weights) == ["attention.in_proj_weight", "conv", "head"]

    def test_a_single_layer_has_its_parameter_s_name(self, tmp_path):
        torch.save(nn.Linear(4, 3).state_dict(), tmp_path / "linear.pt")
        assert list(read_weights(str(tmp_path / "linear.pt"))) == ["weight"]

    def test_safetensors(self, tmp_path):
        library = pytest.importorskip("safetensors.torch")
        library.save_file({"one.weight": PLANTED["one"][0]}, tmp_path / "model.safetensors")
        weights = read_weights(str(tmp_path / "model.safetensors"))
        assert torch.equal(weights["one"], PLANTED["one"][0])
        (tmp_path / "model.safetensors").write_bytes(b"no")
        with pytest.raises(ValueError, match="damaged"):
            read_weights(str(tmp_path / "model.safetensors"))

    def test_safetensors_without_the_package(self, tmp_path, monkeypatch, capsys):
        for name in ("safetensors", "safetensors.torch"):
            monkeypatch.setitem(sys.modules, name, None)
        (tmp_path / "model.safetensors").write_bytes(b"")
        assert run(tmp_path / "model.safetensors", "--out", tmp_path / "out") == 1
        assert "pip install safetensors" in capsys.readouterr().err

    def test_callables(self, tmp_path, monkeypatch):
        (tmp_path / "own_networks.py").write_text(
            "from torch import nn\n"
            "def ready():\n"
            "    tied = nn.Linear(6, 4)\n"
            "    again = nn.Linear(6, 4)\n"
            "    again.weight = tied.weight\n"
            "    up = nn.ConvTranspose2d(4, 3, 2)\n"
            "    return nn.Sequential(nn.Embedding(7, 6), tied, again, nn.LayerNorm(4), up)\n"
            "def sized(image_shape, num_classes):\n"
            "    return nn.Linear(image_shape[1], num_classes)\n"
        )
        monkeypatch.chdir(tmp_path)
        weights = read_weights("own_networks:ready", seed=3)
        shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        assert shapes == {"0": (7, 6), "1": (4, 6), "4": (3, 4, 2, 2)}
        assert not any(weight.requires_grad for weight in weights.values())
        again = read_weights("own_networks:ready", seed=3)
        assert all(torch.equal(weight, again[name]) for name, weight in weights.items())
        assert read_weights("own_networks:sized", sizes=((1, 8, 8), 10))["weight"].shape == (10, 8)
        with pytest.raises(ValueError, match="--data"):
            read_weights("own_networks:sized")

    @pytest.mark.parametrize("text", [b"", b"no model", b"PK\x03\x04 no archive"])
    def test_damaged_files_are_one_line(self, tmp_path, text, capsys):
        (tmp_path / "model.pt").write_bytes(text)
        assert run(tmp_path / "model.pt", "--out", tmp_path / "out") == 1
        assert capsys.readouterr().err.count("\n") == 1

    @pytest.mark.parametrize(
        ("held", "message"),
        [
            ([torch.ones(2, 2)], "no state_dict"),
            ({"state_dict": {}, "epoch": 3}, "'state_dict', 'epoch'"),
            ({"one.bias": torch.ones(3)}, "no weight matrix"),
            (nn.Linear(2, 2), "more than a state_dict"),
        ],
    )
    def test_files_that_hold_something_else(self, tmp_path, held, message, capsys):
        torch.save(held, tmp_path / "model.pt")
        assert run(tmp_path / "model.pt", "--out", tmp_path / "out") == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_planted_clusters_and_their_number_are_found(clustered):
    results = json.loads((clustered / "results.json").read_text())
    chosen = load_partitions(clustered / "partitions.npz")
    assert results["finished"]
    assert results["environment"]["torch"] == torch.__version__
    assert list(results["clustering"]) == list(chosen) == list(PLANTED)
    for name, (_, partition) in PLANTED.items():
        assert results["clustering"][name]["chosen"] == partition.num_clusters
        assert torch.equal(chosen[name].mask(), partition.mask())
    for k in range(2, 7):
        partitions = load_partitions(clustered / f"partitions_k{k:02}.npz")
        assert {name: each.num_clusters for name, each in partitions.items()} == dict.fromkeys(PLANTED, k)
    assert load_partitions(clustered / "partitions_k03.npz")["one"] == chosen["one"]
    assert is_picture(clustered / "clusterability.png")
    assert is_picture(clustered / "matrices.png")


def test_report_shows_and_draws_again(clustered, tmp_path, capsys):
    shutil.copytree(clustered, tmp_path / "copy")
    pictures = {path: path.read_bytes() for path in (tmp_path / "copy").glob("*.png")}
    for path in pictures:
        path.unlink()
    assert main(["report", str(tmp_path / "copy")]) == 0
    assert {path: path.read_bytes() for path in pictures} == pictures
    shown = capsys.readouterr().out
    assert "deep.two" in shown
    assert "4 *" in shown
    # Without the model the numbers are still there.
    results = json.loads((tmp_path / "copy/results.json").read_text())
    model = tmp_path / "moved.pt"
    results["config"]["model"] = str(model)
    (tmp_path / "copy/results.json").write_text(json.dumps(results))
    assert main(["report", str(tmp_path / "copy")]) == 0
    assert "matrices.png is left as it was" in capsys.readouterr().out
    save_planted(model, **{"one.weight": torch.rand(36, 38)})
    assert main(["report", str(tmp_path / "copy")]) == 0
    assert "other weights now" in capsys.readouterr().out


def test_results_are_not_lost_by_mistake(clustered, tmp_path, capsys):
    out, model = tmp_path / "out", clustered.parent / "model.pt"
    shutil.copytree(clustered, out)
    before = (out / "results.json").read_bytes()
    assert run(model, "-k", "2..6", "--out", out) == 1
    assert "--resume" in capsys.readouterr().err
    for arguments, message in (
        ((model, "-k", "2..5"), "num_clusters"),
        ((model, "-k", "2..6", "--seed", 1), "seed"),
        ((model, "-k", "2..6", "--layers", "one"), "other weights"),
    ):
        assert run(*arguments, "--out", out, "--resume") == 1
        assert message in capsys.readouterr().err
    assert (out / "results.json").read_bytes() == before
    assert run(model, "-k", "2", "--layers", "one", "--n-init", 1, "--out", out, "--overwrite") == 0
    assert list(load_partitions(out / "partitions.npz")) == ["one"]
    assert [path.name for path in sorted(out.glob("partitions_k*"))] == ["partitions_k02.npz"]


def test_an_interrupted_run_keeps_its_layers(clustered, tmp_path, monkeypatch, capsys):
    out, model = tmp_path / "out", clustered.parent / "model.pt"
    arguments = (model, "-k", "2..6", "--out", out)
    with monkeypatch.context() as patch:
        patch.setattr(
            "modfast.cli.display.Display.on_layer", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        assert run(*arguments) == 130
    assert "--resume" in capsys.readouterr().err
    kept = json.loads((out / "results.json").read_text())
    assert list(kept["clustering"]) == ["one"]
    assert not kept["finished"]
    assert main(["report", str(out)]) == 0
    assert "not all layers" in " ".join(capsys.readouterr().out.split())
    assert run(*arguments, "--resume") == 0
    results = json.loads((out / "results.json").read_text())
    assert results["clustering"]["one"] == kept["clustering"]["one"]
    assert load_partitions(out / "partitions.npz") == load_partitions(clustered / "partitions.npz")


KILLED = """
    import processes
    from modfast.cli import main
    from modfast.cli.display import Display

    # Somewhere in the second layer.
    Display.on_layer = lambda *_: processes.signal_at_call(1000)
    main({arguments})
"""


def test_a_killed_run_resumes(tmp_path, run_python):
    out = tmp_path / "out"
    state = {f"{name}.weight": planted([8] * 4, [12] * 4, seed=name)[0] for name in range(5)}
    torch.save(state, tmp_path / "m.pt")
    arguments = ["cluster", str(tmp_path / "m.pt"), "-k", "2..5", "--out", str(out)]
    arguments += ["--shuffles", "3", "--threads", "1"]
    killed = run_python(textwrap.dedent(KILLED).format(arguments=arguments))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    kept = json.loads((out / "results.json").read_text())
    assert list(kept["clustering"]) == ["0"]
    assert not kept["finished"]
    assert main([*arguments, "--resume"]) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["clustering"]["0"] == kept["clustering"]["0"]
    assert [record["chosen"] for record in results["clustering"].values()] == [4] * 5
    assert not [path for path in out.rglob(".*") if path.is_file()]


def test_what_train_wrote_and_back(tmp_path, capsys):
    first, found, second = (tmp_path / name for name in ("first", "found", "second"))
    train = ["train", "--data", "digits", "--epochs", "1"]
    assert main([*train, "--out", str(first)]) == 0
    options = ("-k", "2,3,12", "--n-init", 1)
    assert run(first, *options, "--layers", "fc[23]", "--out", found) == 0
    assert "left out: k 12" in capsys.readouterr().out
    chosen = load_partitions(found / "partitions.npz")
    assert {name: each.shape for name, each in chosen.items()} == {"fc2": (64, 64), "fc3": (10, 64)}
    assert main([*train, "--partitions", str(found / "partitions.npz"), "--out", str(second)]) == 0
    used = load_partitions(second / "partitions.npz")
    assert {name: used[name] for name in chosen} == chosen
    assert json.loads((second / "results.json").read_text())["config"]["regularised_layers"] == ["fc2", "fc3"]
    from_file, from_folder = read_weights(str(first / "checkpoint.pt")), read_weights(str(first))
    assert list(from_file) == list(from_folder) == ["fc1", "fc2", "fc3"]
    assert all(torch.equal(weight, from_folder[name]) for name, weight in from_file.items())
    # Overwriting would remove the very checkpoint that is read.
    assert run(first, "--out", first, "--overwrite") == 1
    assert "another folder" in capsys.readouterr().err
    assert run(tmp_path, "--out", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert "holds 2 runs" in error
    assert str(first) in error


def test_a_callable_on_the_command_line(tmp_path):
    arguments = ("modfast.models:MLP", "--layers", "fc3", "-k", "2", "--n-init", "1")
    assert run(*arguments, "--data", "fake", "--out", tmp_path / "out") == 0
    assert main(["report", str(tmp_path / "out")]) == 0
    shapes = {name: each.shape for name, each in load_partitions(tmp_path / "out/partitions.npz").items()}
    assert shapes == {"fc3": (10, 64)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.pt"], "nowhere.pt"),
        (["modfast.nowhere:model"], "cannot import"),
        (["{folder}"], "holds no checkpoint.pt"),
        (["{model}", "--layers", "fc9"], "'fc9' matches no layer"),
        (["{model}", "-k", "five"], "clusters must be like"),
        (["{model}", "-k", "37..40"], "clusters must be at most 36"),
        (["{model}", "--n-init", "0"], "n_init"),
        (["{model}", "--shuffles", "0"], "shuffles"),
        (["{model}", "--tol", "0"], "tol"),
        (["{model}", "--device", "toaster"], "toaster"),
        (["{model}", "--threads", "0"], "threads"),
        (["{model}", "--resume", "--overwrite"], "exclude"),
        (["{nan}"], "layer 'bad' must have finite weights"),
        (["{zero}"], "all weights are zero"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing_behind(tmp_path, capsys, arguments, message):
    (tmp_path / "empty").mkdir()
    places = {"folder": tmp_path / "empty", "model": save_planted(tmp_path / "model.pt")}
    for name, value in (("nan", float("nan")), ("zero", 0.0)):
        places[name] = tmp_path / f"{name}.pt"
        torch.save({"bad.weight": torch.full((4, 4), value)}, places[name])
    assert run(*(each.format(**places) for each in arguments), "--out", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert error.startswith("modfast: error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "out").exists()


def test_a_layer_of_zeros_among_others(tmp_path, capsys):
    model = save_planted(tmp_path / "model.pt", **{"off.weight": torch.zeros(6, 6)})
    assert run(model, "-k", "3", "--n-init", 1, "--out", tmp_path / "out") == 0
    assert list(load_partitions(tmp_path / "out/partitions.npz")) == list(PLANTED)
    assert "off (6 x 6)  left out: all its weights are zero" in capsys.readouterr().out


def doubted(seed, spread):
    """Whether the largest gap of a matrix is no larger than those of nine shuffles of it."""
    weight, _ = planted([9] * 4, [10] * 4, seed=seed, spread=spread)
    record, _ = cluster_layer(weight, ClusterConfig((2, 3, 4, 5), n_init=1, shuffles=9))
    return max(each["gap"] for each in record["clusters"]) <= max(record["shuffled"]["largest_gaps"])


def test_only_structure_gives_a_gap_that_shuffling_does_not():
    assert not any(doubted(seed, spread=0.25) for seed in range(8))
    # By chance one matrix in ten without structure has a larger gap than all its shuffles: of 16 hardly five.
    assert sum(doubted(seed, spread=1.0) for seed in range(8, 24)) >= 12
