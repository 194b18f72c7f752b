"""Model folders: reading them safely and quietly, writing them in one piece."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

#: Marks the folder of a saved encoder.
ENCODER_FILE = "encoder.json"

__all__ = ["ENCODER_FILE", "hub_file", "quiet_transformers", "read_checkpoint"]


def read_checkpoint(
    name: str, *, revision: str | None = None, local_files_only: bool = False
) -> tuple[nn.Module, Any]:
    """Read a Hugging Face model without its task head, and its tokenizer.

    Weights are read from safetensors only, so nothing in a checkpoint is executed, and converted
    to float32. An unused pooling layer is left out where the model class allows it: its
    parameters would never receive a gradient, which distributed training does not forgive.

    Args:
        name: A folder, or an id on the Hugging Face hub.
        revision: Branch, tag or commit of a hub id.
        local_files_only: Whether to use what was downloaded before and stay off the network.

    Returns:
        The model in eval mode and the tokenizer.

    Raises:
        ValueError: If the folder is missing or incomplete; if the id is unknown or cannot be
            reached; if there are no safetensors weights or no tokenizer, or the model is of an
            unknown type.

    Warns:
        UserWarning: If the checkpoint lacks weights of the model, which are random then.
    """
    from transformers import AutoConfig, AutoModel

    name = _checked_name(name)
    where: dict[str, Any] = {"revision": revision or "main", "local_files_only": local_files_only}
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(name, **where)
            tokenizer = _read_tokenizer(name, where)
            model, report = AutoModel.from_pretrained(
                name,
                config=config,
                use_safetensors=True,
                output_loading_info=True,
                **_without_pooling_layer(config),
                **where,
            )
    except _NoTokenizerError:
        raise
    except (OSError, ValueError, ImportError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"'name' must be a model folder or a Hugging Face id that can be loaded (got {name!r}: "
            f"{reason}). Check the spelling and the connection; weights must be in safetensors."
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        warnings.warn(
            f"{name!r} lacks {len(missing)} weights, which are random now: "
            f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}.",
            stacklevel=3,
        )
    return model.to(torch.float32).eval(), tokenizer


def hub_file(
    name: str, file: str, *, revision: str | None = None, local_files_only: bool = False
) -> Path | None:
    """The local path of one file of a model, fetched if need be; None if there is no such file."""
    from transformers.utils import cached_file

    try:
        path = cached_file(
            name, file, revision=revision or "main", local_files_only=local_files_only
        )
    except (OSError, ValueError):
        return None
    return None if path is None else Path(path)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hold back progress bars and load reports; the caller's settings are restored."""
    from transformers.utils import logging

    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


class _NoTokenizerError(ValueError):
    """Its message is complete."""


def _read_tokenizer(name: str, where: dict[str, Any]) -> Any:
    """The tokenizer of a model whose configuration could be read."""
    from transformers import AutoTokenizer

    problem = "no tokenizer files"
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **where)
        # What transformers makes up where there are no files: every word is unknown to it.
        if not set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
            return tokenizer
    except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
        problem = " ".join(str(error).split())[:200]
    raise _NoTokenizerError(
        f"'name' must be a model with its tokenizer (got {name!r}: {problem}). Write it there with "
        "tokenizer.save_pretrained."
    )


def _checked_name(name: str) -> str:
    """The name as Hugging Face takes it; what can only be a path must be a model folder."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ValueError(
                f"'name' must be a model folder with a config.json ({folder} has none). Name the "
                "folder that save_pretrained or TextEncoder.save wrote."
            )
        return str(folder)
    if folder.exists() or folder.is_absolute() or name.startswith((".", "~")):
        raise ValueError(
            f"'name' must be an existing model folder or a Hugging Face id (got {name!r}, which "
            "is no folder). Check the path."
        )
    return name


def _without_pooling_layer(config: Any) -> dict[str, Any]:
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    model_class = MODEL_MAPPING.get(type(config), None)
    if not inspect.isclass(model_class):  # unknown, or a choice of several classes
        return {}
    arguments = inspect.signature(model_class.__init__).parameters
    return {"add_pooling_layer": False} if "add_pooling_layer" in arguments else {}
