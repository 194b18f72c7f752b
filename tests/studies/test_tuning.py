"""A search for settings: what it leaves behind, resumes, shares, stops early and refuses."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from training.tiny import quick, tiny_corpus, tiny_encoder, tiny_splits

from gloss_graph._internal.settings import Choice, Range
from gloss_graph.studies import TuneResult, tune_text, tuning
from gloss_graph.text import Splits, TextEncoder, load_encoder
from gloss_graph.training import TrainConfig, train_text

optuna = pytest.importorskip("optuna", reason="the extra 'tune' is not installed")
sqlalchemy = pytest.importorskip("sqlalchemy")

SPACE = {
    "learning_rate": Range(1e-5, 5e-3, log=True),
    "dropout": Range(0.0, 0.4, step=0.1),
    "class_balance": Choice([True, False]),
}


def brief(**settings: Any) -> TrainConfig:
    """The shortest training there is."""
    return quick(**{"loss": "ce", "max_steps": 2, "eval_steps": 2, **settings})


def tuned(out: Path, trials: int, **options: Any) -> TuneResult:
    config = options.pop("config", None) or brief()
    splits = options.pop("splits", None) or tiny_splits()
    factory = options.pop("encoder_factory", tiny_encoder)
    options = {"space": SPACE, "trials": trials, **options}
    return tune_text(splits, factory, config, out, **options)


def tried(result: TuneResult) -> pd.DataFrame:
    return result.trials[["number", "state", "value", *SPACE]]


@pytest.fixture
def instant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings that take no time: a score that depends on the settings, where that is enough."""

    def train(splits: Splits, encoder: Any, config: TrainConfig, out: Path, **_: Any) -> Any:
        score = config.dropout + 0.1 * config.class_balance - abs(config.learning_rate - 1e-3)
        return SimpleNamespace(metrics={"val.macro_f1": score, "steps": 1.0})

    monkeypatch.setattr("gloss_graph.studies.tuning.train_text", train)
    # What is collected between trials is the models of real ones.
    monkeypatch.setattr("gc.collect", lambda *_: 0)


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TuneResult]:
    """Three trials in one go."""
    out = tmp_path_factory.mktemp("search") / "tune"
    return out, tuned(out, 3)


def test_a_search_leaves_settings_and_metrics_alone(search: tuple[Path, TuneResult]) -> None:
    out, result = search
    assert {path.name for path in out.iterdir()} == {
        "best.json",
        "study.db",
        "study.json",
        "trials.csv",
    }
    table = pd.read_csv(out / "trials.csv")
    assert table["number"].tolist() == [0, 1, 2]
    assert set(table["state"]) == {"complete"}
    assert table["learning_rate"].between(1e-5, 5e-3).all()
    assert table["learning_rate"].nunique() == 3
    assert set((10 * table["dropout"]).round(9)) <= {0, 1, 2, 3, 4}
    assert table["value"].tolist() == table["val.macro_f1"].tolist()
    assert {"steps", "seconds", "worker", "error", "val_propagation.macro_f1"} < set(table)
    assert not [name for name in table if name.startswith("test")]
    assert result.value == table["value"].max()
    assert result.number == table["value"].idxmax()


def test_the_best_settings_are_usable_and_give_the_same_score(
    search: tuple[Path, TuneResult], tmp_path: Path
) -> None:
    out, result = search
    best = json.loads((out / "best.json").read_text())
    assert TrainConfig(**best["config"]) == result.config
    assert best["params"] == result.params == {name: best["config"][name] for name in SPACE}
    assert (best["trial"], best["value"]) == (result.number, result.value)
    again = train_text(tiny_splits(), tiny_encoder(), result.config, tmp_path / "run")
    assert again.metrics["val.macro_f1"] == result.value


