"""Rows of the direct family: who plays, bonuses, references that move, exact forms, several starts, descent."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import optimize

from simbandit import Problem, algorithms, oracles, simulate, worlds
from simbandit.algorithms.direct import Direct, Expected, Moving
from simbandit.algorithms.players import Best, Cast, Held, Mixed, Tilt, policy_of
from simbandit.data import Logged
from simbandit.draws import Draws
from simbandit.objective import Descent
from simbandit.policies import Reference, Tabular, best_of_n, gibbs, mixture, normalise
from simbandit.types import Contexts, Setting

R, X, A, D = 3, 4, 5, 2
KL = 0.5
RNG = np.random.default_rng(0)
REWARDS = RNG.normal(size=(X, A))
WORLD = worlds.TableWorld(np.log(RNG.dirichlet(np.full(A, 3.0), size=X)), REWARDS, reward_range=(-3, 3))
LINEAR = worlds.LinearWorld(X, A, D, reference="softmax")
ORACLE = oracles.BradleyTerry()


def run(algorithm: Any, world: Any = WORLD, oracle: Any = ORACLE, kl_coef: float = KL, **options: Any) -> Any:
    chosen: dict[str, Any] = {"rounds": 5, "batch_size": 7, "replicates": R, "metrics": ["suboptimality"]}
    return simulate(Problem(world, oracle, kl_coef), algorithm, **(chosen | options))


def pool_of(world: Any = WORLD) -> Contexts:
    return world.instance(R, Draws(0, R)).pool


def random_table(seed: int) -> torch.Tensor:
    return normalise(torch.from_numpy(np.random.default_rng(seed).normal(size=(R, X, A))))


# ------------------------------------------------------------------------------------------------------------- players


def test_players_are_the_laws_of_their_docstrings():
    pool, log_pi, before = pool_of(), random_table(1), random_table(2)
    ref = pool.ref_log_probs
    cast = Cast(Tabular(log_pi), Tabular(before), Tabular(ref), {3: Tabular(before)})

    def law(player: Any) -> torch.Tensor:
        return policy_of(player, cast).log_probs(pool)

    torch.testing.assert_close(law("current"), log_pi)
    torch.testing.assert_close(law("previous"), before)
    torch.testing.assert_close(law("reference"), ref)
    torch.testing.assert_close(law("uniform"), torch.full_like(ref, -math.log(A)))
    assert (law("argmax").exp().argmax(-1) == log_pi.argmax(-1)).all()
    assert (law("argmax").amax(-1) == 0).all()
    torch.testing.assert_close(law(Tilt(1.5, -0.5)), normalise(1.5 * log_pi - 0.5 * ref))
    torch.testing.assert_close(law(Tilt(0.0, 0.0)), law("uniform"))
    torch.testing.assert_close(law(Mixed(0.3)), mixture([log_pi, ref], [0.7, 0.3]))
    torch.testing.assert_close(law(Best(3)), best_of_n(log_pi, log_pi - ref, 3))
    torch.testing.assert_close(law(Best(3, worst=True)), best_of_n(log_pi, ref - log_pi, 3))
    torch.testing.assert_close(law(Held(3)), before)


def test_actions_that_a_context_does_not_offer_are_never_played():
    reference = np.where(np.eye(X, A, dtype=bool), 0.0, 1 / (A - 1))
    world = worlds.TableWorld(np.log(reference, where=reference > 0, out=np.full((X, A), -np.inf)), REWARDS)
    start = Tabular(pool_of(world).ref_log_probs)
    cast = Cast(start, start, start, {})
    for player in ("uniform", "argmax", Tilt(-1.0, 0.5), Mixed(0.5), Best(2), Best(2, worst=True)):
        law = policy_of(player, cast).log_probs(pool_of(world)).exp()
        assert (law[:, reference == 0] == 0).all()
        torch.testing.assert_close(law.sum(-1), torch.ones(R, X).double())


def test_a_sampler_that_moves_in_stages_plays_what_it_held():
    """With Held(3) the second player is the reference for rounds 0-2 and the policy of round 3 for rounds 3-5."""
    laws: list[torch.Tensor] = []

    def keep(snapshot: Any) -> torch.Tensor:
        laws.append(snapshot.log_probs)
        return torch.zeros(R)

    row = algorithms.create("online_dpo", players=("current", Held(3)))
    options: dict[str, Any] = {"rounds": 6, "keep_data": True, "metrics": [("k", keep)], "record": "all"}
    data = run(row, **options).data
    pool, draws = pool_of(), Draws(0, R)
    for t in range(6):
        rows = data[data["round"] == t]
        index, second = (torch.tensor(rows[c].to_numpy(copy=True)).view(R, 7) for c in ("context", "second"))
        held = pool.ref_log_probs if t < 3 else laws[3]
        played = Tabular(held).sample(Contexts(index=index, pool=pool), draws.at(t).uniform("player1", 7))
        assert torch.equal(second, played)


# ------------------------------------------------------------------------------------------------- exact answers


def test_exact_dpo_is_the_optimum_after_one_round_whoever_plays_with_full_support():
    """All pairs with exact labels: implied rewards are the true ones, so pi = Gibbs, to the proximal term's 1e-6."""
    exact = oracles.FullInformation(ORACLE)
    for players in (("current", "current"), ("uniform", "reference"), (Tilt(0.5, 0.5), Mixed(0.4))):
        row = algorithms.create("online_dpo", players=players, value_range=20.0, proximal=1e-9)
        final = run(row, oracle=exact, rounds=1).final()
        assert final.max() < 1e-9


