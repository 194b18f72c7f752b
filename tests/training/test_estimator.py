"""`GraphGuidedClassifier`: fit, predict, explain, save and load; what it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from processes import warm_context
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from text.tiny_models import build_model, build_tokenizer

from gloss_graph import GraphGuidedClassifier
from gloss_graph.runs import RunFolder
from gloss_graph.text import Corpus, FeatureEncoder, Splits, TextEncoder, load_encoder
from gloss_graph.training import TrainConfig, train_text

pytestmark = pytest.mark.filterwarnings("ignore:Graph skill")
SHORT = {"warm_start_steps": 2, "graph_start_steps": 2, "batch_size": 8}
TEXTS = ["graphs have nodes", "labels have classes", "edges join nodes", "classes have labels"] * 6
LABELS = ["graph", "label", "graph", "label", *[None] * 20]


def build_encoder(family: str) -> TextEncoder:
    return TextEncoder(build_model(family), build_tokenizer(family), pooling="mean")


def make(encoder: Any, **more: Any) -> GraphGuidedClassifier:
    more = {"settings": SHORT, "verbose": False, "max_length": 12, **more}
    return GraphGuidedClassifier(encoder, **more)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("encoder") / "tiny"
    return str(build_encoder("bert").save(folder))


@pytest.fixture(scope="module")
def fitted(encoder: str) -> GraphGuidedClassifier:
    return make(encoder).fit(TEXTS, LABELS, unlabeled=["more nodes", "more classes"])


def test_names_go_in_and_come_out(fitted: GraphGuidedClassifier) -> None:
    assert fitted.classes_.tolist() == ["graph", "label"]
    found = fitted.predict(TEXTS[:4])
    assert found.shape == (4,)
    assert set(found) <= {"graph", "label"}
    shares = fitted.predict_proba(np.array(TEXTS[:4], dtype=object))
    np.testing.assert_allclose(shares.sum(axis=1), 1.0, rtol=1e-5)
    assert 0.0 <= fitted.score(TEXTS[:4], LABELS[:4]) <= 1.0


def test_it_names_the_labeled_documents_that_decided(fitted: GraphGuidedClassifier) -> None:
    decision = fitted.explain(["graphs have edges"], top=2)[0]
    assert 1 <= len(decision.reasons) <= 2
    assert {reason.text for reason in decision.reasons} <= set(TEXTS[:4])
    assert {reason.label for reason in decision.reasons} <= {"graph", "label"}
    assert 0.0 < sum(reason.share for reason in decision.reasons) <= 1.0 + 1e-6


def predict_from(run: str, out: str) -> None:
    """Body of a process that has not trained."""
    torch.set_num_threads(1)
    model = GraphGuidedClassifier.load(run)
    assert model.classes_.tolist() == ["graph", "label"]
    np.save(out, model.predict_proba(TEXTS[:4]))


def test_another_process_gives_the_same_answers(
    fitted: GraphGuidedClassifier, tmp_path: Path
) -> None:
    run, out = str(fitted.save(tmp_path / "run")), tmp_path / "there.npy"
    process = warm_context().Process(target=predict_from, args=(run, str(out)))
    process.start()
    process.join(300)
    assert process.exitcode == 0
    np.testing.assert_array_equal(np.load(out), fitted.predict_proba(TEXTS[:4]))


def test_the_run_folder_has_a_model_card(fitted: GraphGuidedClassifier, tmp_path: Path) -> None:
    card = ModelCard.load(fitted.save(tmp_path / "run") / "README.md")
    assert card.data.library_name == "gloss-graph"
    assert card.data.license == "unknown"
    assert "| graph | 2 |" in card.text
    assert "Digest of the documents: `" in card.text


def test_numbers_stay_numbers(encoder: str) -> None:
    labels = [3, 7, 3, 7, *[-1] * 20]
    model = make(encoder).fit(TEXTS, labels)
    assert model.classes_.tolist() == [3, 7]
    assert model.predict(TEXTS[:2]).dtype.kind == "i"
    assert model.explain(TEXTS[5:6])[0].label in (3, 7)


def test_full_labels_and_label_sets(encoder: str) -> None:
    short = {"epochs": 1.0, "batch_size": 8}
    sets = [["a"], ["a", "b"], [], None] * 6
    model = make(encoder, settings=short).fit(TEXTS, sets)
    assert model.classes_.tolist() == ["a", "b"]
    assert model.predict(TEXTS[:3]).shape == (3, 2)
    matrix = make(encoder, settings=short).fit(TEXTS, np.eye(2)[[0, 1] * 12])
    assert matrix.classes_.tolist() == [0, 1]
    full = make(encoder, settings=short, head="propagation").fit(TEXTS, ["x", "y"] * 12)
    assert set(full.predict(TEXTS[:2])) <= {"x", "y"}


def test_features_and_modules(tmp_path: Path) -> None:
    X, y = load_digits(n_class=3, return_X_y=True)
    few = np.where(np.arange(y.size) < 30, y, -1)
    model = make("none").fit(X, few)
    assert model.on_features
    assert model.score(X[30:], y[30:]) > 0.8
    settings = RunFolder(model.save(tmp_path / "run")).settings()
    assert (settings["learning_rate"], settings["warm_start_rate"]) == (1e-3, 1e-3)
    # Rows have no text: a reason names the row.
    assert few[int(model.explain(X[40:41])[0].reasons[0].text)] >= 0
    torch.manual_seed(0)
    module = torch.nn.Linear(64, 16)
    other = make(module).fit(X, few)
    assert other.predict(X[:5]).shape == (5,)
    given = make(FeatureEncoder(64)).fit(X, few)
    assert given.predict(X[:5]).shape == (5,)


def test_rows_of_zeros_say_nothing_and_break_nothing() -> None:
    labels = ["one", "other"] * 4 + [None] * 12
    model = make("none", settings={"graph_start_steps": 2}).fit(np.zeros((20, 4)), labels)
    assert np.allclose(model.predict_proba(np.zeros((3, 4))), 0.5, atol=1e-3)


def test_an_encoder_in_memory_is_kept_with_the_run(tmp_path: Path) -> None:
    tiny = build_encoder("bert")
    assert isinstance(tiny, TextEncoder)
    model = make(tiny).fit(TEXTS, LABELS)
    folder = model.save(tmp_path / "run")
    loaded = GraphGuidedClassifier.load(folder, head="propagation")
    assert (loaded.predict(TEXTS) == GraphGuidedClassifier.load(folder).predict(TEXTS)).size
    assert loaded.explain(TEXTS[:1])[0].reasons


def test_a_pushed_model_is_the_one_that_is_loaded(
    fitted: GraphGuidedClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub is a folder here; what is sent and read back is real."""
    hub = tmp_path / "hub"

    class Api:
        def __init__(self, **_: Any) -> None:
            pass

        def create_repo(self, repo_id: str, **_: Any) -> Any:
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, *, folder_path: Path, **_: Any) -> str:
            shutil.copytree(folder_path, hub)
            return "sent"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    assert fitted.push_to_hub("somebody/topics") == "sent"
    assert (hub / "README.md").is_file()
    monkeypatch.setattr(
        "huggingface_hub.hub_mixin.hf_hub_download", lambda filename, **_: str(hub / filename)
    )
    monkeypatch.setattr(
        "gloss_graph.training.estimator.snapshot_download", lambda *_, **__: str(hub)
    )
    loaded = GraphGuidedClassifier.from_pretrained("somebody/topics")
    np.testing.assert_array_equal(loaded.predict_proba(TEXTS[:4]), fitted.predict_proba(TEXTS[:4]))


