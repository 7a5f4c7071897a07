"""Every shipped study: its grid is whole, its claims speak of cells that exist, and two of them run here."""

import dataclasses
import importlib
import sys

import pandas as pd
import pytest
from matplotlib.figure import Figure

from simbandit.cli import main
from simbandit.draws import Draws
from simbandit.guarantees import judge
from simbandit.study import Simulation, find, shipped

NAMES = sorted(shipped())
LANGUAGE = {
    "bridge_equality",
    "enumerable_lm",
    "pool_gshf",
    "pool_size",
    "preflight_predicts",
    "shortcuts",
    "toy_online",
}  # of models


def grid(name, smoke):
    """The cells, with each contender's first candidate in place of the tuned one."""
    if name in LANGUAGE:
        pytest.importorskip("transformers", reason="the extra `llm` is not installed: pip install -e '.[llm]'")
    study = find(name)
    settings = study.settings(smoke=smoke)
    candidates = {} if study.tuning is None else study.tuning(settings)
    cells = list(study.cells(settings, {who: cells[0].algorithm for who, cells in candidates.items()}))
    return study, cells, candidates


def filters(claim):
    """Every combination of labels that a claim selects."""
    given = {f.name: getattr(claim, f.name) for f in dataclasses.fields(claim)}
    where = given.get("where", {})
    sides = [given[side] for side in ("smaller", "larger") if side in given]
    return [{**where, **side} for side in sides] or [where]


@pytest.mark.parametrize("name", NAMES)
def test_a_study_says_what_it_is_and_bears_its_files_name(name):
    study = find(name)
    assert study.name == name
    assert len(study.claims) >= 1
    assert len(importlib.import_module(f"studies.{name}").__doc__ or "") > 300
    assert all(text.strip() for text in (study.title, study.source))
    assert all(claim.name and claim.source for claim in study.claims)
    assert len({claim.name for claim in study.claims}) == len(study.claims)


@pytest.mark.parametrize("smoke", [True, False], ids=["smoke", "full"])
@pytest.mark.parametrize("name", NAMES)
def test_a_grids_cells_are_distinct_and_seeded_apart_from_tuning(name, smoke):
    _, cells, candidates = grid(name, smoke)
    tuning = [cell for candidate in candidates.values() for cell in candidate]
    assert len(cells) >= 6
    assert len({cell.key for cell in cells}) == len(cells)
    assert len({tuple(sorted(map(str, cell.labels.items()))) for cell in cells}) == len(cells)
    assert len({len(candidate) for candidate in candidates.values()}) <= 1
    assert not {cell.seed for cell in cells} & {cell.seed for cell in tuning}


@pytest.mark.parametrize("name", NAMES)
def test_claims_speak_of_cells_that_the_full_grid_has(name):
    study, cells, _ = grid(name, smoke=False)
    for claim in study.claims:
        for where in filters(claim):
            fitting = [c for c in cells if all(c.labels.get(key) == value for key, value in where.items())]
            assert fitting, f"{claim.name}: no cell has {where}"
            x = getattr(claim, "x", "queries")
            assert x in ("queries", "round") or all(x in cell.labels for cell in fitting), claim.name


def test_a_study_of_language_models_names_the_extra_that_it_lacks(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SystemExit) as ended:
        main(["run", "bridge_equality", "--smoke", "--out", str(tmp_path / "out")])
    assert ended.value.code == 2
    assert "install the extra, pip install -e '.[llm]'" in capsys.readouterr().err
    main(["list"])
    assert "bridge_equality" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "replicates"), [("mle_failure", 12), ("kwise", 6)])
def test_a_small_run_is_judged_and_drawn(name, replicates):
    study = find(name)
    settings = study.settings(replicates=replicates, smoke=True)
    frame = pd.concat([cell.run("cpu").assign(**cell.labels) for cell in study.cells(settings, {})])
    verdicts = judge(study.claims, frame, partial=True)
    assert len(verdicts) == len(study.claims)
    assert set(verdicts["verdict"]) - {"no data"}
    assert isinstance(study.plot(frame), Figure)


def test_the_fixed_design_plays_the_theorems_duels():
    study = find("mle_failure")
    cell = next(c for c in study.cells(study.settings(replicates=3, smoke=True), {}) if c.labels["n"] == 100)
    assert isinstance(cell, Simulation)
    logged = cell.offline
    draws = Draws(0, 3)
    instance = cell.problem.world.instance(3, draws)
    contexts = instance.contexts(draws.at(0), logged.size)
    uniforms = draws.at(0).uniform("player0", logged.size)
    first, second = (player.sample(contexts, uniforms) for player in (logged.policy, logged.second))
    assert logged.size == 100
    assert (first[:, :-1] == 0).all()
    assert (second[:, :-1] == 1).all()
    assert (first[:, -1] == 1).all()
    assert (second[:, -1] == 2).all()