@pytest.mark.parametrize("name", ["online_dpo", "xpo", "inpo", "dno", "copo"])
def test_sampled_rows_tend_to_their_exact_form(name):
    """One round from 40,000 duels a replicate against all pairs with their laws: log-ratios err by about
    1 / (KL sqrt(n / (X A^2) / 4)) = .05 in the mean, whatever the row."""
    fields: dict[str, Any] = {"proximal": 1e-9} if name not in ("inpo", "dno") else {}
    row = algorithms.create(name, value_range=20.0, **fields)
    pool = pool_of()
    size = 40_000
    exact = run(row, oracle=oracles.FullInformation(ORACLE), rounds=1, batch_size=size).policy.log_probs(pool)
    drawn = run(row, rounds=1, batch_size=size).policy.log_probs(pool)
    assert (exact - pool.ref_log_probs).abs().max() > 0.1
    weight = pool.ref_log_probs.exp()
    error = (weight * (drawn - exact).square()).sum(-1).mean().sqrt()
    assert error < 0.1, float(error)


def test_iterating_dpo_with_a_moving_reference_divides_the_coefficient():
    """Each exact round multiplies by exp(r / kl_coef): T rounds are Gibbs at kl_coef / T (bounds out of the way)."""
    rewards = 0.1 * REWARDS
    world = worlds.TableWorld(WORLD.ref_log_probs, rewards, reward_range=(-1, 1))
    row = algorithms.create("iterative_dpo", proximal=1e-9, value_range=20.0)
    rounds, pool = 4, pool_of(world)
    final = run(row, world, oracles.FullInformation(ORACLE), rounds=rounds).policy.log_probs(pool)
    torch.testing.assert_close(
        final, gibbs(torch.from_numpy(rewards), pool.ref_log_probs, KL / rounds), rtol=0, atol=1e-5
    )
    fixed = run(algorithms.create("iterative_dpo", reference="fixed"), world, oracles.FullInformation(ORACLE), rounds=4)
    assert fixed.final().max() < 1e-9
    half = algorithms.create("iterative_dpo", reference=Moving(2, 0.5), proximal=1e-9, value_range=20.0)
    moved = run(half, world, oracles.FullInformation(ORACLE), rounds=3).policy.log_probs(pool)
    # log ref after two rounds: halfway between pi_ref and pi_ref exp(r / kl_coef); then exp(r / kl_coef) once more
    torch.testing.assert_close(moved, gibbs(torch.from_numpy(rewards), pool.ref_log_probs, KL / 1.5), rtol=0, atol=1e-5)


