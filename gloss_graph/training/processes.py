"""Devices and processes of a run: finding them, joining them, and what only process 0 does."""

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
from gloss_graph.text.lora import require_peft
from gloss_graph.training.classifier import TextClassifier
from gloss_graph.training.config import TrainConfig


def find_device(name: str = "auto") -> torch.device:
    """The device to train on, of `DEVICES`; "auto" is the first accelerator, else the CPU.

    With several GPUs a process takes the one of its number on this machine.
    """
    kinds = {"cuda": torch.cuda, "xpu": getattr(torch, "xpu", None), "mps": torch.backends.mps}
    found = [kind for kind, module in kinds.items() if module is not None and module.is_available()]
    if name == "auto":
        name = found[0] if found else "cpu"
    if name != "cpu" and name not in found:
        raise ValueError(
            f"'device' must be one this machine and its torch have, {', '.join(['cpu', *found])} "
            f"(got {name!r}). Use 'auto' for the fastest."
        )
    return torch.device(name, local_rank()) if name in ("cuda", "xpu") else torch.device(name)


def check_run(config: TrainConfig, *, on_features: bool) -> torch.device:
    """The device to train on; refuses what this machine or the kind of encoder cannot do."""
    for name in ("freeze_layers", "lora_rank"):
        if on_features and getattr(config, name):
            raise ValueError(f"{name!r} must be 0 for features (got {getattr(config, name)}).")
    if config.lora_rank:
        require_peft()
    return find_device(config.device)


def join_processes(device: str = "auto") -> None:
    """Join the other processes if `torchrun` or `accelerate launch` started several."""
    if launched() > 1 and not joined():
        PartialState(cpu=find_device(device).type == "cpu")


def on_main(action: Callable[[], object]) -> None:
    """Run `action` on process 0 alone; an `OSError` of it is raised on all processes."""
    failure: OSError | None = None
    if is_main():
        try:
            action()
        except OSError as error:
            failure = error
    if any_process(failure is not None, _device()):
        raise failure or OSError("Process 0 failed; see its message.")


def check_same_everywhere(settings: Mapping[str, Any]) -> None:
    """Raise a `ValueError` on all processes if their settings differ; every process must call."""
    if world_size() == 1:
        return
    device = _device()
    text = torch.tensor(list(json.dumps(settings).encode()), dtype=torch.uint8, device=device)
    sizes = gather_rows(torch.tensor([text.numel()], device=device)).tolist()
    found = [json.loads(bytes(part.tolist())) for part in gather_rows(text).cpu().split(sizes)]
    known = dict.fromkeys(name for other in found for name in other)
    values = {name: sorted({repr(part.get(name)) for part in found}) for name in known}
    told = [f"'{name}' is {' and '.join(v)}" for name, v in values.items() if len(v) > 1]
    if told:
        raise ValueError(
            f"All processes of a run must be started with the same settings ({', '.join(told)}). "
            "Start them with one command."
        )


def has_unused_parameters(classifier: TextClassifier) -> bool:
    """Whether a trained parameter gets no gradient, as that of an unused pooler."""
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
