"""Time scores and the greedy choice of units on a small GPT-2; print a table. See docs/speed/circuits.md."""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.common.pages import (
    add_options,
    add_page_option,
    as_markdown,
    check_page,
    put_into_page,
    show,
    versions,
    what_times_depend_on,
)
from benchmarks.common.rounds import in_rounds, quartiles, seconds_of
from modfast import (
    Network,
    ablate_units,
    find_unit_circuit,
    next_token_log_likelihood,
    read_network,
    unit_scores,
)
from modfast.files import write_json

TOKENS, TOLERANCE = 64, 0.05
MEMORY_SIZE = (64, 64)  # texts, tokens
SIZES = ((1, 16), (4, 16), (16, 16))
TRIALS = 60  # of the plain loop, whose time is that of one times the number of units
HEADINGS = [
    "texts x tokens",
    "training step, ms",
    "scores, ms",
    "scores / step",
    "units kept",
    "passes",
    "greedy, s",
    "plain loop, s",
    "plain loop / greedy",
    "decided alike",
]
CAPTION = (
    "GPT-2 with 4 layers, width 128, 4 heads, {tokens} tokens, trained to repeat a text; {units} units, all "
    "heads and hidden neurons; tolerance {tolerance} nats. Medians. A training step is forward, backward and "
    "AdamW. The plain loop runs {trials} of its trials, the first ones, and is {units} times one; decisions "
    "are compared there. Peak memory above the model and its inputs at {memory_size}: training step "
    "{step:.0f} MiB, scores {scores:.0f} MiB."
)


def small_gpt(steps: int, advance: Callable[[], None] = lambda: None) -> nn.Module:
    """A GPT-2 that has learned to go on with a text that it has seen once."""
    import transformers  # takes seconds, and the page of a report does without

    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=TOKENS, n_positions=64, n_embd=128, n_layer=4, n_head=4, bos_token_id=0, eos_token_id=0,
        resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
    )  # fmt: skip
    model: nn.Module = transformers.GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(steps):
        batch = repeated(32, 16)
        logits = model(**batch).logits[:, 8:-1]
        optimizer.zero_grad()
        functional.cross_entropy(logits.flatten(0, 1), batch["input_ids"][:, 9:].flatten()).backward()
        optimizer.step()
        advance()
    return model.eval()


def repeated(texts: int, length: int) -> dict[str, Any]:
    half = torch.randint(0, TOKENS, (texts, length // 2))
    return {"input_ids": torch.cat([half, half], 1), "use_cache": False}


def training_step(model: nn.Module, batch: dict[str, Any]) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), 0.0)

    def step() -> None:
        optimizer.zero_grad()
        (-next_token_log_likelihood(model(**batch), batch).mean()).backward()
        optimizer.step()

    return step


class PlainLoop:
    """One forward pass under ablation for each unit, from the least important on."""

    def __init__(self, model: nn.Module, batch: dict[str, Any], network: Network, scores: Tensor) -> None:
        self.model, self.batch, self.network = model, batch, network
        order = scores.argsort(descending=True, stable=True)
        self.order = order[~scores[order].isnan()].flip(0)
        self.ablated = torch.zeros(network.num_units, dtype=torch.bool)
        before = self.measure()
        self.least = before - TOLERANCE - 1e-6 * (1 + abs(before))
        self.done = 0

    def measure(self) -> float:
        with torch.no_grad(), ablate_units(self.model, self.network, self.ablated):
            values = next_token_log_likelihood(self.model(**self.batch), self.batch)
        return float(values.double().mean())

    def trial(self) -> None:
        unit = self.order[self.done]
        self.ablated[unit] = True
        if not self.measure() >= self.least:
            self.ablated[unit] = False
        self.done += 1


