"""Next-token prediction on text files: tokens, windows, targets, and files that cannot be read."""

import os

import pytest
import torch

from modfast.tasks import next_token

TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom. "


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "one.txt").write_text(TEXT * 4, encoding="utf-8")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "two.txt").write_text("Größe für süße Äpfel: ∑ und 🍎. " * 20, encoding="utf-8")
    (tmp_path / "notes.md").write_text("not a text of the folder", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("level", ["byte", "character"])
def test_targets_are_the_next_tokens(folder, level):
    task = next_token(folder, 10, level=level)
    assert [path.name for path in task.files] == ["two.txt", "one.txt"]
    texts = [path.read_text(encoding="utf-8") for path in task.files]
    if level == "byte":
        texts = [text.encode().decode("latin-1") for text in texts]
    for text, train, test in zip(texts, task.train_texts, task.test_texts, strict=True):
        whole = [*train.tolist(), *test.tolist()]
        assert "".join(task.vocabulary[token] for token in whole) == text
        assert len(test) == round(0.1 * len(whole))
    for part, pieces in (("train", task.train_texts), ("test", task.test_texts)):
        pairs = [
            (text[start : start + 10], text[start + 1 : start + 11])
            for text in pieces
            for start in range(0, len(text) - 10, 10)
        ]
        inputs, targets = (torch.cat(both) for both in zip(*task.windows(part, 7), strict=True))
        assert inputs.dtype == targets.dtype == torch.int64
        assert torch.equal(inputs, torch.stack([pair[0] for pair in pairs]))
        assert torch.equal(targets, torch.stack([pair[1] for pair in pairs]))


def test_drawn_windows_lie_within_one_file_and_reach_all_of_it(tmp_path):
    # No window is there twice.
    generator = torch.Generator().manual_seed(0)
    for name, size in (("a", 150), ("b", 400)):
        (tmp_path / name).write_bytes(bytes(torch.randint(256, (size,), generator=generator).tolist()))
    task = next_token([tmp_path / "a", tmp_path / "b"], 10, test_share=0.2)
    inputs, targets = task.draw(5000, generator)
    drawn = {(*one, other[-1]) for one, other in zip(inputs.tolist(), targets.tolist(), strict=True)}
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    expected = {
        tuple(text[start : start + 11].tolist())
        for text in task.train_texts
        for start in range(len(text) - 10)
    }
    assert len(expected) == 120 - 10 + 320 - 10
    assert drawn == expected


def test_windows_may_be_few(folder):
    task = next_token(folder, 10)
    whole = torch.cat([inputs for inputs, _ in task.windows("train")])
    few = torch.cat([inputs for inputs, _ in task.windows("train", most=4)])
    assert few.shape == (4, 10)
    assert torch.equal(few, whole[[len(whole) * place // 4 for place in range(4)]])
    assert sum(len(inputs) for inputs, _ in task.windows("test", most=10**9)) == sum(
        len(inputs) for inputs, _ in task.test_batches
    )


@pytest.mark.parametrize("level", ["byte", "character"])
def test_text_becomes_tokens_and_back(folder, level):
    task = next_token(folder, 10, level=level)
    assert task.decode(task.encode("für 🍎")) == "für 🍎"
    with pytest.raises(ValueError, match="tokens must be an integer in"):
        task.decode([len(task.vocabulary)])


def test_characters_that_the_files_lack(folder):
    task = next_token(folder, 10, level="character")
    with pytest.raises(ValueError, match=r"text must be of characters that the files have, got \['#', '~'\]"):
        task.encode("a~#")
    assert task.vocabulary == "".join(sorted(set(task.vocabulary)))


def test_line_ends_and_other_encodings_are_kept(tmp_path):
    contents = bytes(range(256)) * 3 + b"\r\n\r\n"
    path = tmp_path / "any"
    path.write_bytes(contents)
    task = next_token(path, 4)
    assert bytes([*task.train_texts[0].tolist(), *task.test_texts[0].tolist()]) == contents
    with pytest.raises(ValueError, match="any is no UTF-8 from byte 128 on; level='byte' takes any encoding"):
        next_token(path, 4, level="character")


def test_files_that_cannot_be_used(folder, tmp_path):
    short, empty = tmp_path / "short.txt", tmp_path / "empty.txt"
    with pytest.raises(FileNotFoundError, match=r"absent\.txt"):
        next_token(folder / "absent.txt", 10)
    empty.write_text("")
    with pytest.raises(ValueError, match=r"empty\.txt must have at least 11 bytes to train on.*of its 0"):
        next_token(empty, 10)
    empty.unlink()
    short.write_text("x" * 100)
    assert len(next_token(short, 9).test_batches[0][0]) == 1
    with pytest.raises(ValueError, match=r"short\.txt must have at least 11 bytes held out, for windows"):
        next_token(short, 10)
    short.unlink()
    with pytest.raises(ValueError, match="has no file whose name fits pattern"):
        next_token(folder, 10, pattern="*.csv")
    with pytest.raises(ValueError, match=r"must name each file once, got .*one\.txt twice"):
        next_token([folder, folder / "one.txt"], 10)
    with pytest.raises(ValueError, match="paths must name at least one file or folder, got none"):
        next_token([], 10)
    (folder / "in" / "gone.txt").symlink_to(folder / "absent.txt")
    with pytest.raises(FileNotFoundError, match=r"gone\.txt"):
        next_token(folder, 10)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="a named pipe, not a file"):
        next_token(tmp_path / "pipe", 10)


def test_a_folder_within_that_cannot_be_read(folder, monkeypatch):
    real = os.scandir

    def scandir(path):
        if os.path.basename(path) == "in":
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError, match="in"):
        next_token(folder, 10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 0}, "length must be a positive integer, got 0"),
        ({"length": 10, "level": "word"}, "level must be one of"),
        ({"length": 10, "test_share": 0}, "test_share must be a number between 0 and 1"),
    ],
)
def test_bad_arguments(folder, arguments, message):
    with pytest.raises(ValueError, match=message):
        next_token(folder, **arguments)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (None, "paths must be a path or several, got NoneType"),
        (b"some.txt", "paths must be a path or several, got bytes"),
        ([b"some.txt"], "paths must be strings or path objects, got bytes"),
    ],
)
def test_what_is_no_path(paths, message):
    with pytest.raises(TypeError, match=message):
        next_token(paths, 10)


