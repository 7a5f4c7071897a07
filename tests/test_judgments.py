"""The input of `human_cycles`: its columns, its stand-in, and the policies that it compares."""

import numpy as np
import pandas as pd
import pytest
import torch

from simbandit.metrics import kl
from studies._judgments import STAND_IN, at_distance, halve, has_cycle, load, policies, stand_in


def test_the_stand_in_is_what_ships():
    pd.testing.assert_frame_equal(pd.read_csv(STAND_IN), stand_in())
    name, frame = load(None, 3)
    assert name == "synthetic stand-in"
    assert list(frame) == ["context", "left", "right", "winner"]
    assert len(set(frame["context"])) == 3


def test_a_users_file_needs_its_columns_and_two_comparisons_a_context(tmp_path):
    rows = [["x", "a", "b", "a"], ["y", "a", "c", "c"], ["y", "c", "b", "c"]]
    path = tmp_path / "own.csv"
    pd.DataFrame(rows, columns=["prompt", "left", "right", "winner"]).to_csv(path, index=False)
    name, frame = load(path, 10)
    assert (name, set(frame["context"])) == ("own", {"y"})
    pd.DataFrame(rows, columns=["prompt", "left", "right", "label"]).to_csv(path, index=False)
    with pytest.raises(ValueError, match="must have the columns left, right, winner and one of context, question"):
        load(path, 10)


def test_a_cycle_is_one_of_strict_majorities():
    wins = np.zeros((4, 4))
    wins[0, 1] = wins[1, 2] = wins[2, 3] = 2.0
    wins[3, 0] = wins[0, 3] = 1.0  # a tie is no majority
    assert not has_cycle(wins)
    wins[3, 0] = 3.0
    assert has_cycle(wins)


def test_policies_are_equally_far_from_the_reference_and_nash_wins_where_it_was_fitted():
    halves = halve(load(None, 5)[1], "bradley_terry", 0)
    learnt = policies(halves)
    distance = kl(learnt["Nash"], halves.ref)
    for name in ("RLHF", "Borda"):
        torch.testing.assert_close(kl(learnt[name], halves.ref), distance, atol=1e-9, rtol=0)
        against = torch.einsum("xa,xab,xb->x", learnt["Nash"].exp(), halves.fitted, learnt[name].exp())
        assert (against >= 0.5 - 1e-9).all()
    assert len(halves.held_out) == 5 * 84 // 2


def test_the_distance_is_met_even_where_some_scores_tie():
    ref = torch.full((1, 3), 1 / 3, dtype=torch.float64).log()
    score = torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64)
    law = at_distance(score, ref, torch.tensor([0.2], dtype=torch.float64))
    assert float(kl(law, ref)) == pytest.approx(0.2, abs=1e-9)
    assert law[0, 0] == law[0, 1]
