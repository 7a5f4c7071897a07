"""Optimal design: certificates, against known designs, in a span, rounded; and what active methods ask."""

import warnings
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, minimize_scalar
from scipy.special import xlogy

from simbandit import algorithms
from simbandit.algorithms.active import _bald
from simbandit.design import _frank_wolfe, _least_width, apportion, d_optimal, largest_width
from simbandit.draws import Draws
from simbandit.oracles import BradleyTerry
from simbandit.simulate import Problem, simulate
from simbandit.types import Contexts
from simbandit.worlds import LinearWorld
from tests.test_bandits import Recorder
from tests.test_dueling import POOL, setting_of, trained


def widths(z: np.ndarray, w: np.ndarray) -> np.ndarray:
    """z' V^+ z of every candidate, the plain way."""
    return np.einsum("nd,de,ne->n", z, np.linalg.pinv((z.T * w) @ z, rcond=1e-9), z)


@pytest.mark.parametrize(("n", "d", "tolerance"), [(50, 2, 1e-6), (700, 7, 1e-3), (3000, 12, 1e-4), (9, 9, 1e-3)])
def test_the_certificate_holds(n, d, tolerance):
    z = np.random.default_rng(n).normal(size=(n, d)) * np.geomspace(1, 30, d)
    design = d_optimal(z, tolerance=tolerance)
    assert design.converged
    assert design.weights.min() >= 0
    assert design.weights.sum() == pytest.approx(1, abs=1e-9)
    assert widths(z, design.weights).max() <= (1 + tolerance) * d * (1 + 1e-9)
    assert design.largest_width == pytest.approx(widths(z, design.weights).max(), rel=1e-9)
    assert largest_width(z, design.weights) == pytest.approx(design.largest_width, rel=1e-9)
    assert (design.rank, len(design.missing)) == (d, 0)
    # where the certificate holds, the average width under w is the dimension exactly
    assert widths(z, design.weights) @ design.weights == pytest.approx(d, rel=1e-9)


RANDOM = np.random.default_rng(4).normal(size=(8, 3))
STEPS = {
    "toward": (RANDOM, np.full(8, 1 / 8)),
    "away": (np.eye(3), np.array([0.45, 0.275, 0.275])),
    "drop": (np.vstack([[0.1, 0.1, 0.0], np.eye(3)]), np.array([0.04, 0.32, 0.32, 0.32])),
}


@pytest.mark.parametrize("kind", STEPS)
def test_a_step_is_the_exact_maximiser_of_log_det_along_it(kind):
    """One step, against a bounded search over its size; a step away takes at most all of a weight."""
    z, w = STEPS[kind]
    after, steps = _frank_wolfe(z, w, 1e-9, 1)
    assert steps == 1
    moved = int(np.abs(after / w - (after / w).mean()).argmax())

    def log_det(s: float) -> float:
        new = (1 - s) * w + s * np.eye(len(w))[moved]
        return -float(np.linalg.slogdet((z.T * new) @ z)[1])

    low = -w[moved] / (1 - w[moved])
    best: Any = minimize_scalar(log_det, bounds=(low, 0.9), method="bounded", options={"xatol": 1e-10})
    np.testing.assert_allclose(after, (1 - best.x) * w + best.x * np.eye(len(w))[moved], atol=1e-6)
    assert (after[moved] > w[moved]) == (kind == "toward")
    assert (after[moved] == 0.0) == (kind == "drop")


def test_known_designs():
    axes = d_optimal(np.vstack([np.eye(4), 0.3 * np.eye(4)[::-1]]))
    np.testing.assert_allclose(axes.weights, [0.25] * 4 + [0.0] * 4, atol=1e-3)
    x = np.linspace(-1, 1, 201)  # quadratic regression: thirds at -1, 0, 1
    quadratic = d_optimal(np.stack([np.ones(201), x, x**2], axis=1), tolerance=1e-5)
    np.testing.assert_allclose(quadratic.weights[[0, 100, 200]], 1 / 3, atol=1e-3)
    line = d_optimal(np.array([[1.0], [-3.0], [2.0]]))
    assert line.weights.tolist() == [0.0, 1.0, 0.0]
    long = np.linspace(-1, 1, 501)[:, None] * (np.arange(501) != 500)[:, None]  # the longest is the first alone
    assert d_optimal(np.roll(long, 5, axis=0)).support.tolist() == [5]


