"""The page on the fine-tuned transformer shows the committed results; its measures are what they say."""

import json
import math
import re
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch
import transformers
from scipy import stats
from tokenizers import Tokenizer, models, pre_tokenizers

from benchmarks.finetune import analysis, page, run
from benchmarks.finetune.arms import ARMS, RANDOM_SETS, Arm, Settings
from benchmarks.finetune.measure import fine_tune, labels_of, measure, measured_batches
from benchmarks.finetune.task import batch_of, cosines, held_out, info_nce, partner_first
from benchmarks.finetune.texts import Texts, is_held_out, pairs_of, read_texts

with_docs = pytest.mark.skipif(not page.PAGE.exists(), reason="needs the documentation")


@with_docs
def test_the_page_is_what_the_results_give():
    assert page.PAGE.read_text(encoding="utf-8") == page.page()


@with_docs
def test_the_pictures_of_the_page_are_there():
    shown = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page.PAGE.read_text(encoding="utf-8"))
    assert set(shown) == set(page.PICTURES)
    for name in shown:
        assert page.PAGE.with_name(name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", analysis.shown())
def test_results_belong_to_their_arm(name):
    arm, plain = ARMS[name], analysis.records("plain")[0]
    for record in analysis.records(name):
        found = record["settings"]
        assert (found["k"], found["weight"], found["clusters"]) == (arm.k, arm.weight, arm.clusters)
        assert found["learning_rate"] == pytest.approx(Settings().learning_rate / arm.slower)
        others = asdict(Settings()).keys() - {"learning_rate"}
        assert {each: found[each] for each in others} == {each: asdict(Settings())[each] for each in others}
        assert record["texts"] == plain["texts"]
        assert {key.partition("-")[0] for key in record["dependence"]} == {str(k) for k in arm.dependence}
        assert [each["step"] for each in record["history"]][-1:] == ([found["steps"]] if arm.trained else [])
        for key, each in record["dependence"].items():
            k = int(key)
            assert len(each["random_means"]) == RANDOM_SETS[k]
            assert len(each["shares"]) == k + 1
            assert math.fsum(each["shares"]) == pytest.approx(1.0, abs=1e-4)


def test_differences_are_paired_by_seed_and_have_students_interval():
    found = analysis.difference("blocks-4", "plain", analysis.loss)
    theirs = {record["seed"]: analysis.loss(record) for record in analysis.records("plain")}
    gaps = [analysis.loss(record) - theirs[record["seed"]] for record in analysis.records("blocks-4")]
    assert found.mean == pytest.approx(sum(gaps) / len(gaps))
    if len(gaps) > 1:
        low, high = stats.t.interval(0.95, len(gaps) - 1, found.mean, stats.sem(gaps))
        assert found.interval == pytest.approx((high - low) / 2)
    assert found.seeds == len(gaps)


@pytest.mark.parametrize(
    ("values", "verdict"),
    [([0.3], "one seed"), ([0.1, 0.2, 0.15], "higher"), ([-0.1, -0.2], "undecided"), ([-1.0, -1.1], "lower")],
)
def test_verdicts(values, verdict):
    assert analysis._estimate(values).verdict == verdict


def test_the_authors_shares_are_of_answers_that_need_any():
    assert analysis.one_of_needed([0.5, 0.3, 0.1, 0.1]) == pytest.approx(0.6)
    assert analysis.one_of_needed([1.0, 0.0]) is None


# --- Texts.


def test_passages_follow_one_another_and_none_is_used_twice():
    text = " ".join(str(number) for number in range(11, 24))  # 13 tokens: two pairs of 3 + 3, one is left
    found = pairs_of(text, lambda each: [int(word) for word in each.split()], 5, 1, 2)
    assert found == [
        [[1, 11, 12, 13, 2], [1, 14, 15, 16, 2]],
        [[1, 17, 18, 19, 2], [1, 20, 21, 22, 2]],
    ]
    assert pairs_of("11 12 13 14 15", lambda each: [int(word) for word in each.split()], 5, 1, 2) == []


@pytest.fixture
def folder(tmp_path):
    words = ["[UNK]", "[CLS]", "[SEP]", *(f"w{number}" for number in range(40))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_texts_are_split_by_file(folder, tmp_path):
    library = tmp_path / "lib"
    library.mkdir()
    names = [f"module{number}.py" for number in range(30)]
    for number, name in enumerate(names):
        (library / name).write_text(f'"""{f"w{number} " * 8}"""\n')
    (library / "tests").mkdir()
    (library / "tests" / "some.py").write_text('"""' + "w39 " * 8 + '"""\n')
    (library / "again.py").write_text('"""' + "w0 " * 8 + '"""\n')  # comes first, so module0 is left out
    (library / "broken.py").write_text("def (")
    texts = read_texts(folder, 4, library)
    held = {number for number, name in enumerate(names) if is_held_out(name)} - {0}
    assert 0 < len(held) < 15
    found = texts.held_out[:, :, 1:-1].unique()
    assert set((found - 3).tolist()) - {0} == held
    trained = set((texts.train[:, :, 1:-1].unique() - 3).tolist()) - {0}
    assert trained == set(range(30)) - held - {0}
    assert texts.train.shape[1:] == (2, 4)
    assert bool((texts.train[:, :, 0] == 1).all())
    assert bool((texts.train[:, :, -1] == 2).all())
    about = texts.description
    assert about["train_files"] + about["held_out_files"] == 30  # 30 modules and "again", less module0
    assert about["train_pairs"] == len(texts.train)
    assert about["held_out_pairs"] == len(texts.held_out)
    assert read_texts(folder, 4, library).description == about
    (library / "module1.py").write_text('"""other"""\n')
    assert read_texts(folder, 4, library).description["digest"] != about["digest"]


def test_texts_refuse_what_makes_no_pairs(folder, tmp_path):
    with pytest.raises(ValueError, match=r"length must be at least 3.*got 2"):
        read_texts(folder, 2, tmp_path)
    with pytest.raises(ValueError, match="holds no pair of passages of 24 tokens"):
        read_texts(folder, 24, tmp_path)


# --- The task.


def test_a_batch_holds_first_passages_and_then_second_ones():
    pairs = torch.arange(12).reshape(3, 2, 2)
    assert batch_of(pairs)["input_ids"].tolist() == [[0, 1], [4, 5], [8, 9], [2, 3], [6, 7], [10, 11]]


def _output(first, second):
    return SimpleNamespace(last_hidden_state=torch.tensor([*first, *second])[:, None].expand(-1, 3, -1))


def test_the_loss_and_the_answers_are_those_of_retrieval():
    # The second passage of the first pair lies nearer to the other first passage.
    output = _output([[1.0, 0.0], [0.0, 1.0]], [[0.6, 0.8], [0.0, 2.0]])
    assert torch.allclose(cosines(output), torch.tensor([[0.6, 0.0], [0.8, 1.0]]))
    assert partner_first(output, {}).tolist() == [1.0, 1.0, 0.0, 1.0]
    rows = [[0.6, 0.0], [0.8, 1.0]]
    expected = sum(
        math.log(sum(math.exp(each / 0.5) for each in row)) - row[own] / 0.5 for own, row in enumerate(rows)
    )
    assert float(info_nce(output, 0.5)) == pytest.approx(expected / 2)


# --- Runs.

FEW = Settings(
    length=6,
    pairs=4,
    steps=12,
    learning_rate=3e-3,
    warmup=2,
    measured_pairs=8,
    measured_batches=2,
    answers_batches=1,
    every=6,
)


@pytest.fixture
def tiny():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    return transformers.BertModel(transformers.BertConfig(**sizes, vocab_size=40, max_position_embeddings=16))


@pytest.fixture
def texts():
    generator = torch.Generator().manual_seed(0)
    topics = torch.randint(3, 40, (80, 1, 1), generator=generator)
    pairs = (topics + torch.randint(0, 2, (80, 2, 6), generator=generator)).clamp(max=39)
    return Texts(pairs[:56], pairs[56:], {"made": "up"})


def _measured(model, texts, arm, seed=0, settings=FEW):
    record = measure(model, texts, arm, seed, settings)
    json.dumps(record, allow_nan=False)
    return record


@pytest.mark.parametrize("clusters", ["blocks", "spectral"])
def test_the_loss_makes_its_clusters_modular(tiny, texts, clusters):
    before = {name: value.clone() for name, value in tiny.state_dict().items()}
    own = _measured(tiny, texts, Arm("own", "", 2, clusters, 1000.0, seeds=(0,)))
    after = {name: value.clone() for name, value in tiny.state_dict().items()}
    assert [each["step"] for each in own["history"]] == [6, 12]
    assert own["history"][-1]["clusterability"] == pytest.approx(own["own"]["clusterability"])
    assert own["own"]["clusterability"] > own["own"]["by_chance"] + 0.1
    if clusters == "blocks":
        assert own["own"]["by_chance"] == pytest.approx(0.5)
        assert own["clusterability"]["2"] == own["own"]["clusterability"]
        tiny.load_state_dict(before)
        plain = _measured(tiny, texts, Arm("plain", "", seeds=(0,)))
        assert own["clusterability"]["2"] > plain["clusterability"]["2"] + 0.1
    assert sum(own["own"]["sizes"]["neurons"]) == 32
    assert sum(own["own"]["sizes"]["stream"]) == 16
    # Embeddings stay, and the embedding's gradient is not asked for; all else is trained.
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in same if "embeddings.weight" in name} == {
        f"embeddings.{kind}_embeddings.weight" for kind in ("word", "position", "token_type")
    }
    assert not any(name.endswith("dense.weight") and "encoder" in name for name in same)


def test_an_untouched_model_is_measured_as_it_is(tiny, texts):
    before = {name: value.clone() for name, value in tiny.state_dict().items()}
    arm = Arm("untouched", "", seeds=(0,), trained=False)
    record = _measured(tiny, texts, arm)
    assert all(torch.equal(before[name], value) for name, value in tiny.state_dict().items())
    assert record["history"] == []
    assert record["own"] is None
    found = held_out(tiny, measured_batches(texts, FEW), FEW.temperature)
    assert record["held_out"]["loss"] == pytest.approx(found["loss"], rel=1e-5)
    right = partner_first(tiny(**measured_batches(texts, FEW)[0]), {})
    assert record["dependence"]["4"]["right"] == int(right.sum())
    assert list(record["dependence"]) == ["4", "12"]


def test_too_few_pairs_are_refused(texts):
    with pytest.raises(ValueError, match="must hold at least 400 pairs for training, got 56"):
        fine_tune(None, None, texts, ARMS["plain"], None, 0, replace(FEW, steps=100), [])
    with pytest.raises(ValueError, match="must hold out at least 80 pairs, got 24"):
        measured_batches(texts, replace(FEW, measured_batches=10))
    with pytest.raises(ValueError, match="'blocks' or 'spectral', got 'stripes'"):
        labels_of(None, Arm("own", "", 2, "stripes"), [])


def test_the_rate_rises_and_falls_to_nothing():
    rates = [FEW.rate(step) for step in range(1, 14)]
    assert rates[0] == pytest.approx(FEW.learning_rate / 2)
    assert max(rates) == rates[1] == FEW.learning_rate
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert rates[-2] > rates[-1] == 0.0


def test_runs_are_those_that_an_arm_has_and_lacks(tmp_path):
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "1.json").write_text(json.dumps({"seed": 1}))
    jobs = run.unfinished(["plain", "spectral-4"], [0, 1], tmp_path)
    assert jobs == [("plain", 0), ("spectral-4", 0)]
    run.collect(tmp_path, tmp_path / "results")
    assert json.loads((tmp_path / "results" / "plain.json").read_text()) == [{"seed": 1}]
    assert not (tmp_path / "results" / "spectral-4.json").exists()