def test_series_with_another_index_and_generators(
    fitted: GraphGuidedClassifier, encoder: str
) -> None:
    pd = pytest.importorskip("pandas")
    index = range(100, 100 - len(TEXTS), -1)
    texts, labels = pd.Series(TEXTS, index=index), pd.Series(LABELS, index=index[::-1])
    same = make(encoder).fit(texts, labels, unlabeled=["more nodes", "more classes"])
    expected = fitted.predict_proba(TEXTS[:4])
    np.testing.assert_array_equal(same.predict_proba(TEXTS[:4]), expected)
    np.testing.assert_array_equal(fitted.predict_proba(text for text in TEXTS[:4]), expected)


def test_before_fit_it_says_so(encoder: str, tmp_path: Path) -> None:
    for call in ("predict", "predict_proba", "explain"):
        with pytest.raises(NotFittedError, match="Call fit first"):
            getattr(make(encoder), call)(["a"])
    with pytest.raises(NotFittedError):
        make(encoder).save(tmp_path / "run")


@pytest.mark.parametrize(
    ("texts", "labels", "error", "message"),
    [
        ("one text", ["a"], TypeError, "list of texts"),
        (["a", None], ["x", "y"], TypeError, "NoneType at position 1"),
        (["a", b"b"], ["x", "y"], TypeError, "bytes at position 1"),
        (["a", 3], ["x", "y"], TypeError, "int at position 1"),
        ([], [], ValueError, "documents"),
        (["a", "b"], ["x"], ValueError, "one per text"),
        (["a", "b"], ["x", "x"], ValueError, "at least two classes"),
        (["a", "b"], [None, None], ValueError, "no label"),
        (["a", "b"], ["x", 1], ValueError, "mixes names and numbers"),
    ],
)
def test_bad_input_is_named(
    encoder: str, texts: Any, labels: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make(encoder).fit(texts, labels)


def test_bad_features_are_named(encoder: str) -> None:
    X = np.ones((4, 3))
    with pytest.raises(ValueError, match=r"rows of numbers \(N, D\)"):
        make("none").fit(["a", "b"], [0, 1])
    X[1, 1] = np.nan
    with pytest.raises(ValueError, match="row 1 is not"):
        make("none").fit(X, [0, 1, 0, 1])
    with pytest.raises(ValueError, match="'recipe'"):
        make(encoder, recipe="fast")


def test_a_card_is_written_for_files_of_any_name(encoder: str, tmp_path: Path) -> None:
    """An old archive has names that are not UTF-8."""
    corpus = Corpus(TEXTS, [0, 1, 0, 1, *[-1] * 20], list(range(24)), ["a", "b"], name="tr\udce9")
    config = TrainConfig(loss="gloss", max_steps=0, pictures=False, warm_start_steps=1)
    train_text(Splits(corpus), load_encoder(encoder), config, tmp_path / "run")
    assert "on tr?" in (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
