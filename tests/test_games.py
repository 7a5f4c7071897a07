"""Game dynamics against their own update in NumPy, the linearised thresholds, the global bounds, and the
equilibrium."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from simbandit import Problem, algorithms, simulate, worlds
from simbandit.equilibrium import solve
from simbandit.oracles import FullInformation
from simbandit.policies import Tabular
from simbandit.types import Contexts

X, A, KL = 3, 5, 0.2
rng = np.random.default_rng(2)
LOWER = np.tril(rng.random((X, A, A)), -1)
P = LOWER + np.triu(1 - LOWER.transpose(0, 2, 1), 1) + np.eye(A) / 2
LOGITS = rng.normal(size=(X, A))
REF = LOGITS - np.log(np.exp(LOGITS).sum(-1, keepdims=True))
RPS = np.array([[0.5, 0.0, 1.0], [1.0, 0.5, 0.0], [0.0, 1.0, 0.5]])


@dataclass(frozen=True, eq=False)
class Table:
    """A preference oracle given by matrices (X, A, A), the same in every replicate."""

    matrices: np.ndarray
    feedback = "preference"
    n_select = 2

    def bind(self, instance: Any) -> BoundTable:
        return BoundTable(torch.from_numpy(self.matrices).expand(instance.replicates, -1, -1, -1))


class BoundTable:
    feedback = "preference"
    n_select = 2

    def __init__(self, table: Tensor):
        self.table = table

    def win_table(self, contexts: Contexts) -> Tensor:
        return contexts.rows(self.table)

    def win_rates(self, contexts: Contexts, log_probs: Tensor) -> Tensor:
        return (self.win_table(contexts) @ log_probs.exp()[..., None]).squeeze(-1)

    def respond(self, contexts: Contexts, actions: Tensor, draws: Any) -> Tensor:
        first, second = actions[..., 0], actions[..., 1]
        replicate = torch.arange(len(actions))[:, None]
        p = self.table[replicate, contexts.index, first, second]
        return (draws.uniform("annotator", actions.shape[1]) < p).double()


def problem(matrices: np.ndarray = P, ref: np.ndarray = REF, kl_coef: float = KL, exact: bool = True) -> Problem:
    oracle: Any = Table(matrices)
    return Problem(worlds.TableWorld(ref), FullInformation(oracle) if exact else oracle, kl_coef)


def run(name: str, rounds: int, at: Problem | None = None, **hyperparameters: Any) -> Tensor:
    algorithm = algorithms.create(name, **hyperparameters)
    policy = simulate(at or problem(), algorithm, rounds=rounds, metrics=["kl_to_ref"], record=[0]).policy
    assert isinstance(policy, Tabular)
    return policy.table[0]


def softmax(theta: np.ndarray) -> np.ndarray:
    w = np.exp(theta - theta.max(-1, keepdims=True))
    return w / w.sum(-1, keepdims=True)


def g(theta: np.ndarray) -> np.ndarray:
    return np.einsum("xab,xb->xa", P - 0.5, softmax(theta))


S, K = 0.4, KL


def egpo(theta: np.ndarray) -> np.ndarray:
    half = (1 - S * K) * theta + S * K * REF + S * g(theta)
    return (1 - S * K) * theta + S * K * REF + S * g(half)


def prox(theta: np.ndarray) -> np.ndarray:
    half = (theta + S * K * REF + S * g(theta)) / (1 + S * K)
    return (theta + S * K * REF + S * g(half)) / (1 + S * K)


def nash_md(theta: np.ndarray) -> np.ndarray:
    v = (1 - S * K) * theta + S * K * REF
    return v + S * g(v)


UPDATES: dict[str, tuple[Callable[[np.ndarray], np.ndarray], int]] = {
    "mirror_descent": (lambda theta: (1 - S * K) * theta + S * K * REF + S * g(theta), 1),
    "mwu": (lambda theta: theta + S * g(theta), 1),
    "nash_md": (nash_md, 1),
    "egpo": (egpo, 2),
    "nash_mp": (prox, 2),
}


@pytest.mark.parametrize("name", UPDATES)
def test_each_update_is_the_papers(name: str) -> None:
    update, rounds_a_step = UPDATES[name]
    theta = REF
    for _ in range(6):
        theta = update(theta)
    np.testing.assert_allclose(run(name, 6 * rounds_a_step, step_size=S).exp(), softmax(theta), atol=1e-13)


def test_updates_with_memory() -> None:
    theta, before = REF, None
    for _ in range(7):
        now = g(theta)
        theta, before = theta + S * (2 * now - (now if before is None else before)), now
    np.testing.assert_allclose(run("omwu", 7, step_size=S).exp(), softmax(theta), atol=1e-13)
    theta = magnet = REF
    for t in range(11):
        magnet = theta if t in (4, 8) else magnet
        theta = (theta + S * K * magnet + S * g(theta)) / (1 + S * K)
    np.testing.assert_allclose(run("mpo", 11, step_size=S, period=4).exp(), softmax(theta), atol=1e-13)
    theta = average = REF
    for _ in range(5):
        theta = (1 - S * K) * theta + S * K * REF + S * g(average)
        average = 0.7 * average + 0.3 * np.log(softmax(theta))
    np.testing.assert_allclose(run("nash_ema", 5, step_size=S, decay=0.7).exp(), softmax(theta), atol=1e-13)
    np.testing.assert_allclose(run("nash_ema", 5, step_size=S, decay=0.0), run("mirror_descent", 5, step_size=S))


@pytest.mark.filterwarnings("ignore:(step_size|damping). .* stability limit:UserWarning")  # only identities matter
def test_identities_between_methods() -> None:
    """Nash-MP with step s is EGPO with step s / (1 + s k); undamped best response is mirror descent with step 1 / k."""
    other = run("egpo", 10, step_size=0.9 / (1 + 0.9 * KL))
    np.testing.assert_allclose(run("nash_mp", 10, step_size=0.9), other, atol=1e-12)
    other = run("mirror_descent", 5, step_size=1 / KL)
    np.testing.assert_allclose(run("best_response", 5, damping=1.0), other, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "rounds", "hyperparameters"),
    [
        ("mirror_descent", 600, {"step_size": 0.5}),
        ("egpo", 600, {"step_size": 0.8}),
        ("nash_mp", 400, {}),
        ("mpo", 900, {"period": None}),
        ("best_response", 900, {"damping": 0.1}),
    ],
)
def test_the_regularised_equilibrium_is_reached(name: str, rounds: int, hyperparameters: dict[str, Any]) -> None:
    star = solve(torch.from_numpy(P), torch.from_numpy(REF), KL).log_probs
    torch.testing.assert_close(run(name, rounds, **hyperparameters), star, atol=1e-9, rtol=0.0)


@pytest.mark.parametrize("name", ["comal", "mpo", "omwu"])
def test_the_unregularised_equilibrium_of_a_cycle_is_reached(name: str) -> None:
    """COMAL's game has the equilibrium (4, 3, 4) / 11, whatever the reference."""
    matrices = np.array([[[0.5, 0.1, 0.8], [0.9, 0.5, 0.1], [0.2, 0.9, 0.5]]])
    hyperparameters = {"comal": {"inner": 60}, "mpo": {"period": 60}, "omwu": {"step_size": 0.5}}[name]
    at = problem(matrices, np.log([[0.2, 0.5, 0.3]]), 0.1)
    policy = run(name, 6000, at, **hyperparameters).exp()[0]
    np.testing.assert_allclose(policy, np.array([4, 3, 4]) / 11, atol=2e-3)