def test_scaling_and_rotating_the_candidates_changes_nothing():
    rng = np.random.default_rng(0)
    z, change = rng.normal(size=(80, 3)), rng.normal(size=(3, 3)) * 100
    one, two = (d_optimal(c, tolerance=1e-7).weights for c in (z, z @ change))
    np.testing.assert_allclose(widths(z, one), widths(z, two), rtol=1e-3)


def test_a_design_that_does_not_span_names_the_missing_directions_and_works_in_the_span():
    z = np.random.default_rng(1).normal(size=(40, 2)) @ np.array([[1.0, 1.0, 0.0], [0.0, 1.0, -1.0]])
    with pytest.warns(UserWarning, match=r"vectors: span 2 of 3 dimensions; nothing is learnt along \["):
        design = d_optimal(z)
    assert design.rank == 2
    np.testing.assert_allclose(np.abs(design.missing[0]), 1 / np.sqrt(3), rtol=1e-9)
    np.testing.assert_allclose(z @ design.missing[0], 0, atol=1e-12)
    assert widths(z, design.weights).max() <= 2 * (1 + 1e-3) * (1 + 1e-9)
    assert largest_width(z, np.eye(40)[0]) == np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        d_optimal(z, warn=False)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.zeros((3, 2)), "vectors: all candidates are zero"),
        (np.array([1.0, 2.0]), "vectors: must be a finite table"),
        (np.array([[np.nan, 1.0]]), "vectors: must be a finite table"),
    ],
)
def test_candidates_that_mean_nothing_are_refused(vectors, message):
    with pytest.raises(ValueError, match=message):
        d_optimal(vectors)
    with pytest.raises(ValueError, match="tolerance: must be in"):
        d_optimal(np.eye(2), tolerance=0.0)


def _traces(x: float, r: int, largest: float) -> float:
    return 1 / x + (r - 1) ** 2 / (largest - x) - r


def test_what_is_eliminated_is_in_no_optimal_support():
    """The bound is the least eigenvalue that the two traces allow, the others being equal; and the widths of optimal
    supports under designs of any excess stay above it."""
    for r, largest in ((2, 2.1), (3, 4.5), (5, 30.0)):
        # tr H = x + (r - 1) y = largest and tr H^-1 = 1 / x + (r - 1) / y = r
        x: Any = brentq(partial(_traces, r=r, largest=largest), 1e-9, 1.0, xtol=1e-14)
        assert _least_width(largest, r) == pytest.approx(r * x, rel=1e-9)
    for seed in range(40):
        rng = np.random.default_rng(seed)
        r = 2 + seed % 4
        z = rng.normal(size=(60, r)) * np.exp(rng.normal(size=(60, 1)) / 2)
        optimal = d_optimal(z, tolerance=1e-7)
        kept = optimal.weights > 1e-4
        for spread in (0.1, 0.5, 2.0):
            w = np.where(kept, optimal.weights, 1e-3) * np.exp(spread * rng.normal(size=60))
            q = widths(z, w / w.sum())
            bound = _least_width(q.max(), r)
            assert q[kept].min() >= bound * (1 - 1e-6)


def test_the_certificate_is_over_eliminated_candidates_too(monkeypatch):
    """A bound that eliminates far too much: the design is still one of all candidates, whatever was left out on the
    way."""
    monkeypatch.setattr("simbandit.design._least_width", lambda largest, r: 0.98 * largest)
    for seed in range(4):
        z = np.random.default_rng(seed).normal(size=(400, 5))
        found = d_optimal(z, tolerance=1e-3)
        assert found.converged
        assert found.largest_width == pytest.approx(widths(z, found.weights).max(), rel=1e-9)
        assert found.largest_width <= 5 * (1 + 1e-3)


