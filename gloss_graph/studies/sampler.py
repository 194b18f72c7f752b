"""Arms that Optuna chooses: each one run with all seeds, its mean told to the sampler."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gloss_graph.studies.designs import Arm
from gloss_graph.studies.identity import canonical
from gloss_graph.studies.runner import Runner
from gloss_graph.studies.store import decoded, encoded
from gloss_graph.studies.trial import suggest
from gloss_graph.studies.tune_storage import (
    Turns,
    open_study,
    quiet_optuna,
    sqlite_url,
    worker_name,
)

if TYPE_CHECKING:
    from gloss_graph.studies.study import Study

#: File of the database, in the folder of a study.
DATABASE = "optuna.db"
_HEARTBEAT = 10


def open_arms(study: Study, folder: Path, storage: str | None) -> Any:
    """Optuna's study, made or joined; nothing of ours is written before it agrees.

    Args:
        study: The study.
        folder: Of the study; without `storage` the database is a file in it.
        storage: Database URL.

    Raises:
        ValueError: No optuna; a database out of reach; a study begun with other settings.
    """
    url = sqlite_url(folder / DATABASE) if storage is None else storage
    attributes = {
        "factors": {name: tried.as_dict() for name, tried in study.factors.items()},
        "settings": canonical(study.settings),
        "metric": study.metric,
        "minimize": study.minimize,
        "seeds": study.seeds,
        "identity": canonical(study.identity),
    }
    with quiet_optuna():
        return open_study(url, study.name, attributes, seed=0, heartbeat=_HEARTBEAT)


def sample_arms(
    study: Study, shared: Any, runner: Runner, *, storage: str | None, retry: bool
) -> None:
    """Run the baseline, then arms that the sampler proposes until the study has enough of them.

    The database is shared by all workers; rows of trials travel in it, so that every machine ends
    with all of them.

    Args:
        study: The study, with `size` arms to try.
        shared: What `open_arms` gave back.
        runner: Runs trials.
        storage: Database URL, None where the database lies in the study's folder.
        retry: Do failed trials again.
    """
    runner.work([study.trial(study.baseline, seed) for seed in study.seeds], retry=retry)
    with quiet_optuna() as optuna:

        def objective(trial: Any) -> float:
            trial.set_user_attr("worker", worker_name())
            arm: Arm = {name: suggest(trial, name, d) for name, d in study.factors.items()}
            trials = [study.trial(arm, seed) for seed in study.seeds]
            runner.work(trials, retry=retry)
            rows = runner.store.rows()
            own = [rows[one.id] for one in trials]
            # Only for machines with a folder of their own.
            if storage is not None:
                trial.set_user_attr("rows", _packed(own))
            metric = study.metric or next(iter(own[0]["metrics"]), "")
            values = [row["metrics"].get(metric, math.nan) for row in own]
            mean = sum(values) / len(values)
            if not math.isfinite(mean):
                raise optuna.TrialPruned(f"no {metric!r}")
            return -mean if study.minimize else mean

        turns = Turns(shared, study.size or 0, None, _HEARTBEAT)
        while turns.next():
            shared.optimize(objective, n_trials=1, catch=(), gc_after_trial=True)
        if storage is not None:
            _gather(shared, runner)


def _packed(rows: list[dict[str, Any]]) -> str:
    """Rows as one string that a database keeps."""
    return json.dumps(encoded(rows), allow_nan=False)


def _gather(shared: Any, runner: Runner) -> None:
    """Write rows of other machines into this folder."""
    known = set(runner.store.rows())
    for trial in shared.get_trials(deepcopy=False):
        for row in decoded(json.loads(trial.user_attrs.get("rows", "[]"))):
            if row["id"] not in known:
                runner.store.append(row)
                known.add(row["id"])
