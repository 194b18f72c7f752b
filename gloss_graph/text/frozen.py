"""Layers that are not trained, and their output, which is then computed once for a document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from gloss_graph._internal.eval_mode import evaluating

#: Most bytes of memory for the states of all documents. If they need more, none are kept.
MOST_BYTES = 1 << 30


def frozen_layers(model: nn.Module, count: int | None) -> list[nn.Module]:
    """The embedding layer of a transformer and its first `count` layers, None = half; 0 = none.

    Raises:
        ValueError: `count` exceeds the number of layers.
    """
    stacks = (m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m))
    layers = next(stacks, nn.ModuleList())
    if count is None:
        count = len(layers) // 2
    if count > (most := len(layers)):
        raise ValueError(f"'freeze_layers' must be at most {most}, the layers (got {count}).")
    if count == 0:
        return []
    whole = getattr(model, "embeddings", None)
    table: Any = getattr(model, "get_input_embeddings", None)
    return [whole if isinstance(whole, nn.Module) else table(), *layers[:count]]


class _Reached(Exception):
    """Ends a forward pass behind the last frozen layer."""


class FrozenStates:
    """Token states of documents behind the frozen layers, by the tokens of the document.

    `layers` are what `frozen_layers` found, `inputs` the arguments of the model.
    """

    def __init__(self) -> None:
        self._kept: dict[bytes, Tensor] = {}
        # Some models' layers return a tuple: the states, then a None for each output not asked for.
        self._rest: tuple[None, ...] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenStates:
        return self  # A copy of the model shares the states, which never change.

    @torch.no_grad()
    def keep(self, model: nn.Module, layers: list[nn.Module], inputs: Mapping[str, Any]) -> None:
        """Run the frozen layers on a batch, without dropout, and keep their output.

        Raises:
            ValueError: The layers hand on more than states.
        """
        caught: list[Any] = []

        def stop(_: nn.Module, __: Any, output: Any) -> None:
            caught.append(output)
            raise _Reached

        handle = layers[-1].register_forward_hook(stop)
        try:
            with evaluating(model), suppress(_Reached):
                model(**inputs)
        finally:
            handle.remove()
        states = caught[0]
        if isinstance(states, tuple):
            states, *rest = states
            if any(part is not None for part in rest):
                raise ValueError("its layers hand on more than states")
            self._rest = (None,) * len(rest)
        for row, (key, length) in enumerate(_documents(inputs)):
            self._kept[key] = states[row, :length].clone()

    @contextmanager
    def serving(self, layers: list[nn.Module], inputs: Mapping[str, Tensor]) -> Iterator[None]:
        """The model, called on a batch of kept documents, computes the other layers only.

        If one of the documents is new, it computes all layers.
        """
        rows = [self._kept.get(key) for key, _ in _documents(inputs)]
        known = [row for row in rows if row is not None]
        if len(known) < len(rows):
            yield
            return
        states = nn.utils.rnn.pad_sequence(known, batch_first=True)
        output = states if self._rest is None else (states, *self._rest)
        for layer in layers:
            layer.forward = lambda *_, **__: output
        # Embeddings are a tensor in every model.
        layers[0].forward = lambda *_, **__: states
        try:
            yield
        finally:
            for layer in layers:
                del layer.forward


def _documents(inputs: Mapping[str, Any]) -> Iterator[tuple[bytes, int]]:
    """Tokens and segments of every document as bytes, and its number of tokens."""
    parts = [x.cpu().numpy() for name, x in inputs.items() if name.endswith("_ids")]
    for row, length in enumerate(inputs["attention_mask"].sum(dim=1).tolist()):
        yield b"".join(part[row, :length].tobytes() for part in parts), length