# -------------------------------------------------------------------------------------------------- bonuses and fits


def test_xpo_vpo_and_selm_are_one_fit_where_their_draws_coincide():
    """alpha_xpo = kl_coef alpha_selm = kl_coef alpha_vpo / t, and the second response calibrates all three."""
    alpha, rounds, size = 0.02, 4, 6
    n = rounds * size
    shared: dict[str, Any] = {"players": ("current", "reference"), "calibration": "second", "value_range": 2.0}
    rows = {
        "xpo": algorithms.create("xpo", alpha=alpha, **shared),
        "selm": Direct(bonus="value_optimism", bonus_parameters=(("alpha", alpha / KL),), **shared),
        "vpo": algorithms.create("vpo", alpha=alpha * n / KL, **shared),
    }
    logged = Logged(Reference(), n)  # one fit of the same duels: vpo's weight depends on how many there are
    fits = {name: run(row, rounds=1, batch_size=1, offline=logged, record=[0]) for name, row in rows.items()}
    assert fits["xpo"].frame().equals(fits["selm"].frame())
    first = [f.frame().query("round == 0")["value"].to_numpy() for f in fits.values()]
    assert (first[0] > 0).all()
    np.testing.assert_allclose(first[1:], [first[0]] * 2, rtol=1e-9)


def grid_value(row: Any, counts: np.ndarray, wins: np.ndarray, draws: np.ndarray, ref: np.ndarray, bound: float) -> Any:
    """The lowest value of DPO + alpha sum log pi/pi_ref over all log-ratios in the box, by a grid and polishing."""
    n = len(ref)

    def value(h: np.ndarray) -> float:
        log_pi = np.log(ref) + h - np.log((ref * np.exp(h)).sum())
        ratio = log_pi - np.log(ref)
        m = KL * (ratio[:, None] - ratio[None])
        fit = (wins * np.logaddexp(0, -m) + (counts - wins) * np.logaddexp(0, m)).sum()
        return fit + row * (draws * ratio).sum()

    axes = np.stack(np.meshgrid(*[np.linspace(0, bound, 9)] * n, indexing="ij"), -1).reshape(-1, n)
    starts = sorted(axes, key=value)[:6]
    return min(
        optimize.minimize(value, s, bounds=[(0, bound)] * n, method="L-BFGS-B", options={"ftol": 1e-14}).fun
        for s in starts
    )


def test_an_optimistic_fit_is_the_global_minimum_and_its_value_is_reported():
    """The objective is not convex: where a warm start alone would stay, the best of several starts agrees with a search
    over the whole box. Seven data sets of few duels, strong bonus, three actions."""
    rng = np.random.default_rng(3)
    ref, alpha, bound = np.array([0.6, 0.3, 0.1]), 0.4, 2.0 / KL
    world = worlds.TableWorld(np.log(ref[None]), np.array([[0.0, 0.5, 1.0]]), reward_range=(0, 2))
    for _ in range(7):
        first, second = rng.integers(0, 3, size=(2, 9))
        label = (rng.random(9) < 0.5).astype(float)
        counts, wins, draws = np.zeros((3, 3)), np.zeros((3, 3)), np.zeros(3)
        for a, b, y in zip(first, second, label, strict=True):
            draws[b] += 1
            if a != b:
                counts[a, b] += 1
                wins[a, b] += y
        frame = {"context": np.zeros(9, int), "first": first, "second": second, "preferred": label}
        row = algorithms.create("xpo", alpha=alpha, value_range=2.0, proximal=1e-9)
        results = run(
            row, world, offline=pd.DataFrame(frame), rounds=1, batch_size=1, metrics=["fit_value"], replicates=1
        )
        reached = results.frame().query("round == 0")["value"].item()
        assert reached == pytest.approx(grid_value(alpha, counts, wins, draws, ref, bound), abs=1e-6)


