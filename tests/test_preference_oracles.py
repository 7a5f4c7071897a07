"""General preference oracles: exact against plain NumPy, skew to the last bit, sampled as often as they say."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from simbandit import oracles
from simbandit.draws import Draws
from simbandit.equilibrium import check_preference, solve, unregularised_gap
from simbandit.oracles import asking
from simbandit.oracles.models import PairFeatures
from simbandit.policies import gibbs
from simbandit.worlds import LinearWorld, TableWorld

R, X, A, D, B = 3, 7, 5, 4, 6
WORLD = LinearWorld(X, A, D, reference="softmax")
SHARED = LinearWorld(X, A, D, fixed=True)
FRESH = LinearWorld(None, A, D, n_evaluation=X)
RNG = np.random.default_rng(8)
SCORES = RNG.normal(size=(2, A))
LENGTHS = RNG.uniform(1, 3, size=A)

ORACLES: dict[str, Any] = {
    "bradley_terry": oracles.BradleyTerry(temperature=0.7),
    "thurstone": oracles.Thurstone(0.8),
    "table": oracles.rock_paper_scissors(A, 0.3),
    "uniform": oracles.UniformTriangular(),
    "planted": oracles.PlantedEquilibrium(),
    "hodge": oracles.HodgeMix(0.7),
    "hodge_drawn": oracles.HodgeMix(0.7, gradient="drawn"),
    "bilinear": oracles.Bilinear(rank=4),
    "bilinear_linear": oracles.Bilinear(rank=2, norm=2.0, link="linear"),
    "difference": oracles.LinearPreference("difference"),
    "wedge": oracles.LinearPreference("wedge", norm=5.0),
    "both": oracles.LinearPreference("both"),
    "gpm": oracles.GPM(3, scales="uniform"),
    "blade_chest": oracles.BladeChest(biases=SCORES[0]),
    "blade_chest_distance": oracles.BladeChest("distance", dim=3),
    "population": oracles.Population(),
    "population_tabular": oracles.Population("tabular", shares=(0.2, 0.3, 0.4, 0.1)),
    "soft": oracles.SoftLabels(oracles.UniformTriangular()),
    "flips": oracles.FlipNoise(oracles.Ties(oracles.UniformTriangular()), 0.2),
    "ties": oracles.Ties(oracles.BradleyTerry(), 1.5),
    "coins": oracles.Ties(oracles.Bilinear(), 0.5, answer="coin"),
    "position": oracles.PositionBias(oracles.Ties(oracles.UniformTriangular()), 0.8),
    "length": oracles.LengthBias(oracles.BradleyTerry(), LENGTHS, 0.5),
    "psi": oracles.PsiTransformed(oracles.UniformTriangular(), "power", 0.4),
    "drift": oracles.Drift(oracles.Bilinear(), oracles.Bilinear(variant=1), 4, 10),
    "pool": oracles.AnnotatorPool([oracles.BradleyTerry(), oracles.Ties(oracles.GPM())], (0.3, 0.7)),
    "symmetrised": oracles.Symmetrised(oracles.JudgeTable(RNG.uniform(size=(X, A, A)))),
}
ORDERED = ("position",)  # the order shown matters


def setup(oracle: Any, world: Any = WORLD, replicates: Any = R, batch: int = B) -> Any:
    draws = Draws(0, replicates)
    instance = world.instance(len(draws.replicates), draws)
    return oracle.bind(instance), instance, instance.contexts(draws.at(0), batch), draws


def duels(replicates: int = R, batch: int = B, n_actions: int = A) -> Tensor:
    return torch.from_numpy(np.random.default_rng(5).integers(n_actions, size=(replicates, batch, 2)))


def sigma(z: Any) -> Any:
    return 1 / (1 + np.exp(-z))


@pytest.mark.parametrize("world", [WORLD, SHARED, FRESH], ids=["pool", "shared", "fresh"])
@pytest.mark.parametrize("name", ORACLES)
def test_skew_to_the_last_bit_and_the_same_from_every_side(name, world):
    oracle = ORACLES[name]
    by_context = "JudgeTable" in repr(oracle) or ("contextual=True" in repr(oracle) and name != "population")
    if world is FRESH and by_context:
        with pytest.raises(ValueError, match=r"fresh contexts"):
            setup(oracle, world)
        return
    bound, instance, contexts, draws = setup(oracle, world)
    assert (bound.feedback, bound.n_select) == ("preference", 2)
    everything = instance.evaluation
    table = bound.win_table(everything)
    assert table.shape == (R, X, A, A)
    check_preference(table)
    if name != "bradley_terry":  # sigma(z) + sigma(-z) may miss 1 by one bit
        assert torch.equal(table + table.mT, torch.ones_like(table))
    assert table.diagonal(dim1=-2, dim2=-1).eq(0.5).all()

    policy = torch.log_softmax(draws.once("test/policy", X, A), -1)
    expected = np.einsum("rxab,rxb->rxa", table.numpy(), policy.exp().numpy())
    np.testing.assert_allclose(bound.win_rates(everything, policy), expected, rtol=1e-13)

    actions = duels()
    prob = bound.prob(contexts, actions[..., 0], actions[..., 1])
    back = bound.prob(contexts, actions[..., 1], actions[..., 0])
    small = bound.win_table(contexts)
    replicate, batch = np.ogrid[:R, :B]
    entry = small.numpy()[replicate, batch, actions[..., 0], actions[..., 1]]
    if name in ORDERED:
        assert np.abs(prob.numpy() - entry).max() > 0.01
        np.testing.assert_allclose(((prob + 1 - back) / 2).numpy(), entry, rtol=1e-13)
    else:
        np.testing.assert_allclose(prob, entry, rtol=1e-13)
        np.testing.assert_allclose(prob + back, 1.0, rtol=1e-15)
    if contexts.index is not None:
        np.testing.assert_allclose(small, table.numpy()[replicate, contexts.index], rtol=1e-13)


@pytest.mark.parametrize("name", ORACLES)
def test_replicates_do_not_know_each_other_and_chunks_do_not_show(name, monkeypatch):
    bound, instance, *_ = setup(ORACLES[name])
    alone, single, contexts, draws = setup(ORACLES[name], replicates=[2])
    table = bound.win_table(instance.evaluation)
    np.testing.assert_allclose(alone.win_table(single.evaluation)[0], table[2], rtol=1e-13)
    actions = duels(1)
    everyone = bound.respond(instance.contexts(Draws(0, R).at(0), B), actions.expand(R, -1, -1), Draws(0, R).at(3))
    np.testing.assert_allclose(alone.respond(contexts, actions, draws.at(3))[0], everyone[2], rtol=1e-13)
    policy = torch.log_softmax(Draws(0, R).once("test/policy", X, A), -1)
    at_once = bound.win_rates(instance.evaluation, policy)
    monkeypatch.setattr(asking, "TABLE_NUMBERS", 2 * R * A * A)
    np.testing.assert_allclose(bound.win_rates(instance.evaluation, policy), at_once, rtol=1e-13)
    fixed = isinstance(ORACLES[name], oracles.PreferenceTable) or name == "symmetrised"
    assert torch.equal(table[0], table[1]) == fixed


@pytest.mark.parametrize("name", ["bilinear", "flips", "position", "length", "pool", "symmetrised", "coins"])
def test_answers_are_as_frequent_as_they_say(name):
    bound, _, _, draws = setup(ORACLES[name], replicates=2)
    contexts = setup(ORACLES[name], replicates=2, batch=1)[2]
    actions = torch.tensor([[[0, 1]], [[3, 2]]])
    question = asking.Question(contexts, actions[..., 0], actions[..., 1])
    law, n = bound.law(question), 1500
    labels = torch.stack([bound.respond(contexts, actions, draws.at(t)) for t in range(n)])[..., 0].numpy()
    tie = np.zeros(2) if law.tie is None else law.tie.numpy()[:, 0]
    for r in range(2):
        # a fixed seed; a correct oracle fails one such test in a thousand
        assert stats.binomtest(int((labels[:, r] == 1).sum()), n, float(law.win[r, 0])).pvalue > 1e-3
        assert stats.binomtest(int((labels[:, r] == 0.5).sum()), n, float(tie[r])).pvalue > 1e-3
    assert set(np.unique(labels)) == ({0.0, 0.5, 1.0} if tie.any() else {0.0, 1.0})
    np.testing.assert_allclose(law.mean, bound.prob(contexts, actions[..., 0], actions[..., 1]), rtol=1e-15)


def by_hand(oracle: Any, instance: Any, contexts: Any, r: int, b: int, i: int, j: int) -> float:
    """P(i beats j) in plain NumPy, one pair at a time."""
    phi = contexts.features[r, b].numpy()
    x = int(contexts.index[r, b])
    reward = instance.rewards(contexts)[r, b].numpy()
    match oracle:
        case oracles.Thurstone():
            return float(stats.norm.cdf(reward[i] - reward[j], scale=oracle.noise_std * math.sqrt(2)))
        case oracles.Bilinear():
            z = float(phi[i] @ oracle.matrix(instance).expand(R, -1, -1)[r].numpy() @ phi[j])
            return sigma(z) if oracle.link == "logistic" else 0.5 + z / 8
        case oracles.LinearPreference():
            wedge = [phi[i][k] * phi[j][m] - phi[j][k] * phi[i][m] for k in range(D) for m in range(k + 1, D)]
            parts = {"difference": [phi[i] - phi[j]], "wedge": [wedge], "both": [phi[i] - phi[j], wedge]}
            return sigma(np.concatenate(parts[str(oracle.psi)]) @ oracle.parameter(instance)[r].numpy())
        case oracles.GPM():
            v, scale = np.asarray(oracle.embeddings)[x], np.asarray(oracle.scales)[x]
            turn = np.kron(np.diag(scale), [[0, -1], [1, 0]])
            return sigma((turn @ v[i]) @ v[j] / oracle.temperature)  # <R v_i, v_j>
        case oracles.BladeChest():
            blade, chest = np.asarray(oracle.blades)[0], np.asarray(oracle.chests)[0]
            m = blade[i] @ chest[j] - chest[i] @ blade[j]
            if oracle.form == "distance":
                m = ((blade[j] - chest[i]) ** 2).sum() - ((blade[i] - chest[j]) ** 2).sum()
            return sigma(m + np.asarray(oracle.biases)[0, i] - np.asarray(oracle.biases)[0, j])
        case oracles.Population():
            own = np.asarray(oracle.rewards)[:, 0]
            return float(np.asarray(oracle.shares) @ sigma((own[:, i] - own[:, j]) / oracle.temperature))
    raise AssertionError(oracle)


@pytest.mark.parametrize(
    "oracle",
    [
        oracles.Thurstone(0.8),
        oracles.Bilinear(rank=4),
        oracles.Bilinear(rank=2, norm=3.0, link="linear"),
        oracles.Bilinear(theta=np.kron(np.diag([1.0, 2.0]), [[0, 1], [-1, 0]])),
        *(oracles.LinearPreference(psi) for psi in ("difference", "wedge", "both")),
        oracles.GPM(embeddings=RNG.normal(size=(X, A, 4)), scales=RNG.uniform(size=(X, 2)), temperature=0.7),
        oracles.BladeChest(blades=RNG.normal(size=(A, 3)), chests=RNG.normal(size=(A, 3)), biases=SCORES[0]),
        oracles.BladeChest("distance", blades=SCORES.T, chests=SCORES.T[::-1], biases=SCORES[1]),
        oracles.Population(3 * SCORES, (0.3, 0.7), temperature=2.0),
    ],
    ids=lambda oracle: f"{type(oracle).__name__}-{getattr(oracle, 'psi', '') or getattr(oracle, 'form', '')}",
)
def test_exact_probabilities_by_hand(oracle):
    bound, instance, contexts, _ = setup(oracle)
    table = bound.win_table(contexts)
    for r, b, i, j in [(0, 0, 1, 2), (0, 1, 4, 0), (1, 2, 3, 1), (2, 0, 0, 3), (2, 5, 4, 2), (1, 3, 2, 2)]:
        assert table[r, b, i, j] == pytest.approx(by_hand(oracle, instance, contexts, r, b, i, j), rel=1e-12)


def test_pair_features_are_those_of_the_linear_oracle():
    kinds: tuple[PairFeatures, ...] = ("difference", "wedge", "both")
    for kind in kinds:
        oracle = oracles.LinearPreference(kind)
        bound, instance, contexts, _ = setup(oracle)
        actions = duels()
        psi = oracles.pair_features(contexts, actions[..., 0], actions[..., 1], kind)
        score = torch.einsum("rbm,rm->rb", psi, oracle.parameter(instance))
        prob = bound.prob(contexts, actions[..., 0], actions[..., 1])
        np.testing.assert_allclose(prob, sigma(score.numpy()), rtol=1e-13)
    psi = RNG.normal(size=(X, A, A, 3))
    psi = psi - psi.swapaxes(1, 2)
    table = setup(oracles.LinearPreference(psi, theta=(1.0, -1.0, 0.5)))[0].win_table(setup(oracles.GPM())[1].pool)
    np.testing.assert_allclose(table[1], sigma(psi @ [1.0, -1.0, 0.5]), rtol=1e-12)


def test_the_spectral_law_of_the_bilinear_model():
    theta = oracles.Bilinear(rank=2, norm=3.0).matrix(setup(oracles.GPM())[1])
    assert torch.equal(theta, -theta.mT)
    singular = torch.linalg.svdvals(theta)
    np.testing.assert_allclose(singular[:, :2], 3 / math.sqrt(2), rtol=1e-12)
    assert singular[:, 2:].max() < 1e-12  # rounding of products of size 3
    assert (theta[0] - theta[1]).abs().max() > 0.1
    other = oracles.Bilinear(rank=2, norm=3.0, variant=1).matrix(setup(oracles.GPM())[1])
    assert (theta - other).abs().max() > 0.1


def one_context(oracle: Any, n_actions: int, **world: Any) -> Any:
    ref = np.full((1, n_actions), -math.log(n_actions))
    return setup(oracle, TableWorld(ref, **world), replicates=1, batch=1)


def game(oracle: Any, n_actions: int, **world: Any) -> Tensor:
    bound, instance, *_ = one_context(oracle, n_actions, **world)
    return bound.win_table(instance.pool)[0, 0]


def limit(preference: Tensor) -> np.ndarray:
    """The equilibrium as kl_coef -> 0, under a uniform reference."""
    n = preference.shape[-1]
    found = solve(preference, torch.full((n,), -math.log(n), dtype=torch.float64), 1e-7)
    assert bool(found.converged)
    return found.log_probs.exp().numpy()


def test_golden_games():
    np.testing.assert_allclose(game(oracles.dice(), 3)[[0, 1, 2], [1, 2, 0]], 5 / 9, rtol=1e-15)
    # the limit is reached linearly in kl_coef = 1e-7
    np.testing.assert_allclose(limit(game(oracles.dice(), 3)), 1 / 3, atol=1e-6)
    a, b, c = 0.1, 0.4, 0.25
    np.testing.assert_allclose(limit(game(oracles.cycle(a, b, c), 3)), np.array([b, c, a]) / (a + b + c), atol=1e-6)
    comal = game(oracles.cycle(-0.4, -0.4, -0.3), 3)
    np.testing.assert_allclose(comal, [[0.5, 0.1, 0.8], [0.9, 0.5, 0.1], [0.2, 0.9, 0.5]], rtol=1e-14)
    raters = game(oracles.rater_types(0.1), 3)
    assert float(raters[1, 0]) == pytest.approx(2 / 3 - 0.05)
    np.testing.assert_allclose(limit(raters), [0.383333, 0.383333, 0.233333], atol=2e-6)
    shifts = [np.roll([0.0, 3.0, 6.0], k) for k in range(3)]
    mixture = game(oracles.Population(shifts), 3)
    np.testing.assert_allclose(mixture[[1, 2, 0], [0, 1, 2]], 0.6359, atol=5e-5)
    borda = game(oracles.condorcet_not_borda(), 3)
    assert (borda[0, 1:] > 0.5).all()
    assert int(borda.mean(-1).argmax()) == 1
    rps = game(oracles.rock_paper_scissors(5), 5)
    assert rps.sum(-1).eq(2.5).all()
    assert float(rps[1, 0]) == 1.0
    assert float(game(oracles.dice((1, 2), (2, 3)), 2)[1, 0]) == 7 / 8  # 3 wins and one draw of 4


def test_clones_share_the_mass_of_their_original():
    four = game(oracles.clone(oracles.rock_paper_scissors(), 2), 4)
    ref = torch.tensor([0.25, 0.25, 0.4, 0.1], dtype=torch.float64).log()
    for kl_coef in (1.0, 0.01):
        pi = solve(four, ref, kl_coef).log_probs.exp()
        assert float(pi[2] / pi[3]) == pytest.approx(4.0, rel=1e-10)


@pytest.mark.parametrize("given", [None, (0.1, 0.2, 0.4, 0.1, 0.2)], ids=["drawn", "given"])
def test_a_planted_equilibrium_is_an_equilibrium(given):
    oracle = oracles.PlantedEquilibrium(given, margin=0.3)
    bound, instance, *_ = setup(oracle)
    table, p = bound.win_table(instance.pool), oracle.planted(instance).expand(R, X, A)
    if given is not None:
        np.testing.assert_allclose(p[1, 3], given, rtol=1e-14)
    np.testing.assert_allclose(p.sum(-1), 1.0, rtol=1e-14)
    assert p.min() >= 0.1 / A
    assert unregularised_gap(p.log(), table).abs().max() < 1e-15
    np.testing.assert_allclose((table - 0.5).abs().amax((-2, -1)), 0.3, rtol=1e-13)
    np.testing.assert_allclose(limit(table[2, 4]), p[2, 4], atol=1e-4)


RAGGED = np.log(
    np.array([[0.5, 0.3, 0.1, 0.1], [0.0, 0.25, 0.35, 0.4]]),
    where=np.array([[True] * 4, [False, True, True, True]]),
    out=np.full((2, 4), -np.inf),
)


@pytest.mark.parametrize("name", [n for n in ORACLES if n not in ("table", "blade_chest", "length", "symmetrised")])
def test_absent_actions_are_neutral(name):
    world = TableWorld(RAGGED, RNG.normal(size=(2, 4)), RNG.normal(size=(2, 4, 3)) / 3)
    oracle = ORACLES[name] if name != "bilinear" else oracles.Bilinear(rank=2)
    bound, instance, *_ = setup(oracle, world)
    table = bound.win_table(instance.pool)
    assert table[:, 1, 0].eq(0.5).all()
    assert table[:, 1, :, 0].eq(0.5).all()
    assert (table[:, 0, 0, 1:] != 0.5).any()


def test_planted_and_curl_know_which_actions_are_offered():
    planted = oracles.PlantedEquilibrium()
    bound, instance, *_ = setup(planted, TableWorld(RAGGED))
    p = planted.planted(instance)
    assert p[:, 1, 0].eq(0).all()
    best = (bound.win_table(instance.pool) @ p[..., None])[:, 1, 1:, 0]
    np.testing.assert_allclose(best, 0.5, atol=1e-15)
    bound, instance, *_ = setup(oracles.HodgeMix(2.0, "drawn"), TableWorld(RAGGED))
    logits = torch.logit(bound.win_table(instance.pool))[:, 1, 1:, 1:]
    _, curl = oracles.hodge(logits)
    # three actions: every pair of a curl has the same size
    np.testing.assert_allclose(curl.abs()[:, [0, 0, 1], [1, 2, 2]], 2.0, rtol=1e-9)


def test_no_curl_is_bradley_terry_and_curl_is_what_no_reward_explains():
    plain, instance, *_ = setup(oracles.BradleyTerry())
    table = setup(oracles.HodgeMix(0.0))[0].win_table(instance.pool)
    np.testing.assert_allclose(table, plain.win_table(instance.pool), rtol=1e-13)
    logits = torch.logit(setup(oracles.HodgeMix(1.7))[0].win_table(instance.pool))
    potential, curl = oracles.hodge(logits)
    rewards = instance.rewards(instance.pool)
    np.testing.assert_allclose(potential, rewards - rewards.mean(-1, keepdim=True), atol=1e-12)
    np.testing.assert_allclose(curl.sum(-1), 0.0, atol=1e-12)
    np.testing.assert_allclose(curl.square().sum((-2, -1)) / (A * (A - 1)), 1.7**2, rtol=1e-11)
    least_squares = np.linalg.lstsq(
        np.array([np.eye(A)[i] - np.eye(A)[j] for i in range(A) for j in range(A)]), logits[0, 0].flatten().numpy()
    )[0]
    np.testing.assert_allclose(potential[0, 0], least_squares, atol=1e-12)
    ref = instance.pool.ref_log_probs
    as_reward = gibbs(0 * rewards, ref, 1.0)
    np.testing.assert_allclose(as_reward, ref, atol=1e-12)


def test_uniform_games_are_uniform():
    bound, instance, *_ = setup(oracles.UniformTriangular(), LinearWorld(40, 8, 2), replicates=2)
    wins = bound.win_table(instance.pool)[:, :, *np.triu_indices(8, 1)].flatten()
    assert stats.kstest(wins.numpy(), "uniform").pvalue > 1e-3  # a fixed seed
    bound, instance, *_ = setup(oracles.UniformTriangular(contextual=False))
    one = bound.win_table(instance.pool)
    assert one.shape[0] == R
    assert torch.equal(one[:, 0], one[:, 1])
    fixed, known, *_ = setup(oracles.UniformTriangular(fixed=True))
    table = fixed.win_table(known.pool)
    assert table.stride(0) == 0
    assert not torch.equal(table[0, 0], table[0, 1])


def test_any_table_is_a_gpm_of_full_rank():
    """Every skew matrix is a GPM (its Theorem 4.4): the eigenvectors of logit P are the embedding."""
    upper = np.triu(RNG.normal(size=(A, A)), 1)
    scores = upper - upper.T
    values, vectors = np.linalg.eigh(1j * scores)
    keep = values > 1e-9
    u, w = np.sqrt(2 * values[keep]) * np.real(vectors[:, keep]), np.sqrt(2 * values[keep]) * np.imag(vectors[:, keep])
    v = np.stack([u, w], -1).reshape(A, -1)
    sign = np.sign((u @ w.T - w @ u.T)[0, 1] * scores[0, 1])
    v[:, 1::2] *= sign
    table = game(oracles.GPM(embeddings=v, temperature=1.0), A)
    np.testing.assert_allclose(table, sigma(scores), atol=1e-13)


def test_the_law_of_ties_is_davidsons():
    p, nu = 0.8, 1.5
    bound, _, contexts, _ = one_context(oracles.Ties(oracles.PreferenceTable([[0.5, p], [1 - p, 0.5]]), nu), 2)
    law = bound.law(asking.Question(contexts, torch.tensor([[0]]), torch.tensor([[1]])))
    strength = p / (1 - p)
    total = strength + 1 + nu * math.sqrt(strength)
    assert float(law.win) == pytest.approx(strength / total, rel=1e-14)
    assert float(law.tie) == pytest.approx(nu * math.sqrt(strength) / total, rel=1e-14)


def test_biases_tilt_the_odds():
    p, table = 0.3, oracles.PreferenceTable([[0.5, 0.3], [0.7, 0.5]])
    for oracle, tilts in (
        (oracles.PositionBias(table, 1.2), (1.2, 1.2)),
        (oracles.LengthBias(table, (5.0, 3.0), 0.4), (0.8, -0.8)),
        (oracles.FlipNoise(table, 1.0), None),
    ):
        bound, _, contexts, _ = one_context(oracle, 2)
        zero, one = torch.tensor([[0]]), torch.tensor([[1]])
        answers = [float(bound.prob(contexts, zero, one)), float(bound.prob(contexts, one, zero))]
        if tilts is None:
            assert answers == pytest.approx([1 - p, p])
        else:
            expected = [sigma(np.log(q / (1 - q)) + tilt) for q, tilt in zip((p, 1 - p), tilts, strict=True)]
            assert answers == pytest.approx(expected, rel=1e-13)
        mean = (answers[0] + 1 - answers[1]) / 2
        assert float(bound.win_table(contexts)[0, 0, 0, 1]) == pytest.approx(mean, rel=1e-14)


@pytest.mark.parametrize(
    "wrap",
    [
        partial(oracles.FlipNoise, rate=0.3),
        partial(oracles.Ties, nu=2.0),
        partial(oracles.PositionBias, log_odds=1.0),
        partial(oracles.LengthBias, lengths=LENGTHS, log_odds=1.0),
    ],
    ids=["flips", "ties", "position", "length"],
)
def test_the_wrapped_game_stays_the_truth_if_asked(wrap):
    inner = oracles.BradleyTerry()
    truth, instance, *_ = setup(inner)
    kept = setup(wrap(inner, game="wrapped"))[0]
    changed = setup(wrap(inner))[0]
    table = truth.win_table(instance.pool)
    assert torch.equal(kept.win_table(instance.pool), table)
    policy = torch.log_softmax(Draws(0, R).once("test/policy", X, A), -1)
    np.testing.assert_allclose(
        kept.win_rates(instance.pool, policy), truth.win_rates(instance.pool, policy), rtol=1e-13
    )
    if not isinstance(changed.oracle, oracles.PositionBias):
        assert (changed.win_table(instance.pool) - table).abs().max() > 0.01
    again = setup(oracles.FlipNoise(inner, 0.3))[0].win_table(instance.pool)
    flipped = setup(oracles.BradleyTerry(flip_rate=0.3))[0].win_table(instance.pool)
    np.testing.assert_allclose(again, flipped, rtol=1e-13)


@pytest.mark.parametrize(
    ("form", "strength", "expected"),
    [
        ("power", 0.5, 0.5 + 0.5 * math.sqrt(0.6)),
        ("logit", 2.0, 0.64 / 0.68),
        ("majority", 3, 0.8**3 + 3 * 0.8**2 * 0.2),
        ("logit", 1, 0.8),
    ],
)
def test_psi_keeps_the_order_and_the_symmetry(form, strength, expected):
    table = game(oracles.PsiTransformed(oracles.PreferenceTable([[0.5, 0.8], [0.2, 0.5]]), form, strength), 2)
    assert float(table[0, 1]) == pytest.approx(expected, rel=1e-13)
    sure = game(oracles.PsiTransformed(oracles.rock_paper_scissors(), form, strength), 3)
    assert torch.equal(sure, game(oracles.rock_paper_scissors(), 3))


def test_drift_is_a_mixture_by_round():
    before, after = oracles.UniformTriangular(), oracles.UniformTriangular(variant=1)
    oracle = oracles.Drift(before, after, start=4, length=10)
    bound, instance, contexts, draws = setup(oracle)
    actions = duels()
    first, second = actions[..., 0], actions[..., 1]
    old, new = (setup(o)[0].prob(contexts, first, second) for o in (before, after))
    for t, weight in ((0, 0.0), (4, 0.0), (9, 0.5), (14, 1.0), (99, 1.0)):
        now = bound.prob(contexts, first, second, draws.at(t))
        np.testing.assert_allclose(now, (1 - weight) * old + weight * new, rtol=1e-13)
        answered = bound.respond(contexts, actions, draws.at(t))
        assert torch.equal(answered, (draws.at(t).uniform("annotator", B) < now).double())
    assert torch.equal(bound.prob(contexts, first, second), new)
    assert torch.equal(bound.win_table(instance.pool), setup(after)[0].win_table(instance.pool))
    assert [oracles.Drift(before, after, 3).weight(t) for t in (2, 3)] == [0.0, 1.0]


def test_one_annotator_a_round_labels_the_whole_batch():
    yes, no = (oracles.PreferenceTable([[0.5, p], [1 - p, 0.5]]) for p in (1.0, 0.0))
    oracle = oracles.AnnotatorPool([yes, no], (0.3, 0.7), per="round")
    bound, _, _, draws = one_context(oracle, 2)
    contexts = setup(oracle, TableWorld(np.full((1, 2), -math.log(2))), 1, B)[2]
    actions = torch.tensor([0, 1]).expand(1, B, 2)
    labels = torch.stack([bound.respond(contexts, actions, draws.at(t))[0] for t in range(1000)])
    assert torch.equal(labels, labels[:, :1].expand(-1, B))
    assert stats.binomtest(int(labels[:, 0].sum()), 1000, 0.3).pvalue > 1e-3  # a fixed seed
    assert float(bound.prob(contexts, actions[..., 0], actions[..., 1])[0, 0]) == pytest.approx(0.3)


def test_a_judge_asked_in_both_orders_is_symmetric():
    judge = RNG.uniform(size=(A, A))
    one, instance, contexts, _ = setup(oracles.JudgeTable(judge))
    both = setup(oracles.Symmetrised(oracles.JudgeTable(judge)))[0]
    actions = duels()
    i, j = actions[..., 0].numpy(), actions[..., 1].numpy()
    np.testing.assert_allclose(one.prob(contexts, actions[..., 0], actions[..., 1]), judge[i, j], rtol=1e-14)
    law = both.law(asking.Question(contexts, actions[..., 0], actions[..., 1]))
    np.testing.assert_allclose(law.win, judge[i, j] * (1 - judge[j, i]), rtol=1e-13)
    np.testing.assert_allclose(law.mean, (judge[i, j] + 1 - judge[j, i]) / 2, rtol=1e-13)
    np.testing.assert_allclose(one.win_table(instance.pool), both.win_table(instance.pool), atol=1e-15)


def test_exact_feedback_answers_with_win_rates_of_any_preference():
    bound, instance, *_ = setup(oracles.FullInformation(oracles.FlipNoise(oracles.GPM(), 0.1)))
    policy = torch.log_softmax(Draws(0, R).once("test/policy", X, A), -1)
    answer = bound.respond(instance.pool, policy, Draws(0, R).at(0))
    table = setup(oracles.FlipNoise(oracles.GPM(), 0.1))[0].win_table(instance.pool)
    np.testing.assert_allclose(answer, (table @ policy.exp()[..., None]).squeeze(-1), rtol=1e-13)


def test_descriptions_are_frozen_values():
    table = RNG.uniform(size=(A, A))
    for build in (
        lambda t: oracles.JudgeTable(t),
        lambda t: oracles.LengthBias(oracles.BradleyTerry(), t[0], 1.0),
        lambda t: oracles.Population(t),
    ):
        one, same, other = build(table), build(table.copy()), build(table / 2)
        assert one == same
        assert hash(one) == hash(same)
        assert one != other
    with pytest.raises(ValueError, match="read-only"):
        np.asarray(oracles.JudgeTable(table).judgements)[0, 0, 0] = 1.0
    with pytest.raises(RuntimeError, match=r"GPM does not know the truth yet: use `simulate`"):
        oracles.GPM().respond(setup(oracles.GPM())[2], duels(), Draws(0, R).at(0))


RPS = np.array([[0.5, 0.2, 0.8], [0.8, 0.5, 0.2], [0.2, 0.8, 0.5]])
TILTED = RPS + np.array([[0, 0.1, 0], [0, 0, 0], [0, 0, 0]])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: oracles.PreferenceTable(TILTED), r"preference: must be skew .* off by up to 0.1; symmetrise"),
        (lambda: oracles.PreferenceTable(RPS * (1 - np.eye(3))), r"preference: its diagonal must be 1/2 .* got 0$"),
        (lambda: oracles.PreferenceTable(RPS + 3 * (RPS - 0.5)), r"preference: must lie in \[0, 1\]"),
        (lambda: oracles.PreferenceTable(RPS * np.nan), r"preference: must be finite, got nan"),
        (lambda: oracles.PreferenceTable(RPS[:2]), r"preference: must be square"),
        (lambda: oracles.PreferenceTable(RPS[0]), r"preference: must have shape \(X, A, A\)"),
        (lambda: oracles.JudgeTable(RPS + 1), r"judgements: must lie in \[0, 1\]"),
        (lambda: setup(oracles.PreferenceTable(RPS)), r"preference: is for 3 actions, the world has 5"),
        (lambda: setup(oracles.PreferenceTable(np.full((2, A, A), 0.5))), r"is for 2 contexts, the world has 7"),
        (lambda: setup(oracles.PreferenceTable(np.full((X, A, A), 0.5)), FRESH), r"has fresh contexts without ids"),
        (lambda: oracles.cycle(0.6, 0.1, 0.1), r"a: must be a finite number >= -0.5 and <= 0.5"),
        (lambda: oracles.rock_paper_scissors(4), r"n_actions: must be odd"),
        (lambda: oracles.rater_types(0.5), r"eps: must be"),
        (lambda: oracles.dice((1, 2)), r"faces: needs at least two dice"),
        (lambda: oracles.clone(oracles.dice(), 3), r"action: must be in 0 ... 2, got 3"),
        (lambda: oracles.PlantedEquilibrium((0.5, 0.5, 0.0)), r"equilibrium: must be > 0"),
        (lambda: oracles.PlantedEquilibrium(margin=0.6), r"margin: must be"),
        (lambda: oracles.HodgeMix(-1.0), r"curl: must be"),
        (lambda: oracles.HodgeMix(1.0, untyped("reward")), r"gradient: must be 'world' or 'drawn'"),
        (lambda: one_context(oracles.HodgeMix(1.0), 3), r"HodgeMix needs a world with rewards"),
        (lambda: one_context(oracles.Thurstone(), 3), r"Thurstone needs a world with rewards"),
        (lambda: oracles.Thurstone(0.0), r"noise_std: must be finite and > 0"),
        (lambda: oracles.Bilinear(rank=3), r"rank: a skew matrix has even rank, got 3"),
        (lambda: setup(oracles.Bilinear(rank=6)), r"rank: must be at most the world's dimension 4, got 6"),
        (lambda: oracles.Bilinear(theta=np.eye(4)), r"theta: must be square and skew .* off by up to 2; "),
        (lambda: setup(oracles.Bilinear(theta=np.zeros((2, 2)))), r"theta: must be \(4, 4\)"),
        (lambda: oracles.Bilinear(link=untyped("probit")), r"link: must be 'logistic' or 'linear'"),
        (
            lambda: setup(oracles.Bilinear(norm=60.0, link="linear"))[0].win_table(setup(oracles.GPM())[1].pool),
            r"link: 'linear' needs scores in \[-4, 4\]",
        ),
        (lambda: one_context(oracles.Bilinear(), 3), r"Bilinear needs a world with features"),
        (lambda: one_context(oracles.Population(), 3), r"rewards: 'linear' needs a world with features"),
        (lambda: oracles.Population(SCORES, n_types=3), r"n_types: there are 3 types, rewards has 2"),
        (lambda: oracles.Population(shares=(0.5, 0.6)), r"shares: probabilities must sum to 1"),
        (lambda: oracles.LinearPreference(np.ones((A, A, 2))), r"psi: must be skew"),
        (lambda: setup(oracles.LinearPreference(theta=(1.0,))), r"theta: must have shape \(10,\)"),
        (lambda: oracles.GPM(embeddings=np.ones((A, 3))), r"embeddings: must have even length 2k, got 3"),
        (lambda: oracles.GPM(scales=(1.0, -1.0)), r"scales: must be 2 numbers >= 0"),
        (lambda: oracles.BladeChest(blades=np.ones((A, 2))), r"blades, chests: give both or neither"),
        (
            lambda: oracles.FlipNoise(oracles.NoisyReward(1.0), 0.1),
            r"FlipNoise wraps preference oracles, and NoisyReward",
        ),
        (lambda: oracles.FlipNoise(oracles.dice(), 1.5), r"rate: must be"),
        (lambda: oracles.Ties(oracles.dice(), -1.0), r"nu: must be"),
        (lambda: oracles.PositionBias(oracles.dice(), 1.0, untyped("true")), r"game: must be 'answered' or 'wrapped'"),
        (lambda: oracles.PsiTransformed(oracles.dice(), "majority", 4), r"strength: a majority needs an odd number"),
        (lambda: oracles.AnnotatorPool([]), r"oracles: must hold at least one"),
        (lambda: oracles.AnnotatorPool([oracles.dice()], (0.5, 0.5)), r"weights: must hold one share"),
        (lambda: setup(oracles.UniformTriangular(), LinearWorld(9000, 300, 1), 1), r"preferences would need"),
    ],
)
def test_errors_name_the_argument(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def untyped(value: Any) -> Any:
    return value
