"""The model card of a run folder: what it was made from, how well it does, how to load it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

_HEADS = {"test": "linear head", "test_propagation": "propagation over the bank"}
_SCORES = {"accuracy": "accuracy", "macro_f1": "macro-F1"}
# Settings that say what the training did; `config.json` has them all.
_SHOWN = (
    "loss",
    "mode",
    "max_steps",
    "epochs",
    "warm_start_steps",
    "graph_start_steps",
    "learning_rate",
    "batch_size",
    "k",
    "bandwidth",
    "rule",
    "graph_weight",
    "freeze_layers",
    "lora_rank",
    "label_fraction",
    "labels_per_class",
    "seed",
)


def model_card(
    settings: Mapping[str, Any],
    metrics: Mapping[str, float],
    labels_per_class: Mapping[str, int],
    *,
    license: str = "unknown",
) -> str:
    """The card as Markdown with Hugging Face metadata.

    Args:
        settings: Content of `config.json`.
        metrics: Content of `metrics.json`.
        labels_per_class: Class name -> number of labeled training documents.
        license: Identifier of a license as the Hugging Face hub knows them.
    """
    data = settings["data"]
    name = data["name"] or "unnamed corpus"
    encoder = str(settings.get("encoder_name") or "")
    results = [
        EvalResult(
            task_type="text-classification",
            task_name=f"Text classification, {head}",
            dataset_type="text-classification",
            dataset_name=name,
            dataset_split="test",
            metric_type=score,
            metric_name=title,
            metric_value=round(metrics[f"{part}.{score}"], 4),
        )
        for part, head in _HEADS.items()
        for score, title in _SCORES.items()
        if f"{part}.{score}" in metrics
    ]
    on_hub = encoder.count("/") == 1 and not encoder.startswith(("/", ".", "~"))
    header = ModelCardData(
        license=license,
        library_name="gloss-graph",
        tags=["gloss-graph", "text-classification", "label-propagation", "few-shot"],
        pipeline_tag="text-classification",
        base_model=encoder if on_hub else None,
        model_name=f"gloss-graph {settings['loss']} on {name}",
        eval_results=results or None,
    )
    lines = ["---", header.to_yaml(), "---", "", f"# {header.model_name}", ""]
    lines += [
        f"A text classifier with {len(data['classes'])} classes, fine-tuned by "
        "[gloss_graph](https://github.com/gloss-graph/gloss-graph) on a graph of its corpus.",
        "",
        "```python",
        "from gloss_graph import GraphGuidedClassifier",
        "",
        'model = GraphGuidedClassifier.load("FOLDER")',
        'model.predict(["a new document"])',
        "```",
        "",
        "## Data",
        "",
        f"- Documents: {data.get('train', 0)} for training, "
        f"{data.get('val', 0)} for validation, {data.get('test', 0)} for testing.",
        f"- Labels used: {sum(labels_per_class.values())} ({_draw(settings)}).",
        f"- Digest of the documents: `{data.get('digest', 'not recorded')}`.",
        "",
        *_table(("class", "labels"), [(k, str(v)) for k, v in labels_per_class.items()]),
    ]
    if results:
        lines += ["", "## Scores", ""]
        rows = [
            (head, *(f"{metrics[f'{part}.{score}']:.1%}" for score in _SCORES))
            for part, head in _HEADS.items()
            if all(f"{part}.{score}" in metrics for score in _SCORES)
        ]
        lines += _table(("head, on the test documents", *_SCORES.values()), rows)
    lines += ["", "## Settings", ""]
    lines += _table(
        ("setting", "value"),
        [
            ("encoder", encoder or str(settings.get("encoder", ""))),
        ]
        + [(key, str(settings[key])) for key in _SHOWN if settings.get(key) is not None],
    )
    versions = settings.get("versions", {})
    lines += ["", f"Versions: {', '.join(f'{k} {v}' for k, v in versions.items() if v)}.", ""]
    return "\n".join(lines)


def _draw(settings: Mapping[str, Any]) -> str:
    if settings.get("label_fraction") is not None:
        return f"a draw of {settings['label_fraction']:.1%} by seed {settings['seed']}"
    if settings.get("labels_per_class") is not None:
        return f"{settings['labels_per_class']} per class, drawn by seed {settings['seed']}"
    return "all that the files have"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    cells = [head, ("---",) * len(head), *rows]
    return ["| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in cells]
