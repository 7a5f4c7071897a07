"""Real comparisons: counts, the rules for pairs never compared, ragged contexts, and what is wrong with a frame."""

from __future__ import annotations

import csv
import itertools
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import minimize

from simbandit import worlds
from simbandit.draws import Draws
from simbandit.equilibrium import check_preference

COLUMNS: Any = {"context": "question", "left": "left", "right": "right", "winner": "winner"}
ROWS = [
    ("q2", "a", "b", "a"),
    ("q2", "b", "a", "a"),
    ("q2", "a", "b", "b"),
    ("q2", "b", "c", "c"),
    ("q1", "u", "w", "w"),
    ("q1", "w", "v", "v"),
    ("q1", "v", "u", "u"),
    ("q1", "u", "t", "u"),
]


def frame(rows: list[tuple] | None = None) -> pd.DataFrame:
    return pd.DataFrame(ROWS if rows is None else rows, columns=list(COLUMNS.values()))


def table(oracle: Any, world: Any) -> np.ndarray:
    instance = world.instance(1, Draws(0, 1))
    return oracle.bind(instance).win_table(instance.pool)[0].numpy()


def test_counts_become_a_world_and_an_oracle():
    world, oracle = worlds.from_comparisons(frame(), **COLUMNS)
    assert world.context_names == ("q1", "q2")
    assert world.item_names == (("t", "u", "v", "w"), ("a", "b", "c"))
    assert world.action_names is None
    assert not world.instance(1, Draws(0, 1)).has_rewards
    np.testing.assert_allclose(np.exp(world.ref_log_probs), [[0.25] * 4, [1 / 3] * 3 + [0.0]], rtol=1e-15)
    first, second = table(oracle, world)
    check_preference(torch.tensor(np.stack([first, second])))
    # t, u, v, w: u beat t, v beat w, u beat v, w beat u; t never met v and w
    np.testing.assert_array_equal(first, [[0.5, 0, 0.5, 0.5], [1, 0.5, 1, 0], [0.5, 0, 0.5, 1], [0.5, 1, 0, 0.5]])
    np.testing.assert_allclose(second[0, 1], 2 / 3, rtol=1e-15)
    assert second[0, 2] == 0.5
    assert second[2, 1] == 1.0
    np.testing.assert_array_equal(second[3], 0.5)


def test_the_order_of_rows_and_of_sides_is_nothing():
    turned = frame().iloc[::-1].rename(columns={"left": "right", "right": "left"})
    one, other = (worlds.from_comparisons(f, **COLUMNS) for f in (frame(), turned))
    assert one == other


def test_a_file_is_its_frame(tmp_path):
    frame().to_csv(tmp_path / "duels.csv", index=False)
    frame().to_parquet(tmp_path / "duels.parquet")
    expected = worlds.from_comparisons(frame(), **COLUMNS)
    for name in ("duels.csv", "duels.parquet"):
        assert worlds.from_comparisons(tmp_path / name, **COLUMNS) == expected


def test_ties_pseudo_counts_and_a_single_context():
    rows = [("", 1, 10, 1), ("", 1, 10, -1), ("", 10, 2, 2), ("", 1, 2, -1)]
    sides: Any = {"left": "left", "right": "right", "winner": "winner"}
    world, oracle = worlds.from_comparisons(frame(rows), **sides, tie=-1, pseudo_count=0.5)
    assert world.action_names == (1, 2, 10)
    np.testing.assert_allclose(
        table(oracle, world)[0], [[0.5, 0.5, 2 / 3], [0.5, 0.5, 0.75], [1 / 3, 0.25, 0.5]], rtol=1e-15
    )


def test_unseen_pairs_by_a_fitted_bradley_terry_model():
    rng = np.random.default_rng(3)
    truth = rng.normal(size=6)
    rows = []
    for _ in range(90):
        i, j = rng.choice(6, 2, replace=False)
        if {i, j} != {0, 5}:  # never compared
            wins = rng.random() < 1 / (1 + np.exp(truth[j] - truth[i]))
            rows.append(("q", f"item{i}", f"item{j}", f"item{i if wins else j}"))
    ridge = 0.3
    world, oracle = worlds.from_comparisons(frame(rows), **COLUMNS, unseen="bradley_terry", ridge=ridge)
    half = worlds.from_comparisons(frame(rows), **COLUMNS)

    def loss(s: np.ndarray) -> float:
        won = np.array([int(r[3][4:]) for r in rows])
        lost = np.array([int(r[1][4:]) + int(r[2][4:]) for r in rows]) - won
        return float(np.logaddexp(0, s[lost] - s[won]).sum() + ridge / 2 * (s**2).sum())

    s = minimize(loss, np.zeros(6), tol=1e-12).x
    filled, empty = table(oracle, world)[0], table(half[1], half[0])[0]
    # scipy's BFGS with numerical gradients is good to about 1e-6
    assert filled[0, 5] == pytest.approx(1 / (1 + np.exp(s[5] - s[0])), abs=1e-5)
    assert empty[0, 5] == 0.5
    seen = ~np.isin(np.arange(36).reshape(6, 6), [5, 30])
    np.testing.assert_array_equal(filled[seen], empty[seen])
    scores = worlds.bradley_terry_scores(worlds.count_comparisons(frame(rows), **COLUMNS), ridge)
    assert scores.sum() == pytest.approx(0.0, abs=1e-9)


