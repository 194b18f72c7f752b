"""The benchmark's own machinery, on tiny sizes."""

from __future__ import annotations

import importlib.util
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scripts import ROOT, run
from threadpoolctl import threadpool_info

from gloss_graph._internal import peak_memory as _memory
from gloss_graph.objective import GraphGuidedObjective
from gloss_graph.propagation import LabelPropagation

# isort: split
import corpus
from corpus import corpus_table, draw_labels, made_corpus
from endurance import memory_growth
from made import clustered, filled_bank
from rivals import UnrolledLayers, dense_loss
from stages import StageSettings, single_step, stage_table
from tables import fitted_exponent, markdown, plot_stages, write_tables
from turns import limited_threads, peak_mib, take_turns

TINY = StageSettings(
    banks=(0, 300, 1_100),
    dims=(8,),
    batch=16,
    k=4,
    dense_rows=200,
    unrolled_rows=300,
    repeats=2,
    encoder="none",
)


@pytest.mark.slow
def test_the_stage_table_has_every_measurement(tmp_path: Path) -> None:
    table = stage_table(TINY)
    assert table["bank"].tolist() == [0, 300, 1_100, 184]
    stages = [name for name in table if name.endswith(" ms") and name.split()[0] in ("search",)]
    assert stages == ["search ms"]
    assert table["recall"].notna().tolist() == [False, True, True, False]
    assert (table["recall"].dropna() == 1.0).all()  # small banks are searched exactly
    for column in ("exact step ms", "hops=2 ms"):
        assert (table[column].notna() == table["recall"].notna()).all()
    parts = ["search ms", "graph ms", "propagation ms", "enqueue ms", "other ms", "backward ms"]
    assert (table["step ms"] > 0).all()
    assert (table[parts].sum(axis=1) < 3.0 * table["step ms"]).all()
    assert table["unrolled / implicit"].notna().tolist() == [False, True, False, False]
    for column in ("dense / step", "dense float64 / step"):
        assert table[column].notna().tolist() == [False, False, False, True]
    assert table["hub / row"].notna().tolist() == [False, True, True, False]
    plot_stages(table, tmp_path / "stages.png")
    assert (tmp_path / "stages.png").stat().st_size > 10_000


def test_exact_steps_do_not_make_an_index_be_built_anew() -> None:
    changed = replace(TINY, banks=(300,), dense_rows=0, search="ivf")
    assert "exact step ms" not in stage_table(changed)


def test_the_dense_rival_computes_the_same_loss() -> None:
    """What is timed against the objective must be the same mathematics."""
    x, y, _ = clustered(60, 8, 4, seed=0)
    x = x.double()
    visible = torch.rand(60, generator=torch.Generator().manual_seed(1)) < 0.7
    objective = GraphGuidedObjective(4, bandwidth=0.5, eta=0.0, loss="published", batch_edges="all")
    expected = dense_loss(x, y, visible, 0.5, 4)
    torch.testing.assert_close(objective(x, y, visible=visible), expected, rtol=1e-9, atol=0.0)


def test_the_unrolled_rival_converges_to_the_same_values() -> None:
    edge_index = torch.tensor([[0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2]])
    weight = torch.tensor([1.0, 1.0, 0.5, 0.5, 2.0, 2.0])
    y = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    seeds = torch.tensor([True, False, False, True])
    layer = LabelPropagation(eta=0.0, normalization="row")
    unrolled = UnrolledLayers(edge_index, y, seeds, layers=300)
    expected = layer(y, edge_index, weight, seeds)
    torch.testing.assert_close(unrolled(weight), expected, rtol=1e-4, atol=1e-5)


