"""Ablate your own training code: any function of settings and a seed that returns numbers.

Here a random forest on scikit-learn's digits. Run ``python examples/11_ablate_your_code.py``
twice: the second time nothing is left to do.
"""

from __future__ import annotations

import argparse
from typing import Any

from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import f1_score
from sklearn.model_selection import train_test_split

from gloss_graph.studies import Study, write_report


def run(config: dict[str, Any], seed: int) -> dict[str, float]:
    x, y = load_digits(return_X_y=True)
    x, test_x, y, test_y = train_test_split(x, y, test_size=0.5, random_state=seed, stratify=y)
    model = RandomForestClassifier(
        config["trees"],
        max_depth=config["depth"],
        max_features=config["features"],
        random_state=seed,
    )
    guess = model.fit(x, y).predict(test_x)
    return {
        "macro_f1": f1_score(test_y, guess, average="macro"),
        "accuracy": (guess == test_y).mean(),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="runs/ablations/forest")
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    study = Study(
        question="What matters in a random forest: trees, depth or features a split?",
        factors={"trees": [10, 30, 100], "depth": [3, 6, None], "features": ["sqrt", 0.5]},
        baseline={"trees": 30, "depth": None, "features": "sqrt"},
        seeds=arguments.seeds,
        run=run,
    )
    print(study)
    results = study.run(arguments.out)
    print(results.table.groupby(["trees", "depth"], dropna=False)["macro_f1"].mean().unstack())
    write_report(results)
    print(f"Report: {results.folder / 'report.html'}")
