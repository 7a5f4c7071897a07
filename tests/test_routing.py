"""The routing study's own parts: who knows what, and what its metrics count."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from simbandit import Problem, algorithms, simulate
from simbandit.draws import Draws
from simbandit.guarantees.rows import select
from simbandit.oracles import NoisyReward
from studies import _answers, _routing
from studies._routing import Routing


def stand_in(**choice) -> Routing:
    return _routing.world(None, **choice)


def test_every_replicate_splits_the_instructions_anew():
    world = stand_in()
    order = world.order(Draws(3, 5))
    assert world.sizes == (10, 10)
    assert (np.sort(order, axis=1) == np.arange(40)).all()
    assert len({tuple(own[:10]) for own in order}) == 5
    np.testing.assert_array_equal(order[2:3], world.order(Draws(3, [2])))
    instance = world.instance(5, Draws(3, 5))
    assert instance.pool is not None
    assert instance.pool.weights is not None
    np.testing.assert_allclose(instance.pool.weights.numpy(), [[1 / 20] * 20 + [0.0] * 10] * 5)
    played = instance.contexts(Draws(3, 5).at(0), 64).index
    assert played is not None
    assert int(played.max()) < 20  # what is held out is never drawn


def test_routing_features_see_no_answer_and_no_label_that_is_being_bought():
    world = stand_in()
    order = world.order(Draws(0, 1))[0]
    past, asked = order[:10], order[10:]
    bought_wins, bought_text = world.wins.copy(), world.text.copy()
    bought_wins[asked] = np.nan
    bought_text[asked[:, None], [a for a in range(12) if a != world.probe]] = np.nan
    blind = replace(world, wins=bought_wins, text=bought_text)
    for features in ("routing", "arm"):
        seen, unseen = (replace(w, features=features).table(past, asked) for w in (world, blind))
        np.testing.assert_array_equal(seen, unseen)
        assert seen.shape == (30, 12, 13 + (20 if features == "routing" else 0))
    leaking, blinded = (replace(w, features="answer").table(past, asked) for w in (world, blind))
    assert not np.array_equal(leaking, blinded)  # reranking reads the answers, and says so
    forgotten = replace(world, wins=np.where(np.isin(np.arange(40), past)[:, None], 1 - world.wins, world.wins))
    assert not np.allclose(forgotten.table(past, asked), world.table(past, asked))


def test_the_instructions_components_are_those_of_the_past():
    random = np.random.default_rng(0)
    past, asked = random.normal(size=(50, 7)) * np.arange(1, 8), random.normal(size=(4, 7))
    z = _routing.components(past, past)
    np.testing.assert_allclose(z.T @ z / 50, np.eye(5), atol=1e-12)
    np.testing.assert_allclose(_routing.components(past, asked)[2], _routing.components(past, asked[2:3])[0])


def test_regrets_by_hand_and_held_out_wins():
    world = stand_in()
    metrics = [
        ("cumulative_lost", partial(_routing.routing_regret, world=world)),
        ("cumulative_fixed", partial(_routing.fixed_regret, world=world)),
        ("cumulative_hack", partial(_routing.hack_share, world=world)),
        ("held", partial(_routing.held_out_wins, world=world)),
    ]
    run = simulate(
        Problem(world, NoisyReward(0.0), 1.0),
        algorithms.create("uniform"),
        rounds=6,
        batch_size=3,
        replicates=4,
        seed=2,
        metrics=metrics,
        keep_data=True,
    )
    frame, data = run.frame(), run.data
    assert data is not None
    order = world.order(Draws(2, 4))
    for r in range(4):
        mine = select(data, {"replicate": r})
        ids = order[r][10:][mine["context"].to_numpy(dtype=int)]
        shown = world.wins[ids, mine["action"].to_numpy(dtype=int)]
        np.testing.assert_allclose(shown, mine["reward"])
        online = world.wins[order[r][10:30]]
        best = max(range(12), key=lambda a: np.nanmean(online[:, a]))
        rows = select(frame, {"replicate": r, "round": 6})
        last = dict(zip(rows["metric"].tolist(), rows["value"].tolist(), strict=True))
        assert last["cumulative_lost"] == pytest.approx(float((np.nanmax(world.wins[ids], axis=1) - shown).sum()))
        assert last["cumulative_fixed"] == pytest.approx(float((world.wins[ids, best] - shown).sum()))
        assert last["cumulative_hack"] == pytest.approx(float((mine["action"].to_numpy() == world.hack).sum()))
        assert last["held"] == pytest.approx(float(np.nanmean(world.wins[order[r][30:]], axis=1).mean()))


def test_the_hacking_arm_can_be_left_out_and_duels_see_clipped_logits():
    world, honest = stand_in(reward="logit"), stand_in(keep_hack=False)
    assert honest.wins.shape == (40, 11)
    assert (world.hack, honest.hack) == (_answers.load(None).hack, -1)
    assert (world.wins[:, world.probe] == 0.5).all()
    table = world.instance(2, Draws(0, 2)).reward_table
    assert table is not None
    assert float(table.abs().max()) == 4.0
    wins = world.wins[world.order(Draws(0, 2))[:, 10:]]
    inside = np.isfinite(wins) & (wins > 0.1) & (wins < 0.9)
    np.testing.assert_allclose(table.numpy()[inside], np.log(wins[inside] / (1 - wins[inside])))


def test_off_policy_estimates_of_a_linear_world_find_the_value():
    """Wins that are linear in the arms: the direct method's model is right, and every interval reaches the truth."""
    world = stand_in()
    wins = np.broadcast_to(np.linspace(0.2, 0.8, 12), world.wins.shape).copy()
    found = _routing.estimated(replace(world, wins=wins, features="arm"), 4000, 3, 1, "cpu")
    assert set(found["metric"]) == {
        f"{a}/{b}" for a in ("error", "covered", "width") for b in ("ips", "snips", "dm", "dr")
    }
    worst = {name: largest(found, f"error/{name}") for name in ("ips", "snips", "dm", "dr")}
    assert max(worst["dm"], worst["dr"], worst["snips"]) < 0.01  # one arm of one value: the weights of snips cancel
    assert 0 < worst["ips"] < 0.1


def largest(frame, metric):
    return float(np.abs(select(frame, {"metric": metric})["value"].to_numpy()).max())


def test_landmarks_are_ordered():
    found = _routing.landmarks(stand_in(), 6, 0, "cpu")
    fixed, best, uniform = (
        select(found, {"metric": f"held_out/{name}"})["value"].to_numpy() for name in ("fixed", "best", "uniform")
    )
    assert uniform.mean() < fixed.mean()
    assert (fixed < best).all()
    assert (uniform < best).all()
