"""Where a result came from: versions, commit, digests, and the model card that tells it."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, PackageLoader
from torch import nn

from gloss_graph.text import Corpus

_PACKAGES = ("gloss-graph", "torch", "torch-geometric", "transformers", "faiss-cpu", "numpy")
_HEADS = {"test": "linear head", "test_propagation": "propagation over the bank"}
_SCORES = {"accuracy": "accuracy", "macro_f1": "macro-F1"}
# Settings of the training on the card; `config.json` has them all.
_SHOWN = (
    *("loss", "mode", "max_steps", "epochs", "warm_start_steps", "graph_start_steps"),
    *("learning_rate", "batch_size", "k", "bandwidth", "rule", "graph_weight", "freeze_layers"),
    *("lora_rank", "label_fraction", "labels_per_class", "seed"),
)


def provenance() -> dict[str, object]:
    """Package versions, the git commit of the package's checkout if it is one, and the time."""
    versions: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    root, commit = Path(__file__).resolve().parents[2], None
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "rev-parse", "HEAD"]
        with suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
            commit = done.stdout.strip()
    return {
        "versions": versions,
        "python": platform.python_version(),
        "git_commit": commit,
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def documents_digest(parts: Iterable[Corpus | None]) -> str:
    """Sixteen hexadecimal digits of texts, labels, class names and features; a part may be None."""
    digest = hashlib.sha256()
    for part in parts:
        if part is None:
            continue
        content: list[Any] = [part.texts, part.texts_b, part.labels, part.label_names]
        if part.label_sets is not None:
            content.append(part.label_sets)
        digest.update(json.dumps(content).encode())
        if part.features is not None:
            digest.update(part.features.tobytes())
    return digest.hexdigest()[:16]


def weights_digest(model: nn.Module) -> str:
    """Sixteen hexadecimal digits of the parameters and buffers of a model."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        content = value.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(content.numpy().tobytes())
    return digest.hexdigest()[:16]


def model_card(
    settings: Mapping[str, Any], metrics: Mapping[str, float], labels_per_class: Mapping[str, int]
) -> str:
    """The model card of a run as Markdown with Hugging Face metadata, from its JSON files."""
    name = settings["data"]["name"] or "unnamed corpus"
    encoder = str(settings.get("encoder_name") or "")
    kind, results = "text-classification", []
    for (part, head), (score, title) in product(_HEADS.items(), _SCORES.items()):
        if f"{part}.{score}" in metrics:
            told: dict[str, Any] = {"task_name": f"Text classification, {head}"}
            told |= {"dataset_split": "test", "metric_name": title}
            value = round(metrics[f"{part}.{score}"], 4)
            results.append(EvalResult(kind, kind, name, score, value, **told))
    on_hub = encoder.count("/") == 1 and not encoder.startswith(("/", ".", "~"))
    header = ModelCardData(
        license="unknown",
        library_name="gloss-graph",
        tags=["gloss-graph", "text-classification", "label-propagation", "few-shot"],
        pipeline_tag=kind,
        base_model=encoder if on_hub else None,
        model_name=f"gloss-graph {settings['loss']} on {name}",
        eval_results=results or None,
    )
    shown = {"encoder": encoder or settings.get("encoder", "")}
    shown |= {key: settings[key] for key in _SHOWN if settings.get(key) is not None}
    loader = PackageLoader("gloss_graph.runs", "")
    engine = Environment(trim_blocks=True, keep_trailing_newline=True, loader=loader)
    return engine.get_template("card.md.jinja").render(
        header=header,
        settings=settings,
        labels=labels_per_class,
        shown=shown,
        score_heads=("head, on the test documents", *_SCORES.values()),
        scores=[
            (head, *(f"{metrics[f'{part}.{score}']:.1%}" for score in _SCORES))
            for part, head in _HEADS.items()
            if all(f"{part}.{score}" in metrics for score in _SCORES)
        ],
    )
