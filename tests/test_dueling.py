"""Dueling bandits: pair by pair against an independent reference, each selection rule by hand, regrets by name."""

from typing import Any

import numpy as np
import pytest
import torch

from simbandit import algorithms
from simbandit.algorithms.dueling import duel_radius, hessian_inverse
from simbandit.algorithms.dueling_tables import RUCB, DoubleThompson
from simbandit.draws import Draws
from simbandit.estimators import pair_widths
from simbandit.oracles import BradleyTerry, PreferenceTable
from simbandit.simulate import Problem, simulate
from simbandit.types import Contexts
from simbandit.worlds import LinearWorld, TableWorld
from tests import bandit_references
from tests.test_bandits import Recorder, simulate_setting

SEEDS = 20
FRESH = LinearWorld(None, 6, 3, theta_norm=2.0, n_evaluation=11)
POOL = LinearWorld(5, 6, 3, theta_norm=2.0)
CONTEXTUAL = ("maxinp", "maxpairucb", "ginop", "colstim", "vacdb", "fgts")


def setting_of(world: Any, **changes: Any) -> Any:
    return simulate_setting(world, **({"feedback": "preference", "n_select": 2} | changes))


def test_every_pair_of_maxinp_is_the_references():
    """The widest pair among promising actions; its order is a tie (widths are symmetric), decided by noise."""
    rounds = 40
    recorder: Any = Recorder(algorithms.create("maxinp", radius=2.0, refit_growth=0.0, ball=1e3))
    problem = Problem(FRESH, BradleyTerry(), 1.0)
    simulate(problem, recorder, rounds=rounds, replicates=SEEDS, metrics=["reward_regret"], record=[0])
    draws = Draws(0, SEEDS)
    instance: Any = FRESH.instance(SEEDS, draws)
    theta = instance.theta.numpy()
    phi, actions = (np.stack([r[i] for r in recorder.rounds]) for i in (0, 1))  # (T, R, A, d), (T, R, 2)
    uniforms = np.stack([draws.at(t).uniform("annotator", 1)[:, 0].numpy() for t in range(rounds)])
    orders = set()
    for r in range(SEEDS):
        pairs = bandit_references.maxinp(
            phi[:, r], uniforms[:, r], phi[:, r] @ theta[r], actions[:, r], radius=2.0, ridge=0.1
        )
        assert pairs == [tuple(sorted(pair)) for pair in actions[:, r].tolist()]
        orders |= {pair[0] < pair[1] for pair in actions[:, r].tolist() if pair[0] != pair[1]}
    assert orders == {True, False}


def test_maxpairucb_is_the_best_pair_by_brute_force():
    state, algorithm, contexts = trained("maxpairucb", radius=0.7)
    pairs = algorithm.select(state, contexts, Draws(0, 2).at(9))
    phi, theta, inverse = contexts.features, state.model.theta, state.inverse
    for r in range(2):
        for b in range(4):
            best = {}
            for i in range(6):
                for j in range(6):
                    z = phi[r, b, i] - phi[r, b, j]
                    best[i, j] = float((phi[r, b, i] + phi[r, b, j]) @ theta[r] + 0.7 * (z @ inverse[r] @ z).sqrt())
            assert best[tuple(pairs[r, b].tolist())] == pytest.approx(max(best.values()), rel=1e-9)


def trained(name: str, world: Any = POOL, **fields: Any) -> tuple[Any, Any, Contexts]:
    """A state after 30 random duels, the algorithm, and four contexts per replicate."""
    algorithm: Any = algorithms.create(name, **fields)
    setting = setting_of(world)
    state, rng = algorithm.init(setting), np.random.default_rng(3)
    index = torch.from_numpy(rng.integers(5, size=(2, 30)))
    actions = torch.from_numpy(rng.integers(6, size=(2, 30, 2)))
    labels = torch.from_numpy((rng.random((2, 30)) < 0.5).astype(float))
    state, _ = algorithm.update(state, Contexts(index=index, pool=setting.contexts), actions, labels, Draws(0, 2).at(0))
    return state, algorithm, Contexts(index=index[:, :4], pool=setting.contexts)


