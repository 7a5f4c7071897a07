"""Model-based algorithms under general preferences, and the games that they plan with."""

import itertools
from typing import Any, Literal

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from simbandit import algorithms, equilibrium, simulate
from simbandit.algorithms.matrix_games import OptimisticMatrixGame
from simbandit.algorithms.nash import OELHF, NashETC, NashGreedy, information_ratio_maximiser
from simbandit.algorithms.pelhf import PELHF, robust_equilibrium
from simbandit.draws import Draws
from simbandit.oracles import Bilinear
from simbandit.policies import Tabular, Uniform
from simbandit.preferences import bilinear_table, wedge, wedge_widths
from simbandit.simulate import Problem
from simbandit.types import Contexts
from simbandit.worlds import LinearWorld
from simbandit.zero_sum import saddle_gap, solve_zero_sum
from tests.test_preferences import duels, setting

Case = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
PROBLEM = Problem(LinearWorld(6, 5, 4), Bilinear(norm=6.0), 0.2)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def value(M: torch.Tensor, p: torch.Tensor, q: torch.Tensor, ref: torch.Tensor, kl_coef: float) -> torch.Tensor:
    """J of laws p, q (..., A)."""

    def kl(law: torch.Tensor) -> torch.Tensor:
        return (torch.special.xlogy(law, law) - law * ref).sum(-1)

    return (p * (M @ q[..., None]).squeeze(-1)).sum(-1) - kl_coef * (kl(p) - kl(q))


def guaranteed(M: torch.Tensor, p: torch.Tensor, ref: torch.Tensor, kl_coef: float) -> torch.Tensor:
    """min over q of J(p, q), by its closed form."""
    q = torch.softmax(ref - (M.mT @ p[..., None]).squeeze(-1) / kl_coef, -1)
    return value(M, p, q, ref, kl_coef)


# ------------------------------------------------------------------------------------------------- zero-sum games


