"""Runs of several processes: joining them, and what only the first one does."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState

from gloss_graph._internal.eval_mode import evaluating
from gloss_graph._internal.processes import (
    any_process,
    gather_rows,
    is_main,
    joined,
    launched,
    local_rank,
    world_size,
)
from gloss_graph.training.classifier import TextClassifier


def find_device(name: str = "auto") -> torch.device:
    """The device to train on, as the Trainer takes it too.

    Args:
        name: One of `DEVICES`; "auto" = the first accelerator there is, else the CPU. Of several
            GPUs a process takes that of its number on this machine.

    Raises:
        ValueError: This machine has no such device.
    """
    there = [kind for kind, module in _accelerators().items() if module.is_available()]
    if name == "auto":
        name = there[0] if there else "cpu"
    if name != "cpu" and name not in there:
        raise ValueError(
            f"'device' must be one this machine and its torch have, {', '.join(['cpu', *there])} "
            f"(got {name!r}). Use 'auto' for the fastest."
        )
    return torch.device(name, local_rank()) if name in ("cuda", "xpu") else torch.device(name)


def _accelerators() -> dict[str, Any]:
    kinds = {"cuda": torch.cuda, "xpu": getattr(torch, "xpu", None), "mps": torch.backends.mps}
    return {name: module for name, module in kinds.items() if module is not None}


def join_processes(device: str = "auto") -> None:
    """Join the other processes if `torchrun` or `accelerate launch` started several.

    Nothing happens in a process that was started alone or has joined already.

    Raises:
        ValueError: This machine has no such device.
    """
    if launched() > 1 and not joined():
        PartialState(cpu=find_device(device).type == "cpu")


def on_main(action: Callable[[], object]) -> None:
    """Do something on process 0 alone; the others wait and learn of its failure.

    Raises:
        OSError: What `action` raised on process 0; on the others one that says so.
    """
    failure: OSError | None = None
    if is_main():
        try:
            action()
        except OSError as error:
            failure = error
    if any_process(failure is not None, _device()):
        raise failure or OSError("Process 0 failed; see its message.")


def check_same_everywhere(settings: Mapping[str, Any]) -> None:
    """Refuse processes that were started with different settings, on all of them.

    Args:
        settings: By name, as JSON has them; every process must ask.

    Raises:
        ValueError: Names the settings that differ.
    """
    if world_size() == 1:
        return
    device = _device()
    text = torch.tensor(list(json.dumps(settings).encode()), dtype=torch.uint8, device=device)
    sizes = gather_rows(torch.tensor([text.numel()], device=device)).tolist()
    found = [json.loads(bytes(part.tolist())) for part in gather_rows(text).cpu().split(sizes)]
    known = dict.fromkeys(name for other in found for name in other)
    names = [
        name for name in known if any(other.get(name) != found[0].get(name) for other in found)
    ]
    if names:
        shown = ", ".join(
            f"'{name}' is {' and '.join(sorted({repr(part.get(name)) for part in found}))}"
            for name in names
        )
        raise ValueError(
            f"All processes of a run must be started with the same settings ({shown}). Start them "
            "with one command."
        )


def has_unused_parameters(classifier: TextClassifier) -> bool:
    """Whether what is trained leaves a parameter without gradient (a pooler that is not asked).

    With several processes the gradients of such a model need a search every step.
    """
    encoder = classifier.encoder
    device = next(encoder.parameters()).device
    batch = {name: value.to(device) for name, value in encoder.probe().items()}
    trained = [value for value in classifier.parameters() if value.requires_grad]
    with evaluating(classifier), torch.enable_grad():
        output = classifier(**batch)
        result = output.embeddings if output.logits is None else output.logits
        found = torch.autograd.grad(result.sum(), trained, allow_unused=True)
    return any(gradient is None for gradient in found)


def _device() -> str:
    """Where the backend of the group wants its tensors."""
    return "cuda" if joined() and dist.get_backend() == "nccl" else "cpu"