def test_what_is_no_text_pattern_or_token(folder):
    with pytest.raises(TypeError, match=r"pattern must be a string, got list"):
        next_token(folder, 10, pattern=["*.txt"])
    task = next_token(folder, 10)
    with pytest.raises(TypeError, match="text must be a string, got bytes"):
        task.encode(b"abc")
    for tokens in ([97.5], torch.tensor([97.5]), torch.tensor([[97]])):
        with pytest.raises(ValueError, match="tokens must be an integer in"):
            task.decode(tokens)
    assert task.decode(torch.tensor([97])) == task.decode([97]) == "a"


def test_bad_windows(folder):
    task = next_token(folder, 10)
    with pytest.raises(ValueError, match="part must be one of"):
        task.windows("all")
    with pytest.raises(ValueError, match="most must be a positive integer, got 0"):
        task.windows("test", most=0)
    with pytest.raises(ValueError, match="batch_size must be a positive integer, got None"):
        task.train(task.model(), 1, batch_size=None)


def test_a_small_gpt_learns_the_text(folder):
    task = next_token(folder / "one.txt", 16, level="character")
    model = task.model(width=32, layers=1, heads=2)
    assert model(task.test_batches[0][0]).shape == (1, 16, len(task.vocabulary))
    history = task.train(model, 150, learning_rate=0.01, evaluate_every=50)
    uniform = torch.tensor(float(len(task.vocabulary))).log().item()
    assert [record["step"] for record in history] == [50, 100, 150]
    assert history[-1]["test_loss"] < uniform / 2
    assert history[-1]["test_accuracy"] > 0.6
