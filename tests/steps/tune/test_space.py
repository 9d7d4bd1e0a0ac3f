"""Search spaces: what may be asked for, and that only that is."""

import itertools

import optuna
import pytest

from clipray.config import CONFIGS, load, parse
from clipray.config.search import Tune
from clipray.errors import ConfigError
from clipray.steps.tune import space as spaces

BASE = {
    "workspace": "w",
    "datasets": ["d"],
    "backbones": ["b"],
    "precision": "fp32",
    "shots": [1],
    "seeds": 1,
    "selection": "universal",
    "metric": "nll",
    "sampler": "random",
    "samples": 3,
}
GATE = {
    "hidden": {"choice": [0, 16]},
    "activation": {"choice": ["relu", "tanh"], "when": {"hidden": [16]}},
    "normalise_inputs": {"choice": [True, False]},
}


def config(space, fuser="nlc", **changes) -> Tune:
    own = {
        key: changes.pop(key)
        for key in ("head", "head_space", "settings", "head_settings")
        if key in changes
    }
    return parse(
        Tune,
        BASE | {"searches": [{"name": "mine", "fuser": fuser, "space": space, **own}]} | changes,
        "test",
    )


def search(space, **more):
    return config(space, **more).searches[0]


def test_a_grid_has_every_combination_whose_conditions_hold():
    gates = [
        {"hidden": 0},
        {"hidden": 16, "activation": "relu"},
        {"hidden": 16, "activation": "tanh"},
    ]
    expected = [
        {**gate, "normalise_inputs": flag} for gate, flag in itertools.product(gates, (True, False))
    ]
    assert spaces.grid(search(GATE)) == expected
    assert spaces.grid(search({"epochs": {"int": [3, 5]}})) == [
        {"epochs": 3},
        {"epochs": 4},
        {"epochs": 5},
    ]


def test_what_is_drawn_lies_in_the_space_and_can_be_told_again():
    space = GATE | {
        "rate": {"loguniform": [1e-5, 1e-2]},
        "weight_decay": {"uniform": [0.0, 1.0]},
        "epochs": {"int": [1, 9]},
    }
    mine = search(space, head="tip_adapter", head_space={"alpha": {"uniform": [1.0, 2.0]}})
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    rates = []
    for _ in range(60):
        trial = study.ask()
        chosen = spaces.suggest(trial, mine)
        assert ("activation" in chosen) == (chosen["hidden"] == 16)
        assert 1e-5 <= chosen["rate"] <= 1e-2
        assert chosen["epochs"] in range(1, 10)
        assert 1 <= chosen["head.alpha"] <= 2
        rates.append(chosen["rate"])
        assert spaces.params(chosen) == trial.params
    assert (
        sum(rate < 10**-3.5 for rate in rates) > 15
    )  # even in the logarithm: half of them, not a thirtieth


def test_lists_dots_and_fixed_settings():
    space = {
        "penalties": {"choice": [[0.1], [0.1, 1.0]]},
        "temperatures.prior_count": {"uniform": [1.0, 2.0]},
    }
    mine = search(space, fuser="nlc_prior", settings={"temperatures": {"low": 0.01}, "steps": 5})
    trial = optuna.create_study().ask()
    chosen = spaces.suggest(trial, mine)
    assert chosen["penalties"] in ([0.1], [0.1, 1.0])
    one = spaces.configuration(mine, {"penalties": [0.1], "temperatures.prior_count": 1.5})
    assert (
        one.settings
        == '{"penalties":[0.1],"steps":5,"temperatures":{"low":0.01,"prior_count":1.5}}'
    )
    assert spaces.configuration(mine, {}).settings == '{"steps":5,"temperatures":{"low":0.01}}'
    assert one == spaces.configuration(mine, {"temperatures.prior_count": 1.5, "penalties": [0.1]})


@pytest.mark.parametrize(
    ("space", "changes", "words"),
    [
        (
            {"width": {"choice": [1]}},
            {},
            r"searches.0.space: there is no 'width'. Known: hidden, rate",
        ),
        ({"hidden": {"choice": [0.5]}}, {}, r"space.hidden: must be a whole number, not 0.5"),
        ({"hidden": {"uniform": [1, 3]}}, {}, r"space.hidden: must be a whole number, not 1.0"),
        (
            {"weight_map": {"choice": ["log"]}},
            {},
            r"space.weight_map: must be 'linear', .*, not 'log'",
        ),
        ({"hidden": {}}, {}, "exactly one of choice, uniform, loguniform, int"),
        ({"rate": {"uniform": [2, 1]}}, {}, "first bound must be below"),
        ({"rate": {"loguniform": [0, 1]}}, {}, "must be positive"),
        (
            {"rate": {"loguniform": [0.1, 1], "when": {"hidden": [1]}}},
            {},
            "'hidden' must stand above it",
        ),
        (
            GATE | {"rate": {"uniform": [0, 1], "when": {"hidden": [7]}}},
            {},
            "when.hidden: 7 is none of its choices",
        ),
        ({"rate": {"uniform": [0, 1]}}, {"sampler": "grid"}, "a grid needs values to list"),
        ({}, {}, "its space is empty"),
        (GATE, {"samples": 0}, "samples: say how many"),
        (GATE, {"shots": [0]}, "shots.0: must be at least 1, not 0"),
        (GATE, {"scheduler": "asha"}, "reports: a scheduler needs several"),
        (
            {"space": {"choice": ["log"]}},
            {"fuser": "super_learner", "scheduler": "asha", "reports": 3},
            "not iterative",
        ),
        (GATE, {"fuser": "nlcc"}, "searches.0.fuser: there is no 'nlcc'. Did you mean nlc?"),
        (GATE, {"head": "none"}, "searches.0.head: there is no 'none'. Known: zero_shot"),
        (GATE, {"head_space": {"alpha": {"uniform": [0, 1]}}}, "head_space: there is no 'alpha'"),
        (GATE, {"settings": {"rate": "fast"}}, "settings.rate: must be a number, not 'fast'"),
    ],
)
def test_an_impossible_search_is_told_by_its_place(space, changes, words):
    with pytest.raises(ConfigError, match=words):
        spaces.check(config(space, **changes))


def test_searches_need_names_of_their_own():
    twice = {"searches": [{"name": "nlc", "fuser": "nlc", "space": GATE}]}
    with pytest.raises(ConfigError, match="give this search a name of its own"):
        spaces.check(parse(Tune, BASE | twice, "test"))


@pytest.mark.parametrize(
    "path", sorted((CONFIGS / "tune").glob("*.yaml")), ids=lambda path: path.stem
)
def test_the_shipped_searches_are_possible(path):
    spaces.check(load(Tune, path))
