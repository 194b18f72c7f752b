"""`gloss-graph train`: its options, one for every setting of a training; `train` does it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer


def path(value: str | os.PathLike[str]) -> Path:
    """The path that was typed; `~` is the home folder, also in `--out=~/x`, which shells keep."""
    return Path(os.path.expanduser(value))


def path_option(*names: str, **settings: Any) -> Any:
    """The type of every option that takes a path; arguments as of `typer.Option`."""
    return typer.Option(*names, parser=path, **settings)


# Options that `train` and `tune` share.
Loss = Annotated[
    str,
    typer.Option(
        help="ce, gloss, gloss-published, gloss-released, scl, triplet, cosine, xbm-scl, "
        "static-lp, pseudo-label or setfit."
    ),
]
Unlabeled = Annotated[Path | None, path_option(help="File of documents without labels.")]
LabelFraction = Annotated[
    float | None, typer.Option(help="Use this share of the labels, a seeded draw.")
]
LabelsPerClass = Annotated[
    int | None, typer.Option(help="Use this many labels a class, a seeded draw.")
]
TextColumn = Annotated[str, typer.Option(help="Column of the texts.")]
LabelColumn = Annotated[str, typer.Option(help="Column of the labels.")]
SecondTexts = Annotated[str | None, typer.Option(help="Column of second texts, for pairs.")]
Pooling = Annotated[str | None, typer.Option(help="cls, mean or last.")]
MaxLength = Annotated[int, typer.Option(min=1, help="Tokens kept of a document.")]
Epochs = Annotated[float, typer.Option(help="Passes over the training file.")]
EvalSteps = Annotated[int | None, typer.Option(help="Steps between evaluations.")]
BatchSize = Annotated[int, typer.Option(help="Documents a step.")]


def train(
    context: typer.Context,
    train: Annotated[Path, path_option(help="CSV, TSV, JSONL or Parquet (also .gz).")],
    out: Annotated[Path, path_option(help="New or empty run folder.")],
    val: Annotated[
        Path | None, path_option(help="Validation file; else 10 % of train, none with few labels.")
    ] = None,
    test: Annotated[Path | None, path_option(help="Test file.")] = None,
    encoder: Annotated[
        str, typer.Option(help="minilm, a hub id, a folder, or none for --features.")
    ] = "minilm",
    features: Annotated[
        Path | None,
        path_option(help="npy, pt, safetensors or Parquet: rows of train, val, test, unlabeled."),
    ] = None,
    loss: Loss = "gloss",
    mode: Annotated[
        str, typer.Option(help="integrated: with cross-entropy; standalone: then a linear probe.")
    ] = "integrated",
    unlabeled: Unlabeled = None,
    label_fraction: LabelFraction = None,
    labels_per_class: LabelsPerClass = None,
    text: TextColumn = "text",
    label: LabelColumn = "label",
    text_b: SecondTexts = None,
    multilabel: Annotated[
        bool, typer.Option(help="Several labels a document, joined by --separator or in lists.")
    ] = False,
    separator: Annotated[str, typer.Option(help="Between the labels of a document.")] = ";",
    pooling: Pooling = None,
    max_length: MaxLength = 128,
    epochs: Epochs = 3.0,
    max_steps: Annotated[
        int | None, typer.Option(help="Steps, overriding epochs; 0: fit the head only.")
    ] = None,
    eval_steps: EvalSteps = None,
    patience: Annotated[int, typer.Option(help="Evaluations without gain to stop at.")] = 10,
    batch_size: BatchSize = 32,
    eval_batch_size: Annotated[int, typer.Option(help="Documents a step of evaluation.")] = 64,
    gradient_accumulation: Annotated[int, typer.Option(help="Micro-batches a step.")] = 1,
    learning_rate: Annotated[
        float,
        typer.Option(help="Of the encoder; 1e-3 for features if not given; about 1e-3 for LoRA."),
    ] = 5e-5,
    head_learning_rate: Annotated[float, typer.Option(help="Of the linear head.")] = 5e-3,
    warmup: Annotated[float, typer.Option(help="Share of steps with rising rate.")] = 0.1,
    weight_decay: Annotated[float, typer.Option(help="Of AdamW.")] = 0.01,
    dropout: Annotated[float, typer.Option(help="On the embedding before the head.")] = 0.1,
    graph_weight: Annotated[float, typer.Option(help="λ, weight of the graph loss.")] = 0.3,
    temperature: Annotated[float, typer.Option(help="Of the contrastive losses.")] = 0.1,
    margin: Annotated[float, typer.Option(help="Of the triplet loss.")] = 0.2,
    visible_fraction: Annotated[float, typer.Option(help="γ, share of visible labels.")] = 0.5,
    memory_visible_fraction: Annotated[
        float, typer.Option(help="Share of the bank's labels a step shows.")
    ] = 1.0,
    ids: Annotated[
        bool, typer.Option(help="Keep documents from meeting their own past copy.")
    ] = True,
    bandwidth: Annotated[str, typer.Option(help="σ: a number or rule name.")] = "sqrt",
    bandwidth_scale: Annotated[float, typer.Option(help="What σ is multiplied by.")] = 1.0,
    k: Annotated[int, typer.Option(help="Neighbours a document.")] = 16,
    eta: Annotated[float | None, typer.Option(help="Leak of the propagation.")] = None,
    rule: Annotated[str, typer.Option(help="harmonic, spreading or poisson.")] = "harmonic",
    normalization: Annotated[str, typer.Option(help="hub, row, symmetric or column.")] = "hub",
    memory_size: Annotated[
        int | None, typer.Option(help="Rows of the bank; else one a document.")
    ] = None,
    search: Annotated[
        str,
        typer.Option(help="Of the bank: exact, descent, ivf; auto: exact below 32,768 rows."),
    ] = "auto",
    hops: Annotated[
        int | None, typer.Option(help="Links from the batch a step looks along; else the bank.")
    ] = None,
    eviction: Annotated[
        str, typer.Option(help="Who leaves a full bank: fifo, stalest, class-balanced, reservoir.")
    ] = "fifo",
    half_life: Annotated[
        float | None, typer.Option(help="Steps in which a remembered row's edges lose half.")
    ] = None,
    memory_start: Annotated[
        int, typer.Option(help="Steps before remembered rows take part in a step's graph.")
    ] = 0,
    memory_ramp: Annotated[
        int, typer.Option(help="Steps in which the weight of their edges then rises.")
    ] = 0,
    restandardize: Annotated[
        bool, typer.Option(help="Move remembered rows to the batch's mean and spread.")
    ] = False,
    refresh_rows: Annotated[
        int, typer.Option(help="Stalest rows of the bank to encode again at a time; 0: none.")
    ] = 0,
    refresh_rows_every: Annotated[int, typer.Option(help="Steps between these times.")] = 10,
    unlabeled_batch_size: Annotated[int, typer.Option(help="Unlabeled documents a step.")] = 32,
    consistency_weight: Annotated[
        float, typer.Option(help="Weight of the unlabeled documents' term.")
    ] = 1.0,
    refresh_every: Annotated[
        int | None, typer.Option(help="Steps between solves over the bank; 0: every step's graph.")
    ] = None,
    anchor: Annotated[float, typer.Option(help="Share of the frozen similarity.")] = 0.5,
    align: Annotated[float, typer.Option(help="Power of the class-mass alignment.")] = 0.5,
    warm_start_steps: Annotated[
        int, typer.Option(help="Contrastive steps on the labels before training.")
    ] = 0,
    graph_start_steps: Annotated[
        int, typer.Option(help="Contrastive steps on the corpus, classes as the graph has them.")
    ] = 0,
    graph_start_classes: Annotated[
        str,
        typer.Option(help="Classes of these steps: auto, co-training, agreed or propagated."),
    ] = "auto",
    warm_start_rate: Annotated[
        float, typer.Option(help="Learning rate of the former; 1e-3 for features if not given.")
    ] = 2e-5,
    graph_start_rate: Annotated[
        float | None, typer.Option(help="Of the steps on the corpus; else twice as high.")
    ] = None,
    refit_head: Annotated[
        bool, typer.Option(help="Fit the linear head anew at the end, on what the graph says too.")
    ] = False,
    class_balance: Annotated[
        bool, typer.Option(help="Draw labeled documents with equal shares of the classes.")
    ] = False,
    freeze_layers: Annotated[int, typer.Option(help="First layers that are not trained.")] = 0,
    lora_rank: Annotated[int, typer.Option(help="Of low-rank adapters (LoRA); 0: none.")] = 0,
    lora_alpha: Annotated[float, typer.Option(help="Their scale, divided by the rank.")] = 16.0,
    lora_dropout: Annotated[float, typer.Option(help="On their input.")] = 0.1,
    lora_targets: Annotated[
        str | None, typer.Option(help="Adapted layers, as query,value or all-linear.")
    ] = None,
    teacher_decay: Annotated[
        float, typer.Option(help="Decay of a moving-average teacher; 0: none.")
    ] = 0.0,
    select: Annotated[
        str, typer.Option(help="best or last step; auto: last with few labels.")
    ] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the interrupted run in --out.")
    ] = False,
    save_steps: Annotated[
        int | None,
        typer.Option(help="Steps between checkpoints; else at every evaluation; 0: none."),
    ] = None,
    bf16: Annotated[bool, typer.Option(help="Encoder in bfloat16 autocast.")] = False,
    gradient_checkpointing: Annotated[bool, typer.Option(help="Trade time for memory.")] = False,
    pictures: Annotated[
        bool, typer.Option(help="Embed some documents before and during training, and draw them.")
    ] = True,
    model: Annotated[
        str,
        typer.Option(help="encoder; or text-gcn, bert-gcn: a graph of documents and their words."),
    ] = "encoder",
    window: Annotated[int, typer.Option(help="Words of a window (--model).")] = 20,
    min_count: Annotated[int, typer.Option(help="Rarer words are left out (--model).")] = 5,
    stop_words: Annotated[
        bool, typer.Option(help="Leave out English stop words (--model); not for short texts.")
    ] = True,
    cleaning: Annotated[
        str, typer.Option(help="Words (--model): unicode; or published, of ASCII letters alone.")
    ] = "unicode",
    hidden: Annotated[
        int | None, typer.Option(help="Width of the hidden graph layer (--model); else 200.")
    ] = None,
    gnn: Annotated[str, typer.Option(help="gcn or gat, of bert-gcn.")] = "gcn",
    fine_tune_epochs: Annotated[
        int, typer.Option(help="Of the encoder alone, before bert-gcn.")
    ] = 10,
    fine_tune_rate: Annotated[float, typer.Option(help="Their learning rate.")] = 1e-4,
) -> None:
    """Fine-tune an encoder on your own files and score it."""
    from gloss_graph.cli.models import refuse_model_options, run_model
    from gloss_graph.cli.train import run_train
    from gloss_graph.training import TrainConfig

    if model != "encoder":
        run_model(model, context)
        return
    refuse_model_options(context)
    config = TrainConfig(
        loss=loss,
        mode=mode,
        epochs=epochs,
        max_steps=max_steps,
        eval_steps=eval_steps,
        patience=patience,
        batch_size=batch_size,
        eval_batch_size=eval_batch_size,
        gradient_accumulation=gradient_accumulation,
        learning_rate=_rate(context, "learning_rate", features),
        head_learning_rate=head_learning_rate,
        warmup=warmup,
        weight_decay=weight_decay,
        dropout=dropout,
        graph_weight=graph_weight,
        temperature=temperature,
        margin=margin,
        visible_fraction=visible_fraction,
        memory_visible_fraction=memory_visible_fraction,
        ids=ids,
        bandwidth_scale=bandwidth_scale,
        bandwidth=number_or_name(bandwidth),
        k=k,
        eta=eta,
        rule=rule,
        normalization=normalization,
        memory_size=memory_size,
        search=search,
        hops=hops,
        eviction=eviction,
        half_life=half_life,
        memory_start=memory_start,
        memory_ramp=memory_ramp,
        restandardize=restandardize,
        refresh_rows=refresh_rows,
        refresh_rows_every=refresh_rows_every,
        label_fraction=label_fraction,
        labels_per_class=labels_per_class,
        unlabeled_batch_size=unlabeled_batch_size,
        consistency_weight=consistency_weight,
        refresh_every=refresh_every,
        anchor=anchor,
        align=align,
        warm_start_steps=warm_start_steps,
        graph_start_steps=graph_start_steps,
        graph_start_classes=graph_start_classes,
        warm_start_rate=_rate(context, "warm_start_rate", features),
        graph_start_rate=graph_start_rate,
        refit_head=refit_head,
        class_balance=class_balance,
        freeze_layers=freeze_layers,
        lora_rank=lora_rank,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        lora_targets=lora_targets,
        teacher_decay=teacher_decay,
        select=select,
        device=device,
        seed=seed,
        bf16=bf16,
        gradient_checkpointing=gradient_checkpointing,
        pictures=pictures,
    )
    columns = {"text": text, "label": label, "text_b": text_b}
    if multilabel:
        columns["separator"] = separator
    run_train(
        train,
        val,
        test,
        out,
        config,
        encoder_name=encoder,
        pooling=pooling,
        max_length=max_length,
        columns=columns,
        unlabeled=unlabeled,
        features=features,
        command=typed(context),
        resume=resume,
        save_steps=save_steps,
    )


def typed(context: typer.Context) -> list[str]:
    """The words of the command line, as `main` got them."""
    return ["gloss-graph", *(context.find_root().obj or [])]


def _rate(context: typer.Context, name: str, features: Path | None) -> float:
    """A learning rate as given; a new adapter wants larger steps than a pretrained encoder."""
    source = context.get_parameter_source(name)
    given = source is not None and source.name != "DEFAULT"
    return float(context.params[name]) if given or features is None else 1e-3


def number_or_name(value: str) -> float | str:
    """A number where the word is one, else the word: the name of a rule."""
    try:
        return float(value)
    except ValueError:
        return value