def test_fictitious_play_is_an_average_of_best_responses() -> None:
    """In probability space, and O(1 / t) towards the regularised equilibrium."""
    p = softmax(REF)
    for t in range(6):
        response = softmax(REF + np.einsum("xab,xb->xa", P - 0.5, p) / KL)
        p = p + (response - p) / (t + 2)
    np.testing.assert_allclose(run("fictitious_play", 6).exp(), p, atol=1e-13)
    star = solve(torch.from_numpy(P), torch.from_numpy(REF), KL).log_probs
    error = [float((run("fictitious_play", T) - star).abs().max()) for T in (100, 1000)]
    assert error[1] < 0.2 * error[0]


def test_schedules_converge_and_a_constant_nash_md_is_biased() -> None:
    star = solve(torch.from_numpy(P), torch.from_numpy(REF), KL).log_probs
    for name in ("mirror_descent", "nash_md"):
        error = [float((star.exp() * (star - run(name, T, schedule=True))).sum(-1).max()) for T in (200, 2000)]
        assert error[1] < 0.3 * error[0], name
        assert error[1] < 1e-2, name
    biased = run("nash_md", 3000, step_size=1.0)
    torch.testing.assert_close(biased, run("nash_md", 3001, step_size=1.0), atol=1e-10, rtol=0.0)
    assert float((biased - star).abs().max()) > 1e-2