def test_the_count_bonus_divides_by_the_square_root_of_the_plays():
    """Rarity weights: an action played 9 times counts a third of one played once."""
    pool = pool_of()
    row = Direct(bonus="count_optimism", bonus_parameters=(("alpha", 1.0),), calibration="first", weighting="rarity")
    state = row.init(setting_of(pool, 10))
    first = torch.tensor([0] * 9 + [1]).expand(R, -1)
    actions = torch.stack([first, torch.full_like(first, 2)], dim=-1)
    contexts = Contexts(index=torch.zeros(R, 10, dtype=torch.int64), pool=pool)
    row.update(state, contexts, actions, torch.ones(R, 10).double(), Draws(0, R).at(0))
    entries = row._weighted(state, pool, state.record.entries()[1]["singles"])
    weight = {int(a): float(w) for a, w in zip(entries.actions[0, :, 0], entries.weight[0], strict=True) if w > 0}
    assert weight == pytest.approx({0: 9 / 3.0, 1: 1.0})


def test_coins_estimate_the_count():
    """E[(mean of N random signs)^2] = 1 / N: over 3 replicates x 20 coins, the mean square is within 5 standard errors,
    sqrt(2 / 60) each."""
    pool, plays = pool_of(), 12
    row = Direct(bonus="count_optimism", bonus_parameters=(("alpha", 1.0),), calibration="first", weighting="coin_flip")
    state = row.init(setting_of(pool, plays))
    actions = torch.tensor([0, 2]).expand(R, plays, 2)
    contexts = Contexts(index=torch.zeros(R, plays, dtype=torch.int64), pool=pool)
    row.update(state, contexts, actions, torch.ones(R, plays).double(), Draws(0, R).at(0))
    entries = row._weighted(state, pool, state.record.entries()[1]["singles"])
    weight = entries.weight[:, entries.actions[0, :, 0] == 0].amax(-1) / plays
    assert float(plays * weight.square().mean()) == pytest.approx(1.0, abs=5 * math.sqrt(2 / (R * 20)))
    assert (weight != weight[0]).any()


def setting_of(pool: Contexts, batch_size: int) -> Any:
    return Setting(
        replicates=R,
        rounds=1,
        batch_size=batch_size,
        n_actions=A,
        dim=None,
        kl_coef=KL,
        reward_range=(-3.0, 3.0),
        contexts=pool,
        policy=Tabular(pool.ref_log_probs),
        feedback="preference",
        n_select=2,
    )


def test_logged_duels_get_the_share_that_hybrid_gives_them():
    """Ten times as many online duels as logged ones, half the weight each: the fit is that of logged duels counted ten
    times, so it lies nearer to the logged answer (here: the opposite one) than counting all alike."""
    flipped = np.array([[a, b] for a in range(A) for b in range(A) if a != b])
    better = REWARDS[0][flipped[:, 0]] < REWARDS[0][flipped[:, 1]]
    frame = pd.DataFrame(
        {"context": 0, "first": flipped[:, 0], "second": flipped[:, 1], "preferred": better.astype(float)}
    )
    gaps = {}
    for hybrid in (None, 0.0, 0.5, 1.0):
        row = algorithms.create("online_dpo", hybrid=hybrid, players=("uniform", "uniform"))
        gaps[hybrid] = run(row, offline=frame, rounds=20, batch_size=100).final().mean()
    assert gaps[0.0] < gaps[None] < gaps[0.5] < gaps[1.0]
    only = (
        run(algorithms.create("online_dpo", players=("uniform", "uniform")), rounds=20, batch_size=100).final().mean()
    )
    assert gaps[0.0] == pytest.approx(only, rel=1e-6)