def measure(
    model: nn.Module, texts: int, length: int, repeats: int, advance: Callable[[], None]
) -> dict[str, Any]:
    torch.manual_seed(1)
    batch = repeated(texts, length)
    network = read_network(model, batch)
    metric = next_token_log_likelihood
    calls = {
        "step": training_step(model, batch),
        "scores": lambda: unit_scores(model, [batch], metric, network),
    }
    medians = {name: quartiles(values)[1] for name, values in in_rounds(calls, repeats, advance).items()}
    model.zero_grad(set_to_none=True)
    scores = unit_scores(model, [batch], metric, network)
    options = {"method": "greedy", "tolerance": TOLERANCE}
    found = []
    greedy = seconds_of(lambda: found.append(find_unit_circuit(model, [batch], metric, network, **options)))
    advance()
    loop = PlainLoop(model, batch, network, scores)
    trial = sorted(seconds_of(loop.trial) for _ in range(TRIALS))[TRIALS // 2]
    advance()
    decided = loop.order[: loop.done]
    return {
        "texts": texts,
        "length": length,
        "units": len(loop.order),
        "step_ms": medians["step"],
        "scores_ms": medians["scores"],
        "kept": found[0].num_units,
        "passes": found[0].num_passes,
        "greedy_s": greedy,
        "plain_s": trial * len(loop.order),
        "alike": float((loop.ablated[decided] == ~found[0].kept[decided]).double().mean()),
    }


def memory_of(what: str, texts: int, length: int) -> float:
    """MiB by which the peak of a fresh process grows in one call."""
    model = small_gpt(0)
    batch = repeated(texts, length)
    network = read_network(model, {**batch, "input_ids": batch["input_ids"][:1]})
    step = training_step(model, batch)
    calls = {"step": step, "scores": lambda: unit_scores(model, [batch], next_token_log_likelihood, network)}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    calls[what]()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def row(result: dict[str, Any]) -> list[str]:
    return [
        f"{result['texts']} x {result['length']}",
        f"{result['step_ms']:.1f}",
        f"{result['scores_ms']:.1f}",
        f"{result['scores_ms'] / result['step_ms']:.2f}",
        str(result["kept"]),
        str(result["passes"]),
        f"{result['greedy_s']:.1f}",
        f"{result['plain_s']:.1f}",
        f"{result['plain_s'] / result['greedy_s']:.1f}",
        f"{result['alike']:.0%}",
    ]


def caption(report: dict[str, Any]) -> str:
    return CAPTION.format(
        tokens=TOKENS, units=report["results"][0]["units"], tolerance=TOLERANCE, trials=TRIALS,
        memory_size="{} x {} tokens".format(*MEMORY_SIZE), **report["memory_mib"],
    ) + f" {versions(report)}, {report['threads']} threads."  # fmt: skip


def markdown(report: dict[str, Any]) -> str:
    """Return what a page shows of a report."""
    return f"{as_markdown(HEADINGS, [row(each) for each in report['results']])}\n\n{caption(report)}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser, 5)
    add_page_option(parser)
    parser.add_argument("--steps", type=int, default=150, help="training steps; default 150")
    parser.add_argument("--memory", choices=("step", "scores"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        print(memory_of(options.memory, *MEMORY_SIZE))
        return
    check_page(parser, options.markdown, "units")
    torch.set_num_threads(options.threads)
    memory = {}
    for what in ("step", "scores"):
        command = [sys.executable, "-m", "benchmarks.circuits.units", "--memory", what]
        memory[what] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("units", total=options.steps + len(SIZES) * (options.repeats + 2))
        advance = lambda: progress.advance(bar)  # noqa: E731
        model = small_gpt(options.steps, advance)
        results = [measure(model, *each, options.repeats, advance) for each in SIZES]
    report = {**what_times_depend_on(), "memory_mib": memory, "results": results, "threads": options.threads}
    show("Units", caption(report), HEADINGS, [row(result) for result in results])
    if options.json:
        write_json(options.json, report)
    if options.markdown:
        put_into_page(options.markdown, "units", markdown(report))


if __name__ == "__main__":
    main()