@pytest.mark.usefixtures("instant")
def test_interruptions_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the sampler has begun to learn, every trial is what it would have been."""
    random = tried(tuned(tmp_path / "random", 5))
    monkeypatch.setattr("gloss_graph.studies.engine._RANDOM_TRIALS", 2)
    learned = tried(tuned(tmp_path / "learned", 5))
    assert learned.head(2).equals(random.head(2))
    assert not learned.equals(random)
    for trials in (1, 4, 5):
        assert tried(tuned(tmp_path / "b", trials)).equals(learned.head(trials))
    other = tried(tuned(tmp_path / "c", 2, seed=1))
    assert not other.equals(random.head(2))


def test_a_finished_search_runs_no_trial(
    search: tuple[Path, TuneResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, whole = search
    monkeypatch.setattr("gloss_graph.studies.tuning.train_text", None)
    assert tried(tuned(out, 3)).equals(tried(whole))
    assert tried(tuned(out, 2)).equals(tried(whole))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"config": brief(max_steps=3)}, "max_steps: 2 there, 3 here"),
        ({"config": brief(seed=7), "seed": 0}, "seed: 0 there, 7 here"),
        ({"space": {**SPACE, "dropout": Range(0.0, 0.2)}}, "dropout: "),
        ({"space": {"dropout": SPACE["dropout"]}}, "class_balance: .* there, absent here"),
        ({"metric": "val.accuracy"}, "metric: val.macro_f1 there, val.accuracy here"),
        ({"splits": tiny_splits(seed=5)}, "documents: "),
        ({"encoder_factory": lambda: tiny_encoder("roberta")}, "encoder: "),
    ],
)
def test_a_study_is_not_mixed_with_another(
    search: tuple[Path, TuneResult], options: dict[str, Any], message: str
) -> None:
    out, _ = search
    with pytest.raises(ValueError, match=f"begun with other settings .*{message}"):
        tuned(out, 5, **options)
    assert len(tuned(out, 3).trials) == 3


def test_a_study_is_not_gone_on_with_by_another_model_of_the_same_folder(
    instant: None, tmp_path: Path
) -> None:
    """Of the same shape, so that nothing but its weights tells it apart."""
    encoder, folder = tiny_encoder(), tmp_path / "model"
    encoder.save(folder)

    def load() -> TextEncoder:
        return load_encoder(str(folder), max_length=encoder.max_length)

    tuned(tmp_path / "tune", 1, encoder_factory=load)
    assert len(tuned(tmp_path / "tune", 2, encoder_factory=load).trials) == 2
    with torch.no_grad():
        next(encoder.parameters()).add_(1.0)
    encoder.save(folder)
    with pytest.raises(ValueError, match=r"begun with other settings .*files: "):
        tuned(tmp_path / "tune", 3, encoder_factory=load)


def test_no_trial_sees_the_test_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Splits] = []

    def watched(splits: Splits, *args: Any, **options: Any) -> Any:
        seen.append(splits)
        return train_text(splits, *args, **options)

    monkeypatch.setattr("gloss_graph.studies.tuning.train_text", watched)
    splits = tiny_splits()
    assert splits.test is not None
    tuned(tmp_path / "run", 1, splits=splits)
    assert [(parts.test, parts.val) for parts in seen] == [(None, splits.val)]


def test_run_folders_are_kept_where_wanted(tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = tuned(out, 2, keep_runs=True)
    for number in (0, 1):
        metrics = json.loads((out / "trials" / f"000{number}" / "metrics.json").read_text())
        assert metrics["val.macro_f1"] == result.trials["value"][number]


def test_documents_without_label_share_their_frozen_embeddings(tmp_path: Path) -> None:
    """They are made once, and a trial scores as a run that makes its own."""
    config = brief(loss="gloss", labels_per_class=4, select="last", unlabeled_batch_size=4)
    space = {"anchor": Choice([0.5, 0.9])}
    result = tuned(tmp_path / "tune", 1, config=config, space=space)
    again = train_text(tiny_splits(), tiny_encoder(), result.config, tmp_path / "run")
    for name in ("val.macro_f1", "val_propagation.macro_f1", "graph_skill.accuracy"):
        assert again.metrics[name] == result.trials[name][0]


# ------------------------------------------------------------------ pruned and failed trials


def test_trials_below_the_median_are_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three trials with four evaluations each, the second falls behind at its second one."""
    scores = iter([0.3, 0.5, 0.6, 0.7, 0.1, 0.2, 0.3, 0.6, 0.7, 0.8])
    monkeypatch.setattr(
        "gloss_graph.training.setup._compute_metrics",
        lambda prediction: {"accuracy": 0.0, "macro_f1": next(scores)},
    )
    monkeypatch.setattr("gloss_graph.studies.engine._UNPRUNED_TRIALS", 1)
    out = tmp_path / "run"
    result = tuned(out, 3, config=brief(max_steps=4, eval_steps=1), keep_runs=True)
    assert result.trials["state"].tolist() == ["complete", "pruned", "complete"]
    assert result.trials["steps"].tolist() == [4, 2, 4]
    assert result.trials["value"][1] == 0.2
    assert next(scores, None) is None
    assert result.number != 1
    assert sorted(path.name for path in (out / "trials").iterdir()) == ["0000", "0002"]
    study = optuna.load_study(study_name="gloss-graph", storage=f"sqlite:///{out}/study.db")
    assert study.trials[0].intermediate_values == {1: 0.3, 2: 0.5, 3: 0.6, 4: 0.7}


