"""`PropagationClassifier` beside scikit-learn's two: accuracy with few labels, time and memory.

    python examples/benchmarks/semi_supervised.py accuracy --draws 10
    python examples/benchmarks/semi_supervised.py time --rows 1000 5000 20000 100000

Accuracy is that of the rows without a label. A method that needs more memory than `--limit-gib`
or, by its last size, more than `--limit-seconds` is left out of the larger sizes.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits, make_moons
from sklearn.semi_supervised import LabelPropagation, LabelSpreading

from gloss_graph import PropagationClassifier
from gloss_graph._internal.peak_memory import PeakMemory, resident_bytes

Rows = tuple[NDArray[np.floating], NDArray[np.integer]]
METHODS: Mapping[str, Callable[[], object]] = {
    "PropagationClassifier": PropagationClassifier,
    "LabelSpreading knn": lambda: LabelSpreading(kernel="knn", max_iter=100),
    "LabelSpreading rbf": lambda: LabelSpreading(kernel="rbf", max_iter=100),
    "LabelPropagation knn": lambda: LabelPropagation(kernel="knn"),
    "LabelPropagation rbf": lambda: LabelPropagation(kernel="rbf"),
}


def moons(seed: int) -> Rows:
    """1,000 points on two half moons."""
    x, y = make_moons(1000, noise=0.1, random_state=seed)
    return x, y


def digits(seed: int) -> Rows:
    """The 1,797 digits of scikit-learn, in [0, 1]."""
    del seed
    data = load_digits()
    return data.data / 16.0, data.target


def blobs(size: int) -> Rows:
    """`size` rows of 64 columns around 200 centers of 10 classes."""
    draw = np.random.default_rng(0)
    center = draw.integers(0, 200, size)
    x = draw.normal(size=(200, 64))[center] + 0.5 * draw.normal(size=(size, 64))
    return x.astype(np.float32), center % 10


def some_labels(y: NDArray[np.integer], per_class: int, seed: int) -> NDArray[np.integer]:
    """`y` with all labels but `per_class` of each class hidden (-1)."""
    draw, shown = np.random.default_rng(seed), np.full(y.size, -1)
    for label in np.unique(y):
        members = np.flatnonzero(y == label)
        shown[draw.choice(members, min(per_class, members.size), replace=False)] = label
    return shown


def accuracy(draws: int, rows: str | None) -> None:
    """Print mean accuracy of all methods, paired by draw."""
    data: dict[str, Callable[[int], Rows]] = {"moons": moons, "digits": digits}
    if rows is not None:
        given = np.load(rows)
        data = {rows: lambda seed: (given["x"], given["y"])}
    for name, made in data.items():
        for per_class in (1, 5, 20):
            found: dict[str, list[float]] = {method: [] for method in METHODS}
            for seed in range(draws):
                x, y = made(seed)
                shown = some_labels(y, per_class, seed)
                hidden = shown < 0
                for method, make in METHODS.items():
                    answer = make().fit(x, shown).transduction_
                    found[method].append(100.0 * float((answer == y)[hidden].mean()))
            scores = "  ".join(f"{m} {statistics.mean(v):.1f}" for m, v in found.items())
            print(f"{name}, {per_class} per class: {scores}", flush=True)


def one(method: str, size: int) -> None:
    """Print seconds, peak GiB and accuracy of one fit; in a process by itself."""
    x, y = blobs(size)
    shown = some_labels(y, 20, 0)
    model = METHODS[method]()
    before = resident_bytes()
    with PeakMemory() as memory:
        start = time.perf_counter()
        model.fit(x, shown)
        seconds = time.perf_counter() - start
    right = float((model.transduction_ == y)[shown < 0].mean())
    print(seconds, (memory.peak - before) / 2**30, right)


def timed(sizes: list[int], repeats: int, limit_gib: float, limit_seconds: float) -> None:
    """Print medians of `repeats` rounds by turns, every fit in a process of its own."""
    slow: dict[str, float] = {}
    for size in sizes:
        ours = None
        taken: dict[str, list[tuple[float, float, float]]] = {}
        for _ in range(repeats):
            for method in METHODS:
                dense = "rbf" in method and 8 * size**2 / 2**30 * 2 > limit_gib
                if dense or slow.get(method, 0.0) > limit_seconds:
                    continue
                line = subprocess.run(
                    [sys.executable, __file__, "one", "--method", method, "--rows", str(size)],
                    check=True,
                    capture_output=True,
                    text=True,
                ).stdout.split()
                taken.setdefault(method, []).append((*map(float, line),))
        for method in METHODS:
            if method not in taken:
                print(f"{size:>7} rows  {method:<22} left out", flush=True)
                continue
            seconds, gib, right = map(statistics.median, zip(*taken[method], strict=True))
            slow[method] = seconds * 4.0
            ours = seconds if ours is None else ours
            print(
                f"{size:>7} rows  {method:<22} {seconds:8.2f} s ({seconds / ours:6.1f} x)  "
                f"{gib:6.2f} GiB  {100 * right:5.1f} %",
                flush=True,
            )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["accuracy", "time", "one"])
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--data", help="An .npz file with arrays x (N, D) and y (N,).")
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 5000, 20_000, 100_000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit-gib", type=float, default=8.0)
    parser.add_argument("--limit-seconds", type=float, default=300.0)
    parser.add_argument("--method", choices=METHODS)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.what == "accuracy":
        accuracy(given.draws, given.data)
    elif given.what == "one":
        one(given.method, given.rows[0])
    else:
        timed(given.rows, given.repeats, given.limit_gib, given.limit_seconds)


if __name__ == "__main__":
    main()
