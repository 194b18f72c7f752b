"""What a search may try: ranges, choices, the registry, words of the command line."""

from __future__ import annotations

from dataclasses import fields

import pytest

from gloss_graph._internal.settings import Choice, Range
from gloss_graph.studies import parse_choice, parse_range, search_space
from gloss_graph.studies.tuning import check_space, default_parameters
from gloss_graph.training import SEARCH_SPACE, TrainConfig


def test_the_paper_searches_these() -> None:
    names = ("bandwidth", "visible_fraction", "graph_weight", "learning_rate")
    assert default_parameters("gloss") == names
    assert search_space(names) == {
        "bandwidth": Range(0.1, 10.0, log=True),
        "visible_fraction": Range(0.1, 0.9),
        "graph_weight": Range(0.1, 0.9),
        "learning_rate": Range(1e-5, 5e-5, step=1e-5),
    }


def test_every_declared_setting_is_one_the_training_accepts() -> None:
    more = {"k", "eta", "alpha", "consistency_weight", "half_life", "anchor", "warm_start_rate"}
    more |= {"contrast_weight", "contrast_rows", "contrast_temperature"}
    assert set(SEARCH_SPACE) == {*default_parameters("gloss"), *more}
    check_space(TrainConfig(), SEARCH_SPACE)
    for loss in ("ce", "pseudo-label", "static-lp", "setfit", "gloss-published"):
        check_space(TrainConfig(loss=loss), search_space(default_parameters(loss)))


def test_unknown_names_are_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'params' must be among \['alpha', 'anchor', .*'sigma'"):
        search_space(["bandwidth", "sigma"])
    assert search_space(["rule"], {"rule": Choice(["poisson"])}) == {"rule": Choice(["poisson"])}


def test_extra_ranges_replace_and_add() -> None:
    extra = {"bandwidth": Range(0.2, 1.0), "dropout": Range(0.0, 0.3)}
    space = search_space(["bandwidth", "k"], extra)
    assert space == {**extra, "k": SEARCH_SPACE["k"]}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Range(2.0, 0.1), "'low' must be below 'high' .got 2 and 0.1"),
        (lambda: Range(1, 1), "'low' must be below 'high'"),
        (lambda: Range(0.0, float("inf")), "'high' must be a finite number"),
        (lambda: Range(float("nan"), 1.0), "'low' must be a finite number"),
        (lambda: Range(0.0, 1.0, log=True), "'log' must come with 'low' above 0"),
        (lambda: Range(0.1, 1.0, log=True, step=0.1), "and no 'step'"),
        (lambda: Range(0.0, 1.0, step=0.3), "'step' must divide the range"),
        (lambda: Range(0.0, 1.0, step=-0.5), "'step' must divide the range"),
        (lambda: Choice([]), "one or more"),
        (lambda: Choice(["a", "a"]), "must be distinct"),
        (lambda: Choice([("a",)]), "must be strings, numbers"),
    ],
)
def test_ranges_and_choices_that_are_none(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_tried_numbers_are_short_and_stay_inside() -> None:
    assert Range(1e-5, 5e-5, step=1e-5).tidy(3.0000000000000004e-05) == 3e-5
    assert Range(0.1234564, 1.0).tidy(0.1234565) == 0.1234564
    assert Range(0.1, 10.0).tidy(1.23456789) == 1.23457
    assert type(Range(4, 64).tidy(7)) is int


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bandwidth=0.1:2:log", Range(0.1, 2.0, log=True)),
        ("k=4:32", Range(4, 32)),
        ("k = 4:32:4", Range(4, 32, step=4)),
        ("learning_rate=1e-5:1e-4", Range(1e-5, 1e-4)),
        ("max_steps=10:30:10", Range(10, 30, step=10)),
    ],
)
def test_ranges_in_words(text: str, expected: Range) -> None:
    assert parse_range(text) == (text.split("=")[0].strip(), expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bandwidth", "'range' must read name=low:high"),
        ("bandwidth=1", "'range' must read"),
        ("bandwidth=1:2:3:4", "'range' must read"),
        ("bandwidth=low:high", "'range' must read"),
        ("bandwidth=2:0.1", "'range' must read .*: 'low' must be below 'high'"),
        ("k=4.5:8", "with whole numbers"),
        ("sigma=1:2", "'sigma' must be a setting of a training, one of .'loss'"),
    ],
)
def test_bad_ranges_in_words(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_range(text)


def test_choices_and_settings_in_words() -> None:
    assert parse_choice("rule=harmonic, poisson") == ("rule", Choice(["harmonic", "poisson"]))
    assert parse_choice("bandwidth=sqrt,0.5") == ("bandwidth", Choice(["sqrt", 0.5]))
    assert parse_choice("memory_size=none,64") == ("memory_size", Choice([None, 64]))
    assert parse_choice("class_balance=true,false") == ("class_balance", Choice([True, False]))
    assert parse_choice("dropout=0,1") == ("dropout", Choice([0.0, 1.0]))
    assert parse_choice("eta=None") == ("eta", Choice([None]))


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (parse_choice, "rule", "'choice' must read name=one,two"),
        (parse_choice, "k=4,many", "'k' must be a whole number .got 'many'"),
        (parse_choice, "k=4,4", "'choice' of 'k': 'values' must be distinct"),
        (parse_choice, "colour=red", "'colour' must be a setting"),
        (parse_choice, "class_balance=perhaps", "must be true or false"),
        (parse_choice, "eta=lots", "must be a number or none"),
    ],
)
def test_bad_choices_and_settings_in_words(parse, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(text)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "'space' must hold a setting"),
        ({"sigma": Range(0.1, 1.0)}, "'sigma' must be a setting of a training"),
        ({"rule": Range(0.1, 1.0)}, "'rule' must be given a choice"),
        ({"class_balance": Range(0, 1)}, "'class_balance' must be given a choice"),
        ({"k": Range(1.0, 8.0)}, "'k' must be int .got 1.0"),
        ({"graph_weight": Range(0.5, 1.5)}, "graph_weight=1.5 cannot be tried: 'graph_weight'"),
        ({"rule": Choice(["harmonic", "magic"])}, "rule='magic' cannot be tried"),
        ({"k": Choice(["4"])}, "'k' must be int"),
        ({"loss": Choice(["gloss-published"])}, "cannot be tried: 'bandwidth' of loss="),
    ],
)
def test_spaces_a_training_would_refuse(space, message: str) -> None:
    config = TrainConfig(bandwidth="local")
    with pytest.raises(ValueError, match=message):
        check_space(config, space)


def test_every_setting_can_be_written_in_words() -> None:
    for field in fields(TrainConfig):
        value = getattr(TrainConfig(), field.name)
        assert parse_choice(f"{field.name}={value}") == (field.name, Choice([value]))
