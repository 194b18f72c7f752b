"""The objective's state (bank, generator, weights) as one safetensors file."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gloss_graph._files import atomic_path


def save_objective(objective: nn.Module, file: str | Path) -> Path:
    """Write `objective.state_dict()` atomically.

    Args:
        objective: The objective, its bank included.
        file: Target; replaced if it exists.
    """
    file = Path(file)
    state = {name: value.detach().cpu().contiguous() for name, value in _tensors(objective)}
    with atomic_path(file, overwrite=True) as draft:
        save_file(state, draft, metadata={"format": "pt"})
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
        raise ValueError(
            f"The checkpoint has no readable objective state ({file}: {error}). It was not written "
            "by GraphGuidedTrainer with an objective, or is damaged."
        ) from error
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


def _form(value: Tensor) -> str:
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"


def _tensors(objective: nn.Module) -> list[tuple[str, Tensor]]:
    return list(objective.state_dict().items())
