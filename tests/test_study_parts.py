"""Parts of studies that compute something themselves: the shipped stand-in, landmarks, over-optimisation, chains."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from simbandit.draws import Draws
from simbandit.policies import gibbs
from simbandit.study import Settings
from simbandit.worlds import LinearWorld
from studies import _answers, kl_pcb, optimal_design, real_preferences, rejection_sampling
from studies._duel_worlds import CubeArms
from studies._random_pairs import RandomPairs


def test_the_shipped_stand_in_is_what_its_function_makes():
    shipped = pd.read_csv(_answers.STAND_IN)
    pd.testing.assert_frame_equal(shipped, _answers.stand_in())
    assert _answers.STAND_IN.stat().st_size < 100_000


def test_real_data_are_ragged_clipped_and_know_the_hacking_arm():
    data = _answers.load(None)
    assert data.wins.shape == (40, 12)
    assert np.isneginf(np.asarray(data.world.ref_log_probs)).sum() == 3
    assert np.abs(np.asarray(data.world.rewards)).max() == _answers.CLIP
    assert data.world.action_names is not None
    assert data.world.action_names[data.hack] == "NullModel"


def test_real_data_without_a_hacking_arm_take_the_best_arm(tmp_path):
    frame = _answers.stand_in()
    frame = frame[frame["model"] != "NullModel"]
    frame.to_csv(tmp_path / "mine.csv", index=False)
    data = _answers.load(tmp_path / "mine.csv")
    best = frame.pivot(index="prompt_id", columns="model", values="p_beats_baseline").mean().sort_values().index[-1]
    assert data.name == "mine"
    assert data.world.action_names is not None
    assert data.world.action_names[data.hack] == best


@pytest.mark.parametrize(("column", "value", "message"), [("model", None, "lacks"), ("p_beats_baseline", 1.2, "prob")])
def test_real_data_that_cannot_be_used_are_named(tmp_path, column, value, message):
    frame = _answers.stand_in()
    frame = frame.drop(columns=column) if value is None else frame.assign(**{column: value})
    frame.to_csv(tmp_path / f"{column}.csv", index=False)
    with pytest.raises(ValueError, match=f"data: .*{message}"):
        _answers.load(tmp_path / f"{column}.csv")


def test_facts_of_another_data_set_stay_undecided():
    claim = next(c for c in real_preferences.CLAIMS if isinstance(c, real_preferences.OnAlpacaEval))
    assert claim.judge(pd.DataFrame({"data": ["mine"]})).verdict == "undecided"


def test_landmarks_of_a_world_that_is_linear_have_no_gap():
    """Rewards linear in the features: least squares, the likelihood's limit and the best policy all are the optimum."""
    random = np.random.default_rng(3)
    phi, theta = torch.from_numpy(random.normal(size=(7, 5, 3))), torch.from_numpy(random.normal(size=3))
    rewards, ref = phi @ theta, torch.full((7, 5), -np.log(5.0), dtype=torch.float64)
    fitted, explained = _answers.least_squares(phi, rewards, torch.isfinite(ref))
    assert explained == pytest.approx(1.0, abs=1e-12)
    for found in (
        fitted,
        _answers.likelihood_limit(phi, rewards, ref),
        _answers.best_log_linear(phi, rewards, ref, torch.zeros(3, dtype=torch.float64)),
    ):
        torch.testing.assert_close(found, theta, rtol=0, atol=1e-5)  # stopped at a gradient of 1e-7


def test_over_optimisation_regret_against_the_law_of_large_numbers():
    """With plenty of data the estimates are the rewards: the KL tilt's regret is in closed form."""
    beta = 0.5
    regret = kl_pcb.regrets("KL", beta, 400_000, 3, 0, "cpu")
    good = 0.5 * np.exp(0.5 / beta)
    expected = 0.5 * (1 - good / (good + 0.5))
    np.testing.assert_allclose(regret, expected, atol=0.01)  # a rare arm is seen 4,000 times: error .016 each, clipped
    assert (kl_pcb.regrets("LCB", 3.0, 400_000, 3, 0, "cpu") == 0).all()


