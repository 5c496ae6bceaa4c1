"""Fine-tune GPT-2 or Pythia with and without the enmeshment loss, and measure both on held-out text.

    pip install "modfast[transformers]" datasets
    python -m benchmarks.hub.protocol --model gpt2 --arm modular --seed 0 --device cuda
    python -m benchmarks.hub.protocol --model gpt2 --arm plain --seed 0 --device cuda

writes ``out/hub/RECIPE/ARM/SEED.json``, and checkpoints into the folder ``SEED`` beside it. The same command
goes on where a run was stopped. ``--recipe gpt2-input`` takes the input matrices alone; the models
``pythia-70m`` and ``pythia-1.4b`` have their own recipes; a folder of transformers needs ``--recipe``.
``--text FILE ...`` trains on files, and holds out the end of each.
The plain arm is the same run with weight 0: its clusters are found, and measured, in the same way.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

import modfast
from benchmarks.common.campaign import record_of, rounded
from modfast.files import read_json, write_json
from modfast.integrations.schedules import LinearSchedule
from modfast.integrations.transformers import EnmeshmentCallback
from modfast.machine import environment

from .measure import clusterability, dependence
from .recipes import MODELS, RECIPES, Recipe
from .text import Text, read_text

ARMS = ("plain", "modular")
# Of a model's settings; the authors trained without.
DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop", "attention_dropout", "hidden_dropout")


@dataclass(frozen=True)
class Settings:
    """One run."""

    model: str
    arm: str
    seed: int
    recipe: Recipe
    device: str = "cpu"
    dependence_texts: int = 1000
    dependence_length: int = 64
    random_sets: int = 20
    slice_width: int = 256


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    name = options.recipe or options.model
    if name not in RECIPES:
        raise SystemExit(f"--recipe must be given for the model {options.model!r}: one of {sorted(RECIPES)}")
    overridden = {each.name: getattr(options, each.name, None) for each in fields(Recipe)}
    recipe = replace(
        RECIPES[name], **{field: value for field, value in overridden.items() if value is not None}
    )
    own = {
        each.name: getattr(options, each.name)
        for each in fields(Settings)
        if each.name not in ("model", "recipe")
    }
    settings = Settings(MODELS.get(options.model, options.model), recipe=recipe, **own)
    path = record_of(options.out / name, settings.arm, settings.seed)
    if path.exists():
        _same("settings", read_json(path)["settings"], asdict(settings), path)
        print(f"{path} is there already; remove it to run again")
        return
    _one_process_on(settings.device)
    tokenizer = transformers.AutoTokenizer.from_pretrained(settings.model)
    write_json(path, run(settings, read_text(options.text, tokenizer), path.with_suffix("")))
    print(f"wrote {path}")


def run(settings: Settings, text: Text, folder: Path) -> dict[str, Any]:
    """Train and measure one model; goes on from the last checkpoint in the folder.

    Raises:
        ValueError: the folder holds a run with other settings or another text; clusters would be found after
            the last step.
    """
    began = time.perf_counter()
    _same_run(settings, text, folder)
    recipe = settings.recipe
    train, validation = (text.windows(split, recipe.length) for split in ("train", "validation"))
    steps = -(-len(train) // recipe.batch_size) * recipe.epochs
    if recipe.found_at is not None and recipe.found_at >= steps:
        raise ValueError(f"found_at must be below the {steps} steps of the training, got {recipe.found_at}")

    transformers.set_seed(settings.seed)
    model = load(settings.model)
    network = modfast.read_network(model, {"input_ids": train[:1, :8], "use_cache": False})
    layers = network.select(*recipe.roles)
    callback = _callback(settings, network, layers)
    before = (
        clusterability(model, network.partitions(recipe.clusters, layers))
        if recipe.found_at is None
        else None
    )
    # As much of the training split as there is of the other: the whole would take a third of an epoch's time.
    splits = {"train": _rows(train[: len(validation)]), "validation": _rows(validation)}
    trainer = transformers.Trainer(
        model,
        _arguments(settings, folder),
        train_dataset=_rows(train),
        eval_dataset=splits,
        callbacks=[callback],
    )
    first = trainer.evaluate()
    transformers.set_seed(settings.seed)
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    trained = time.perf_counter()

    inputs = network.select("mlp_input")
    depends = dependence(
        model,
        text.windows("validation", settings.dependence_length)[: settings.dependence_texts],
        network,
        callback.partitions,
        layer=inputs[len(inputs) // 2],
        slice_width=settings.slice_width,
        random_sets=settings.random_sets,
        all_layers=recipe.found_at is None,
    )
    return rounded(
        {
            "settings": asdict(settings),
            "text": text.description | {"windows": {"train": len(train), "validation": len(validation)}},
            "losses": {
                "train": f"the first {len(splits['train'])} windows of what is trained on, in nats per token",
                "validation": f"the {len(validation)} windows that are held out, in nats per token",
                "while_training": "mean over the epoch's steps",
                "by_epoch": _by_epoch(first, trainer.state.log_history),
            },
            "clusterability": {"before": before, "after": clusterability(model, callback.partitions)},
            "dependence": depends,
            "environment": environment() | {"transformers": transformers.__version__},
            "seconds": {"training": trained - began, "measuring": time.perf_counter() - trained},
        }
    )


def load(name: str) -> nn.Module:
    """Load a model in float32 and without dropout, from the hub or from a folder."""
    config = transformers.AutoConfig.from_pretrained(name)
    for each in DROPOUTS:
        if hasattr(config, each):
            setattr(config, each, 0.0)
    return transformers.AutoModelForCausalLM.from_pretrained(name, config=config, dtype=torch.float32)


def last_checkpoint(folder: Path) -> str | None:
    """Return the last checkpoint that was written to its end: the Trainer writes its own state last."""
    done: dict[int, Path] = {}
    for path in folder.glob("checkpoint-*"):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            continue
        done[int(path.name.removeprefix("checkpoint-"))] = path
    return str(done[max(done)]) if done else None


def _callback(settings: Settings, network: modfast.Network, layers: list[str]) -> EnmeshmentCallback:
    recipe, weight = settings.recipe, settings.recipe.weight if settings.arm == "modular" else 0.0
    if recipe.found_at is None:
        # What one layer writes and the next reads is in the same block, the residual stream in all of them.
        return EnmeshmentCallback(network.partitions(recipe.clusters, layers), weight)
    starts = LinearSchedule(1, start=recipe.found_at - 1) if recipe.found_at > 0 else None
    return EnmeshmentCallback(
        recipe.clusters, weight, layers, schedule=starts, recluster_at=recipe.found_at, seed=settings.seed
    )


def _arguments(settings: Settings, folder: Path) -> transformers.TrainingArguments:
    recipe = settings.recipe
    return transformers.TrainingArguments(
        str(folder),
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=recipe.batch_size,
        optim="adamw_torch",  # which is Adam without weight decay
        weight_decay=0.0,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,  # no clipping
        seed=settings.seed,
        logging_strategy="epoch",
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        prediction_loss_only=True,
        report_to="none",
        use_cpu=settings.device == "cpu",
    )


def _rows(windows: Tensor) -> list[dict[str, Tensor]]:
    # A window's first token is never predicted, and the Trainer divides by the number of labels.
    labels = windows.clone()
    labels[:, 0] = -100
    return [{"input_ids": row, "labels": of_row} for row, of_row in zip(windows, labels, strict=True)]


def _by_epoch(first: dict[str, float], history: list[dict[str, float]]) -> list[dict[str, Any]]:
    """Losses and clusterability before training, then after each epoch."""
    rows: dict[float, dict[str, Any]] = {0: {"epoch": 0}}
    names = {
        "eval_train_loss": "train",
        "eval_validation_loss": "validation",
        "loss": "while_training",
        "clusterability": "clusterability",
    }
    for entry in [first | {"epoch": 0}, *history]:
        row = rows.setdefault(entry["epoch"], {"epoch": entry["epoch"]})
        row.update({short: entry[name] for name, short in names.items() if name in entry})
    return list(rows.values())


def _same_run(settings: Settings, text: Text, folder: Path) -> None:
    """Note what is run in the folder; refuse to mix it with another run."""
    noted = folder / "settings.json"
    mine = {"settings": asdict(settings), "text": text.description}
    if noted.exists():
        for name, theirs in read_json(noted).items():
            _same(name, theirs, mine[name], folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(noted, mine)


def _same(what: str, theirs: dict[str, Any], mine: dict[str, Any], path: Path) -> None:
    mine = json.loads(json.dumps(mine))  # as it is read from a file, with lists in place of tuples
    changes = [
        f"{name} is {theirs.get(name)!r} there and {value!r} here"
        for name, value in mine.items()
        if theirs.get(name) != value
    ]
    if changes:
        raise ValueError(f"out: {path} is of other {what}, {'; '.join(changes)}: choose another --out")


def _one_process_on(device: str) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise SystemExit("the protocol runs in one process: start it without torchrun, one seed on each GPU")
    if device == "cuda" and torch.cuda.device_count() != 1:
        raise SystemExit(
            f"--device cuda needs one GPU, {torch.cuda.device_count()} are visible: the Trainer would take "
            "all, and make the batch larger; CUDA_VISIBLE_DEVICES=0 shows it one"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", required=True, help=f"one of {', '.join(MODELS)}, or a folder of transformers"
    )
    parser.add_argument("--text", nargs="+", default=["wikitext"], metavar="FILE", help="wikitext, or files")
    parser.add_argument("--arm", choices=ARMS, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/hub"), metavar="DIR")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--recipe", choices=RECIPES, help="by default that of the model")
    for name in ("clusters", "epochs", "batch-size", "length", "found-at"):
        parser.add_argument(f"--{name}", type=int, help="in place of the recipe's")
    for name in ("weight", "learning-rate"):
        parser.add_argument(f"--{name}", type=float, help="in place of the recipe's")
    measured = {
        each.name: each.default for each in fields(Settings) if each.type == "int" and each.name != "seed"
    }
    for name, default in measured.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    return parser


if __name__ == "__main__":
    main()