def test_a_catalogue_brings_items_that_were_never_compared():
    items = {"q1": ["x", "t", "u", "v", "w"], "q2": ["c", "b", "a"]}
    with pytest.warns(UserWarning, match=r"context 'q1' \(2 groups\)\. .* no meaning across groups; .* called 1/2"):
        world, oracle = worlds.from_comparisons(frame(), **COLUMNS, items=items)
    assert world.item_names == (("t", "u", "v", "w", "x"), ("a", "b", "c"))
    np.testing.assert_array_equal(table(oracle, world)[0][4], 0.5)


def test_a_disconnected_graph_is_named():
    rows = [(q, a, b, a) for q in ("k", "l", "m", "n") for a, b in (("a", "b"), ("c", "d"))]
    rows.append(("o", "a", "b", "a"))
    message = r"context 'k' \(2 groups\), 'l' \(2 groups\), 'm' \(2 groups\) and 1 more\. .* each group is centred"
    with pytest.warns(UserWarning, match=message):
        world, oracle = worlds.from_comparisons(frame(rows), **COLUMNS, unseen="bradley_terry")
    one = table(oracle, world)[0]
    # each group is symmetric around 0, so winners tie across groups
    assert one[0, 2] == pytest.approx(0.5, abs=1e-9)
    assert one[0, 3] == one[2, 1] > 0.6
    counts = worlds.count_comparisons(frame(rows), **COLUMNS)
    np.testing.assert_array_equal(worlds.comparison_groups(counts), [2, 2, 2, 2, 1])


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ({"winner": "z"}, {}, r"winner: row 0 names 'z', which is neither left, 'a', nor right, 'b' \(1 such rows\)"),
        ({"winner": "tie"}, {}, r"ties have a label of their own: tie="),
        ({"left": "b"}, {}, r"left, right: row 0 compares 'b' with itself"),
        ({"left": " "}, {}, r"left: row 0 has an empty item"),
        ({"right": None}, {}, r"right: column 'right' has 1 missing labels"),
        ({"question": None}, {}, r"context: column 'question' has 1 missing labels"),
        ({}, {"winner": "winer"}, r"winner: the frame has no column 'winer'; nearest: winner"),
        ({}, {"unseen": "zero"}, r"unseen: must be 'half' or 'bradley_terry', got 'zero'"),
        ({}, {"ridge": 0.0}, r"ridge: must be a finite number > 0"),
        ({}, {"pseudo_count": -1}, r"pseudo_count: must be"),
        ({}, {"items": {"q2": "abc", "q1": "uv"}}, r"items: context 'q1' does not offer 't', which was compared"),
        ({}, {"items": {"q2": "abc", "q1": "tuvw", "q3": "xy"}}, r"items: context 'q3' has no comparisons"),
    ],
)
def test_errors_name_the_argument_and_the_row(change, arguments, message):
    rows = frame()
    for column, value in change.items():
        rows.loc[0, column] = value
    with pytest.raises(ValueError, match=message):
        worlds.from_comparisons(rows, **{**COLUMNS, **arguments})


def test_no_rows_and_no_file():
    with pytest.raises(ValueError, match="frame: must have at least one row"):
        worlds.from_comparisons(frame([]), **COLUMNS)
    with pytest.raises(ValueError, match="frame: cannot read"):
        worlds.from_comparisons("nothing.csv", **COLUMNS)


@pytest.mark.skipif("SIMBANDIT_DATA" not in os.environ, reason="needs the folder of real data in SIMBANDIT_DATA")
def test_real_judgments():
    path = Path(os.environ["SIMBANDIT_DATA"]) / "human_judgments.csv"
    world, oracle = worlds.from_comparisons(path, **COLUMNS)  # every question is connected: no warning
    _, filled = worlds.from_comparisons(path, **COLUMNS, unseen="bradley_terry")
    assert (world.n_contexts, world.n_actions) == (50, 130)
    won, met = Counter(), Counter()
    for row in csv.DictReader(path.read_text().splitlines()):
        loser = row["left"] if row["winner"] == row["right"] else row["right"]
        won[row["question"], row["winner"], loser] += 1
        met[row["question"], frozenset((row["winner"], loser))] += 1
    half, fitted, compared = table(oracle, world), table(filled, world), 0
    assert world.item_names is not None
    assert world.context_names is not None
    for x, names in enumerate(world.item_names):
        question = str(world.context_names[x])
        for i, j in itertools.combinations(range(len(names)), 2):
            n = met[question, frozenset((names[i], names[j]))]
            expected = won[question, names[i], names[j]] / n if n else 0.5
            assert abs(half[x, i, j] - expected) < 1e-15
            assert n == 0 or fitted[x, i, j] == half[x, i, j]
            compared += n
    assert compared == sum(met.values()) == 11_681