def test_a_skew_game_has_the_symmetric_equilibrium():
    skew = normal(3, 7, 5, 5)
    preference = torch.sigmoid(skew - skew.mT)
    ref = torch.log_softmax(normal(3, 7, 5, seed=1), -1)
    saddle, nash = solve_zero_sum(preference, ref, ref, 0.1), equilibrium.solve(preference, ref, 0.1)
    torch.testing.assert_close(saddle.first, nash.log_probs, rtol=0, atol=1e-10)
    torch.testing.assert_close(saddle.second, nash.log_probs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kl_coef", [1e-3, 0.05, 1.0, 100.0])
def test_zero_sum_games_are_solved_at_every_scale(kl_coef):
    M = torch.from_numpy(np.random.default_rng(0).random((40, 7, 5)))
    one, two = torch.log_softmax(normal(40, 7, seed=1), -1), torch.log_softmax(normal(40, 5, seed=2), -1)
    one[:, 2], two[:, 4] = -torch.inf, -torch.inf
    one, two = torch.log_softmax(one, -1), torch.log_softmax(two, -1)
    saddle = solve_zero_sum(M, one, two, kl_coef)
    assert saddle.converged.all()
    assert saddle.duality_gap.max() < 1e-20 / kl_coef
    assert saddle.first[:, 2].isneginf().all()
    p, q = saddle.first.exp(), saddle.second.exp()
    reply = torch.log_softmax(one + (M @ q[..., None]).squeeze(-1) / kl_coef, -1)
    kept = ~reply.isneginf()
    torch.testing.assert_close(saddle.first[kept], reply[kept], rtol=0, atol=1e-11 / min(1, kl_coef))
    alone = solve_zero_sum(M[3], one[3], two[3], kl_coef)
    torch.testing.assert_close(alone.first.exp(), p[3], rtol=0, atol=1e-12)


def test_the_gap_of_a_game_is_what_both_players_could_gain():
    M, kl_coef = torch.from_numpy(np.random.default_rng(0).random((5, 5))), 0.3
    ref = torch.log_softmax(normal(5, seed=1), -1)
    p, q = torch.log_softmax(normal(5, seed=2), -1), torch.log_softmax(normal(5, seed=3), -1)
    highest = -guaranteed(-M.mT, q.exp(), ref, kl_coef)
    gap = highest - guaranteed(M, p.exp(), ref, kl_coef)
    assert saddle_gap(p, q, M, ref, ref, kl_coef) == pytest.approx(gap.item(), rel=1e-9)
    for bad, name in (((M, 0.0), "kl_coef"), ((M / 0, 0.3), "payoff")):
        with pytest.raises(ValueError, match=f"{name}: "):
            solve_zero_sum(bad[0], ref, ref, bad[1])


# ------------------------------------------------------------------------------------------------- pessimism


def tiny(d: int, scale: float, X: int = 1, A: int = 3, seed: int = 0) -> Case:
    """Preference (1, X, A, A), features, ellipsoid, log reference, weights."""
    p = d * (d - 1) // 2
    features, G = normal(1, X, A, d, seed=seed), normal(1, p, p, seed=seed + 1)
    ellipsoid = scale * torch.linalg.cholesky(torch.linalg.inv(torch.eye(p) + G @ G.mT))
    ref = torch.log_softmax(normal(1, X, A, seed=seed + 2), -1)
    return (
        bilinear_table(features, normal(1, p, seed=seed + 3)),
        features,
        ellipsoid,
        ref,
        torch.full((1, X), 1 / X).double(),
    )


def sphere(p: int, n: int = 400) -> torch.Tensor:
    if p == 1:
        return torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    q = normal(n, p, seed=9)
    return q / q.norm(dim=-1, keepdim=True)


def attacked(case: Case, q: torch.Tensor) -> torch.Tensor:
    """Tables (len(q), X, A, A) of the version space."""
    preference, features, ellipsoid, *_ = case
    psi = wedge(features[0, :, :, None].expand(-1, -1, features.shape[2], -1), features[0, :, None])
    return preference + torch.einsum("xabp,pq,nq->nxab", psi, ellipsoid[0], q)


@pytest.mark.parametrize(("d", "scale", "kl_coef"), [(2, 0.3, 0.3), (3, 0.3, 0.3), (3, 0.1, 0.05)])
def test_the_version_space_plan_is_the_best_of_a_brute_force(d, scale, kl_coef):
    case = tiny(d, scale)
    ref = case[3][0, 0]
    found = robust_equilibrium(*case, kl_coef)
    tables = attacked(case, sphere(d * (d - 1) // 2))[:, 0]
    assert (tables + tables.mT - 1).abs().max() < 1e-12

    def worst(law: torch.Tensor) -> torch.Tensor:
        return guaranteed(tables, law.expand(len(tables), -1), ref, kl_coef).amin()

    steps = np.linspace(0, 1, 41)
    grid = [torch.tensor([a, b, 1 - a - b]).clamp_min(1e-9) for a in steps for b in steps if a + b <= 1 + 1e-12]
    best = max(worst(law / law.sum()).item() for law in grid)
    own = worst(found.log_probs[0, 0].exp()).item()
    assert found.lower.item() <= own + 1e-9
    assert found.found.item() <= own + 1e-9  # the adversaries that it found are worse than any of the brute force
    # 400 points cover a sphere to .1, and the value changes there by at most .1 of its second-order part
    assert own - found.found.item() < 0.1 * (0.5 - found.found.item()) + 1e-9
    assert best <= found.upper.item() + 0.1 * (0.5 - found.found.item())
    assert (found.upper - found.found).item() < 1e-6
    greedy = equilibrium.solve(case[0][0, 0], ref, kl_coef).log_probs.exp()
    assert worst(greedy).item() < own


def test_the_bound_is_tight_for_a_small_version_space_and_coupled_contexts():
    gaps = {}
    for scale in (0.005, 0.02):
        case = tiny(4, scale, X=6, A=5)
        found = robust_equilibrium(*case, 0.2, tolerance=1e-8)
        pessimism = (0.5 - found.found).item()
        gaps[scale] = (found.found - found.lower).item() / pessimism
        bonus = case[0] - wedge_widths(case[1], case[2] @ case[2].mT)
        saddle = solve_zero_sum(bonus, case[3], case[3], 0.2)
        hull = value(bonus, saddle.first.exp(), saddle.second.exp(), case[3], 0.2).mean()
        assert hull < found.lower.item()  # the rectangle around the ellipsoid holds worse games
    # relative to the pessimism, e^r - 1 where r is first order in the ellipsoid over kl_coef
    assert gaps[0.02] < 0.3
    assert gaps[0.005] < 0.3 * gaps[0.02]


def logged(option: Literal["bonus", "version_space"], radius: float) -> torch.Tensor:
    results = simulate(
        PROBLEM,
        PELHF(option=option, radius=radius),
        rounds=1,
        batch_size=60,
        replicates=2,
        metrics=["kl_to_ref"],
    )
    assert results.policy is not None
    return results.policy.log_probs(PROBLEM.world.instance(2, Draws(0, 2)).evaluation)


def test_without_a_radius_both_forms_agree():
    bonus, version = logged("bonus", 0.0), logged("version_space", 1e-9)
    torch.testing.assert_close(bonus.exp(), version.exp(), rtol=0, atol=1e-3)  # a flat top: value to 1e-6
    assert (logged("bonus", 0.5).exp() - bonus.exp()).abs().max() > 0.01


def test_pessimism_without_a_radius_plans_as_greedy_does():
    of = setting()
    batch, draws = duels(of, 40), Draws(0, 2).at(0)
    plans = []
    every: list[Any] = [PELHF(radius=0.0), NashGreedy(), OELHF(), PELHF()]
    for algorithm in every:
        state, _ = algorithm.update(algorithm.init(of), *batch, draws)
        plans.append(algorithm.policy(state).log_probs(batch[0]))
    torch.testing.assert_close(plans[1], plans[0], rtol=0, atol=1e-10)
    assert torch.equal(plans[1], plans[2])
    assert (plans[3] - plans[0]).abs().max() > 0.01


def test_pelhf_is_the_game_of_its_lower_bound():
    """The bonus form by scipy on one game: the reduced problem of the first player."""
    of = setting()
    algorithm = PELHF(radius=0.7, ridge=0.4)
    state = algorithm.init(of)
    rng = np.random.default_rng(5)
    index, actions = torch.from_numpy(rng.integers(3, size=(2, 30))), torch.from_numpy(rng.integers(5, size=(2, 30, 2)))
    labels = torch.from_numpy(rng.integers(2, size=(2, 30)).astype(float))
    state, info = algorithm.update(state, Contexts(index=index, pool=of.contexts), actions, labels, Draws(0, 2).at(0))
    assert info.radius == 0.7
    assert of.contexts is not None
    width = wedge_widths(state.model.features, state.model.inverse(0.4))
    M = (state.model.table() - 0.7 / 4 * width).clamp_min(0.0)[1, 2]
    ref = of.contexts.ref_log_probs[1, 2]

    def loss(logits: np.ndarray) -> float:
        return -guaranteed(M, torch.softmax(torch.from_numpy(logits), -1), ref, of.kl_coef).item()

    found = minimize(loss, np.zeros(5), method="BFGS", options={"gtol": 1e-8}).x
    planned = algorithm.policy(state).log_probs(of.contexts)[1, 2].exp()
    torch.testing.assert_close(planned, torch.softmax(torch.from_numpy(found), -1), rtol=0, atol=1e-5)


def test_a_plan_that_cannot_be_certified_says_so():
    with pytest.warns(UserWarning, match="certified to .* of guaranteed value only"):
        logged("version_space", 3.0)


def test_a_replicate_of_the_version_space_is_the_same_alone():
    options: dict[str, Any] = {"rounds": 1, "batch_size": 90, "metrics": ["duality_gap"]}
    algorithm = PELHF(option="version_space", radius=0.1)
    three = simulate(PROBLEM, algorithm, replicates=3, **options).frame().query("replicate == 2")["value"]
    alone = simulate(PROBLEM, algorithm, replicates=[2], **options).frame()["value"]
    np.testing.assert_allclose(three, alone, rtol=1e-6)


# ------------------------------------------------------------------------------------------------- the enhancer


@pytest.mark.parametrize("X", [1, 3])
def test_the_enhancer_maximises_the_information_ratio(X):
    A, d, p = 4, 3, 3
    ratios = []
    for seed in range(12):
        features, G = normal(1, X, A, d, seed=seed), normal(1, p, p, seed=seed + 100)
        inverse = torch.linalg.inv(0.1 * torch.eye(p) + G @ G.mT)
        weights = torch.softmax(normal(1, X, seed=seed + 200), -1)
        log_pi1 = torch.log_softmax(normal(1, X, A, seed=seed + 300), -1)
        pool = Contexts(features=features, ref_log_probs=torch.full((1, X, A), -np.log(A)), weights=weights)
        law = information_ratio_maximiser(pool, features, log_pi1, inverse, Uniform())[0].exp()
        mean = torch.einsum("xa,xad->xd", log_pi1[0].exp(), features[0])
        psi = wedge(mean[:, None].expand(X, A, d), features[0])

        def ratio(pi2: torch.Tensor, psi=psi, weights=weights, inverse=inverse) -> float:
            u = torch.einsum("x,xa,xap->p", weights[0], pi2, psi)
            return (u @ inverse[0] @ u).sqrt().item()

        every = [torch.eye(A, dtype=torch.float64)[list(choice)] for choice in itertools.product(range(A), repeat=X)]
        best = max(ratio(pi2) for pi2 in every)
        assert ratio(law) <= best * (1 + 1e-9)
        mixed = torch.softmax(normal(X, A, seed=seed + 400), -1)
        assert ratio(mixed) < best  # convex: no mixture beats the vertices
        ratios.append(ratio(law) / best)
    if X == 1:
        assert min(ratios) > 1 - 1e-9
    assert np.mean(ratios) > 0.98
    assert min(ratios) > 0.85  # a local maximum


def test_enhancers_are_what_their_names_say():
    of = setting()
    for name in ("uncertainty", "pointwise", "reference", "self"):
        algorithm = OELHF(enhancer=name)
        state = algorithm.init(of)
        assert of.contexts is not None
        second = state.second.log_probs(of.contexts)
        ref = of.contexts.ref_log_probs
        torch.testing.assert_close(algorithm.policy(state).log_probs(of.contexts), ref)  # nothing is known yet
        assert torch.allclose(second, ref) == (name in ("reference", "self"))
    same = [
        simulate(PROBLEM, a, rounds=5, batch_size=7, replicates=2, metrics=["duality_gap"]).frame()
        for a in (OELHF(enhancer="reference"), NashGreedy())
    ]
    assert same[0].equals(same[1])


# ------------------------------------------------------------------------------------------------- learning


ALL = [
    ("nash_greedy", {}),
    ("nash_greedy", {"pairing": "self", "rank": 2}),
    ("oelhf", {}),
    ("oelhf", {"enhancer": "pointwise", "covariance": "sum"}),
    ("nash_etc", {}),
    ("optimistic_matrix_game", {}),
    ("optimistic_matrix_game", {"sampling": "ucb"}),
    ("pelhf", {}),
    ("pelhf", {"option": "version_space", "radius": 0.1}),
]


@pytest.mark.parametrize(("name", "options"), ALL, ids=str)
@pytest.mark.filterwarnings("ignore:pelhf. the version-space plan:UserWarning")  # few duels: a wide ellipsoid
def test_the_gap_vanishes_with_more_duels(name, options):
    """Any rate from n^-1/4 on halves the gap at 64 n; theory says n^-1 for most."""
    algorithm = algorithms.create(name, **options)
    few, many = (
        simulate(PROBLEM, algorithm, rounds=8, batch_size=size, replicates=6, metrics=["duality_gap"], record=[0])
        for size in (4, 256)
    )
    assert many.final("duality_gap").mean() < 0.5 * few.final("duality_gap").mean()


def test_etc_explores_then_commits():
    of = setting(rounds=8)
    algorithm = NashETC(first_stage=0.25)
    state = algorithm.init(of)
    rng = np.random.default_rng(0)
    tables = []
    assert of.contexts is not None
    for t in range(4):
        index, actions = rng.integers(3, size=(2, 7)), rng.integers(5, size=(2, 7, 2))
        contexts = Contexts(index=torch.from_numpy(index), pool=of.contexts)
        labels = torch.from_numpy(rng.integers(2, size=(2, 7)).astype(float))
        state, _ = algorithm.update(state, contexts, torch.from_numpy(actions), labels, Draws(0, 2).at(t))
        tables.append(algorithm.policy(state).log_probs(of.contexts).clone())
    assert not torch.equal(tables[0], tables[1])
    assert torch.equal(tables[1], tables[2])
    assert torch.equal(tables[1], tables[3])
    assert NashETC()._commits(setting(rounds=1000)) == 100  # T^(2/3)
    assert (torch.linalg.matrix_rank(torch.special.logit(state.model.table())) <= 2).all()


def test_optimism_raises_what_has_not_been_tried():
    of = setting()
    assert of.contexts is not None
    for sampling in ("best_response", "ucb"):
        algorithm = OptimisticMatrixGame(sampling=sampling, radius=1.0)
        state = algorithm.init(of)
        ones = torch.ones(2, 600)
        contexts = Contexts(index=torch.zeros(2, 600, dtype=torch.int64), pool=of.contexts)
        rng = np.random.default_rng(0)
        actions = torch.from_numpy(rng.integers(4, size=(2, 600, 2)))  # action 4 is never shown
        labels = torch.from_numpy(rng.integers(2, size=(2, 600)).astype(float)) * ones
        state, _ = algorithm.update(state, contexts, actions, labels.double(), Draws(0, 2).at(0))
        played = state.first.log_probs(of.contexts)[:, 0].exp()
        output = algorithm.policy(state).log_probs(of.contexts)[:, 0].exp()
        assert (played[:, 4] > output[:, 4] + 0.05).all()
    theory = OptimisticMatrixGame(radius="theory").init(of).radius
    assert theory == pytest.approx(np.sqrt(2 * np.log(2 * (3 * 10 * 6 * 7) / 0.05)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NashGreedy(rank=3), "rank: .* even"),
        (lambda: OELHF(covariance_ridge=0.0), "covariance_ridge: "),
        (lambda: NashETC(first_stage=1.5), "first_stage: a fraction"),
        (lambda: OptimisticMatrixGame(smoothing=0.0), "smoothing: "),
        (lambda: PELHF(ridge=0.0), "ridge: "),
    ],
)
def test_bad_hyperparameters_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", ["pelhf", "oelhf", "nash_greedy", "nash_etc", "optimistic_matrix_game"])
def test_outputs_tables_and_says_what_it_needs(name):
    results = simulate(PROBLEM, algorithms.create(name), rounds=2, batch_size=3, replicates=2, metrics=["kl_to_ref"])
    assert isinstance(results.policy, Tabular)
    fresh = Problem(LinearWorld(None, 5, 4, n_evaluation=7), Bilinear(norm=6.0), 0.2)
    with pytest.raises(ValueError, match=r"world: .* finite world"):
        simulate(fresh, algorithms.create(name), rounds=2, metrics=["kl_to_ref"])
