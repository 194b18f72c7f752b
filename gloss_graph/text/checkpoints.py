"""Hugging Face model folders, read safely and quietly."""

from __future__ import annotations

import hashlib
import inspect
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from gloss_graph._internal.checks import misfit
from gloss_graph._internal.extras import require

ENCODER_FILE = "encoder.json"
"""Marks the folder of a saved encoder."""

# The files of a model folder that decide its embeddings: weights, settings, vocabulary.
_KINDS = (".safetensors", ".json", ".txt", ".model")
# Weights a model may have beyond twice those in its files: small parts that are random at first.
_SPARE_WEIGHTS = 2**22


def read_checkpoint(
    name: str, *, revision: str = "main", local_files_only: bool = False
) -> tuple[nn.Module, Any]:
    """Read a Hugging Face model without its task head, float32 in eval mode, and its tokenizer.

    Weights are read from safetensors only and code that comes with a model is never run. A warning
    names weights that the checkpoint lacks.
    """
    require("transformers", extra="text")
    from transformers import AutoConfig, AutoModel

    name = _checked_name(name)
    where: dict[str, Any] = {"revision": revision, "local_files_only": local_files_only}
    with quiet_transformers():
        try:
            config = AutoConfig.from_pretrained(name, trust_remote_code=False, **where)
            _check_kernels(config)
            _check_size(Path(name), config)
            options = where | {"use_safetensors": True, "output_loading_info": True}
            options |= _without_pooling_layer(config)
            model, report = AutoModel.from_pretrained(
                name, config=config, trust_remote_code=False, **options
            )
        except Exception as error:  # The errors of damaged folders share no base.
            if "trust_remote_code" in str(error):
                raise _needs_code(name) from error
            rule = "be a model folder or a Hugging Face id that can be loaded"
            advice = "Check the spelling and the connection; weights must be in safetensors."
            raise misfit("name", rule, f"{name!r}: {reason_of(error)}", advice) from error
        tokenizer = _read_tokenizer(name, where)
    if missing := sorted(report["missing_keys"]):
        warnings.warn(
            f"{name!r} lacks {len(missing)} weights, which are random now: "
            f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}.",
            stacklevel=3,
        )
    return model.to(torch.float32).eval(), tokenizer


def reason_of(error: Exception) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hold back progress bars and load reports; the caller's settings are restored."""
    require("transformers", extra="text")
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


def folder_digest(folder: str | Path) -> str:
    """Sixteen hexadecimal digits of the files that decide the embeddings of a model folder."""
    folder = Path(folder)
    files = [*folder.glob("*"), *folder.glob("*_Pooling/*")]
    digest = hashlib.sha256()
    for file in sorted(file for file in files if file.suffix in _KINDS and file.is_file()):
        digest.update(f"{file.relative_to(folder)} {file.stat().st_size}\n".encode())
        _add_file(digest, file)
    return digest.hexdigest()[:16]


def file_digest(file: str | Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    _add_file(digest, Path(file))
    return digest.hexdigest()


def _add_file(digest: Any, file: Path) -> None:
    with file.open("rb") as content:
        while block := content.read(2**20):
            digest.update(block)


def _read_tokenizer(name: str, where: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer

    problem = "no tokenizer files"
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **where)
        # Without files transformers makes one up, to which every word is unknown.
        if not set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
            return tokenizer
    except Exception as error:  # The errors of damaged files share no base.
        if "trust_remote_code" in str(error):
            raise _needs_code(name) from error
        problem = reason_of(error)
    advice = "Write it there with tokenizer.save_pretrained."
    raise misfit("name", "be a model with its tokenizer", f"{name!r}: {problem}", advice)


def _needs_code(name: str) -> ValueError:
    """The error of a model that would have to run code of its folder."""
    paths = [Path(name, file) for file in ("config.json", "tokenizer_config.json")]
    files = [p.name for p in paths if p.is_file() and b'"auto_map"' in p.read_bytes()]
    where = f", named under 'auto_map' in its {' and '.join(files)}" if files else ""
    return ValueError(
        f"'name' must be a model that transformers knows (got {name!r}, which needs the code in "
        f"its folder{where}). Such code is never run here. Use another model, or load this one "
        "yourself for TextEncoder(model, tokenizer, pooling=...)."
    )


def _check_kernels(config: Any) -> None:
    """Refuse a configuration that asks for compiled code of a hub repository."""
    for key in ("_attn_implementation", "_experts_implementation"):
        wanted = str(getattr(config, key, None))
        if "/" in wanted:
            never = f"which is never run here: remove {key.removeprefix('_')!r}"
            raise ValueError(f"its config.json asks for the code of {wanted!r}, {never}")


def _check_size(folder: Path, config: Any) -> None:
    """Refuse a configuration of far more weights than a folder has: they would be random."""
    from transformers import AutoModel

    sizes: list[int] = []
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as stored:
            names = list(stored.keys())
            sizes += [math.prod(stored.get_slice(name).get_shape()) for name in names]
    if not sizes:
        return
    layers, total = getattr(config, "num_hidden_layers", 0), sum(sizes)
    if isinstance(layers, int) and layers > len(sizes):
        raise ValueError(f"its config.json has {layers:,} layers, its files {len(sizes):,} tensors")
    with torch.device("meta"):
        model = AutoModel.from_config(config, trust_remote_code=False)
    described = sum(value.numel() for value in model.state_dict().values())
    if described > 2 * total + _SPARE_WEIGHTS:
        raise ValueError(
            f"its config.json describes {described:,} weights, its files hold {total:,}"
        )


def _checked_name(name: str) -> str:
    """The name as Hugging Face takes it; a name that can only be a path must be a model folder."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            advice = "Name the folder that save_pretrained or TextEncoder.save wrote."
            raise misfit("name", "be a model folder with a config.json", folder, advice)
        return str(folder)
    if folder.exists() or folder.is_absolute() or name.startswith((".", "~")):
        advice = "Check the path."
        raise misfit("name", "be an existing model folder or a Hugging Face id", repr(name), advice)
    return name


def _without_pooling_layer(config: Any) -> dict[str, Any]:
    """The option that leaves out a layer without a gradient, which distributed training refuses."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    model_class = MODEL_MAPPING.get(type(config), None)
    if not inspect.isclass(model_class):  # unknown, or a choice of several classes
        return {}
    arguments = inspect.signature(model_class.__init__).parameters
    return {"add_pooling_layer": False} if "add_pooling_layer" in arguments else {}