def test_chain_costs_by_hand():
    world = LinearWorld(features=[[[0.0], [1.0]]], theta=(1.0,))
    frame = rejection_sampling.chain(world, 0.5, 2, 1, 0, "cpu")
    start = frame["round"].to_numpy() == 0
    cost = dict(zip(frame["metric"].to_numpy()[start], frame["value"].to_numpy()[start], strict=True))
    # one step: accepted with probability (1 + e^-2) / 2; each of two steps tilts by 1
    middle = gibbs(torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.5]).log(), 1.0).exp()
    first, second = (1 + np.exp(-1)) / 2, float(middle[1] + middle[0] * np.exp(-1))
    assert cost["proposals"] == pytest.approx(1 / first + 1 / second, rel=1e-6)
    assert cost["proposals_one_step"] == pytest.approx(2 / (1 + np.exp(-2)), rel=1e-12)
    assert first * second == pytest.approx((1 + np.exp(-2)) / 2, rel=1e-6)


@pytest.mark.parametrize("module", [kl_pcb, rejection_sampling])
def test_smoke_grids_have_at_least_six_cells(module):
    tuned = dict.fromkeys(getattr(module, "tuning", lambda _: {})(Settings(2, smoke=True)), kl_pcb.FIXED["greedy"])
    assert len(module.cells(Settings(2, smoke=True), tuned)) >= 6


def test_dueling_worlds_have_the_papers_arms():
    random = CubeArms("random", 10, 2.0, 30).instance(3, Draws(0, 3))
    assert random.pool is not None
    assert random.theta is not None
    assert random.pool.features.shape == (3, 1, 30, 10)
    torch.testing.assert_close(random.pool.features.abs(), torch.full((3, 1, 30, 10), 10**-0.5).double())
    torch.testing.assert_close(random.theta.norm(dim=-1), torch.full((3,), 2.0).double())
    assert float(random.best_rewards.max()) <= random.reward_range[1]
    every = CubeArms("all", 5, 4.0).instance(2, Draws(1, 2))
    assert every.pool is not None
    assert every.theta is not None
    signs = every.pool.features[0, 0].sign()
    assert len(torch.unique(signs, dim=0)) == 32
    moved = every.pool.features - every.pool.features.sign()
    assert -0.1 <= float(moved.min()) < float(moved.max()) <= 0.0
    assert not every.theta[:, 2:].any()
    torch.testing.assert_close(every.theta.norm(dim=-1), torch.full((2,), 4.0).double())
    torch.testing.assert_close(
        every.rewards(every.pool)[:, 0], (every.pool.features[:, 0] @ every.theta[..., None])[..., 0]
    )
    exact = CubeArms("corners", 5, 4.0).instance(3, Draws(1, 3))
    assert exact.pool is not None
    assert exact.theta is not None
    assert len(torch.unique(exact.pool.features[2, 0], dim=0)) == 32
    assert float(exact.pool.features.abs().sum()) == 3 * 32 * 5
    published = torch.tensor([0.333, 0.441, 0.677, 0.468, 0.131]).double()
    torch.testing.assert_close(exact.theta / 4, published.expand(3, 5), rtol=0, atol=5e-4)
    with pytest.raises(ValueError, match="n_actions: all sign vectors are 8"):
        CubeArms("all", 3, 1.0)


def test_random_pairs_are_of_different_actions_and_cover_all_of_them():
    draws = Draws(0, 2)
    contexts = LinearWorld(n_contexts=5, n_actions=3, dim=4).instance(2, draws).contexts(draws.at(0), 300)
    pairs = RandomPairs().select(None, contexts, draws.at(0))
    assert (pairs[..., 0] != pairs[..., 1]).all()
    counts = torch.bincount((3 * pairs[0, :, 0] + pairs[0, :, 1]), minlength=9)
    assert int((counts > 0).sum()) == 6
    assert int(counts.max()) < 80  # 50 expected, standard deviation 6.5


def test_plain_frank_wolfe_finds_the_design_of_the_cube():
    corners = np.array([[1.0, 1.0], [1.0, -1.0], [0.1, 0.2], [0.5, 0.0]])
    weights, steps = optimal_design.plain_frank_wolfe(corners, 1e-3)
    assert 0 < steps < optimal_design.LIMIT
    np.testing.assert_allclose(weights, [0.5, 0.5, 0, 0], atol=5e-3)
