"""The scikit-learn estimator: its contract, its answers, its inputs."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_digits, make_moons
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.semi_supervised import LabelSpreading
from sklearn.utils.estimator_checks import estimator_checks_generator

from gloss_graph import PropagationClassifier

CHECKS = list(estimator_checks_generator(PropagationClassifier()))


@pytest.mark.parametrize(("estimator", "check"), CHECKS, ids=map(str, range(len(CHECKS))))
def test_the_contract_of_scikit_learn(estimator: Any, check: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(estimator)


def few(y: np.ndarray, per_class: int, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    some = np.full(y.size, -1)
    for label in np.unique(y):
        some[draw.choice(np.flatnonzero(y == label), per_class, replace=False)] = label
    return some


def test_labels_travel_along_the_rows() -> None:
    X, y = make_moons(300, noise=0.05, random_state=0)
    model = PropagationClassifier(k=8).fit(X, few(y, 3))
    assert (model.transduction_ == y).mean() > 0.98
    new, truth = make_moons(200, noise=0.05, random_state=1)
    assert model.score(new, truth) > 0.98
    assert model.label_distributions_.shape == (300, 2)
    np.testing.assert_allclose(model.label_distributions_.sum(axis=1), 1.0, rtol=1e-6)


def test_digits_are_read_better_than_by_label_spreading() -> None:
    X, y = load_digits(return_X_y=True)
    ours, theirs = [], []
    for seed in range(3):
        some = few(y, 5, seed)
        hidden = some < 0
        ours.append((PropagationClassifier().fit(X, some).transduction_ == y)[hidden].mean())
        other = LabelSpreading(kernel="knn").fit(X, some)
        theirs.append((other.transduction_ == y)[hidden].mean())
    assert np.mean(ours) > np.mean(theirs) + 0.005


def test_one_label_per_class_is_learned_by_poisson_and_more_by_harmonic() -> None:
    X, y = make_moons(300, noise=0.05, random_state=0)
    for per_class, rule in ((1, "poisson"), (2, "harmonic")):
        some = few(y, per_class)
        model = PropagationClassifier().fit(X, some)
        assert model.rule_ == rule
        same = PropagationClassifier(rule=rule).fit(X, some)
        np.testing.assert_array_equal(model.label_distributions_, same.label_distributions_)


@pytest.mark.parametrize("rule", ["auto", "harmonic", "spreading", "poisson"])
def test_clusters_apart_from_each_other_get_their_one_label(rule: str) -> None:
    y = np.arange(90) % 3
    X = 9.0 * np.eye(3)[y] + np.random.default_rng(0).normal(size=(90, 3))
    model = PropagationClassifier(rule=rule).fit(X, np.where(np.arange(90) < 3, y, -1))
    assert (model.transduction_ == y).all()
    assert (model.predict(X) == y).all()


@pytest.mark.parametrize("rule", ["harmonic", "spreading", "poisson"])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_sparse_rows_give_the_answers_of_dense_ones(rule: str, metric: str) -> None:
    X, y = load_digits(n_class=4, return_X_y=True)
    some = few(y, 4)
    dense = PropagationClassifier(rule=rule, metric=metric).fit(X, some)
    packed = PropagationClassifier(rule=rule, metric=metric).fit(sparse.csr_matrix(X), some)
    same = dense.transduction_ == packed.transduction_
    assert same.mean() > 0.99  # equal distances may be taken in another order
    new = packed.predict_proba(sparse.csr_matrix(X[:50]))
    np.testing.assert_allclose(new, dense.predict_proba(X[:50]), atol=2e-2)


def test_names_and_missing_labels() -> None:
    X, y = make_moons(100, noise=0.05, random_state=0)
    names = np.array(["down", "up"])[y].tolist()
    some = [name if i % 5 == 0 else None for i, name in enumerate(names)]
    model = PropagationClassifier(k=6).fit(X, some)
    assert model.classes_.tolist() == ["down", "up"]
    numbers = np.where(np.arange(100) % 5 == 0, y.astype(float), np.nan)
    other = PropagationClassifier(k=6).fit(X, numbers)
    assert (model.predict(X) == np.array(["down", "up"])[other.predict(X).astype(int)]).all()


def test_it_works_in_pipelines_searches_and_data_frames() -> None:
    pd = pytest.importorskip("pandas")
    X, y = load_digits(n_class=3, return_X_y=True)
    pipeline = make_pipeline(StandardScaler(), PropagationClassifier()).set_output(
        transform="pandas"
    )
    assert cross_val_score(pipeline, X, y, cv=3).mean() > 0.95
    search = GridSearchCV(
        pipeline, {"propagationclassifier__k": [5, 10], "propagationclassifier__eta": [0.02]}, cv=3
    ).fit(X, y)
    assert search.best_score_ > 0.95
    frame = pd.DataFrame(X, columns=[f"pixel{i}" for i in range(X.shape[1])])
    model = PropagationClassifier().fit(frame, pd.Series(y, index=y[::-1]))
    assert list(model.feature_names_in_) == list(frame.columns)
    assert (clone(model).fit(frame, y).predict(frame) == model.predict(frame)).all()


def test_a_row_that_no_label_reaches_gets_the_shares_of_the_labels() -> None:
    X = np.array([[0.0], [0.1], [0.2], [100.0], [100.1]])
    model = PropagationClassifier(k=1).fit(X, [0, 0, 1, -1, -1])
    np.testing.assert_allclose(model.label_distributions_[3:], [[2 / 3, 1 / 3]] * 2)


def test_minus_one_and_one_are_two_classes() -> None:
    with pytest.warns(UserWarning, match="both are taken as classes"):
        model = PropagationClassifier(k=1).fit([[0.0], [0.1], [5.0]], [-1, -1, 1])
    assert model.predict([[0.05], [4.0]]).tolist() == [-1, 1]


@pytest.mark.parametrize(
    ("settings", "labels", "message"),
    [
        ({"k": 0}, [0, 1, -1], "'k' must be"),
        ({"metric": "manhattan"}, [0, 1, -1], "'metric'"),
        ({"normalization": "columns"}, [0, 1, -1], "'normalization'"),
        ({"bandwidth": "mean"}, [0, 1, -1], "'bandwidth'"),
        ({"rule": "majority"}, [0, 1, -1], "'rule'"),
        ({"eta": -1.0}, [0, 1, -1], "'eta'"),
        ({}, [-1, -1, -1], "no label"),
        ({}, [None, None, None], "no label"),
        ({}, ["a", 1, None], "mixes names and numbers"),
        ({}, [0, 1], "inconsistent"),
        ({}, [0.5, 1.25, -1], "continuous"),
    ],
)
def test_bad_input_is_named(settings: dict[str, Any], labels: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PropagationClassifier(**settings).fit([[0.0], [1.0], [2.0]], labels)


def test_one_label_per_class_is_enough_for_two_moons() -> None:
    scores = []
    for seed in range(5):
        x, y = make_moons(1000, noise=0.1, random_state=seed)
        model = PropagationClassifier().fit(x, few(y, 1, seed))
        scores.append((model.transduction_ == y).mean())
    assert np.mean(scores) > 0.97


def test_rows_with_hubs_take_the_hub_normalization() -> None:
    """In many dimensions a few rows near the mean are the neighbors of very many."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(600, 200)) * draw.uniform(0.5, 1.5, size=(600, 1))
    y = np.where(np.arange(600) < 50, np.arange(600) % 2, -1)
    assert PropagationClassifier().fit(x, y).normalization_ == "hub"
    assert PropagationClassifier().fit(x[:, :2], y).normalization_ == "row"
    assert PropagationClassifier(normalization="row").fit(x, y).normalization_ == "row"


def test_rows_far_from_all_others_are_reached() -> None:
    draw = np.random.default_rng(0)
    near = np.concatenate([draw.normal(size=(100, 2)), draw.normal(size=(100, 2)) + 8.0])
    far = np.array([[60.0, 60.0], [-40.0, -40.0]])
    y = np.full(202, -1)
    y[[0, 100]] = [0, 1]
    model = PropagationClassifier().fit(np.concatenate([near, far]), y)
    assert model.transduction_[200:].tolist() == [1, 0]
    assert model.label_distributions_[200:].max(axis=1).min() > 0.6
    assert model.predict(far).tolist() == [1, 0]