def test_a_filled_bank_links_rows_of_one_cluster() -> None:
    x, y, clusters = clustered(1_000, 8, 4, seed=0)
    bank = filled_bank(x, y, clusters, k=3)
    source, target, squared = bank.edges()
    assert source.numel() == 3 * 1_000
    assert torch.equal(clusters[source], clusters[target])
    own = (bank.rows[source] - bank.rows[target]).square().sum(dim=1)
    torch.testing.assert_close(squared, own, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_peers_run_on_one_graph_and_the_same_labels() -> None:
    x, y = made_corpus(400, dim=16)
    table = corpus_table(x, y, k=5, draws=1, repeats=1, poisson_rows=0)
    ran = table.dropna(subset=["seconds"])
    assert (ran["accuracy"] > 40.0).all()
    assert ran["times ours"].iloc[0] == 1.0
    assert "scikit-learn LabelSpreading, alpha 0.9" in ran["method"].tolist()
    poisson = table[table["method"] == "GraphLearning poisson"]["note"].item()
    assert poisson == "not run above 0 rows", "a peer that did not run must say why"


@pytest.mark.slow
@pytest.mark.parametrize("pieces", [1, 3])
def test_poisson_of_a_graph_in_pieces_ends(pieces: int) -> None:
    """Conjugate gradients of the peer runs 100,000 iterations on a system without a solution."""
    pytest.importorskip("graphlearning")
    generator = torch.Generator().manual_seed(0)
    corner = torch.eye(pieces, 16).repeat_interleave(60, dim=0)
    x = 100.0 * corner * (pieces > 1) + torch.rand(60 * pieces, 16, generator=generator)
    y = torch.arange(60 * pieces) % 2
    table = corpus_table(x, y, k=5, labels_per_class=9, draws=2, repeats=1).set_index("method")
    row = table.loc["GraphLearning poisson"]
    assert ("gradient descent" in row["note"]) == (pieces > 1)
    assert 20.0 < row["accuracy"] < 80.0
    assert table["ours - this"].iloc[0] == 0.0
    first = table["accuracy"].iloc[0]
    assert row["ours - this"] == pytest.approx(first - row["accuracy"])


@pytest.mark.slow
def test_an_absent_peer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    x, y = made_corpus(200, dim=16)
    table = corpus_table(x, y, k=5, draws=1, repeats=1)
    absent = table[table["seconds"].isna()]
    names = ["laplace", "poisson", "laplace, its own graph"]
    assert absent["method"].tolist() == [f"GraphLearning {name}" for name in names]
    assert absent["note"].str.contains("pip install graphlearning").all()


def test_labels_of_tiny_classes_leave_half_of_them() -> None:
    y = np.array([0] * 100 + [1] * 6)
    drawn = draw_labels(y, 20, seed=0)
    assert np.bincount(y[drawn]).tolist() == [20, 3]
    assert not np.array_equal(drawn, draw_labels(y, 20, seed=1))


def test_the_exponent_of_known_growth() -> None:
    rows = np.array([1e3, 2e4, 8e4, 32e4])
    assert fitted_exponent(rows, np.array([9.0, 1.0, 8.0, 64.0])) == pytest.approx(1.5)
    assert np.isnan(fitted_exponent(rows[:2], rows[:2]))


def test_tables_are_written_as_markdown_and_csv(tmp_path: Path) -> None:
    table = pd.DataFrame({"a": [1_234, 5], "b": [0.123456, float("nan")]})
    written = write_tables({"stages: x": table}, tmp_path / "new", "a note")
    assert [path.name for path in written] == ["bench.md", "stages.csv"]
    assert "| 1,234 | 0.123 |\n| 5 |  |" in markdown(table)
    assert pd.read_csv(written[1])["b"][0] == 0.123456


def test_turns_leave_the_first_round_out() -> None:
    calls: list[str] = []
    both = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    taken = take_turns(both, 9)
    rounds = {"".join(calls[start : start + 2]) for start in range(0, 20, 2)}
    assert rounds == {"ab", "ba"}  # none always follows the same one
    assert {name: len(times) for name, times in taken.items()} == {"a": 9, "b": 9}
    before = list(calls)
    calls.clear()
    take_turns(both, 9)
    assert calls == before


def test_peak_memory_sees_a_temporary() -> None:
    assert 200 < peak_mib(lambda: torch.ones(64, 2**20).sum()) < 600


def test_peak_memory_where_the_system_keeps_no_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_memory, "_reset_peak", lambda: False)

    def held() -> None:
        kept = torch.ones(64, 2**20)
        time.sleep(0.2)
        del kept

    assert 200 < peak_mib(held) < 600


def test_peak_memory_sees_what_was_used_before() -> None:
    def small() -> None:
        kept = [torch.ones(2**14) for _ in range(2_000)]
        del kept

    small()
    assert peak_mib(small) > 60.0


@pytest.mark.slow
def test_memory_stays_flat_over_a_few_steps() -> None:
    growth = memory_growth(60, rows=1_100, dim=8, settings=TINY)
    assert (growth["steps"], growth["bank"], growth["dim"]) == (60, 1_100, 8)
    assert growth["growth %"] < 5.0