def test_steps_end_when_neither_way_promises_more_than_the_target():
    """Widest and, on the support, narrowest: both within the target of the dimension."""
    for seed, target in enumerate((0.3, 0.1, 0.03, 0.01, 1e-3)):
        z = np.random.default_rng(seed).normal(size=(50, 4))
        w, steps = _frank_wolfe(z, np.full(50, 1 / 50), target, 10_000)
        q = widths(z, w)
        assert 0 < steps < 10_000
        assert q.max() <= 4 * (1 + target) * (1 + 1e-9)
        assert q[w > 0].min() >= 4 * (1 - target) * (1 - 1e-9)


def test_a_direction_that_only_one_candidate_has_is_not_thinned_away():
    z = np.random.default_rng(2).normal(size=(1000, 3)) * [1.0, 1.0, 0.0]
    z[777, 2] = 0.01
    found = d_optimal(z)
    assert found.converged
    assert found.weights[777] == pytest.approx(1 / 3, rel=1e-2)
    half = np.vstack([np.eye(3)[np.zeros(1000, dtype=int)], np.eye(3)[np.arange(1000) % 3]])  # the first half: one line
    assert d_optimal(half).converged
    z[777, 2] = 1e-7  # below the share at which a direction counts as there
    with pytest.warns(UserWarning, match="vectors: span 2 of 3"):
        assert d_optimal(z).rank == 2


def test_unfinished_designs_say_so():
    z = np.random.default_rng(0).normal(size=(300, 6))
    rough = d_optimal(z, tolerance=1e-4, max_iterations=20)
    assert not rough.converged
    assert rough.largest_width > (1 + 1e-4) * 6
    assert rough.largest_width == pytest.approx(widths(z, rough.weights).max(), rel=1e-6)
    assert rough.iterations == 20
    few = np.eye(300)[:6].sum(0) / 6  # the widest is none of those with weight
    assert widths(z, few).argmax() >= 6
    assert largest_width(z, few) == pytest.approx(widths(z, few).max(), rel=1e-6)


def test_apportionment_sums_follows_and_keeps_its_efficiency():
    rng = np.random.default_rng(0)
    for n in (3, 10, 57, 1000):
        w = rng.dirichlet(np.ones(8)) * (np.arange(8) != 3)
        w /= w.sum()
        count = apportion(w, n)
        assert count.sum() == n
        assert count[3] == 0
        assert np.abs(count - n * w).max() <= 4
        if n >= 7:
            assert count[w > 0].min() >= 1
            support = w > 0  # Pukelsheim and Rieder: every share at least (1 - s / n) of its weight
            assert (count[support] / n / w[support]).min() >= 1 - 7 / n
            # what makes an apportionment efficient: no answer could serve another candidate better
            assert ((count[support] - 1) / w[support]).max() <= (count[support] / w[support]).min() * (1 + 1e-12)
    for s in range(3, 13):  # moves either way
        for n in range(s, 4 * s):
            w = rng.dirichlet(np.full(s, 0.5)) + 1e-4
            count = apportion(w / w.sum(), n)
            assert (count.sum(), int(count.min() >= 1)) == (n, 1)
            assert ((count - 1) / w).max() <= (count / w).min() * (1 + 1e-12)
    with pytest.raises(ValueError, match="weights, n: "):
        apportion([0.5, 0.2], 10)


# ------------------------------------------------------------------------------------------------- asking


