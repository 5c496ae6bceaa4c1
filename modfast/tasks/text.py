"""Next-token prediction on text files."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from modfast.arguments import Integer, Number, OneOf, check
from modfast.energy.loss import EnmeshmentLoss
from modfast.files import open_to_read

from .models import Transformer
from .seeded import seeded_model
from .settings import Settings
from .training import Batch, Record, digest_of_parts, train_task

LEVELS = ("byte", "character")


@dataclass(frozen=True, eq=False, repr=False)
class NextToken:
    """Text files as tokens, in windows with the token that follows each; made by :func:`next_token`.

    A window of ``length`` tokens has as targets the same window one token further on. It lies within one
    file.

    Attributes:
        length: the number of tokens of each window.
        level: ``"byte"`` or ``"character"``: what a token is.
        vocabulary: the characters by their tokens, in the order of Unicode; of bytes the 256 of Latin-1.
        files: the files, in the order of ``train_texts`` and ``test_texts``.
        train_texts: for each file the tokens that are trained on: int64 ``(n,)``.
        test_texts: for each file the tokens that are held out: its end.
    """

    length: int
    level: str
    vocabulary: str
    files: tuple[Path, ...]
    train_texts: tuple[Tensor, ...]
    test_texts: tuple[Tensor, ...]

    def __repr__(self) -> str:
        trained, held = (sum(map(len, texts)) for texts in (self.train_texts, self.test_texts))
        return (
            f"NextToken({len(self.files):,} files, {self.level}s, {len(self.vocabulary):,} different tokens, "
            f"windows of {self.length}: {trained:,} tokens to train on, {held:,} held out)"
        )

    @property
    def train_batches(self) -> list[Batch]:
        """The text that is trained on in windows side by side, 64 to a batch."""
        return self.windows("train")

    @property
    def test_batches(self) -> list[Batch]:
        """The held-out text in windows side by side, 64 to a batch."""
        return self.windows("test")

    @property
    def fingerprint(self) -> str:
        """A digest: tasks with the same one train the same model."""
        texts = {f"text {place}": text for place, text in enumerate((*self.train_texts, *self.test_texts))}
        parts = {"task": "next token", "length": self.length, "vocabulary": self.vocabulary}
        return digest_of_parts(parts | texts)

    def windows(self, part: str, batch_size: int = 64, most: int | None = None) -> list[Batch]:
        """Return windows side by side: each token but a file's last few is in one.

        Args:
            part: ``"train"`` or ``"test"``.
            batch_size: the number of windows of each batch; the last one may have fewer.
            most: take at most so many windows, evenly spread; None takes all.

        Returns:
            Pairs of inputs and targets, int64 ``(n, length)``, on the CPU.

        Raises:
            ValueError: an argument is out of its range.
        """
        check("part", part, OneOf(("train", "test")))
        check("batch_size", batch_size, Integer(1))
        texts = self.train_texts if part == "train" else self.test_texts
        whole = torch.cat([text.unfold(0, self.length + 1, self.length) for text in texts])
        if most is not None:
            check("most", most, Integer(1))
            chosen = torch.arange(min(most, len(whole)), device="cpu") * len(whole) // min(most, len(whole))
            whole = whole[chosen]
        return [_split(each) for each in whole.split(batch_size)]

    def draw(self, batch_size: int | None, generator: torch.Generator) -> Batch:
        """Draw windows of the text that is trained on: every place of every file is as likely.

        Raises:
            ValueError: ``batch_size`` is None or no positive integer.
        """
        check("batch_size", batch_size, Integer(1))
        counts = torch.tensor([len(text) - self.length for text in self.train_texts], device="cpu")
        ends = counts.cumsum(0)
        drawn = torch.randint(int(ends[-1]), (int(batch_size or 0),), generator=generator, device="cpu")
        of_file = torch.searchsorted(ends, drawn, right=True)
        starts = drawn - (ends - counts)[of_file]
        windows = [
            self.train_texts[file][start : start + self.length + 1]
            for file, start in zip(of_file.tolist(), starts.tolist(), strict=True)
        ]
        return _split(torch.stack(windows))

    def encode(self, text: str) -> Tensor:
        """Turn a text into tokens: int64 ``(n,)``. At the level of bytes it is encoded as UTF-8.

        Raises:
            ValueError: the files have no such character, or UTF-8 has not.
            TypeError: it is no text.

        Example:
            >>> import tempfile
            >>> path = Path(tempfile.mkdtemp()) / "some.txt"
            >>> _ = path.write_text("to be or not to be " * 10)
            >>> next_token(path, length=8, level="character").encode("robot").tolist()
            [5, 4, 1, 4, 6]
        """
        if not isinstance(text, str):
            raise TypeError(f"text must be a string, got {type(text).__name__}")
        if self.level == "byte":
            return torch.tensor(list(text.encode("utf-8")), dtype=torch.int64, device="cpu")
        number = {character: token for token, character in enumerate(self.vocabulary)}
        unknown = sorted(set(text) - set(number))
        if unknown:
            raise ValueError(f"text must be of characters that the files have, got {unknown}")
        return torch.tensor([number[character] for character in text], dtype=torch.int64, device="cpu")

    def decode(self, tokens: Tensor | Sequence[int]) -> str:
        """Turn tokens into text; bytes that are no UTF-8 become U+FFFD.

        Raises:
            ValueError: one is no token.
        """
        numbers = tokens.tolist() if isinstance(tokens, Tensor) else list(tokens)
        for token in numbers:
            check("tokens", token, Integer(0, len(self.vocabulary) - 1))
        if self.level == "byte":
            return bytes(numbers).decode("utf-8", "replace")
        return "".join(self.vocabulary[token] for token in numbers)

    def model(
        self,
        *,
        width: int = 64,
        heads: int = 4,
        hidden: int | None = None,
        layers: int = 2,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> Transformer:
        """Make a small GPT that is not trained yet; any model that maps tokens to logits can be trained, too.

        Args:
            width: of the residual stream; a multiple of ``heads``.
            heads: of each block.
            hidden: hidden neurons of each block; by default four times ``width``.
            layers: the number of blocks.
            seed: seeds the initial weights, whatever the state of PyTorch's generator, which stays as it is.
            device: where it is put.

        Raises:
            ValueError: an argument is out of its range.
        """
        count, length = len(self.vocabulary), self.length

        def make() -> Transformer:
            return Transformer(count, length, width=width, heads=heads, hidden=hidden, layers=layers)

        return seeded_model(make, seed, device)

    def train(
        self,
        model: nn.Module,
        steps: int = 2000,
        *,
        learning_rate: float = 0.001,
        weight_decay: float = 0.1,
        batch_size: int = 32,
        evaluate_every: int = 500,
        seed: int = 0,
        enmeshment: EnmeshmentLoss | None = None,
        enmeshment_weight: float | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Record]:
        """Train a model in place, by AdamW, to predict the next token at each place of a window.

        Args:
            model: maps tokens, int64 ``(n, length)``, to logits ``(n, length, tokens)``, or returns an object
                that has them as ``logits``; it is trained on its own device.
            steps: how many in all.
            learning_rate: of AdamW.
            weight_decay: of AdamW.
            batch_size: how many windows each step draws.
            evaluate_every: the number of steps after which all of the held-out text is measured.
            seed: seeds which windows each step draws.
            enmeshment: as for :meth:`ModularAddition.train`.
            enmeshment_weight: as for :meth:`ModularAddition.train`.
            checkpoint: as for :meth:`ModularAddition.train`.
            progress: called with the number of steps done and of all.

        Returns:
            For each ``evaluate_every`` steps, and for the last one: ``step``, ``loss`` (of its batch, in nats
            per token), ``test_loss`` and ``test_accuracy``; with a loss its value, ``enmeshment``.

        Raises:
            TypeError, ValueError, TrainingError, OSError: as :meth:`ModularAddition.train`.
        """
        check("batch_size", batch_size, Integer(1))
        settings = Settings(
            steps, learning_rate, weight_decay, batch_size, evaluate_every, seed, enmeshment_weight
        )
        return train_task(self, model, settings, checkpoint, progress, enmeshment)


def next_token(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    length: int,
    *,
    level: str = "byte",
    test_share: float = 0.1,
    pattern: str = "*.txt",
) -> NextToken:
    """Make the task to predict each next token of text files.

    Args:
        paths: a file, a folder, or several of these. Of a folder all files are taken, also in folders within
            (but not in those that a link within leads to), whose names fit ``pattern``, in the order of their
            paths.
        length: the number of tokens of each window.
        level: ``"byte"``: 256 tokens, for files of any encoding. ``"character"``: a token for each character
            that occurs; files must be UTF-8. Choose characters for text that is not English: a window then
            holds more of it.
        test_share: the share at the end of each file that is held out.
        pattern: a glob for the names of files in folders, in which small and large letters differ.

    Raises:
        FileNotFoundError: there is no such file or folder.
        OSError: a file or folder cannot be read.
        TypeError: ``paths`` holds no path, or ``pattern`` is no string.
        ValueError: an argument is out of its range; a folder has no such file; a file is given twice, is no
            regular file, is no UTF-8, or is too short: what is trained on and what is held out must have at
            least ``length + 1`` tokens each.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "some.txt"
        >>> _ = path.write_text("to be or not to be " * 10)
        >>> task = next_token(path, length=8, level="character")
        >>> inputs, targets = task.test_batches[0]
        >>> task.decode(inputs[0]), task.decode(targets[0])
        ('to be or', 'o be or ')
    """
    check("length", length, Integer(1))
    check("level", level, OneOf(LEVELS))
    check("test_share", test_share, Number(0, 1))
    files = _files(paths, pattern)
    texts = [_read(path, level) for path in files]
    code_points = [np.frombuffer(text.encode("utf-32-le"), dtype="<u4") for text in texts]
    known = np.arange(256) if level == "byte" else np.unique(np.concatenate(code_points))
    vocabulary = "".join(map(chr, known.tolist()))
    train, test = [], []
    for path, points in zip(files, code_points, strict=True):
        tokens = torch.from_numpy(np.searchsorted(known, points).astype(np.int64))
        held_out = round(test_share * len(tokens))
        for words, count in (("to train on", len(tokens) - held_out), ("held out", held_out)):
            if count <= length:
                raise ValueError(
                    f"paths: {path} must have at least {length + 1} {level}s {words}, for windows of length "
                    f"{length} and their targets; of its {len(tokens)} it has {count} with test_share "
                    f"{test_share}"
                )
        train.append(tokens[: len(tokens) - held_out])
        test.append(tokens[len(tokens) - held_out :])
    return NextToken(int(length), level, vocabulary, tuple(files), tuple(train), tuple(test))


def _split(windows: Tensor) -> Batch:
    """Inputs and targets of windows with one token more."""
    return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


def _files(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], pattern: str) -> list[Path]:
    if not isinstance(pattern, str):
        raise TypeError(f"pattern must be a string, got {type(pattern).__name__}")
    if isinstance(paths, bytes) or not isinstance(paths, (str, os.PathLike, Iterable)):
        raise TypeError(f"paths must be a path or several, got {type(paths).__name__}")
    listed = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    for each in listed:
        if not isinstance(each, (str, os.PathLike)):
            raise TypeError(f"paths must be strings or path objects, got {type(each).__name__}")
    if not listed:
        raise ValueError("paths must name at least one file or folder, got none")
    files: list[Path] = []
    for folder in map(Path, listed):
        if not folder.is_dir():
            files.append(folder)
            continue
        found = sorted(_within(folder, pattern))
        if not found:
            raise ValueError(f"paths: the folder {folder} has no file whose name fits pattern {pattern!r}")
        files += found
    seen: set[Path] = set()
    for path in files:
        if path.resolve() in seen:
            raise ValueError(f"paths must name each file once, got {path} twice")
        seen.add(path.resolve())
    return files


def _within(folder: Path, pattern: str) -> Iterator[Path]:
    """The files of a folder and of those within it; of a glob, unreadable folders would go unnoticed."""

    def stop(error: OSError) -> None:
        raise error

    for parent, _, names in os.walk(folder, onerror=stop):
        yield from (Path(parent, name) for name in names if fnmatch.fnmatchcase(name, pattern))


def _read(path: Path, level: str) -> str:
    """The text of a file; its bytes as the characters of Latin-1, which have the same numbers."""
    with open_to_read(path) as file:
        contents = file.read()
    if level == "byte":
        return contents.decode("latin-1")
    try:
        return contents.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"paths: {path} is no UTF-8 from byte {error.start} on; level='byte' takes any encoding"
        ) from error