@pytest.mark.filterwarnings("ignore:step_size. .* stability limit of the worst game:UserWarning")
@pytest.mark.parametrize(("fraction", "converges"), [(0.99, True), (1.01, False)])
def test_the_stability_threshold_of_mirror_descent(fraction: float, converges: bool) -> None:
    """Rock-paper-scissors, uniform reference, kl_coef .1: s* = 2 k / (k^2 + 1/12) = 2.142857; started off the
    centre."""
    threshold = 0.2 / (0.01 + 1 / 12)
    assert threshold == pytest.approx(2.142857, abs=1e-6)
    uniform = math.log(1 / 3)
    at = problem(RPS[None], np.full((1, 3), uniform), 0.1)
    algorithm = algorithms.create("mirror_descent", step_size=fraction * threshold)
    instance = at.world.instance(1, _draws())
    setting = _setting(instance, at)
    state = algorithm.init(setting)
    state.theta = torch.log_softmax(torch.tensor([[[0.02, 0.0, -0.01]]], dtype=torch.float64), -1)
    start = float((state.theta - uniform).abs().max())
    g_of = torch.from_numpy(RPS)
    for _ in range(8000):
        payoff = (g_of @ state.theta.exp()[..., None]).squeeze(-1)
        state, _ = algorithm.update(state, instance.evaluation, state.theta, payoff, _draws().at(0))
    end = float((state.theta - uniform).abs().max())
    assert end < 1e-6 if converges else end > 2 * start


def _draws() -> Any:
    from simbandit.draws import Draws

    return Draws(0, 1)


def _setting(instance: Any, at: Problem) -> Any:
    from simbandit.types import Setting

    return Setting(
        1,
        1,
        1,
        instance.n_actions,
        None,
        at.kl_coef,
        (0.0, 1.0),
        instance.pool,
        Tabular(instance.pool.ref_log_probs),
        "full",
        0,
    )


def test_the_global_bound_of_the_extragradient() -> None:
    """KL(pi* || pi_t) <= (1 - s k)^t KL(pi* || pi_0) for s <= 1 / (1 + k), on every game."""
    star = solve(torch.from_numpy(P), torch.from_numpy(REF), KL).log_probs
    s = 1 / (1 + KL)
    start = (star.exp() * (star - torch.from_numpy(REF))).sum(-1)
    for t in (1, 3, 10, 40):
        policy = run("egpo", 2 * t, step_size=s)
        assert bool(((star.exp() * (star - policy)).sum(-1) <= (1 - s * KL) ** t * start + 1e-12).all())


def test_the_sampled_form_is_unbiased() -> None:
    """One sampled step averages, over many replicates, to the exact step (mirror descent is linear in g)."""
    replicates, batch = 4000, 30
    sampled = simulate(
        problem(exact=False),
        algorithms.create("mirror_descent", step_size=0.1),
        rounds=1,
        batch_size=batch,
        replicates=replicates,
        metrics=["kl_to_ref"],
    ).policy
    assert isinstance(sampled, Tabular)
    relative = sampled.table - sampled.table.mean(-1, keepdim=True)
    exact = run("mirror_descent", 1, step_size=0.1)
    exact = exact - exact.mean(-1, keepdim=True)
    spread = relative.std(0) / math.sqrt(replicates)
    assert bool(((relative.mean(0) - exact).abs() < 4.5 * spread).all())


def test_metrics_of_a_game() -> None:
    names = ["duality_gap", "exploitability", "unregularised_gap", "kl_to_nash", "nash_win_margin"]
    names += ["oracle_evaluations"]
    frame = simulate(problem(), algorithms.create("egpo"), rounds=400, metrics=names, record=[0]).frame()
    wide = frame.pivot(index="round", columns="metric", values="value")
    assert wide["exploitability"].to_numpy() == pytest.approx(wide["duality_gap"].to_numpy() / 2)
    assert wide.loc[0, "duality_gap"] >= 2 * wide.loc[0, "nash_win_margin"] > 0
    assert wide.loc[400, "duality_gap"] < 1e-12
    assert wide.loc[400, "kl_to_nash"] < 1e-10
    assert wide["oracle_evaluations"].tolist() == [0.0, 400.0]


def test_bad_step_sizes() -> None:
    for name in ("mirror_descent", "egpo", "nash_mp", "mpo", "comal", "omwu", "mwu", "nash_md", "nash_ema"):
        with pytest.raises(ValueError, match="step_size: must be a number > 0"):
            algorithms.create(name, step_size=0.0)
    limit = 2 * KL / (KL**2 + 0.25)
    with pytest.warns(UserWarning, match=rf"step_size: 10 is beyond {limit:.6g} = 2 kl_coef"):
        run("mirror_descent", 1, step_size=10.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run("mirror_descent", 1, step_size=0.999 * limit)
    with pytest.raises(ValueError, match="finite world"):
        simulate(
            Problem(worlds.LinearWorld(), FullInformation(_bradley_terry()), 0.1), algorithms.create("egpo"), rounds=1
        )


def _bradley_terry() -> Any:
    from simbandit.oracles import BradleyTerry

    return BradleyTerry()