def test_apo_asks_the_widest_pair_of_all_and_updates_inside_the_batch():
    algorithm: Any = algorithms.create("apo")
    setting = setting_of(POOL, batch_size=7)
    state = algorithm.init(setting)
    drawn = Contexts(index=torch.zeros(2, 7, dtype=torch.int64), pool=setting.contexts)
    asked = algorithm.ask(state, drawn, Draws(0, 2).at(0))
    pairs = algorithm.select(state, asked, Draws(0, 2).at(0))
    phi = setting.contexts.features.numpy()
    assert asked.index is not None
    for r in range(2):
        V, seen = np.eye(3), set()
        z = phi[r][:, :, None] - phi[r][:, None]
        for b in range(7):
            widest = np.einsum("xijd,de,xije->xij", z, np.linalg.inv(V), z)
            x, (i, j) = int(asked.index[r, b]), pairs[r, b].tolist()
            fresh = np.ones_like(widest, dtype=bool)
            for cell in seen:
                fresh[cell] = False
            assert widest[x, i, j] == pytest.approx(widest[fresh].max(), rel=1e-9)
            seen |= {(x, i, j), (x, j, i)}
            V += np.outer(z[x, i, j], z[x, i, j])
    assert torch.equal(state.duels.inverse[0], torch.eye(3).double())  # the real design has not moved yet


RULES = {
    "apo": {"matrix_ridge": 0.6},
    "apo, hessian": {"matrix_ridge": 0.6, "matrix": "hessian"},
    "bald": {"matrix_ridge": 0.6},
    "coreset": {},
    "uncertainty": {},
}
EXTREME = LinearWorld(5, 6, 3, theta_norm=5.0)


def _hessian(z: Any, theta: Any) -> Any:
    p = 1 / (1 + np.exp(-z @ theta))
    return p * (1 - p) * np.outer(z, z)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("contexts", ["chosen", "drawn"])