@pytest.mark.usefixtures("instant")
def test_a_failing_trial_is_recorded_and_the_search_goes_on(tmp_path: Path) -> None:
    calls = iter(range(100))

    def factory() -> Any:
        if next(calls) == 2:  # the second trial; the first call is for the study
            raise MemoryError("no room\nfor this")
        return tiny_encoder()

    with pytest.warns(UserWarning, match="Trial 1 failed: MemoryError: no room for this"):
        result = tuned(tmp_path / "run", 3, encoder_factory=factory)
    assert result.trials["state"].tolist() == ["complete", "fail", "complete", "complete"]
    assert result.trials["error"].tolist() == ["", "MemoryError: no room for this", "", ""]
    assert result.trials["learning_rate"].notna().all()


def test_a_search_in_which_all_fails_says_so_and_can_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instant: None
) -> None:
    out = tmp_path / "run"

    def broken(splits: Splits, encoder: Any, config: TrainConfig, out: Path, **_: Any) -> Any:
        out.mkdir(parents=True)
        raise TypeError("broken")

    with monkeypatch.context() as patch:
        patch.setattr("gloss_graph.studies.tuning.train_text", broken)
        with (
            pytest.warns(UserWarning, match="failed: TypeError: broken"),
            pytest.raises(RuntimeError, match=r"All trials failed, trial 1 by TypeError.*from 0"),
        ):
            tuned(out, 2)
        assert pd.read_csv(out / "trials.csv")["error"].tolist() == ["TypeError: broken"] * 2
        assert not (out / "trials").exists()
    assert tuned(out, 2).trials["state"].tolist() == [*["fail"] * 2, *["complete"] * 2]
    with monkeypatch.context() as patch:
        patch.setattr("gloss_graph.studies.tuning.train_text", broken)
        monkeypatch.setattr("gloss_graph.studies.tuning._FAILURES", 2)
        with (
            pytest.warns(UserWarning, match="failed: TypeError: broken"),
            pytest.raises(RuntimeError, match=r"The last 2 trials failed.*from 2 finished"),
        ):
            tuned(out, 9)


def test_scores_that_are_no_numbers_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "gloss_graph.studies.tuning.train_text",
        lambda *_, **__: SimpleNamespace(metrics={"val.macro_f1": float("nan")}),
    )
    with (
        pytest.warns(UserWarning, match="the training gave no 'val.macro_f1'"),
        pytest.raises(RuntimeError, match="All trials failed"),
    ):
        tuned(tmp_path / "run", 1)


