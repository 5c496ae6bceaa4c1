"""The option --device, and what tables need of a GPU: whether there is one, its name, a copy as a floor."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch

import modfast

# What --device cuda measures on. Tests put the CPU here, to run the same lines without a GPU.
GPU = "cuda"


def add_device_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default="cpu", help="cuda: other peers, and a copy as the floor"
    )


def device_of(parser: argparse.ArgumentParser, choice: str) -> str:
    """Return the device that --device means; end with an error if it is not there."""
    if choice == "cpu":
        return "cpu"
    if GPU == "cuda":
        if not torch.cuda.is_available():
            parser.error("--device cuda needs an NVIDIA GPU, and PyTorch finds none")
        if not modfast.backend()["cuda"]:
            parser.error(
                "--device cuda needs a modfast that was built with its CUDA kernels (MODFAST_CUDA=1)"
            )
    return GPU


def facts(choice: str, device: str) -> dict[str, Any]:
    """Return what a report keeps of the device."""
    name = torch.cuda.get_device_name() if device == "cuda" else device
    return {"device": choice, "gpu": None if choice == "cpu" else name}


def where(report: dict[str, Any]) -> str:
    """Return the machine of a report, in a few words."""
    machine = report["environment"]
    processor = f"{machine['processor']}, threads {machine['threads']}"
    return processor if report["device"] == "cpu" else f"{report['gpu']}, beside {processor}"


def table_name(family: str, choice: str) -> str:
    """Return the name of a family's markers in a page; tables of a GPU have a place of their own."""
    return family if choice == "cpu" else f"{family} {choice}"


def copy_of(bytes_moved: int, device: str) -> Callable[[], object]:
    """Return a copy on the device that moves so many bytes: it reads half as many, and writes them."""
    source = torch.zeros(max(1, bytes_moved // 2), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)
