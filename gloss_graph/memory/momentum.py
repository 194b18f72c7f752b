"""An encoder that follows another one slowly, so that rows it wrote stay comparable for longer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gloss_graph._internal.checks import check_range
from gloss_graph.memory.storage import check_entries, check_keys


class _Ema:
    """torch's moving average, which is a closure, in a form that can be pickled."""

    def __init__(self, momentum: float) -> None:
        self._momentum = momentum

    def __call__(self, *args: Any) -> None:
        get_ema_multi_avg_fn(self._momentum)(*args)


class MomentumEncoder(nn.Module):
    r"""A copy of an encoder that follows it slowly.

    \(\bar\theta \leftarrow m \bar\theta + (1 - m) \theta\) (He et al., 2020, arXiv 1911.05722).
    Its embeddings drift 1 / (1 - m) times slower than those of the encoder, so rows that it wrote
    into a bank stay comparable for longer. Call it for the objective's `target_embeddings` and
    `update()` after every step of the optimizer. Parameters are averaged, buffers copied; it is
    always in eval mode and takes no gradient.

    Args:
        module: The encoder that is trained. It is not part of this module: `state_dict()` holds
            the copy alone.
        momentum: m in [0, 1).

    Raises:
        TypeError: Not a module.
        ValueError: `momentum` out of range.

    Example:
        >>> import torch
        >>> encoder = torch.nn.Linear(2, 2, bias=False)
        >>> slow = MomentumEncoder(encoder, momentum=0.5)
        >>> before = encoder.weight.detach().clone()
        >>> _ = torch.nn.init.zeros_(encoder.weight)
        >>> slow.update()
        >>> torch.equal(slow(torch.eye(2)).T, before / 2)
        True
    """

    _source: nn.Module

    def __init__(self, module: nn.Module, momentum: float = 0.999) -> None:
        super().__init__()
        if not isinstance(module, nn.Module):
            raise TypeError(f"'module' must be a torch.nn.Module (got {type(module).__name__}).")
        check_range("momentum", momentum, 0.0, 1.0, open_high=True)
        self.momentum = float(momentum)
        # Past nn.Module, which would take the encoder in as a part.
        object.__setattr__(self, "_source", module)
        average = AveragedModel(module, multi_avg_fn=_Ema(self.momentum))
        self.average = average.requires_grad_(False)
        # Its first call copies; an average that starts at the encoder begins with the second.
        self.average.update_parameters(module)
        self.eval()

    def extra_repr(self) -> str:
        """The momentum."""
        return f"momentum={self.momentum}"

    def train(self, mode: bool = True) -> MomentumEncoder:
        """Stays in eval mode whatever `mode` is."""
        del mode
        return super().train(False)

    @torch.no_grad()
    def update(self) -> None:
        """Move toward the current encoder.

        Raises:
            ValueError: The encoder has other weights than when it was copied; nothing is changed.
        """
        forms = [
            {n: tuple(x.shape) for n, x in (*m.named_parameters(), *m.named_buffers())}
            for m in (self.average.module, self._source)
        ]
        for name in sorted(forms[0].keys() | forms[1].keys()):
            was, now = (form.get(name) for form in forms)
            if was != now:
                raise ValueError(
                    f"'module' must keep the shapes it was copied with ('{name}' was {was}, is "
                    f"{now}). Make a new MomentumEncoder."
                )
        self.average.update_parameters(self._source)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As `torch.nn.Module.load_state_dict`, but checked first: if it raises nothing changed.

        Raises:
            RuntimeError: Entries are missing or foreign.
            ValueError: Another shape or kind of dtype.
        """
        if strict:
            check_keys(self, state_dict.keys())
        check_entries(self.state_dict(), state_dict)
        return super().load_state_dict(state_dict, strict, assign)

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The output of the copy for the inputs, without gradient."""
        return self.average(*args, **kwargs)