@pytest.mark.slow
def test_memory_stays_flat() -> None:
    assert memory_growth(2_000, rows=4_096, dim=64, settings=TINY)["growth %"] < 1.0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"banks": ()}, "banks"),
        ({"banks": (-1,)}, "banks"),
        ({"repeats": 0}, "repeats"),
        ({"labeled": 0.0}, "labeled"),
        ({"search": "annoy"}, "search"),
        ({"hops": -1}, "hops"),
    ],
)
def test_settings_out_of_range(change: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        StageSettings(**change)


def test_too_few_steps_of_endurance() -> None:
    with pytest.raises(ValueError, match="at least 10"):
        memory_growth(3)


def test_endurance_of_no_bank() -> None:
    with pytest.raises(ValueError, match="'rows' must be at least 1"):
        memory_growth(10, rows=0)


def test_endurance_keeps_no_record_of_its_steps() -> None:
    run = single_step(300, 8, TINY)
    held = [cell.cell_contents for cell in run.__closure__ or ()]
    steps = next(part for part in held if hasattr(part, "seconds"))
    for _ in range(5):
        assert run() > 0
    assert len(steps.seconds) == 1


ENDURANCE = ("benchmarks/endurance.py", "--dim", "8", "--batch-size", "8", "--out", "b")


def test_endurance_measures_the_banks_it_is_told(tmp_path: Path) -> None:
    run(*ENDURANCE, "--steps", "10", "--k", "4", "--bank", "200", "300", folder=tmp_path)
    table = pd.read_csv(next((tmp_path / "b").glob("endurance*.csv")))
    assert table["bank"].tolist() == [200, 300]
    assert table["dim"].tolist() == [8, 8]


@pytest.mark.parametrize(
    ("script", "name"),
    [
        ("benchmarks/stages.py", "repeats"),
        ("benchmarks/corpus.py", "points"),
        ("benchmarks/endurance.py", "steps"),
        ("benchmarks/endurance.py", "threads"),
    ],
)
def test_a_count_of_zero_is_refused(tmp_path: Path, script: str, name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}'"):
        run(script, f"--{name}", "0", "--out", "b", folder=tmp_path)
    assert not (tmp_path / "b").exists()


def test_the_settings_reach_the_corpus_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, object]] = []

    def table(x: torch.Tensor, y: torch.Tensor, **settings: object) -> pd.DataFrame:
        threads = {pool["num_threads"] for pool in threadpool_info()}
        seen.append({"rows": len(x), "threads": threads, **settings})
        return pd.DataFrame({"method": ["none"]})

    monkeypatch.setattr(corpus, "corpus_table", table)
    words = ["corpus.py", "--points", "64", "--k", "5", "--repeats", "3", "--threads", "1"]
    monkeypatch.setattr("sys.argv", [*words, "--out", str(tmp_path / "b")])
    corpus.main()
    (found,) = seen
    assert (found["rows"], found["k"], found["repeats"], found["threads"]) == (64, 5, 3, {1})


def test_a_limit_of_threads_reaches_every_library_and_ends() -> None:
    def threads() -> dict[str, int]:
        return {pool["filepath"]: pool["num_threads"] for pool in threadpool_info()}

    with limited_threads(2):
        before, torchs = threads(), torch.get_num_threads()
        with limited_threads(1):
            assert set(threads().values()) == {1}
            assert torch.get_num_threads() == 1
        assert (threads(), torch.get_num_threads()) == (before, torchs)
        assert {"openblas", "mkl"} & {pool["internal_api"] for pool in threadpool_info()}
    with pytest.raises(ValueError, match="'threads' must be"), limited_threads(0):
        pass


def test_stages_are_printed_and_written(tmp_path: Path) -> None:
    words = ("--quick", "--bank", "64", "--dim", "8", "--batch-size", "8", "--repeats", "1")
    output = run("benchmarks/stages.py", *words, "--out", "b", folder=tmp_path)
    assert "propagation ms" in output
    assert {p.name for p in (tmp_path / "b").iterdir()} == {"bench.md", "stages.csv", "stages.png"}


@pytest.mark.slow
def test_two_versions_are_measured_by_turns(tmp_path: Path) -> None:
    words = ("--bank", "0", "64", "--dim", "8", "--batch-size", "8", "--repeats", "2")
    again = (*words, "--against", str(ROOT), "--out", "b")
    output = run("benchmarks/stages.py", *again, folder=tmp_path)
    assert "this / other" in output
    table = pd.read_csv(tmp_path / "b" / "versions.csv")
    assert table["bank"].tolist() == [0, 64]
    assert (table["this / other"] > 0).all()


def test_a_folder_without_the_package_is_no_checkout(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'against' must be a checkout"):
        run("benchmarks/stages.py", "--against", str(tmp_path), folder=tmp_path)