def test_a_window_forgets():
    row = {w: algorithms.create("online_dpo", window=w, players=("uniform", "uniform")) for w in (None, 1, 3, 5)}
    sizes: dict[str, Any] = {"rounds": 5, "batch_size": 200, "replicates": 16}
    gaps = {w: run(r, **sizes).final() for w, r in row.items()}
    np.testing.assert_allclose(gaps[5], gaps[None], rtol=1e-6)
    fresh = run(algorithms.create("online_dpo", data="fresh", players=("uniform", "uniform")), **sizes)
    np.testing.assert_allclose(gaps[1], fresh.final(), rtol=1e-9)
    assert gaps[1].mean() > gaps[3].mean() > gaps[None].mean()


@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
def test_descent_is_torchs_optimiser_on_log_ratios(optimiser):
    """Replicate by replicate, against the loop written out. AdamW divides by the gradient's size, so that where duels
    cancel it magnifies rounding."""
    steps = Descent(7, 0.05, 0.1, optimiser)
    row = algorithms.create("online_dpo", descent=steps, proximal=0.0)
    options: dict[str, Any] = {"rounds": 1, "batch_size": 30, "keep_data": True}
    results = run(row, **options)
    pool = pool_of()
    for r in range(R):
        data = results.data[results.data["replicate"] == r]
        x, a, b, y = (torch.tensor(data[c].to_numpy(copy=True)) for c in ("context", "first", "second", "preferred"))
        h = torch.zeros(X, A, dtype=torch.float64, requires_grad=True)
        kind: Any = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[optimiser]
        optimizer = kind([h], lr=0.05, weight_decay=0.1)
        informative = a != b
        for _ in range(7):
            optimizer.zero_grad()
            ratio = torch.log_softmax(pool.ref_log_probs[r] + h, -1) - pool.ref_log_probs[r]
            m = KL * (ratio[x, a] - ratio[x, b])[informative]
            loss = torch.nn.functional.softplus(torch.where(y[informative] == 1, -m, m)).sum()
            (loss / informative.sum()).backward()
            optimizer.step()
        expected = torch.log_softmax(pool.ref_log_probs[r] + h.detach(), -1)
        torch.testing.assert_close(
            results.policy.log_probs(pool)[r], expected, rtol=0, atol=1e-3 if optimiser == "adamw" else 1e-9
        )


