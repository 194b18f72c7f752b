"""The objective's state (bank, generator, weights) as one safetensors file."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gloss_graph._internal.files import atomic_path

# In the header of a file: the weights of the model whose embeddings the bank holds.
_MODEL = "model_weights"


def weights_digest(model: nn.Module) -> str:
    """Sixteen hexadecimal digits of a model's weights.

    Cost: reading them once.
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {_form(value)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def save_objective(
    objective: nn.Module, file: str | Path, *, model: nn.Module | None = None
) -> Path:
    """Write `objective.state_dict()` atomically.

    Args:
        objective: The objective, its bank included.
        file: Target; replaced if it exists.
        model: The model whose embeddings the bank holds, noted by its weights.
    """
    file = Path(file)
    state = {name: value.detach().cpu().contiguous() for name, value in _tensors(objective)}
    noted = {} if model is None else {_MODEL: weights_digest(model)}
    with atomic_path(file, overwrite=True) as draft:
        save_file(state, draft, metadata={"format": "pt", **noted})
    return file


def load_objective(objective: nn.Module, file: str | Path) -> None:
    """Restore what `save_objective` wrote; nothing is changed unless all of it fits.

    Raises:
        ValueError: The file is missing, damaged, or of an objective with other settings.
    """
    file = Path(file)
    try:
        state = load_file(file)
    except (OSError, SafetensorError) as error:
        raise _unreadable(file, error) from error
    expected = {name: _form(value) for name, value in _tensors(objective)}
    found = {name: _form(value) for name, value in state.items()}
    if expected != found:
        names = sorted(name for name in expected | found if expected.get(name) != found.get(name))
        details = ", ".join(
            f"{name}: {found.get(name, 'absent')} in the file, {expected.get(name, 'absent')} here"
            for name in names[:3]
        )
        raise ValueError(
            f"The objective state in {file} is of other settings ({details}). Make the objective "
            "and its bank with the sizes the checkpoint was written with."
        )
    try:
        objective.load_state_dict(state)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"The objective state in {file} is damaged ({error}).") from error


def check_model(model: nn.Module, file: str | Path) -> None:
    """Refuse a file of `save_objective` that was written with a model of other weights.

    Args:
        model: The model that is to go on with the bank.
        file: The file; one that notes no model goes with any.

    Raises:
        ValueError: Another model; the file is missing or damaged.
    """
    try:
        with safe_open(file, framework="pt") as stored:
            noted = (stored.metadata() or {}).get(_MODEL)
    except (OSError, SafetensorError) as error:
        raise _unreadable(Path(file), error) from error
    if noted is not None and noted != weights_digest(model):
        raise ValueError(
            f"The bank in {file} belongs to a model of other weights than the one that was loaded. "
            "Keep the two files of a checkpoint together: resume from the folder this file is in, "
            "or put the file of the model's checkpoint here."
        )


def _unreadable(file: Path, error: Exception) -> ValueError:
    return ValueError(
        f"The checkpoint has no readable objective state ({file}: {error}). It was not written "
        "by GraphGuidedTrainer with an objective, or is damaged."
    )


def _form(value: Tensor) -> str:
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"


def _tensors(objective: nn.Module) -> list[tuple[str, Tensor]]:
    return list(objective.state_dict().items())
