"""The registry: names, changes of hyper-parameters, and what happens to unknown ones."""

import dataclasses
from typing import Any

import pytest

from simbandit import algorithms
from simbandit.algorithms.checks import check
from simbandit.algorithms.direct import Direct
from simbandit.algorithms.gshf import GSHF
from simbandit.algorithms.offline import RSO, PessimisticMLE
from simbandit.algorithms.online import Greedy


def test_names_are_sorted_and_the_contracts():
    online = ["greedy", "gshf_hybrid", "gshf_online", "inpo", "kl_ucb", "online_dpo", "two_stage", "uniform"]
    games = ["comal", "dno", "egpo", "ipo_md", "mpo", "nash_ema", "nash_md", "nash_mp", "omwu", "online_ipo", "onpo"]
    games += ["borda", "copeland", "pm_rlhf", "rspo", "self_play_exp3", "sparring_exp3", "spo", "sppo"]
    offline = ["gshf_offline", "kl_pcb", "pessimistic_mle", "rso"]
    names = algorithms.names()
    assert names == sorted(set(names))
    assert set(names) >= {*online, *games, *offline}
    learns_offline = {name for name in names if algorithms.create(name).offline}
    assert learns_offline >= set(offline)
    assert not learns_offline & {*online, *games}


def test_create_changes_only_what_is_asked():
    assert algorithms.create("greedy") == Greedy()
    assert algorithms.create("greedy", ridge=0.3) == Greedy(ridge=0.3)
    assert algorithms.create("gshf_hybrid", n=5) == GSHF(enhancer="reference", n=5)
    assert algorithms.create("rso", steps=4) == algorithms.create("rso") == RSO(steps=4)


@pytest.mark.parametrize(
    ("name", "near"), [("gshf", "gshf_online"), ("onlinedpo", "online_dpo"), ("kl_ucp", "kl_ucb"), ("Greedy", "greedy")]
)
def test_an_unknown_name_offers_the_nearest(name, near):
    with pytest.raises(ValueError, match=rf"name: no algorithm is called '{name}'; did you mean .*{near}"):
        algorithms.create(name)


def test_a_name_like_no_other_lists_them_all():
    with pytest.raises(ValueError, match="gshf_hybrid, gshf_offline, gshf_online, hypo, inpo"):
        algorithms.create("zzz")


def test_an_unknown_hyperparameter_lists_those_that_exist():
    with pytest.raises(ValueError, match="rigde: greedy has no such hyper-parameter; it has ball, pairing"):
        algorithms.create("greedy", rigde=0.1)
    with pytest.raises(ValueError, match="step_size: online_dpo has no such hyper-parameter"):
        algorithms.create("online_dpo", step_size=0.5)


def test_a_direct_method_takes_its_losses_parameters_by_name():
    algorithm: Any = algorithms.create("inpo", step_size=0.25, proximal=1e-4)
    assert algorithm.loss_parameters == (("step_size", 0.25),)
    assert algorithm.proximal == 1e-4
    assert algorithms.create("inpo") == algorithms.create("inpo", step_size=1.0)
    other: Any = algorithms.create("inpo", loss="dpo", anchor="reference")
    assert other.loss_parameters == ()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss": "dqo"}, r"loss: 'dqo' is no loss; did you mean .*dpo"),
        ({"loss": "inpo"}, "loss_parameters: inpo takes"),
        ({"loss_parameters": (("step_size", 1.0),)}, "loss_parameters: dpo takes none"),
        ({"loss": "inpo", "loss_parameters": (("step_size", 1.0),)}, "data: inpo looks at the last policy"),
        ({"anchor": "mirror"}, "anchor: 'mirror' needs a loss with a step_size"),
        (
            {"players": ("current", "nobody")},
            "players: must be 'current' or 'previous' or .* or a Tilt or .* or a Held or a Custom, got 'nobody'",
        ),
        ({"players": ("current",)}, "players: must hold 2 values"),
        ({"value_range": 0.0}, "value_range: must be 'unbounded' or a number > 0 or None, got 0.0"),
    ],
)
def test_a_row_that_makes_no_sense_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Direct(**fields)


def test_checks_name_the_field_and_what_is_allowed():
    @dataclasses.dataclass(frozen=True)
    class Example:
        size: int = 3
        weight: float | None = 0.0
        shift: float = -1.0
        flag: bool = False
        name: str = "any"

    check(Example(), signed=("shift",))
    bad: list[tuple[dict[str, Any], str]] = [
        ({"size": 2.5}, "size: must be an integer >= 1, got 2.5"),
        ({"size": True}, "size: must be an integer >= 1, got True"),
        ({"weight": "x"}, "weight: must be a number >= 0 or None, got 'x'"),
        ({"weight": -0.1}, "weight: must be a number >= 0 or None, got -0.1"),
        ({"shift": None}, "shift: must be a finite number, got None"),
        ({"flag": 1}, "flag: must be True or False, got 1"),
        ({"name": 7}, "name: must be a name, got 7"),
    ]
    for fields, message in bad:
        with pytest.raises(ValueError, match=message):
            check(Example(**fields), signed=("shift",))
    with pytest.raises(ValueError, match="weight: must be a number > 0 or None, got 0"):
        check(Example(), positive=("weight",), signed=("shift",))


def test_a_reference_vector_may_have_any_sign_but_must_be_finite():
    assert PessimisticMLE(v=(0.5, -1.0)).v == (0.5, -1.0)
    with pytest.raises(ValueError, match="v: "):
        PessimisticMLE(v=(float("nan"), 0.0))
    with pytest.raises(ValueError, match="budget: must be an integer >= 1, got 0"):
        RSO(budget=0)
