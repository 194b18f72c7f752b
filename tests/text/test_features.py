"""Tables of features, corpora that carry them, and the adapter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import save_file

from gloss_graph.text import Corpus, FeatureEncoder, Splits, read_features, with_features

TABLE = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)


def write(path: Path, table: np.ndarray) -> Path:
    if path.suffix == ".npy":
        np.save(path, table)
    elif path.suffix == ".pt":
        torch.save(torch.from_numpy(table), path)
    elif path.suffix == ".safetensors":
        save_file({"x": table}, path)
    elif path.stem == "lists":
        pd.DataFrame({"vector": table.tolist()}).to_parquet(path)
    else:
        pd.DataFrame(table, columns=[f"c{i}" for i in range(table.shape[1])]).to_parquet(path)
    return path


@pytest.mark.parametrize("name", ["x.npy", "x.pt", "x.safetensors", "x.parquet", "lists.parquet"])
def test_every_format_gives_the_same_table(tmp_path: Path, name: str) -> None:
    found = read_features(write(tmp_path / name, TABLE))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, TABLE)


def test_bad_tables_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must end in one of"):
        read_features(tmp_path / "x.csv")
    with pytest.raises(ValueError, match="must be a file"):
        read_features(tmp_path / "x.npy")
    for name in ("x.npy", "x.pt", "x.safetensors", "x.parquet"):
        (tmp_path / name).write_bytes(b"nonsense")
        with pytest.raises(ValueError, match="'features' cannot be read"):
            read_features(tmp_path / name)
    with pytest.raises(ValueError, match="must be a matrix"):
        read_features(write(tmp_path / "flat.npy", TABLE[0]))
    broken = TABLE.copy()
    broken[4, 1] = np.nan
    with pytest.raises(ValueError, match="row 4 of"):
        read_features(write(tmp_path / "nan.npy", broken))


def test_no_pickle_is_read(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object))
    torch.save({"x": torch.ones(2, 2), "y": object}, tmp_path / "x.pt")
    for name in ("x.npy", "x.pt"):
        with pytest.raises(ValueError, match="cannot be read"):
            read_features(tmp_path / name)


def splits() -> Splits:
    train = Corpus(["a", "b", "c"], [0, 1, -1], [0, 4, 2], ["x", "y"])
    val = Corpus(["d", "e"], [0, 1], [1, 3], ["x", "y"])
    return Splits(train, val, Corpus(["f", "g"], [1, 0], [5, 6], ["x", "y"]))


def test_rows_follow_the_ids() -> None:
    found = with_features(splits(), TABLE)
    np.testing.assert_array_equal(found.train.features, TABLE[[0, 4, 2]])
    np.testing.assert_array_equal(found.val.features, TABLE[[1, 3]])
    np.testing.assert_array_equal(found.test.features, TABLE[5:])
    np.testing.assert_array_equal(found.train.select([2, 0]).features, TABLE[[2, 0]])


def test_another_number_of_rows() -> None:
    message = r"got 6 rows for 7 documents, \{'train': 3, 'val': 2, 'test': 2\}"
    with pytest.raises(ValueError, match=message):
        with_features(splits(), TABLE[:6])
    for bad in (TABLE[:2], TABLE[0], np.full((3, 2), np.inf)):
        with pytest.raises(ValueError, match="'features' must be a finite matrix"):
            replace(splits().train, features=bad)


def test_the_adapter_starts_as_the_identity_and_learns() -> None:
    corpus = with_features(splits(), TABLE).train
    encoder = FeatureEncoder(3, hidden=5)
    rows = encoder.embed(corpus, batch_size=2)
    np.testing.assert_array_equal(rows.numpy(), corpus.features)
    loss = encoder(**encoder.collate(encoder.items(corpus))).square().sum()
    loss.backward()
    assert encoder.outer.weight.grad.abs().sum() > 0
    assert encoder.training


def test_the_scale_makes_the_mean_square_one() -> None:
    corpus = with_features(splits(), 30 * TABLE).train
    rows = FeatureEncoder.scaled_to(corpus.features).embed(corpus)
    assert float(rows.square().mean()) == pytest.approx(1.0, rel=1e-5)
    assert FeatureEncoder.scaled_to(np.zeros((3, 2))).scale == 1.0


def test_saved_and_loaded(tmp_path: Path) -> None:
    encoder = FeatureEncoder(3, hidden=5, dropout=0.3, scale=0.7).eval()
    torch.nn.init.normal_(encoder.outer.weight)
    folder = encoder.save(tmp_path / "encoder")
    assert len({file.stat().st_mode for file in folder.iterdir()}) == 1
    loaded = FeatureEncoder.load(tmp_path / "encoder")
    x = torch.from_numpy(TABLE)
    assert torch.equal(encoder(x), loaded(x))
    assert loaded.drop.p == 0.3
    with pytest.raises(ValueError, match="saved by gloss_graph"):
        FeatureEncoder.load(tmp_path)


@pytest.mark.parametrize(
    "bad", [{"dim": 0}, {"dim": 2, "hidden": 0}, {"dim": 2, "dropout": 1.0}, {"dim": 2, "scale": 0}]
)
def test_bad_settings(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        FeatureEncoder(**bad)


def test_documents_without_or_with_other_features() -> None:
    encoder = FeatureEncoder(4)
    with pytest.raises(ValueError, match="have no features"):
        encoder.items(splits().train)
    with pytest.raises(ValueError, match="must have 4 columns"):
        encoder.items(with_features(splits(), TABLE).train)
