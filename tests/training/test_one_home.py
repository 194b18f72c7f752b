"""A setting has one home: a field of a part is found everywhere, by its name and with its help."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from processes import warm_context

from gloss_graph.graph.settings import KNNGraph
from gloss_graph.step import Staleness
from gloss_graph.training import TrainConfig
from gloss_graph.training.config import read_settings


def with_a_wider_part(folder: str) -> None:
    """In a process of its own: the part gets a field before anything reads the part."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "gloss_graph"]:
        del sys.modules[name]
    import gloss_graph.graph.settings as home
    from gloss_graph._internal.settings import Range, setting

    @dataclass(frozen=True, kw_only=True)
    class Wider(home.KNNGraph):
        warmth: float = setting(0.5, "How warm an edge is.", search=Range(0.1, 0.9))

    home.KNNGraph = Wider  # type: ignore[misc]

    import typer

    import gloss_graph.cli.train as command
    from gloss_graph.cli import main
    from gloss_graph.reports.run_page import setting_values
    from gloss_graph.studies import SEARCH_SPACE, parse_choice
    from gloss_graph.studies.text_classifiers import used_settings
    from gloss_graph.training import TrainConfig
    from gloss_graph.training.config import SETTINGS

    found: dict[str, object] = {}

    def read(files: object, config: TrainConfig, columns: object) -> None:
        found[name] = config.warmth
        raise typer.Exit

    command.read_files = read
    settings = Path(folder, "settings.yaml")
    settings.write_text("graph:\n  warmth: 0.6\n")
    train = ["train", "--train", "x.csv", "--out", f"{folder}/run"]
    ways = {
        "set": ["--set", "graph.warmth=0.7"],
        "flag": ["--warmth", "0.8"],
        "config": ["--config", str(settings)],
    }
    for name in ways:
        assert main([*train, *ways[name]]) == 0
    config = TrainConfig(warmth=0.7)
    found["file"] = json.loads(json.dumps(config.flat()))["warmth"]
    found["read"] = TrainConfig.from_flat(config.flat()).graph.warmth
    found["range"] = str(SEARCH_SPACE["warmth"])
    found["factor"] = list(parse_choice("graph.warmth=0.1,0.2")[1].values)
    found["counts"] = "warmth" in used_settings(config, unlabeled=False)
    found["help"] = SETTINGS["warmth"].help
    found["report"] = [part["warmth"] for part in setting_values(config.flat())]
    Path(folder, "found.json").write_text(json.dumps(found))


def test_a_field_added_to_a_part_is_found_everywhere(tmp_path: Path) -> None:
    process = warm_context().Process(target=with_a_wider_part, args=(str(tmp_path),))
    process.start()
    process.join(300)
    assert process.exitcode == 0
    assert json.loads((tmp_path / "found.json").read_text()) == {
        "set": 0.7,
        "flag": 0.8,
        "config": 0.6,
        "file": 0.7,
        "read": 0.7,
        "range": "0.1 to 0.9",
        "factor": [0.1, 0.2],
        "counts": True,
        "help": "How warm an edge is.",
        "report": [0.5, 0.7],
    }


def test_parts_and_names_are_two_ways_to_say_the_same() -> None:
    parts = TrainConfig(graph=KNNGraph(k=30), staleness=Staleness(warmup_steps=5))
    assert parts == TrainConfig(k=30, memory_start=5)
    assert (parts.graph.k, parts.staleness.warmup_steps) == (30, 5)
    assert TrainConfig.from_flat(parts.flat()) == parts
    with pytest.raises(ValueError, match="'k' is 8, but 30 in 'graph'"):
        TrainConfig(k=8, graph=KNNGraph(k=30))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"graf": {"k": 8}}, r"no part 'graf'\. Did you mean 'graph'\?"),
        ({"graph.kk": 8}, r"setting of 'graph'.*Did you mean 'k'\?"),
        ({"halflife": 8}, r"Did you mean 'half_life'\?"),
        ({"k": "many"}, "'k' must be int .got 'many'"),
        ({"graph.k": 8, "k": 9}, "'k' is 9, but 8 was given for the same setting"),
    ],
)
def test_what_a_file_gets_wrong_is_named(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_settings(given, "study.yaml")