def test_a_batch_is_asked_one_by_one_with_the_matrix_of_the_rule(rule, contexts):
    """By brute force, 5 questions after 30 duels, drawn contexts with one twice: widths and BALD in the inverse of
    ridge I + sum z z', or of the Hessian at the estimate, each question entering before the next; coreset by the
    distances to all that was asked. What is asked moves the state only when it is answered; then the matrix is that
    of the new estimate."""
    name = rule.partition(",")[0]
    state, algorithm, _ = trained(name, EXTREME, contexts=contexts, refit_growth=0.0, **RULES[rule])
    pool, theta, duels = state.duels.setting.contexts, state.duels.model.theta.numpy(), state.duels.model.duels
    inverse, near = state.duels.inverse.clone(), None if state.near is None else state.near.clone()
    given = Contexts(index=torch.tensor([[2, 4, 2, 0, 3], [1, 1, 0, 4, 2]]), pool=pool)
    asked = algorithm.ask(state, given, Draws(0, 2).at(9))
    assert asked.index is not None
    assert given.index is not None
    assert torch.equal(asked.index, given.index) == (contexts == "drawn")
    pairs = algorithm.select(state, asked, Draws(0, 2).at(9))
    curved = rule in ("apo, hessian", "bald")
    for r in range(2):
        phi, V = pool.features[r].numpy(), 0.6 * np.eye(3)
        z = phi[:, :, None] - phi[:, None]
        seen = duels.differences[r].numpy(), duels.count[r].numpy()
        for u, n in zip(*seen, strict=True):
            V += n * (_hessian(u, theta[r]) if curved else np.outer(u, u))
        if name in ("apo", "bald"):
            np.testing.assert_allclose(inverse[r], np.linalg.inv(V), rtol=1e-8, atol=1e-9)
        old = [0 * seen[0][0], *(u for u, n in zip(*seen, strict=True) if n)]
        distance = np.min([np.minimum(np.linalg.norm(z - u, axis=-1), np.linalg.norm(z + u, axis=-1)) for u in old], 0)
        taken = np.zeros((5, 6, 6), dtype=bool) | np.eye(6, dtype=bool)
        for b in range(5):
            width = np.sqrt(np.einsum("xijd,de,xije->xij", z, np.linalg.inv(V), z).clip(0))
            margin = np.abs(z @ theta[r])
            scores = {
                "apo": width,
                "bald": _bald(torch.from_numpy(margin), torch.from_numpy(width)).numpy(),
                "coreset": distance,
                "uncertainty": -margin,
            }[name]
            x, (i, j) = int(asked.index[r, b]), pairs[r, b].tolist()
            among = np.where(taken, -np.inf, scores) if contexts == "chosen" else scores[x]
            if contexts == "drawn":
                among = np.where(np.eye(6, dtype=bool), -np.inf, among)
            assert i != j
            assert scores[x, i, j] == pytest.approx(among.max(), rel=1e-7, abs=1e-9)
            taken[x, i, j] = taken[x, j, i] = True
            u = z[x, i, j]
            V += _hessian(u, theta[r]) if curved else np.outer(u, u)
            distance = np.minimum(distance, np.minimum(np.linalg.norm(z - u, axis=-1), np.linalg.norm(z + u, axis=-1)))
    assert torch.equal(state.duels.inverse, inverse)
    assert near is None or torch.equal(state.near, near)  # pyright: ignore
    state, _ = algorithm.update(state, asked, pairs, torch.ones(2, 5).double(), Draws(0, 2).at(9))
    assert state.planned is None
    again, _ = algorithm.update(state, asked, pairs, torch.ones(2, 5).double(), Draws(0, 2).at(10))
    if near is not None:
        assert float((near - again.near).max()) > 0.1
    theta = again.duels.model.theta.numpy()
    for r in range(2):
        V = 0.6 * np.eye(3)
        for u, n in zip(duels.differences[r].numpy(), duels.count[r].numpy(), strict=True):
            V += n * (_hessian(u, theta[r]) if curved else np.outer(u, u))
        if name in ("apo", "bald"):
            np.testing.assert_allclose(again.duels.inverse[r], np.linalg.inv(V), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", ["apo", "d_optimal"])
def test_only_pairs_that_are_offered_are_asked(name):
    """The longest differences are those to an action that is not there, whose features are 0."""
    phi = np.random.default_rng(5).normal(size=(3, 4, 2)) + 30
    ref = np.array([[1, 1, 0, 1], [1, 0, 0, 1], [0, 1, 0, 1]]) / np.array([[3], [2], [2]])
    world = LinearWorld(3, 4, 2, features=phi, reference=ref)
    for features, actions in asked_by(name, 12, world):
        for r in range(3):
            x = int(np.flatnonzero((phi[:, 3] == features[r, 3]).all(-1))[0])
            assert (ref[x, actions[r]] > 0).all()
            assert actions[r, 0] != actions[r, 1]


def asked_by(name: str, rounds: int, world: Any = POOL, **fields: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    class Asking(Recorder):
        def ask(self, state: Any, contexts: Contexts, draws: Any) -> Contexts:
            return self.algorithm.ask(state, contexts, draws)

    recorder: Any = Asking(algorithms.create(name, **fields))
    simulate(Problem(world, BradleyTerry(), 1.0), recorder, rounds=rounds, replicates=3, metrics=["argmax_regret"])
    return [(features, actions) for features, actions, _ in recorder.rounds]


def test_coreset_asks_for_the_farthest_difference():
    asked = asked_by("coreset", 6)
    instance: Any = POOL.instance(3, Draws(0, 3))
    phi = instance.pool.features.numpy()
    for r in range(3):
        z = (phi[r][:, :, None] - phi[r][:, None]).reshape(-1, 3)
        near = np.linalg.norm(z, axis=1)
        for features, actions in asked:
            q = features[r, actions[r, 0]] - features[r, actions[r, 1]]
            k = np.flatnonzero(np.abs(z - q).max(1) < 1e-12)[0]
            assert near[k] == pytest.approx(near.max(), rel=1e-9)
            near = np.minimum(near, np.minimum(np.linalg.norm(z - q, axis=1), np.linalg.norm(z + q, axis=1)))


def test_coreset_knows_when_every_difference_has_been_asked():
    """Distances of exactly 0, so that ties decide from then on, not rounding."""
    algorithm: Any = algorithms.create("coreset")
    setting = setting_of(POOL)
    state = algorithm.init(setting)
    index, first, second = (torch.from_numpy(x).flatten() for x in np.mgrid[:5, :6, :6])
    for half in (first < second, first > second):
        contexts = Contexts(index=index[half].expand(2, -1), pool=setting.contexts)
        pairs = torch.stack([first[half], second[half]], dim=-1).expand(2, -1, -1)
        state, _ = algorithm.update(state, contexts, pairs, torch.ones(2, 75).double(), Draws(0, 2).at(0))
        assert (state.near == 0.0).all()


def test_uncertainty_asks_where_the_label_is_nearest_to_a_coin_flip():
    state, algorithm, contexts = trained("uncertainty")
    asked = algorithm.ask(state, contexts, Draws(0, 2).at(9))
    pair = algorithm.select(state, asked, Draws(0, 2).at(9))
    pool, theta = state.duels.setting.contexts.features.numpy(), state.duels.model.theta.numpy()
    assert asked.index is not None
    for r in range(2):
        mu = pool[r] @ theta[r]
        margins = np.abs(mu[:, :, None] - mu[:, None])
        x, (i, j) = int(asked.index[r, 0]), pair[r, 0].tolist()
        assert margins[x, i, j] == pytest.approx(margins[:, ~np.eye(6, dtype=bool)].min(), abs=1e-12)
        assert margins.max() > 100 * margins[x, i, j]


def test_uncertainty_asks_for_a_coin_flip_and_never_for_an_action_against_itself():
    for name in ("uncertainty", "apo", "bald", "coreset"):
        assert all((actions[:, 0] != actions[:, 1]).all() for _, actions in asked_by(name, 5))


def test_bald_is_the_mutual_information():
    """Against quadrature of h(E sigma) - E h(sigma) under N(m, s^2): to 0.04 bits, the approximation's own error."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = weights / weights.sum()

    def entropy(p: np.ndarray) -> np.ndarray:
        return -(xlogy(p, p) + xlogy(1 - p, 1 - p)) / np.log(2)

    for m in (0.0, 0.7, 2.0):
        for s in (0.1, 1.0, 3.0):
            p = 1 / (1 + np.exp(-(m + s * nodes)))
            exact = entropy(np.array(weights @ p)) - weights @ entropy(p)
            found = float(_bald(torch.tensor(m).double(), torch.tensor(s).double()))
            assert found == pytest.approx(float(exact), abs=0.04)


def test_the_one_shot_plan_is_the_design_from_its_first_rounds_on():
    algorithm: Any = algorithms.create("d_optimal", tolerance=1e-4)
    setting = setting_of(POOL, rounds=60, batch_size=5)
    cells = algorithm.init(setting).cells.numpy()
    phi = setting.contexts.features.numpy()
    assert cells.shape == (2, 300)
    for r in range(2):
        i, j = np.triu_indices(6, 1)
        z = (phi[r][:, i] - phi[r][:, j]).reshape(-1, 3)
        for n, excess in ((300, 0.03), (100, 0.1)):
            x, a, b = cells[r, :n] // 36, cells[r, :n] // 6 % 6, cells[r, :n] % 6
            asked = phi[r][x, a] - phi[r][x, b]
            inverse = np.linalg.inv(asked.T @ asked / n)
            assert np.einsum("nd,de,ne->n", z, inverse, z).max() <= 3 * (1 + excess)


def test_the_one_shot_plan_is_each_replicates_own_played_in_its_order():
    """Every question of the plan once, a batch a round; where no pair differs, the reference's likeliest action."""
    algorithm: Any = algorithms.create("d_optimal")
    setting = setting_of(POOL, rounds=9, batch_size=4)
    plan, drawn = algorithm.init(setting), Contexts(index=torch.zeros(2, 4, dtype=torch.int64), pool=setting.contexts)
    assert plan.cells.shape == (2, 36)
    assert not torch.equal(plan.cells[0], plan.cells[1])
    played = []
    for t in range(9):
        asked = algorithm.ask(plan, drawn, Draws(0, 2).at(t))
        pair = algorithm.select(plan, asked, Draws(0, 2).at(t))
        assert asked.index is not None
        played.append((asked.index * 6 + pair[..., 0]) * 6 + pair[..., 1])
    assert torch.equal(torch.cat(played, dim=1), plan.cells)
    flat = LinearWorld(2, 3, 2, features=np.ones((2, 3, 2)), reference=np.array([[0.2, 0.5, 0.3], [0.3, 0.3, 0.4]]))
    cells = algorithm.init(setting_of(flat, rounds=5)).cells
    assert cells[0].tolist() == [1 * 3 + 1, 9 + 2 * 3 + 2, 4, 17, 4]


def test_rare_directions_are_found_by_design_and_missed_by_uniform_contexts():
    """The hard instance of active preference optimisation: most contexts share one direction, the better action is the
    second."""
    phi = np.zeros((60, 2, 4))
    phi[:57, 1, 0], phi[57, 1, 1], phi[58, 1, 2], phi[59, 1, 3] = 1, 1, 1, 1
    problem = Problem(LinearWorld(features=phi, theta=np.full(4, 1.5)), BradleyTerry(), 1.0)

    def worst(name: str, **fields: Any) -> float:
        run = simulate(
            problem, algorithms.create(name, **fields), rounds=60, replicates=6, metrics=["worst_argmax_regret"]
        )
        return float(run.final("worst_argmax_regret").mean())

    drawn = worst("apo", contexts="drawn")
    assert drawn > 0.5
    for name in ("apo", "d_optimal", "bald"):
        assert worst(name) < 0.5 * drawn


def test_appo_and_adpo_ask_about_everything_at_first_and_little_later():
    problem = Problem(LinearWorld(4, 5, 3, theta_norm=4.0), BradleyTerry(), 1.0)
    counts = {}
    for name, fields in (("uniform", {}), ("appo", {"threshold": 0.25}), ("adpo", {"confidence": 1.0})):
        algorithm = algorithms.create(name, **fields)
        run = simulate(problem, algorithm, rounds=160, batch_size=4, replicates=6, metrics=["informative_pairs"])
        counts[name] = run.frame().groupby("round")["value"].mean()
    for name in ("appo", "adpo"):
        assert counts[name][1] > 0.6 * counts["uniform"][1]
        assert counts[name][160] < 0.4 * counts["uniform"][160]


def test_adpo_labels_by_itself_what_it_is_sure_of():
    algorithm: Any = algorithms.create("adpo", confidence=0.1, players="reference")
    setting = setting_of(POOL)
    state = algorithm.init(setting)
    state.model.theta = torch.tensor([[5.0, 1.0, 0.0], [0.0, 3.0, 3.0]]).double()
    contexts = Contexts(index=torch.arange(5).expand(2, 5), pool=setting.contexts)
    shown = algorithm.select(state, contexts, Draws(0, 2).at(0))
    meant = state.meant
    margin = algorithm._margin(state, contexts, meant)
    sure = margin.abs() > 0.1
    assert sure.any()
    assert ((shown[..., 0] == shown[..., 1]) | ~sure).all()
    wrong = (margin < 0).double()  # the annotator contradicts, and is not asked where it is sure
    algorithm.update(state, contexts, shown, wrong, Draws(0, 2).at(0))
    duels = state.model.duels
    expected = torch.where(sure, (margin > 0).double(), wrong) * (meant[..., 0] != meant[..., 1])
    same = torch.where(meant[..., 0] < meant[..., 1], expected, (1 - expected) * (meant[..., 0] != meant[..., 1]))
    torch.testing.assert_close(duels.wins.sum(1), same.sum(1))


@pytest.mark.parametrize("name", ["apo", "coreset", "d_optimal", "appo"])
def test_what_chooses_among_all_contexts_needs_a_finite_world(name):
    world = LinearWorld(None, 4, 3, n_evaluation=5)
    with pytest.raises(ValueError, match=r"world: .* needs a finite world"):
        simulate(Problem(world, BradleyTerry(), 1.0), algorithms.create(name), rounds=2)
    simulate(Problem(world, BradleyTerry(), 1.0), algorithms.create("apo", contexts="drawn"), rounds=2, batch_size=3)
