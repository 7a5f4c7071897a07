"""Users' logs in a world's ids: labels, files, ragged worlds, and from there to estimates and offline learning."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from simbandit import Problem, algorithms, off_policy, simulate
from simbandit.draws import Draws
from simbandit.oracles import BradleyTerry, NoisyReward
from simbandit.worlds import TableWorld, from_comparisons, from_frame, logged_duels, logged_rewards
from tests.test_world_frames import FRAME, build

LOG = pd.DataFrame(
    {
        "prompt": ["b", "a", "c", "b"],
        "model": ["z", "z", "x", "x"],
        "stars": [4.0, 3.0, 5.0, 1.0],
        "chance": [0.5, 1.0, 0.5, 0.25],
    },
    index=[7, 8, 9, 10],
)
NAMES: Any = {"context": "prompt", "action": "model", "reward": "stars"}


def test_labels_become_positions(tmp_path: Path):
    world = build()
    rows = logged_rewards(LOG, world, **NAMES, propensity="chance")
    assert rows.columns.tolist() == ["context", "action", "reward", "propensity"]
    assert rows["context"].tolist() == [1, 0, 2, 1]
    assert rows["action"].tolist() == [2, 2, 0, 0]
    assert rows["reward"].tolist() == [4, 3, 5, 1]
    assert rows.index.tolist() == [7, 8, 9, 10]
    LOG.to_csv(tmp_path / "log.csv", index=False)
    LOG.to_parquet(tmp_path / "log.parquet")
    for name in ("log.csv", "log.parquet"):
        again = logged_rewards(tmp_path / name, world, **NAMES, propensity="chance")
        np.testing.assert_array_equal(again.to_numpy(), rows.to_numpy())
    assert logged_rewards(LOG, world, **NAMES).columns.tolist() == ["context", "action", "reward"]


def test_a_log_is_worth_what_it_says():
    """The target plays z where it is offered, and x in context c: rewards 4, 3, 5, weights 2, 1, 2, 0."""
    target = np.array([[0, 0, 1.0], [0, 0, 1.0], [1.0, 0, 0]])
    rows = logged_rewards(LOG, build(), **NAMES, propensity="chance")
    assert off_policy.value(rows, target, method="ips").estimate == pytest.approx((8 + 3 + 10) / 4)
    assert off_policy.value(rows, target, method="snips").estimate == pytest.approx(21 / 5)


def test_logs_teach_offline_learners():
    world = build(FRAME.assign(f0=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6]))
    rows = logged_rewards(LOG, world, **NAMES)
    run = simulate(Problem(world, NoisyReward(0.1), 1.0), algorithms.create("kl_pcb"), rounds=1, offline=rows)
    assert run.policy is not None
    duels = pd.DataFrame({"prompt": ["b", "c"], "one": ["z", "x"], "two": ["y", "y"], "won": [1, 0]})
    pairs = logged_duels(duels, world, context="prompt", first="one", second="two", preferred="won")
    assert pairs.to_numpy().tolist() == [[1, 2, 1, 1], [2, 0, 1, 0]]
    learnt = simulate(Problem(world, BradleyTerry(), 0.1), algorithms.create("gshf_offline"), rounds=1, offline=pairs)
    assert learnt.policy is not None
    law = learnt.policy.log_probs(world.instance(1, Draws(0, 1)).evaluation).exp()[0]
    assert law[1, 2] > law[1, 1]  # z beat y
    assert law[2, 1] > law[2, 0]  # y beat x


def test_ragged_worlds_number_their_items_by_context():
    shown = pd.DataFrame({"q": [1, 1, 2], "l": ["u", "v", "v"], "r": ["v", "w", "w"], "best": ["u", "w", "v"]})
    world, _ = from_comparisons(shown, context="q", left="l", right="r", winner="best")
    duels = pd.DataFrame({"q": [2, 1], "l": ["w", "w"], "r": ["v", "u"], "p": [0.5, 1.0]})
    rows = logged_duels(duels, world, context="q", first="l", second="r", preferred="p")
    assert rows.to_numpy().tolist() == [[1, 1, 0, 0.5], [0, 2, 0, 1.0]]
    with pytest.raises(ValueError, match="first: row 0 names 'u', which the world does not have; nearest"):
        logged_duels(duels.assign(l="u"), world, context="q", first="l", second="r", preferred="p")


def test_a_duel_without_an_opponent_is_refused():
    duels = pd.DataFrame({"prompt": ["b", "c"], "one": ["z", "x"], "two": ["y", None], "won": [1, 0]})
    with pytest.raises(ValueError, match="second: column 'two' has 1 missing labels"):
        logged_duels(duels, build(), context="prompt", first="one", second="two", preferred="won")


def test_worlds_without_names_take_positions():
    world = TableWorld(np.log(np.full((2, 3), 1 / 3)))
    frame = pd.DataFrame({"context": [1, 0], "action": [2, 0], "reward": [0.5, 1.0]})
    rows = logged_rewards(frame, world, context="context", action="action", reward="reward")
    assert rows.to_numpy().tolist() == frame.to_numpy().tolist()


@pytest.mark.parametrize(
    ("frame", "names", "message"),
    [
        (LOG, {"reward": "star"}, "reward: the frame has no column 'star'; nearest: stars"),
        (LOG, {"propensity": "chances"}, "propensity: the frame has no column 'chances'; nearest: chance"),
        (LOG.assign(model="zz"), {}, r"action: row 0 names 'zz', which the world does not have; nearest: \['z'"),
        (LOG.assign(prompt=[*"abc", "d"]), {}, "context: row 3 names 'd'"),
        (LOG.assign(model=[*"zzx", None]), {}, "action: column 'model' has 1 missing labels"),
        ("nowhere.csv", {}, "frame: cannot read 'nowhere.csv'"),
    ],
)
def test_what_cannot_be_read_is_refused(frame, names, message):
    with pytest.raises(ValueError, match=message):
        logged_rewards(frame, from_frame(FRAME, context="prompt", action="model"), **(NAMES | names))