@pytest.mark.usefixtures("instant")
def test_a_trial_another_worker_gave_up_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a machine sleeps for an hour: the trial it wakes up in is not its own any more."""
    out = tmp_path / "run"
    calls: list[int] = []
    instantly = tuning.train_text

    def sleeper(*args: Any, **options: Any) -> Any:
        calls.append(len(calls))
        if len(calls) == 1:
            study = optuna.load_study(study_name="gloss-graph", storage=f"sqlite:///{out}/study.db")
            study.tell(0, state=optuna.trial.TrialState.FAIL)
        return instantly(*args, **options)

    monkeypatch.setattr("gloss_graph.studies.tuning.train_text", sleeper)
    with pytest.warns(UserWarning, match="Trial 0 was silent for too long"):
        result = tuned(out, 1)
    assert result.trials["state"].tolist() == ["fail", "complete"]


@pytest.mark.usefixtures("instant")
def test_a_worker_that_died_before_its_first_sign_of_life(tmp_path: Path) -> None:
    out = tmp_path / "run"
    tuned(out, 1)
    optuna.load_study(study_name="gloss-graph", storage=f"sqlite:///{out}/study.db").ask()
    start = time.monotonic()
    result = tuned(out, 2, heartbeat=1)
    assert 5 < time.monotonic() - start < 30
    assert result.trials["state"].tolist() == ["complete", "fail", "complete"]
    assert result.trials["error"][1] == "killed"


# ------------------------------------------------------------------ refusals


@pytest.mark.usefixtures("instant")
def test_no_time(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"No trial was complete .0 begun"):
        tuned(tmp_path / "run", 2, timeout=1e-6)
    assert len(tuned(tmp_path / "run", 1, timeout=600).trials) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trials": 0}, "'trials' must be an integer of at least 1"),
        ({"timeout": 0}, "'timeout'"),
        ({"heartbeat": 0}, "'heartbeat'"),
        ({"seed": -1}, "'seed'"),
        ({"metric": "test.macro_f1"}, "'metric' must be one of"),
        ({"space": {"sigma": Range(0.1, 1.0)}}, "'sigma' must be a setting"),
        ({"space": {"k": Range(0, 8)}}, "k=0 cannot be tried"),
        ({"splits": Splits(tiny_corpus(12))}, "'splits' must have a validation part"),
    ],
)
def test_bad_arguments_leave_nothing(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    out = tmp_path / "run"
    with pytest.raises(ValueError, match=message):
        tuned(out, **{"trials": 2, **options})
    assert not out.exists()


@pytest.mark.parametrize(
    "storage",
    [
        "sqlite:////no/such/folder/study.db",
        "nonsense",
        "nodatabase://somewhere/x",
        "postgresql+nodriver://me:secret@localhost/x",
    ],
)
def test_databases_out_of_reach(tmp_path: Path, storage: str) -> None:
    out = tmp_path / "run"
    with pytest.raises(ValueError, match="'storage' must be a database within reach") as found:
        tuned(out, 2, storage=storage)
    assert "secret" not in str(found.value)
    assert not out.exists()


@pytest.mark.usefixtures("instant")
def test_another_worker_makes_the_tables_at_the_same_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[Exception] = [
        sqlalchemy.exc.IntegrityError("insert", {}, Exception("not unique")),
        sqlalchemy.exc.OperationalError("create", {}, Exception("table studies already exists")),
    ]

    class Raced(optuna.storages.RDBStorage):
        def __init__(self, *args: Any, **options: Any) -> None:
            if errors:
                raise errors.pop()
            super().__init__(*args, **options)

    monkeypatch.setattr(optuna.storages, "RDBStorage", Raced)
    assert len(tuned(tmp_path / "run", 1).trials) == 1
    assert errors == []


def test_folders_of_something_else(tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="must be a new or empty folder"):
        tuned(out, 1)
    (out / "study.json").write_text('{"study_name": "other"}')
    with pytest.raises(ValueError, match="belongs to 'other'"):
        tuned(out, 1)
    (out / "study.json").write_text("[")
    with pytest.raises(ValueError, match=r"study\.json cannot be read"):
        tuned(out, 1)


def test_a_study_of_another_program(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/shared.db"
    study = optuna.create_study(study_name="theirs", storage=url)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    with pytest.raises(ValueError, match="'theirs' was begun with other settings"):
        tuned(tmp_path / "run", 1, storage=url, study_name="theirs")


def test_without_optuna(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ValueError, match=r'optuna.*pip install "gloss-graph\[tune\]"'):
        tuned(tmp_path / "run", 1)
    assert not (tmp_path / "run").exists()
