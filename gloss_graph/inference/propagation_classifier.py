"""Label propagation over the rows of a data set, as a scikit-learn estimator."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import faiss
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.neighbors import NearestNeighbors
from sklearn.utils import Tags
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    check_consistent_length,
    check_is_fitted,
    column_or_1d,
    validate_data,
)
from torch import Tensor

from gloss_graph._internal.checks import check_choice, check_positive_int, check_range
from gloss_graph._internal.labels import class_codes, label_array
from gloss_graph._internal.precision import unit_rows
from gloss_graph.graph.bandwidth import local_scales
from gloss_graph.graph.kernels import gaussian_kernel, weigh
from gloss_graph.graph.links import symmetrize_links
from gloss_graph.neighbors.corpus import corpus_neighbors
from gloss_graph.neighbors.exact import nearest
from gloss_graph.propagation import (
    NORMALIZATIONS,
    RULES,
    LabelPropagation,
    PropagationSettings,
    node_factors,
)
from gloss_graph.propagation.alignment import (
    class_factors,
    class_shares,
    row_shares,
    score_probabilities,
    score_spread,
)

METRICS = ("euclidean", "cosine")
# Rows up to which every pair is compared; beyond, inverted lists are searched.
_EXACT = 50_000
# Default leaks. Without any, Poisson learning balances the labels of every component by itself and
# learns nothing where they are all of one class.
_LEAK = {"harmonic": 0.003, "poisson": 0.001}
# A row's scale grows where its k-th neighbor is more than this many scales away.
_FAR = 4.0
# Skewness of the neighbor counts from which rows have hubs (Feldbauer & Flexer, 2019).
_HUBS = 1.4


class PropagationClassifier(ClassifierMixin, BaseEstimator):
    r"""Classify rows by propagating a few labels over their k-nearest-neighbor graph.

    Has the contract of `sklearn.semi_supervised.LabelSpreading`: `fit(X, y)` takes labeled and
    unlabeled rows together, `predict` new rows. Weights are Gaussian,
    \(\exp(-\|x_i - x_j\|^2 / (2 \sigma_i \sigma_j))\).

    Args:
        k: Neighbors per row.
        rule: `"harmonic"`, `"spreading"` or `"poisson"`, see `LabelPropagation`; `"auto"` is
            Poisson learning for one label per class (Calder et al., 2020), `"harmonic"` for more.
        normalization: `"hub"`, `"row"`, `"symmetric"` or `"column"`; `"auto"` is `"hub"` where a
            few rows are neighbors of very many (the counts have a skewness above 1.4; Feldbauer &
            Flexer, 2019), as in embeddings of texts, else `"row"`.
        eta: Leak of `harmonic` (default 0.003) and `poisson` (default 0.001): the larger, the more
            a label stays close to its row.
        alpha: Damping in (0, 1) of `spreading`.
        metric: `"euclidean"`, or `"cosine"` for text embeddings and TF-IDF rows.
        bandwidth: \(\sigma\) of all rows: a number, or `"median"` for half the median distance to
            the k-th neighbor. `"local"` takes that distance of each row as its \(\sigma_i\)
            (Zelnik-Manor & Perona, 2004).
        align: Power in [0, 1] with which class masses are drawn to the class shares of the labels.
        n_jobs: Threads; None leaves the settings of NumPy, PyTorch and FAISS, -1 takes all cores.

    Attributes:
        classes_: (C,) class names, sorted.
        X_: The rows of `fit`.
        label_distributions_: (N, C) class probabilities of these rows.
        transduction_: (N,) their classes; labeled rows keep theirs under `harmonic`.
        rule_: The rule that was used.
        normalization_: The normalization that was used.
        n_features_in_: D.

    Example:
        >>> from sklearn.datasets import make_moons
        >>> X, y = make_moons(200, noise=0.05, random_state=0)
        >>> some = np.where(np.arange(200) % 20 == 0, y, -1)
        >>> float(PropagationClassifier(k=8).fit(X, some).score(X, y))
        1.0

    See also: `GraphGuidedClassifier`, which trains an encoder of texts along with the graph.
    """

    def __init__(
        self,
        k: int = 10,
        *,
        rule: str = "auto",
        normalization: str = "auto",
        eta: float | None = None,
        alpha: float = 0.99,
        metric: str = "euclidean",
        bandwidth: float | str = "median",
        align: float = 0.0,
        n_jobs: int | None = None,
    ) -> None:
        self.k = k
        self.rule = rule
        self.normalization = normalization
        self.eta = eta
        self.alpha = alpha
        self.metric = metric
        self.bandwidth = bandwidth
        self.align = align
        self.n_jobs = n_jobs

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    @torch.no_grad()
    def fit(self, X: Any, y: Any) -> PropagationClassifier:
        """Build the graph of all rows and propagate the labels over it.

        Args:
            X: (N, D) numbers, dense or sparse.
            y: (N,) classes: numbers or names. -1, None and NaN mark unlabeled rows (-1 is a class
                where `y` holds -1 and 1 only).

        Raises:
            ValueError: Non-finite rows, lengths that disagree, no label at all, a setting out of
                range.
        """
        self._check_settings()
        X = validate_data(self, X, accept_sparse="csr", dtype=[np.float64, np.float32])
        if y is None:
            raise ValueError(
                "PropagationClassifier requires y to be passed, but the target y is None."
            )
        y = column_or_1d(label_array(y), warn=True)
        check_consistent_length(X, y)
        self.classes_, codes = class_codes(y)
        check_classification_targets(self.classes_[codes[codes >= 0]])
        if self.classes_.size == 1:
            warnings.warn("'y' holds one class only: every row gets it.", UserWarning, stacklevel=2)
        self.X_ = X
        labels = torch.from_numpy(codes)
        self.rule_ = self.rule
        if self.rule == "auto":
            self.rule_ = "harmonic" if np.bincount(codes[codes >= 0]).max() > 1 else "poisson"
        eta = _LEAK.get(self.rule_) if self.eta is None else self.eta
        size, classes = labels.numel(), self.classes_.size
        with _threads(self.n_jobs):
            squared, indices = self._neighbors(None)
            self.normalization_ = self.normalization
            if self.normalization == "auto":
                self.normalization_ = "hub" if _skewness(indices, size) > _HUBS else "row"
            settings = PropagationSettings(
                rule=self.rule_, normalization=self.normalization_, eta=eta, alpha=self.alpha
            )
            farthest = local_scales(squared)
            if self.bandwidth == "median":
                apart = farthest[squared.amax(dim=1) > 0] if squared.size(1) else farthest
                self._median = 0.5 * float(apart.median()) if apart.numel() else 1.0
            self._scales = self._scales_of(farthest)
            source = torch.arange(size).unsqueeze(1).expand_as(indices)[indices >= 0]
            target = indices[indices >= 0]
            edge_index, link = symmetrize_links(source, target, size)
            scales = self._scales[edge_index]
            weight = weigh(gaussian_kernel, squared[indices >= 0][link], scales[0] * scales[1])
            layer = LabelPropagation(
                settings.rule,
                settings.normalization,
                eta=settings.leak,
                alpha=settings.alpha,
                prior="none",
                num_classes=classes,
                tol=1e-6,
            )
            self._hits = layer.propagate_labels(labels, edge_index, weight, trusted=True).values
            self._factors = node_factors(self.normalization_, edge_index, weight, size)
        free = labels < 0
        some = self._hits[free] if bool(free.any()) else self._hits
        self._prior = class_shares(labels, classes).to(weight)
        mass = row_shares(some).mean(dim=0)
        self._class_factors = class_factors(self._prior, mass, self.align).to(weight)
        self._spread = score_spread(some * self._class_factors)
        found = self._probabilities(self._hits)
        if self.rule_ == "harmonic":
            found[~free] = F.one_hot(labels[~free], classes).to(found)
        self.label_distributions_ = found.numpy()
        self.transduction_ = self.classes_[self.label_distributions_.argmax(axis=1)]
        return self

    def predict(self, X: Any) -> NDArray[Any]:
        """Classes (B,) of rows X (B, D), which the graph does not learn from."""
        probabilities = self.predict_proba(X)
        found: NDArray[Any] = self.classes_[probabilities.argmax(axis=1)]
        return found

    @torch.no_grad()
    def predict_proba(self, X: Any) -> NDArray[np.floating[Any]]:
        """Class probabilities (B, C) of rows X (B, D), columns in the order of `classes_`.

        A row that no label reaches gets the class shares of the labels.

        Raises:
            NotFittedError: Before `fit`.
            ValueError: Non-finite rows, or another number of columns than in `fit`.
        """
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse="csr", dtype=[np.float64, np.float32], reset=False)
        with _threads(self.n_jobs):
            squared, indices = self._neighbors(X)
            scales = self._scales_of(local_scales(squared)).unsqueeze(1)
            known = indices.clamp(min=0)
            weight = weigh(gaussian_kernel, squared, scales * self._scales[known])
            weight = weight * self._factors[known]
            weight = torch.where(indices >= 0, weight, 0.0).to(self._hits)
            total = weight.sum(dim=1, keepdim=True)
            taken = torch.einsum("bk,bkc->bc", weight, self._hits[known])
            found: NDArray[np.floating[Any]] = self._probabilities(
                taken / torch.where(total > 0, total, 1.0)
            ).numpy()
        return found

    def _check_settings(self) -> None:
        check_positive_int("k", self.k)
        check_choice("rule", self.rule, ("auto", *RULES))
        check_choice("normalization", self.normalization, ("auto", *NORMALIZATIONS))
        check_choice("metric", self.metric, METRICS)
        check_range("align", self.align, 0.0, 1.0)
        if self.bandwidth not in ("median", "local") and (
            isinstance(self.bandwidth, str) or not 0.0 < self.bandwidth < np.inf
        ):
            raise ValueError(
                '\'bandwidth\' must be "median", "local" or a number above 0 '
                f"(got {self.bandwidth!r})."
            )

    def _neighbors(self, queries: Any) -> tuple[Tensor, Tensor]:
        """Squared distances (B, k) and rows (B, k) long, -1 for none; None: of the rows of fit."""
        k = min(self.k, self.X_.shape[0] - (queries is None))
        if issparse(self.X_) or issparse(queries):
            search = NearestNeighbors(metric=self.metric, algorithm="brute", n_jobs=self.n_jobs)
            search.fit(self.X_)
            if k == 0:
                return torch.zeros(self.X_.shape[0], 0), torch.zeros(self.X_.shape[0], 0).long()
            distance, rows = search.kneighbors(queries, n_neighbors=k)
            # Of unit rows the squared distance is twice that of the cosine.
            squared = 2.0 * distance if self.metric == "cosine" else np.square(distance)
            return torch.from_numpy(squared), torch.from_numpy(rows).long()
        rows = self._rows(self.X_)
        if queries is None:
            exact = rows if rows.size(0) <= _EXACT else rows.float()
            found = corpus_neighbors(exact, k, exact_up_to=_EXACT)
            squared, indices = found.squared_distances, found.indices
        else:
            squared, indices = nearest(self._rows(queries), rows, k)
        missing = torch.isinf(squared)
        return squared.masked_fill(missing, 0.0), indices.masked_fill(missing, -1)

    def _rows(self, X: NDArray[Any]) -> Tensor:
        x = torch.from_numpy(np.ascontiguousarray(X))
        return unit_rows(x) if self.metric == "cosine" else x

    def _scales_of(self, farthest: Tensor) -> Tensor:
        """Scales (B,) of rows whose k-th neighbor is as far away as `farthest` (B,) says."""
        if self.bandwidth == "local":
            return farthest
        if self.bandwidth == "median":
            # Wider for a row far from all others, whose weights would round to 0.
            return (farthest.square() / (_FAR**2 * self._median)).clamp(min=self._median)
        return torch.full_like(farthest, float(self.bandwidth))

    def _probabilities(self, hits: Tensor) -> Tensor:
        factors = self._class_factors.to(hits)
        if self.rule_ == "poisson":
            found = score_probabilities(hits * factors, self._spread)
        else:
            found = row_shares(row_shares(hits) * factors)
        reached = found.sum(dim=1, keepdim=True) > 0
        return torch.where(reached, found, self._prior.to(found))


def _skewness(neighbors: Tensor, size: int) -> float:
    """Skewness of the number of rows that have each of `size` rows among their neighbors."""
    counts = torch.bincount(neighbors[neighbors >= 0], minlength=size).double()
    centered = counts - counts.mean()
    spread = centered.square().mean().sqrt()
    return float(centered.pow(3).mean() / spread.pow(3)) if spread > 0 else 0.0


@contextmanager
def _threads(n_jobs: int | None) -> Iterator[None]:
    if n_jobs is None:
        yield
        return
    before = torch.get_num_threads(), faiss.omp_get_max_threads()
    count = (os.cpu_count() or 1) if n_jobs < 0 else n_jobs
    try:
        torch.set_num_threads(count)
        faiss.omp_set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before[0])
        faiss.omp_set_num_threads(before[1])
