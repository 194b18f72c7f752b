"""Several processes that train together: how many, which one writes, what they tell each other.

Nothing here imports torch before it is needed: a command asks who it is before it does anything.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from gloss_graph._internal.checks import check_seed

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

# Spreads the splits of the processes of one step far apart.
_STRIDE = 1_000_003


def joined() -> bool:
    """Whether this process is in a process group."""
    # Absent from builds of torch without it, and while torch is being imported.
    ask = getattr(_distributed(), "is_initialized", None)
    return ask is not None and ask()


def world_size() -> int:
    """Number of processes that train together, 1 without `torch.distributed`."""
    return _distributed().get_world_size() if joined() else 1


def launched() -> int:
    """Number of processes a launcher (torchrun, accelerate) started, 1 without one."""
    return world_size() if joined() else max(1, _number("WORLD_SIZE", 1))


def rank() -> int:
    """Number of this process, also before the processes joined."""
    if joined():
        return _distributed().get_rank()
    return _number("RANK", 0) if launched() > 1 else 0


def local_rank() -> int:
    """Number of this process among those of its machine."""
    return _number("LOCAL_RANK", 0) if launched() > 1 else 0


def is_main() -> bool:
    """Whether this process is the one that writes files and prints."""
    return rank() == 0


def leave_processes() -> None:
    """Leave the process group, if there is one, at the end of a program."""
    if joined():
        _distributed().destroy_process_group()


def wait_for_all() -> None:
    """Return when every process has come here."""
    if world_size() > 1:
        _distributed().barrier()


def _distributed() -> Any:
    """`torch.distributed` if it is imported; before that no process has joined a group."""
    return sys.modules.get("torch.distributed")


def _number(name: str, default: int) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdigit() else default


def any_process(flag: bool, device: torch.device | str = "cpu") -> bool:
    """Whether `flag` holds on any process; every process must ask, `device` is its backend's."""
    if world_size() == 1:
        return flag
    import torch

    found = torch.tensor([int(flag)], device=device)
    torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX)
    return bool(found)


def gather_rows(rows: Tensor) -> Tensor:
    """Rows (B_r, ...) of all processes in rank order, (B, ...), without gradient.

    Only the first size may differ between processes; it may be 0.
    """
    count = world_size()
    if count == 1:
        return rows
    import torch

    rows = rows.detach()
    mine = torch.tensor([rows.size(0)], device=rows.device)
    sizes = [torch.zeros_like(mine) for _ in range(count)]
    torch.distributed.all_gather(sizes, mine)
    longest = int(torch.cat(sizes).max())
    if longest == 0:
        return rows
    padded = rows.new_zeros((longest, *rows.shape[1:]))
    padded[: rows.size(0)] = rows
    parts = [torch.zeros_like(padded) for _ in range(count)]
    torch.distributed.all_gather(parts, padded)
    return torch.cat([part[: int(size)] for part, size in zip(parts, sizes, strict=True)])


def mean_over_processes(value: Tensor) -> Tensor:
    """Mean of a tensor over the processes, equal on all of them; itself with one process."""
    if world_size() == 1:
        return value
    # Gathered and not reduced: the order of the sum, so its rounding, is the same everywhere.
    return gather_rows(value.detach().unsqueeze(0)).mean(dim=0)


def share_state(module: nn.Module) -> None:
    """Give every process the weights, buffers and generators of process 0, before a training.

    Banks that each process filled by itself may differ in the last bit.
    """
    import torch

    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"'module' must be a torch.nn.Module (got {type(module).__name__}).")
    if world_size() == 1:
        return
    device = None
    for tensor in (*module.parameters(), *module.buffers()):
        torch.distributed.broadcast(tensor.detach(), src=0)
        device = tensor.device
    for part in module.modules():
        forget_derived = getattr(part, "forget_derived", None)
        if forget_derived is not None:
            forget_derived()
        generator = getattr(part, "generator", None)
        if isinstance(generator, torch.Generator):
            state = generator.get_state().to(device or "cpu")
            torch.distributed.broadcast(state, src=0)
            generator.set_state(state.cpu())


def own_rows(count: int, device: torch.device) -> Tensor:
    """Which of the gathered rows (B,) bool are the `count` ones of this process."""
    import torch

    return gather_rows(torch.full((count,), rank(), device=device)) == rank()


def share_of_mean(count: int, device: torch.device) -> float:
    """Factor that makes a mean over `count` rows here, averaged over processes, one of all rows."""
    if world_size() == 1:
        return 1.0
    import torch

    mean = float(mean_over_processes(torch.tensor(float(count), device=device)))
    return count / mean if mean else 1.0


def cpu_generator(generator: torch.Generator | None, seed: int) -> torch.Generator:
    """`generator`, which must be one of the CPU, or one made from `seed`."""
    import torch

    check_seed("seed", seed)
    if generator is None:
        return torch.Generator().manual_seed(seed)
    if not isinstance(generator, torch.Generator):
        raise TypeError(
            f"'generator' must be a torch.Generator (got {type(generator).__name__}). Or pass "
            "'seed'."
        )
    if generator.device.type != "cpu":
        raise ValueError("'generator' must be a CPU generator.")
    return generator


def step_generator(generator: torch.Generator, training: bool) -> torch.Generator:
    """The source of a step's random splits; outside of training the state does not change.

    With one process `generator` itself. With several, each draws one number from it per step, so
    that its state stays equal on all of them, and gets a generator made from that and its rank.
    """
    import torch

    if not training:
        copy = torch.Generator()
        copy.set_state(generator.get_state())
        generator = copy
    if world_size() == 1:
        return generator
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.Generator().manual_seed((seed + _STRIDE * rank()) % 2**63)
