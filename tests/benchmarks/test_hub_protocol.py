"""The protocol for models of a hub, run with tiny models of the same kinds on local text."""

import json
import shutil
import sys
import types

import pytest
import torch

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("accelerate")

import modfast  # noqa: E402
from benchmarks.hub import protocol  # noqa: E402
from benchmarks.hub.measure import batches_of, hidden_labels, last_token, of_dependent, published_slices  # noqa: E402
from benchmarks.hub.recipes import MODELS, RECIPES  # noqa: E402
from benchmarks.hub.text import files, read_text, wikitext  # noqa: E402

SENTENCES = ("the cat sat on the mat . ", "the dog ran to the cat . ", "a mat is on the dog . ")


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A folder with a text, and a model of each kind with a byte-level tokenizer of that text."""
    folder = tmp_path_factory.mktemp("hub")
    order = torch.randint(3, (240,), generator=torch.Generator().manual_seed(0))
    text = folder / "text.txt"
    text.write_text("".join(SENTENCES[i] for i in order), encoding="utf-8")
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    tokenizer.train([str(text)], vocab_size=280, special_tokens=["<|endoftext|>"], show_progress=False)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._tokenizer, eos_token="<|endoftext|>"
    )
    sizes = {"vocab_size": len(fast), "bos_token_id": 0, "eos_token_id": 0}
    torch.manual_seed(0)
    gpt2 = transformers.GPT2Config(n_layer=2, n_embd=16, n_head=2, n_positions=16, **sizes)
    neox = transformers.GPTNeoXConfig(
        num_hidden_layers=2, hidden_size=16, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=16, **sizes,
    )  # fmt: skip
    for name, model in (
        ("gpt2", transformers.GPT2LMHeadModel(gpt2)),
        ("neox", transformers.GPTNeoXForCausalLM(neox)),
    ):
        model.save_pretrained(folder / name)
        fast.save_pretrained(folder / name)
    return folder


def run(hub, out, model, arm, *options):
    """What the command writes."""
    tiny = ["--length", "16", "--epochs", "2", "--learning-rate", "0.003", "--dependence-texts", "16"]
    tiny += ["--dependence-length", "8", "--random-sets", "3", "--slice-width", "5"]
    command = ["--model", str(hub / model), "--text", str(hub / "text.txt"), "--arm", arm, "--out", str(out)]
    protocol.main([*command, *tiny, *options])
    (record,) = out.glob(f"*/{arm}/0.json")
    return json.loads(record.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def gpt2(hub, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return {arm: run(hub, out, "gpt2", arm, "--recipe", "gpt2") for arm in protocol.ARMS} | {"out": out}


def test_the_modular_arm_is_modular_and_both_report_both_splits(gpt2):
    plain, modular = gpt2["plain"], gpt2["modular"]
    assert plain["clusterability"]["before"] == modular["clusterability"]["before"]
    assert len(modular["clusterability"]["after"]["by_layer"]) == 4, "all matrices of both MLPs"
    assert modular["clusterability"]["after"]["mean"] > plain["clusterability"]["after"]["mean"] + 0.3
    for record in (plain, modular):
        rows = record["losses"]["by_epoch"]
        assert [row["epoch"] for row in rows] == [0, 1, 2]
        assert rows[2]["validation"] < rows[0]["validation"]
        assert all(row["train"] != row["validation"] for row in rows)
    assert plain["losses"]["by_epoch"][0] == modular["losses"]["by_epoch"][0]
    assert "held out" in plain["losses"]["validation"]
    assert plain["text"]["windows"]["validation"] < plain["text"]["windows"]["train"] / 5


def test_the_held_out_loss_is_that_of_the_saved_model_on_the_end_of_the_text(hub, gpt2):
    (checkpoint,) = (gpt2["out"] / "gpt2" / "modular" / "0").glob("checkpoint-*")
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint)
    text = read_text([str(hub / "text.txt")], transformers.AutoTokenizer.from_pretrained(hub / "gpt2"))
    losses = {}
    for split in ("train", "validation"):
        windows = text.windows(split, 16)[: len(text.windows("validation", 16))]
        with torch.no_grad():
            losses[split] = model(input_ids=windows, labels=windows).loss.item()
    last = gpt2["modular"]["losses"]["by_epoch"][-1]
    assert {split: last[split] for split in losses} == pytest.approx(losses, rel=1e-4)


def test_dependence_is_measured_with_the_right_borders_and_as_published(gpt2):
    depends = gpt2["modular"]["dependence"]
    assert depends["layer"] == "transformer.h.1.mlp.c_fc"
    measures = {name: each for name, each in depends.items() if name != "layer"}
    sizes = {name: each["cluster_sizes"] for name, each in measures.items()}
    assert sizes == {
        "clusters of all layers": [32] * 4,
        "clusters of one layer": [16] * 4,
        "as published, slices of one layer": [5] * 4,
    }
    for each in measures.values():
        assert 0 < each["right"] <= each["texts"] == 16
        assert sum(each["shares"]) == pytest.approx(1, abs=1e-4)
        assert len(each["random_interval"][0]) == 5


def test_a_run_that_was_stopped_goes_on_and_ends_as_the_whole_one(hub, gpt2, tmp_path, monkeypatch):
    class StoppedError(Exception):
        pass

    def stop(self, args, state, control, **kwargs):
        if state.epoch >= 1:
            raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(protocol.EnmeshmentCallback, "on_epoch_begin", stop)
        with pytest.raises(StoppedError):
            run(hub, tmp_path, "gpt2", "modular", "--recipe", "gpt2")
    assert not (tmp_path / "gpt2" / "modular" / "0.json").exists()
    # What is left of a checkpoint that was being written.
    (tmp_path / "gpt2" / "modular" / "0" / "checkpoint-9999").mkdir()
    with pytest.raises(ValueError, match=r"other settings, recipe is .*'weight': 20.0.* there"):
        run(hub, tmp_path, "gpt2", "modular", "--recipe", "gpt2", "--weight", "1")
    resumed = run(hub, tmp_path, "gpt2", "modular", "--recipe", "gpt2")
    for part in ("losses", "clusterability", "dependence"):
        assert resumed[part] == gpt2["modular"][part]


def test_a_finished_run_is_left_alone(hub, gpt2, capsys):
    run(hub, gpt2["out"], "gpt2", "plain", "--recipe", "gpt2")
    assert "is there already" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"'epochs': 2.* there and .*'epochs': 3"):
        run(hub, gpt2["out"], "gpt2", "plain", "--recipe", "gpt2", "--epochs", "3")


def test_pythia_finds_its_clusters_on_the_way(hub, tmp_path):
    recipe = ["--recipe", "pythia-70m", "--epochs", "1"]
    with pytest.raises(ValueError, match="found_at must be below"):
        run(hub, tmp_path / "late", "neox", "modular", *recipe)
    record = run(hub, tmp_path, "neox", "modular", *recipe, "--found-at", "4")
    assert list(record["clusterability"]["after"]["by_layer"]) == [
        f"gpt_neox.layers.{i}.mlp.dense_h_to_4h" for i in range(2)
    ]
    assert record["clusterability"]["before"] is None, "there were no clusters before"
    assert record["clusterability"]["after"]["mean"] > 0.5
    assert record["dependence"]["clusters of all layers"] is None, "they are other clusters in each layer"
    (path,) = tmp_path.glob("*/modular/0/checkpoint-*/partitions.npz")
    partitions = modfast.load_partitions(path)
    sizes = partitions["gpt_neox.layers.1.mlp.dense_h_to_4h"].row_labels.bincount(minlength=4).tolist()
    assert record["dependence"]["clusters of one layer"]["cluster_sizes"] == sizes
    assert sizes != [16] * 4, "found, and no blocks"


def test_borders():
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_layer=1, n_embd=4, n_head=1, n_inner=3072, vocab_size=8, n_positions=8)
    )
    network = modfast.read_network(model, {"input_ids": torch.zeros(1, 4).long(), "use_cache": False})
    layer = "transformer.h.0.mlp.c_fc"
    trained = hidden_labels(network, network.partitions(4, [layer]))
    published = published_slices(network, layer, 256)
    assert trained[trained >= 0].bincount().tolist() == [768] * 4
    assert [trained[published == piece].unique().tolist() for piece in range(4)] == [[0], [0], [0], [1]]
    with pytest.raises(ValueError, match="slice_width must be at most 768"):
        published_slices(network, layer, 769)


@pytest.mark.parametrize("name", ["gpt2", "neox"])
def test_the_last_token_alone_is_judged_as_with_all_logits(hub, name):
    model = transformers.AutoModelForCausalLM.from_pretrained(hub / name).eval()
    windows = torch.randint(200, (12, 8), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(windows).logits[:, -2].argmax(-1)
        windows[::2, -1] = expected[::2]
        found = torch.cat([last_token(model(**batch), batch) for batch in batches_of(windows)])
        whole = modfast.accuracy(model(windows), {"input_ids": windows})
    assert torch.equal(found, whole)
    assert 6 <= found.sum() < 12


def test_shares_among_the_dependent():
    assert of_dependent(torch.tensor([0.5, 0.4, 0.1])) == pytest.approx([0.8, 0.2])
    assert of_dependent(torch.tensor([1.0, 0.0, 0.0])) is None


def test_files_hold_out_their_ends(tmp_path):
    for name, letter in (("a", "x"), ("b", "y")):
        (tmp_path / name).write_text(letter * 90 + "z" * 10, encoding="utf-8")
    parts = files([tmp_path / "a", tmp_path / "b"])
    assert parts == {"train": "x" * 90 + "\n\n" + "y" * 90, "validation": "z" * 10 + "\n\n" + "z" * 10}
    with pytest.raises(ValueError, match="each file once"):
        files([tmp_path / "a", tmp_path / "a"])
    (tmp_path / "a").write_bytes(b"a\xff")
    with pytest.raises(ValueError, match="no UTF-8 from byte 1"):
        files([tmp_path / "a"])


def test_wikitext_comes_from_datasets(monkeypatch):
    asked = []

    def load_dataset(*names):
        asked.append(names)
        return {"train": {"text": ["", " a \n", "", " b \n"]}, "validation": {"text": [" c \n"]}}

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert wikitext() == {"train": " \n a \n \n b \n", "validation": " c \n"}
    assert asked == [("Salesforce/wikitext", "wikitext-2-raw-v1")]
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SystemExit, match="pip install datasets"):
        wikitext()


def test_recipes_are_those_of_the_paper(hub, tmp_path):
    assert set(MODELS) <= set(RECIPES)
    assert [RECIPES[name].weight for name in ("gpt2", "gpt2-input", "pythia-70m", "pythia-1.4b")] == [
        20.0, 40.0, 40.0, 40.0,
    ]  # fmt: skip
    shutil.copytree(hub / "gpt2", tmp_path / "mine")
    with pytest.raises(SystemExit, match="--recipe must be given"):
        run(tmp_path, tmp_path, "mine", "plain")


def test_one_process(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match="without torchrun"):
        protocol._one_process_on("cpu")
