"""Runs of several processes: joining them, and what only the first one does."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from accelerate import PartialState

from gloss_graph._modes import evaluating
from gloss_graph._processes import any_process, is_main, joined, launched
from gloss_graph.training.classifier import TextClassifier


def has_accelerator() -> bool:
    """Whether there is a device faster than the CPU."""
    kinds = (torch.cuda, torch.backends.mps, getattr(torch, "xpu", torch.cuda))
    return any(kind.is_available() for kind in kinds)


def join_processes() -> None:
    """Join the other processes if `torchrun` or `accelerate launch` started several.

    Nothing happens in a process that was started alone or has joined already.
    """
    if launched() > 1 and not joined():
        PartialState(cpu=not has_accelerator())


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