def test_a_network_is_between_a_log_linear_policy_and_a_table():
    """Rewards that no linear function of the features explains: the network comes closer than a log-linear policy."""
    features = np.random.default_rng(5).normal(size=(X, A, D))
    rewards = np.cos(2 * features[..., 0]) + np.cos(2 * features[..., 1])
    world = worlds.TableWorld(np.log(np.full((X, A), 1 / A)), rewards, features)
    row = algorithms.create("online_dpo", players=("uniform", "uniform"), descent=None)
    gap = {p: run(row, world, policy=p, rounds=2, batch_size=2000).final().mean() for p in ("log_linear", "network")}
    assert gap["network"] < 0.5 * gap["log_linear"]
    # the same alone and among others, as every policy
    alone = run(row, world, policy="network", rounds=2, batch_size=20, replicates=[2]).final()
    among = run(row, world, policy="network", rounds=2, batch_size=20).final()
    np.testing.assert_allclose(alone, among[2:], rtol=1e-9)


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bonus": "optimism"}, r"bonus_parameters: optimism takes \['alpha'\], got none"),
        ({"bonus": "dpo"}, "bonus: must be one of"),
        ({"loss": "xpo", "loss_parameters": (("alpha", 0.1),)}, "loss: xpo sees a calibration draw"),
        ({"loss": "hypo2"}, r"loss: 'hypo2' is no loss; did you mean hypo"),
        ({"bonus": "optimism", "bonus_parameters": (("alpha", 0.1),), "value_range": "unbounded"}, "value_range: "),
        ({"loss": "aot"}, "descent: aot is of a whole batch"),
        ({"bonus": "kl_penalty", "bonus_parameters": (("weight", 0.1),)}, "data: kl_penalty looks at the last policy"),
        ({"hybrid": 1.5}, r"hybrid: a share in \[0, 1\]"),
        ({"hybrid_loss": "inpo"}, r"hybrid_loss: inpo takes \['step_size'\], got none"),
        ({"players": ("current", "nobody")}, "players: "),
        ({"loss": "cdpo", "loss_parameters": (("label_smoothing", 0.5),)}, r"label_smoothing: must lie in \[0, 1/2\)"),
        ({"loss": "cdpo", "loss_parameters": (("label_smoothing", math.nan),)}, "label_smoothing: must be a finite"),
        (
            {"bonus": "value_optimism", "bonus_parameters": (("alpha", -1.0),)},
            "alpha: .* got -1.0; .*`value_pessimism`",
        ),
        ({"bonus": "pessimism", "bonus_parameters": (("alpha", 0.0),)}, "alpha: .* the opposite sign is `optimism`"),
        ({"loss": "apo_zero", "value_range": "unbounded"}, "value_range: apo_zero has no minimum without a bound"),
        ({"loss": "bco", "value_range": "unbounded"}, "value_range: bco is not convex"),
        ({"passes": 0}, "passes: "),
    ],
)
def test_choices_that_mean_nothing_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Direct(**fields)


def test_parts_refuse_values_that_mean_nothing():
    for make in (
        lambda: Moving(0),
        lambda: Moving(1, 0.0),
        lambda: Held(0),
        lambda: Best(0),
        lambda: Mixed(1.5),
        lambda: Descent(0, 0.1),
        lambda: Descent(1, math.nan),
        lambda: Descent(1, 0.1, optimiser="adagrad"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match=": must"):
            make()


def test_an_unbounded_fit_that_runs_away_names_the_pair():
    """In context 2 action 3 beats action 1 every time."""
    frame = pd.DataFrame({"context": [0, 0, 2, 2], "first": [0, 0, 3, 3], "second": [1, 1, 1, 1]})
    frame["preferred"] = [1.0, 0.0, 1.0, 1.0]
    refused: dict[str, dict[str, float]] = {
        "dpo": {},
        "offset_dpo": {"margin": 0.1},
        "rdpo": {"label_smoothing": 0.1},
        "f_dpo_forward_kl": {},
        "f_dpo_alpha": {"alpha": 0.5},
    }
    for loss, parameters in refused.items():
        row = algorithms.create("dpo", loss=loss, value_range="unbounded", **parameters)
        with pytest.raises(ValueError, match=r"value_range: .* in context 2 one of actions 1 and 3 always wins"):
            run(row, offline=frame)
    assert run(algorithms.create("ipo"), offline=frame).final().shape == (R,)  # its minimiser is finite
    frame["preferred"] = [0.5, 0.5, 0.85, 0.85]
    for loss, parameters in refused.items():
        row = algorithms.create("dpo", loss=loss, value_range="unbounded", **parameters)
        assert run(row, offline=frame).final().shape == (R,)


def test_a_count_bonus_needs_contexts_that_can_be_counted():
    fresh = worlds.LinearWorld(None, A, D, n_evaluation=11)
    with pytest.raises(ValueError, match="weighting: 'rarity' counts actions and needs a finite world"):
        run(algorithms.create("copo"), fresh)


def test_every_row_says_what_it_is():
    assert algorithms.create("vpo", alpha=2.0) != algorithms.create("vpo")
    row: Any = algorithms.create("vpo", alpha=2.0, calibration=Expected("uniform"))
    assert row.bonus_parameters == (("alpha", 2.0),)
    assert "Expected(player='uniform')" in repr(row)