def test_the_hessian_is_summed_over_all_duels_at_the_present_estimate():
    state, _, _ = trained("ginop")
    duels = state.model.duels
    z, count = duels.differences, duels.count
    p = torch.sigmoid((z * state.model.theta[:, None]).sum(-1))
    H = torch.eye(3).double() + torch.einsum("ru,rud,rue->rde", count * p * (1 - p), z, z)
    torch.testing.assert_close(state.inverse, torch.linalg.inv(H), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(hessian_inverse(state.model, 1.0), state.inverse)
    gram = trained("maxinp")[0].inverse
    torch.testing.assert_close(gram, torch.linalg.inv(torch.eye(3).double() + state.model.gram), rtol=1e-9, atol=1e-9)
    assert float((state.inverse - gram).diagonal(dim1=1, dim2=2).min()) > 0  # slopes are at most 1/4


@pytest.mark.parametrize("name", ["maxinp", "ginop", "colstim"])
def test_the_widths_matrix_and_the_theorys_radius_know_every_duel_and_their_own_ridge(name):
    state, algorithm, _ = trained(name, radius="theory", ridge=0.7, matrix_ridge=0.3)
    duels, eye = state.model.duels, torch.eye(3).double()
    torch.testing.assert_close(algorithm.init(state.setting).inverse, (eye / 0.3).expand(2, 3, 3))
    first = np.sqrt(np.log(20)) + np.sqrt(0.3) * 2 if name == "ginop" else np.sqrt(np.log(20)) * (2 + 2 * np.cosh(4.0))
    assert algorithm.init(state.setting).radius == pytest.approx(first)
    p = torch.sigmoid((duels.differences * state.model.theta[:, None]).sum(-1))
    slope = p * (1 - p) if name == "ginop" else torch.ones_like(p)
    V = 0.3 * eye + torch.einsum("ru,rud,rue->rde", duels.count * slope, duels.differences, duels.differences)
    torch.testing.assert_close(state.inverse, torch.linalg.inv(V), rtol=1e-9, atol=1e-9)
    root = np.sqrt(1.5 * np.log(1 + 2 * 30 / (3 * 0.3)) + np.log(20))
    by_hand = root + np.sqrt(0.3) * 2 if name == "ginop" else root * (2 + 2 * np.cosh(4.0))
    assert state.radius == pytest.approx(by_hand)


@pytest.mark.parametrize("name", CONTEXTUAL)
def test_the_policy_is_greedy_in_the_likelihood_of_all_duels(name):
    state, algorithm, _ = trained(name)
    assert state.model.theta.norm(dim=-1).min() > 0.1
    assert torch.equal(algorithm.policy(state).theta, state.model.theta)


@pytest.mark.parametrize("name", ["colstim", "fgts"])
def test_ties_of_either_side_are_broken_independently(name):
    algorithm: Any = algorithms.create(name)
    state = algorithm.init(setting_of(LinearWorld(None, 5, 3, n_evaluation=2)))
    contexts = Contexts(features=torch.ones(2, 400, 5, 3).double(), ref_log_probs=torch.zeros(2, 400, 5).double())
    first, second = algorithm.select(state, contexts, Draws(0, 2).at(0)).unbind(-1)
    assert (first == second).double().mean() == pytest.approx(0.2, abs=5 * np.sqrt(0.2 * 0.8 / 800))


def test_between_refits_a_duel_enters_the_hessian_with_its_present_weight():
    state, algorithm, contexts = trained("ginop", refit_growth=1.0)
    theta, before = state.model.theta, torch.linalg.inv(state.inverse)
    one = Contexts(index=contexts.index[:, :1], pool=contexts.pool)  # pyright: ignore
    pair = torch.tensor([[[0, 3]], [[4, 1]]])
    state, _ = algorithm.update(state, one, pair, torch.ones(2, 1).double(), Draws(0, 2).at(1))
    assert torch.equal(state.model.theta, theta)
    z = one.features_of(pair)[:, 0, 0] - one.features_of(pair)[:, 0, 1]
    p = torch.sigmoid((z * theta).sum(-1))
    added = (p * (1 - p))[:, None, None] * z[:, :, None] * z[:, None]
    torch.testing.assert_close(torch.linalg.inv(state.inverse) - before, added, rtol=1e-8, atol=1e-8)


def test_an_action_that_is_not_offered_beats_nobody():
    """Every offered action is estimated below 0, which is what the features of an absent one give."""
    algorithm: Any = algorithms.create("maxinp")
    state = algorithm.init(setting_of(LinearWorld(None, 3, 2, n_evaluation=5)))
    state.model.theta, state.inverse = torch.tensor([[5.0, 0.0]] * 2).double(), 1e-6 * state.inverse
    phi = torch.tensor([[-1.0, 0.0], [-0.8, 0.0], [0.0, 0.0]]).double().expand(2, 30, 3, 2)
    ref = torch.tensor([0.5, 0.5, 0.0]).double().log().expand(2, 30, 3)
    pairs = algorithm.select(state, Contexts(features=phi, ref_log_probs=ref), Draws(0, 2).at(0))
    assert (pairs == 1).all()


def test_colstims_pair_by_hand():
    """First: clipped Gumbel noise, one number for all actions where coupled; second: the most optimistic rival."""
    state, algorithm, contexts = trained("colstim", radius=3.0, threshold=0.7)
    phi, theta, inverse = contexts.features.numpy(), state.model.theta.numpy(), state.inverse.numpy()
    probability, coupled = np.sqrt(3 * np.log(3 * 100) / 31), []
    for t in range(9, 19):
        draws = Draws(0, 2).at(t)
        pairs = algorithm.select(state, contexts, draws).numpy()
        gumbel = -np.log(-np.log(draws.uniform("gumbel", 4, 6).numpy()))
        common = draws.uniform("coupled", 4).numpy() < probability
        for r in range(2):
            for b in range(4):
                noise = np.clip(gumbel[r, b, :1].repeat(6) if common[r, b] else gumbel[r, b], -0.7, 0.7)
                mu = phi[r, b] @ theta[r]
                first = int((mu + noise * np.sqrt(np.einsum("ad,de,ae->a", phi[r, b], inverse[r], phi[r, b]))).argmax())
                z = phi[r, b] - phi[r, b, first]
                second = int((mu + 3.0 * np.sqrt(np.einsum("ad,de,ae->a", z, inverse[r], z).clip(0))).argmax())
                assert pairs[r, b].tolist() == [first, second]
                coupled.append(common[r, b])
    assert 0.5 < np.mean(coupled) < 0.95


def test_pair_widths_are_those_of_the_differences():
    state, _, contexts = trained("maxinp")
    phi = contexts.features
    z = phi[:, :, :, None] - phi[:, :, None]
    direct = torch.einsum("rbijd,rde,rbije->rbij", z, state.inverse, z).clamp_min(0).sqrt()
    torch.testing.assert_close(pair_widths(phi, state.inverse), direct, rtol=1e-7, atol=1e-7)


def test_radii_by_hand():
    setting = setting_of(POOL)
    algorithm: Any = algorithms.create("maxinp")
    state = algorithm.init(setting)
    assert (duel_radius("tuned", state, 1.0, "gram"), duel_radius("tuned", state, 1.0, "hessian")) == (3.0, 1.5)
    assert duel_radius("code", state, 1.0, "gram") == pytest.approx(2 * np.sqrt(3 * np.log(100)))
    state.n = 50
    root = np.sqrt(1.5 * np.log(1 + 100 / 3) + np.log(20))
    assert duel_radius("theory", state, 1.0, "gram") == pytest.approx(root * (2 + 2 * np.cosh(4.0)))
    assert duel_radius("theory", state, 1.0, "hessian") == pytest.approx(root + 2.0)
    batches = algorithm.init(setting_of(POOL, batch_size=4))
    assert duel_radius("code", batches, 1.0, "gram") == pytest.approx(2 * np.sqrt(3 * np.log(400)))
    with pytest.raises(ValueError, match="radius: 'theory' needs a finite reward range"):
        algorithms.create("maxinp", radius="theory").init(setting_of(POOL, reward_range=(-np.inf, np.inf)))


def test_colstim_couples_its_noise_as_often_as_said():
    colstim: Any = algorithms.create("colstim")
    code: Any = algorithms.create("colstim", coupling="code")
    assert code._coupled(5, 4000, 4000) == pytest.approx(5 * np.log(20_000) / np.sqrt(4000))
    assert code._coupled(5, 4000, 4000) > 0.78
    assert colstim._coupled(5, 4000, 4000) == pytest.approx(np.sqrt(5 * np.log(20_000) / 4000))
    assert colstim._coupled(5, 4000, 1) == 1.0
    never: Any = algorithms.create("colstim", coupling="never")
    assert never._coupled(5, 4000, 1) == 0.0


def test_colstims_noise_is_clipped_at_root_d_log_of_all_duels():
    """At 4.24 with 3 dimensions and 100 rounds of 4, which one Gumbel number in 70 exceeds."""
    default: Any = algorithms.create("colstim", coupling="never")
    clipped: Any = algorithms.create("colstim", coupling="never", threshold=np.sqrt(3 * np.log(400)))
    state = default.init(setting_of(POOL, batch_size=4))
    state.inverse = torch.diag(torch.tensor([100.0, 9.0, 0.1]).double()).expand(2, 3, 3).clone()
    index = torch.arange(1500).remainder(5).expand(2, 1500)
    contexts, draws = Contexts(index=index, pool=state.setting.contexts), Draws(0, 2).at(0)
    assert torch.equal(default.select(state, contexts, draws), clipped.select(state, contexts, draws))


def test_colstim_starts_with_uniform_pairs_where_asked():
    recorder: Any = Recorder(algorithms.create("colstim", warm_up=30))
    problem = Problem(LinearWorld(1, 6, 3), BradleyTerry(), 1.0)
    simulate(problem, recorder, rounds=30, replicates=40, metrics=["reward_regret"], record=[0])
    actions = np.stack([r[1] for r in recorder.rounds]).reshape(-1, 2)
    counts = np.bincount(actions[:, 0] * 6 + actions[:, 1], minlength=36)
    assert counts.min() > 0
    assert abs(counts - len(actions) / 36).max() < 5 * np.sqrt(len(actions) / 36)
    state, warm, _ = trained("colstim", warm_up=7)
    contexts = Contexts(index=torch.arange(100).remainder(5).expand(2, 100), pool=state.setting.contexts)
    at_once, draws = algorithms.create("colstim"), Draws(0, 2)
    for t, same in ((6, False), (7, True)):
        first, second = (a.select(state, contexts, draws.at(t)) for a in (warm, at_once))  # pyright: ignore
        assert torch.equal(first, second) == same


def test_vacdb_explores_a_wide_pair_then_descends_then_commits():
    algorithm: Any = algorithms.create("vacdb", layers=3)
    setting = setting_of(POOL)
    state = algorithm.init(setting)
    contexts = Contexts(index=torch.zeros(2, 1, dtype=torch.int64), pool=setting.contexts)
    assert algorithm._walk(state, contexts).layer.tolist() == [[0], [0]]
    pair = algorithm.select(state, contexts, Draws(0, 2).at(0))
    phi = contexts.features_of(pair)
    z = phi[:, 0, 0] - phi[:, 0, 1]
    assert float((z[:, None] @ state.inverses[0] @ z[..., None]).min()) > 0.25
    before = [torch.linalg.inv(m) for m in state.inverses]
    state, _ = algorithm.update(state, contexts, pair, torch.ones(2, 1).double(), Draws(0, 2).at(0))
    grown = torch.linalg.inv(state.inverses[0]) - before[0]
    width = (z[:, None] @ torch.linalg.inv(before[0]) @ z[..., None]).sqrt()
    w2 = (0.5 / width) ** 2
    torch.testing.assert_close(grown, w2 * z[..., None] * z[:, None], rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(torch.linalg.inv(state.inverses[1]), before[1])
    state.inverses = state.inverses * 1e-9
    walk = algorithm._walk(state, contexts)
    assert walk.layer.tolist() == [[3], [3]]  # every layer is precise: no layer learns from this duel
    state.inverses[1] = state.inverses[1] * 1e11
    assert algorithm._walk(state, contexts).layer.tolist() == [[3], [3]]  # settled in the first layer already
    state.inverses[0] = state.inverses[0] / state.inverses[0].amax() * 0.03  # precise to 1/2, not to 1/8
    state.thetas[0] = 0.0
    assert algorithm._walk(state, contexts).layer.tolist() == [[1], [1]]


def _descent(phi: Any, offered: Any, thetas: Any, inverses: Any, betas: Any) -> tuple[int, set[tuple[int, int]], int]:
    """Algorithm 1 of VACDB for one context, pair by pair: the layer, the pairs it may play, and how many actions had
    been eliminated."""
    alive = np.flatnonzero(offered).tolist()
    for i, (theta, inverse, beta) in enumerate(zip(thetas, inverses, betas, strict=True)):
        z = {(a, b): phi[a] - phi[b] for a in alive for b in alive}
        width = {pair: float(np.sqrt(max(0.0, z[pair] @ inverse @ z[pair]))) for pair in z}
        mu, gone = phi @ theta, int(offered.sum()) - len(alive)
        if max(width.values()) <= 2.0 ** -len(thetas):
            score = {(a, b): mu[a] + mu[b] + beta * width[a, b] for a, b in z}
            return len(thetas), {pair for pair in z if score[pair] >= max(score.values()) - 1e-9}, gone
        if max(width.values()) > 2.0 ** -(i + 1):
            return i, {pair for pair in z if width[pair] > 2.0 ** -(i + 1)}, gone
        best = max(mu[a] for a in alive)
        alive = [a for a in alive if mu[a] >= best - 2.0 ** -(i + 1) * beta]
    raise AssertionError("the last layer either explores or settles")


def test_vacdbs_descent_is_the_papers_pair_by_pair():
    """Contexts of all sizes, so that each layer is reached, with actions that are absent or were eliminated."""
    B, L, rng = 300, 4, np.random.default_rng(8)
    algorithm: Any = algorithms.create("vacdb", layers=L)
    state = algorithm.init(setting_of(FRESH))
    size = np.exp2(-rng.uniform(0, 6, size=(2, B, 1, 1)))
    phi = torch.from_numpy(rng.normal(size=(2, B, 6, 3)) * size * [1.0, 0.8, 0.6])
    offered = torch.from_numpy(rng.random((2, B, 6)) < 0.8)
    offered[..., 3] = True
    roots = torch.from_numpy(0.5 * rng.normal(size=(L, 2, 3, 3)))
    state.inverses = roots @ roots.mT + 0.02 * torch.eye(3).double()
    state.thetas = 2 * torch.from_numpy(rng.normal(size=(L, 2, 3)))
    state.radius = torch.tensor([[1.0, 0.4], [0.6, 1.5], [2.0, 0.3], [0.5, 0.9]]).double()
    state.model.theta = -state.thetas[0]
    walk = algorithm._walk(state, Contexts(features=phi, ref_log_probs=offered.double().log()))
    ends, most = np.zeros((L + 1, 2), dtype=int), walk.scores.amax((-1, -2), keepdim=True)
    for r in range(2):
        for b in range(B):
            layer, pairs, gone = _descent(
                phi[r, b].numpy(), offered[r, b].numpy(), state.thetas[:, r].numpy(), state.inverses[:, r].numpy(),
                state.radius[:, r].numpy(),
            )  # fmt: skip
            assert int(walk.layer[r, b]) == layer
            played = walk.scores[r, b] >= most[r, b] - 1e-9 * most[r, b].abs()
            assert {(int(i), int(j)) for i, j in played.nonzero()} == pairs
            ends[layer, int(gone > 0)] += 1
    assert (ends.sum(1) > 8).all()
    assert (ends[1:, 1] > 2).all()


def test_vacdb_weighs_a_batch_that_it_did_not_choose_itself():
    """Layers are those of the batch's own contexts; a narrow pair has weight 1 at most, an action with itself none."""
    algorithm: Any = algorithms.create("vacdb", layers=3)
    setting = setting_of(POOL)
    state = algorithm.init(setting)
    for i in range(3):
        torch.testing.assert_close(state.inverses[i], 4.0 ** (i + 1) * torch.eye(3).double().expand(2, 3, 3))
    other = Contexts(index=torch.zeros(2, 5, dtype=torch.int64), pool=setting.contexts)
    algorithm.select(state, other, Draws(0, 2).at(0))
    contexts = Contexts(index=torch.arange(5).expand(2, 5), pool=setting.contexts)
    widest = pair_widths(contexts.features, torch.eye(3).double().expand(2, 3, 3)).amax((-1, -2))
    state.inverses[0] = (0.25 / widest.median(-1)[0].square())[:, None, None] * torch.eye(3).double()
    state.inverses[1] = 8.0 * torch.diag(torch.tensor([1.0, 0.7, 0.5]).double())
    layer, before = algorithm._walk(state, contexts).layer, [torch.linalg.inv(m) for m in state.inverses]
    assert (layer.sum(-1) == 3).all()  # a median and two narrower contexts have come to the second
    widths = pair_widths(contexts.features, state.inverses[0]).masked_fill(torch.eye(6, dtype=torch.bool), 9.0)
    narrow = widths.flatten(-2).argmin(-1)
    actions = torch.stack([narrow // 6, narrow % 6], dim=-1)
    actions[:, 0], actions[:, 1] = torch.tensor([2, 2]), torch.tensor([0, 5])
    old = state.inverses.clone()
    state, _ = algorithm.update(state, contexts, actions, torch.ones(2, 5).double(), Draws(0, 2).at(0))
    z = (contexts.features_of(actions)[:, :, 0] - contexts.features_of(actions)[:, :, 1]).numpy()
    whole = 0
    for r in range(2):
        for i in range(3):
            V, here = before[i][r].numpy().copy(), [b for b in range(5) if layer[r, b] == i]
            for b in here:
                width = np.sqrt(z[r, b] @ old[i, r].numpy() @ z[r, b])
                w = min(1.0, 2.0 ** -(i + 1) / width) if width > 0 else 0.0
                V += w**2 * np.outer(z[r, b], z[r, b])
                whole += w == 1.0
            np.testing.assert_allclose(np.linalg.inv(state.inverses[i, r].numpy()), V, rtol=1e-8, atol=1e-8)
            assert int(state.size[i, r]) == len(here)
    assert whole > 0


def test_vacdbs_layers_keep_to_the_ball():
    free, bound = (trained("vacdb", ball=ball)[0].thetas[0].norm(dim=-1) for ball in (50.0, 0.1))
    assert free.min() > 0.1
    torch.testing.assert_close(bound, torch.full_like(bound, 0.1))


def test_vacdb_eliminates_what_is_clearly_worse():
    algorithm: Any = algorithms.create("vacdb", layers=2, radius=0.1)
    setting = setting_of(LinearWorld(features=np.array([[[1.0, 0.0], [0.0, 1.0], [0.99, 0.0]]]), theta=(1.0, 0.0)))
    state = algorithm.init(setting)
    state.inverses = torch.eye(2).double().expand(2, 2, 2, 2) * 0.1
    state.thetas = torch.tensor([1.0, 0.0]).double().expand(2, 2, 2).clone()
    walk = algorithm._walk(state, Contexts(index=torch.zeros(2, 1, dtype=torch.int64), pool=setting.contexts))
    chosen = {tuple(divmod(int(k), 3)) for k in (walk.scores[0, 0].flatten() > 0).nonzero()}
    assert not any(1 in pair for pair in chosen)


def test_vacdb_knows_the_empirical_variance_of_every_layer():
    """Against the duels themselves, kept one by one: numbers, weighted squared residuals, and each layer's own fit."""
    algorithm: Any = algorithms.create("vacdb", layers=3, radius="variance", refit_growth=0.0, ball=1e3, ridge=0.2)
    setting = setting_of(POOL, rounds=70)
    state, rng = algorithm.init(setting), np.random.default_rng(5)
    seen: list[list[tuple[Any, ...]]] = [[], []]
    for t in range(70):
        contexts = Contexts(index=torch.from_numpy(rng.integers(5, size=(2, 1))), pool=setting.contexts)
        pair = algorithm.select(state, contexts, Draws(0, 2).at(t))
        layers, phi = algorithm._walk(state, contexts).layer[:, 0].tolist(), contexts.features_of(pair)
        labels = torch.from_numpy((rng.random((2, 1)) < 0.7).astype(float))
        for r, layer in enumerate(layers):
            if layer < 3:
                z = (phi[r, 0, 0] - phi[r, 0, 1]).numpy()
                width = np.sqrt(z @ state.inverses[layer][r].numpy() @ z)
                seen[r].append((layer, 2.0 ** -(layer + 1) / width, z, float(labels[r, 0])))
        state, _ = algorithm.update(state, contexts, pair, labels, Draws(0, 2).at(t))
    assert len({layer for layer, *_ in seen[0]}) > 1
    for r in range(2):
        for i in range(3):
            own = [duel[1:] for duel in seen[r] if duel[0] == i]
            theta = state.thetas[i, r].numpy()
            p = [1 / (1 + np.exp(-z @ theta)) for _, z, _ in own]
            variance = sum(w**2 * (y - q) ** 2 for (w, _, y), q in zip(own, p, strict=True))
            assert int(state.size[i, r]) == len(own)
            assert float(state.variance[i, r]) == pytest.approx(variance, abs=1e-12)
            expected = 2.0 ** -(i + 1) * np.sqrt(variance) + 2.0**-i
            assert float(state.radius[i, r]) == pytest.approx(expected, rel=1e-12)
            score = sum(
                (w**2 * (q - y) * z for (w, z, y), q in zip(own, p, strict=True)), 0.2 * 4.0 ** -(i + 1) * theta
            )
            np.testing.assert_allclose(score, 0, atol=1e-7)


def test_vacdb_radii_by_hand():
    setting = setting_of(POOL)
    code: Any = algorithms.create("vacdb", radius="code").init(setting)
    assert code.radius.unique().tolist() == [pytest.approx(np.sqrt(3 * np.log(100)) / 4 / 2)]
    assert algorithms.create("vacdb").init(setting).radius.unique().tolist() == [1.0]
    batches: Any = algorithms.create("vacdb", radius="code").init(setting_of(POOL, batch_size=4))
    assert batches.radius.unique().tolist() == [pytest.approx(np.sqrt(3 * np.log(400)) / 4 / 2)]
    theory: Any = algorithms.create("vacdb", radius="theory", layers=12)
    state = theory.init(setting)
    state.size = torch.full_like(state.size, 50.0)
    state.variance = torch.full_like(state.variance, 3.0)
    state.model.n = 90
    now, after = np.log(4 * 90**2 * 12 * 100), np.log(4 * 91**2 * 12 * 100)
    kappa = 1 / (2 + 2 * np.cosh(4.0))  # |theta*| = 2, unit features: a reward difference is at most 4
    first = np.flatnonzero(2.0 ** np.arange(1, 13) >= 16 / kappa * np.sqrt(after))[0] + 1
    assert 10 < first <= 12  # only from there on does the paper trust its empirical variance
    for i in range(12):
        variance = 3.0 if i + 1 >= first else 50.0
        inner = np.sqrt((8 * variance + 18 * after) * now)
        expected = 16 * 2.0 ** -(i + 1) / kappa * inner + 6 * 2.0 ** -(i + 1) / kappa * now + 2.0**-i
        np.testing.assert_allclose(theory._radius(state)[i], expected, rtol=1e-12)
    with pytest.raises(ValueError, match="radius: 'theory' needs a finite reward range"):
        theory.init(setting_of(POOL, reward_range=(-np.inf, np.inf)))


@pytest.mark.parametrize("sampler", ["laplace", "sgld"])
def test_fgts_draws_two_independent_samples_of_the_tempered_posterior(sampler):
    """Without the feel-good term and with many duels: mean and covariance of Laplace's Gaussian, eta = 1/4."""
    algorithm: Any = algorithms.create("fgts", sampler=sampler, mu=0.0, steps=120, step_size=0.5)
    setting = setting_of(POOL, rounds=1000)
    state, rng = algorithm.init(setting), np.random.default_rng(3)
    pool = setting.contexts
    theta = torch.tensor([[1.0, -0.5, 0.3], [0.2, 0.4, -1.0]]).double()
    index = torch.from_numpy(rng.integers(5, size=(2, 3000)))
    actions = torch.from_numpy(rng.integers(6, size=(2, 3000, 2)))
    contexts = Contexts(index=index, pool=pool)
    phi = contexts.features_of(actions)
    margin = ((phi[:, :, 0] - phi[:, :, 1]) * theta[:, None]).sum(-1)
    labels = (torch.from_numpy(rng.random((2, 3000))) < torch.sigmoid(margin)).double()
    state, _ = algorithm.update(state, contexts, actions, labels, Draws(0, 2).at(0))
    samples = []
    for t in range(1, 201):
        if sampler == "sgld":
            state.chain = algorithm._langevin(state, Draws(0, 2).at(t))
        samples.append(algorithm._samples(state, Draws(0, 2).at(t)))
    drawn = torch.stack(samples)  # (T, R, 2, d)
    covariance = hessian_inverse(state.model, 4.0) * 4
    scale = covariance.diagonal(dim1=1, dim2=2).sqrt()
    centred = (drawn - state.model.theta[:, None]) / scale[:, None]
    # 200 draws, for Langevin correlated: means to 5 of their standard errors, spread to a third
    assert centred.mean(0).abs().max() < (0.35 if sampler == "laplace" else 1.0)
    assert (centred.std(0) - 1).abs().max() < 0.35
    between = (centred[:, :, 0] * centred[:, :, 1]).mean(0)
    assert between.abs().max() < (0.35 if sampler == "laplace" else 0.8)


def test_fgts_moves_its_draws_by_a_newton_step_of_the_feel_good_term():
    state, algorithm, _ = trained("fgts", mu=0.0, ridge=2.0)
    draws = Draws(0, 2).at(4)
    before = algorithm._samples(state, draws)
    state.push = torch.arange(12).view(2, 2, 3).double()
    covariance = 4 * hessian_inverse(state.model, 8.0)  # eta = 1/4: precision H / 4 + 2 I
    torch.testing.assert_close(algorithm._samples(state, draws) - before, state.push @ covariance)
    default: Any = algorithms.create("fgts")
    assert default._feel_good(setting_of(POOL)) == pytest.approx(1 / (10 * np.exp(2.0) * 10))  # S = 2, T = 100
    assert default._feel_good(setting_of(POOL, batch_size=4)) == pytest.approx(1 / (10 * np.exp(2.0) * 20))


def _energy(state: Any, theta: torch.Tensor, eta: float, ridge: float) -> torch.Tensor:
    """Of either side's posterior, theta (R, 2, d): (R, 2)."""
    duels = state.model.duels
    margin = torch.einsum("rud,rjd->rju", duels.differences, theta)
    wins, losses = duels.wins[:, None], (duels.count - duels.wins)[:, None]
    nll = -(wins * torch.nn.functional.logsigmoid(margin) + losses * torch.nn.functional.logsigmoid(-margin)).sum(-1)
    return eta * nll + ridge / 2 * theta.square().sum(-1) - (state.push * theta).sum(-1)


def test_fgts_gaussian_has_its_centre_and_curvature_at_the_mode_of_the_tempered_posterior():
    state, algorithm, _ = trained("fgts", mu=0.0, eta=0.4, ridge=2.0, ball=1e3)
    draws = Draws(0, 2).at(4)
    noise = draws.normal("posterior", 2, 3) @ state.root.mT
    mode = (algorithm._samples(state, draws) - noise).requires_grad_(True)
    torch.testing.assert_close(mode[:, 0], mode[:, 1])
    energy = _energy(state, mode, 0.4, 2.0)
    (gradient,) = torch.autograd.grad(energy.sum(), mode)
    torch.testing.assert_close(gradient, torch.zeros_like(mode), rtol=0, atol=1e-7)
    for r in range(2):
        H = torch.autograd.functional.hessian(
            lambda theta, r=r: _energy(state, theta.expand(2, 2, 3), 0.4, 2.0)[r, 0], mode[r, 0].detach()
        )
        torch.testing.assert_close(state.root[r] @ state.root[r].mT, torch.linalg.inv(H), rtol=1e-7, atol=1e-9)  # pyright: ignore
    before: Any = algorithm.init(state.setting).root
    torch.testing.assert_close(before @ before.mT, torch.eye(3).double().expand(2, 3, 3) / 2)


def test_fgts_langevin_steps_by_hand():
    """Of the full gradient, with the feel-good push of this update in it, from the last sample; noise of every step and
    either chain its own."""
    state, algorithm, contexts = trained("fgts", sampler="sgld", mu=3.0, eta=0.4, ridge=2.0, steps=5, step_size=0.3)
    assert float(state.chain.abs().min()) > 0  # it has moved from 0, where it began
    draws, theta = Draws(0, 2).at(7), state.chain.clone()
    actions = algorithm.select(state, contexts, draws)
    state, _ = algorithm.update(state, contexts, actions, torch.ones(2, 4).double(), draws)
    duels, normals = state.model.duels, draws.normal("langevin", 5, 2, 3)
    trace = 3 * 2.0 + 0.4 / 4 * (duels.count * duels.differences.square().sum(-1)).sum(-1)
    assert float((trace[0] - trace[1]).abs()) > 0.01
    for i in range(5):
        theta.requires_grad_(True)
        (gradient,) = torch.autograd.grad(_energy(state, theta, 0.4, 2.0).sum(), theta)
        step = (0.3 / trace)[:, None, None]
        theta = (theta - step * gradient + (2 * step).sqrt() * normals[:, i]).detach()
    torch.testing.assert_close(state.chain, theta, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(algorithm._samples(state, draws), state.chain)


@pytest.mark.parametrize("sampler", ["laplace", "sgld"])
def test_fgts_push_sums_what_each_side_played_against_the_other(sampler):
    """A side plays the maximiser of its feel-good term: its push grows by phi(own) - phi(other's), times mu, duel by
    duel, whatever the refit of the same update has made of theta."""
    state, algorithm, _ = trained("fgts", sampler=sampler, mu=0.5, refit_growth=0.0)
    contexts = Contexts(index=torch.arange(40).remainder(5).expand(2, 40), pool=state.setting.contexts)
    expected = state.push.clone()
    for t in (1, 2):
        actions = algorithm.select(state, contexts, Draws(0, 2).at(t))
        phi = contexts.features_of(actions)
        expected = expected + 0.5 * torch.stack([phi[:, :, 0] - phi[:, :, 1], phi[:, :, 1] - phi[:, :, 0]], 1).sum(2)
        before = state.model.theta
        state, _ = algorithm.update(state, contexts, actions, torch.ones(2, 40).double(), Draws(0, 2).at(t))
        assert float((state.model.theta - before).norm(dim=-1).min()) > 0.2
        torch.testing.assert_close(state.push, expected, rtol=1e-9, atol=1e-9)


def test_fgts_is_pushed_towards_what_beats_the_opponent():
    algorithm: Any = algorithms.create("fgts", mu=0.5)
    setting = setting_of(POOL)
    state = algorithm.init(setting)
    contexts = Contexts(index=torch.zeros(2, 1, dtype=torch.int64), pool=setting.contexts)
    draws = Draws(0, 2).at(0)
    samples, actions = algorithm._samples(state, draws), algorithm.select(state, contexts, draws)
    state, _ = algorithm.update(state, contexts, actions, torch.ones(2, 1).double(), draws)
    phi = contexts.features[:, 0]
    for r in range(2):
        for j in (0, 1):
            best = int((phi[r] @ samples[r, j]).argmax())
            assert best == int(actions[r, 0, j])
            push = 0.5 * (phi[r, best] - phi[r, int(actions[r, 0, 1 - j])])
            torch.testing.assert_close(state.push[r, j], push)


def one_context(preference: np.ndarray) -> tuple[Any, Any]:
    A = len(preference)
    return TableWorld(np.log(np.full((1, A), 1 / A)), reward_range=(0.0, 1.0)), PreferenceTable(preference)


@pytest.mark.parametrize("algorithm", [RUCB(), DoubleThompson()])
def test_a_condorcet_winner_is_found_and_played(algorithm):
    """Winner 2 of five, which is not the Borda winner: 0 beats the others by more."""
    P = np.full((5, 5), 0.5)
    wins = {(2, 0): 0.7, (2, 1): 0.65, (2, 3): 0.65, (2, 4): 0.65, (0, 1): 0.95, (0, 3): 0.95, (0, 4): 0.95}
    for (i, j), p in wins.items():
        P[i, j], P[j, i] = p, 1 - p
    recorder: Any = TableRecorder(algorithm)
    world, oracle = one_context(P)
    run = simulate(Problem(world, oracle, 1.0), recorder, rounds=1500, replicates=4, metrics=["kl_to_ref"], record=[0])
    late = np.stack(recorder.actions[-200:])
    assert (late == 2).mean() > 0.8
    assert run.policy is not None
    assert (run.policy.log_probs(world.instance(4, Draws(0, 4)).pool).exp()[:, 0, 2] == 1).all()


class TableRecorder(Recorder):
    def __init__(self, algorithm: Any):
        super().__init__(algorithm)
        self.actions: list[np.ndarray] = []

    def update(self, state: Any, contexts: Contexts, actions: Any, feedback: Any, draws: Any) -> Any:
        self.actions.append(actions[:, 0].numpy().copy())
        return self.algorithm.update(state, contexts, actions, feedback, draws)


@pytest.mark.parametrize("name", CONTEXTUAL)
def test_regret_grows_more_slowly_than_at_random(name):
    problem = Problem(LinearWorld(4, 8, 3, theta_norm=3.0), BradleyTerry(), 1.0)
    runs = [
        simulate(problem, algorithms.create(n), rounds=160, replicates=6, metrics=["cumulative_average_regret"])
        for n in (name, "uniform")
    ]
    ours, random = (r.final("cumulative_average_regret") for r in runs)
    assert ours.mean() < 0.6 * random.mean()


def test_regrets_of_a_duel_by_name():
    metrics = ["weak_regret", "strong_regret", "average_regret", "summed_regret", "reward_regret"]
    problem = Problem(POOL, BradleyTerry(), 1.0)
    frame = simulate(
        problem, algorithms.create("uniform"), rounds=9, batch_size=3, replicates=4, metrics=metrics
    ).frame()
    wide = frame.pivot(index=["replicate", "round"], columns="metric", values="value").dropna()
    assert len(wide) == 36
    np.testing.assert_allclose(wide["average_regret"], wide["reward_regret"], rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(wide["summed_regret"], 2 * wide["average_regret"], rtol=1e-12)
    np.testing.assert_allclose(
        wide["weak_regret"] + wide["strong_regret"], wide["summed_regret"], rtol=1e-12, atol=1e-15
    )
    apart = wide["strong_regret"].to_numpy() - wide["weak_regret"].to_numpy()
    assert apart.min() >= 0
    assert apart.max() > 0


@pytest.mark.parametrize("name", CONTEXTUAL)
def test_gaps_of_zero_one_arm_and_collinear_arms_are_no_problem(name):
    line = np.linspace(-1, 1, 12).reshape(3, 4, 1) * np.array([1.0, 0.5])
    for world in (
        LinearWorld(3, 4, 2, theta_norm=0.0),
        LinearWorld(3, 1, 2),
        LinearWorld(features=line, theta=(1.0, 1.0)),
    ):
        run = simulate(Problem(world, BradleyTerry(), 1.0), algorithms.create(name), rounds=25, replicates=3)
        assert np.isfinite(run.frame()["value"]).all()


@pytest.mark.parametrize("name", ["rucb", "double_thompson"])
def test_tables_need_a_finite_world(name):
    with pytest.raises(ValueError, match=r"world: .* needs a finite world"):
        simulate(Problem(FRESH, BradleyTerry(), 1.0), algorithms.create(name), rounds=2)
