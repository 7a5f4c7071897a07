"""Counts per distinct pair against a dictionary, and the data that users bring or take away."""

import json
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from simbandit.data import Duels, Logged, frame_batch, to_jsonl
from simbandit.policies import Reference
from simbandit.types import Contexts, Setting

R, X, A, D, B = 3, 9, 6, 2, 8
CPU = torch.device("cpu")


def tensor(array):
    return torch.as_tensor(np.asarray(array, dtype=float))


def pool_of(rng, ragged=False):
    """Features per replicate; in the ragged world the first actions of every context are absent."""
    log_probs = torch.full((R, X, A), -math.log(A), dtype=torch.float64)
    if ragged:
        for x in range(X):
            log_probs[:, x, : 1 + x % (A - 2)] = -torch.inf
        log_probs = log_probs.log_softmax(-1)
    index = torch.arange(X).expand(R, -1)
    return Contexts(index=index, ref_log_probs=log_probs, features=tensor(rng.normal(size=(R, X, A, D))))


def batch(rng, pool, n_contexts=X, size=B):
    """Duels with repeats and identical pairs; replicate 0 sees one context only, so it has fewer distinct pairs."""
    index = rng.integers(0, n_contexts, size=(R, size))
    index[0] = 0
    first = rng.integers(0, A, size=(R, size))
    second = np.where(rng.random((R, size)) < 0.3, first, rng.integers(0, A, size=(R, size)))
    label = rng.choice([0.0, 1.0, 0.25], size=(R, size))
    return (
        Contexts(index=torch.as_tensor(index), pool=pool),
        torch.as_tensor(np.stack([first, second], axis=-1)),
        tensor(label),
    )


def count_naively(held, contexts, actions, label, weights=None):
    """{(context, smaller, larger): [count, wins of the smaller, and the same weighted by each member]}"""
    for r, b in np.ndindex(*label.shape):
        a, c = (int(i) for i in actions[r, b])
        if a == c:
            continue
        y = float(label[r, b]) if a < c else 1 - float(label[r, b])
        w = np.concatenate([[1.0], [] if weights is None else weights[r, b]])
        key = (int(contexts.index[r, b]), min(a, c), max(a, c))
        held[r][key] = held[r].get(key, 0.0) + np.stack([w, w * y])


def check(duels, naive, features=None, members=False):
    for r in range(R):
        used = int(duels.used[r])
        assert used == len(naive[r])
        seen = set()
        for u in range(used):
            key = (int(duels.context[r, u]), *duels.actions[r, u].tolist())
            seen.add(key)
            count, wins = naive[r][key]
            assert duels.count[r, u] == count[0]
            assert duels.wins[r, u] == pytest.approx(wins[0], abs=1e-12)
            if members:
                np.testing.assert_allclose(duels.member_count[r, u], count[1:], atol=1e-12)
                np.testing.assert_allclose(duels.member_wins[r, u], wins[1:], atol=1e-12)
            if features is not None:
                x, a, c = key
                torch.testing.assert_close(duels.differences[r, u], features[r, x, a] - features[r, x, c])
        assert len(seen) == used  # no pair has two rows
        assert (duels.count[r, used:] == 0).all()
        assert (duels.wins[r, used:] == 0).all()


def test_counts_agree_with_a_dictionary():
    rng = np.random.default_rng(0)
    pool = pool_of(rng)
    duels, naive = Duels(R, pool, D, CPU), [{} for _ in range(R)]
    added, distinct = 0, []
    for round_ in range(40):
        contexts, actions, label = batch(rng, pool, size=1 + round_)
        duels.add(contexts, actions, label)
        count_naively(naive, contexts, actions, label)
        added += 1 + round_
        if round_ in (0, 3, 15, 39):
            check(duels, naive, pool.features)
            distinct.append(duels.used.tolist())
    assert distinct[-1][0] == A * (A - 1) // 2  # one context only
    assert min(distinct[-1][1:]) > 64  # more pairs than the first capacity
    assert duels.count.shape == (R, max(distinct[-1]))  # padded to the largest
    assert duels.total == added
    np.testing.assert_array_equal(duels.informative, [sum(c[0][0] for c in n.values()) for n in naive])
    assert (duels.informative < added).all()  # some pairs were identical


def test_a_batch_is_the_same_as_its_duels_one_at_a_time():
    rng = np.random.default_rng(1)
    pool = pool_of(rng)
    contexts, actions, label = batch(rng, pool, n_contexts=2, size=30)
    together, singly = Duels(R, pool, D, CPU), Duels(R, pool, D, CPU)
    together.add(contexts, actions, label)
    assert contexts.index is not None
    for b in range(30):
        one = Contexts(index=contexts.index[:, b : b + 1], pool=pool)
        singly.add(one, actions[:, b : b + 1], label[:, b : b + 1])
    for name in ("context", "actions", "count", "wins", "differences"):  # the same rows in the same order
        torch.testing.assert_close(getattr(together, name), getattr(singly, name), atol=1e-12, rtol=0.0)


def test_only_identical_pairs():
    pool = pool_of(np.random.default_rng(2))
    duels = Duels(R, pool, D, CPU)
    contexts = Contexts(index=torch.zeros(R, 4, dtype=torch.int64), pool=pool)
    duels.add(contexts, torch.full((R, 4, 2), 3), torch.ones(R, 4, dtype=torch.float64))
    assert duels.used.tolist() == [0] * R
    assert duels.total == 4
    assert (duels.informative == 0).all()
    assert (duels.count == 0).all()
    assert (duels.wins == 0).all()
    duels.add(contexts, torch.tensor([1, 0]).expand(R, 4, 2), torch.ones(R, 4, dtype=torch.float64))
    assert duels.actions[0, 0].tolist() == [0, 1]
    assert (duels.count[:, 0] == 4).all()
    assert (duels.wins[:, 0] == 0).all()  # the larger id won


def test_a_world_of_one_action():
    pool = Contexts(index=torch.zeros(2, 1, dtype=torch.int64), ref_log_probs=torch.zeros(2, 1, 1, dtype=torch.float64))
    duels = Duels(2, pool, None, CPU)
    duels.add(
        Contexts(index=torch.zeros(2, 3, dtype=torch.int64), pool=pool), torch.zeros(2, 3, 2).long(), torch.ones(2, 3)
    )
    assert duels.count.sum() == 0


def test_the_members_of_an_ensemble_are_weighted_counts():
    rng = np.random.default_rng(3)
    pool = pool_of(rng)
    duels, naive = Duels(R, pool, D, CPU, members=4), [{} for _ in range(R)]
    for _ in range(5):
        contexts, actions, label = batch(rng, pool, n_contexts=3)
        weights = tensor(rng.poisson(1.0, size=(R, B, 4)))
        duels.add(contexts, actions, label, weights)
        count_naively(naive, contexts, actions, label, weights.numpy())
    check(duels, naive, pool.features, members=True)


def test_padding_names_an_action_that_its_context_offers():
    rng = np.random.default_rng(4)
    pool = pool_of(rng, ragged=True)
    duels = Duels(R, pool, None, CPU)
    one = torch.tensor([[5, 4]]).expand(R, 1, 2)
    contexts = Contexts(index=torch.tensor([[3], [3], [5]]), pool=pool)
    duels.add(contexts, one, torch.ones(R, 1, dtype=torch.float64))
    contexts = Contexts(index=torch.tensor([[3, 3], [2, 1], [5, 5]]), pool=pool)
    duels.add(contexts, one.expand(R, 2, 2), torch.ones(R, 2, dtype=torch.float64))
    assert duels.used.tolist() == [1, 3, 1]
    log_probs = Reference().log_probs(Contexts(index=duels.context, pool=pool), duels.actions)
    assert torch.isfinite(log_probs).all()  # 0 duels x -inf would be nan
    with pytest.raises(AttributeError):
        _ = duels.differences  # no features


def test_what_a_duel_costs_does_not_depend_on_the_duels_before_it():
    rng = np.random.default_rng(5)
    pool = pool_of(rng)
    duels = Duels(R, pool, D, CPU)
    every = [(x, a, c) for x in range(X) for a in range(A) for c in range(a)]
    index, first, second = (torch.tensor(column).expand(R, -1) for column in zip(*every, strict=True))
    contexts, actions = Contexts(index=index, pool=pool), torch.stack([first, second], dim=-1)
    duels.add(contexts, actions, torch.ones(R, len(every), dtype=torch.float64))
    addresses = {name: held.data_ptr() for name, held in duels._held.items()}
    for _ in range(5):
        duels.add(contexts, actions, torch.ones(R, len(every), dtype=torch.float64))
        assert duels.count.shape == (R, len(every))  # a refit meets distinct pairs, not duels
    assert (duels.count == 6).all()
    assert {name: held.data_ptr() for name, held in duels._held.items()} == addresses  # in place


def test_storage_grows_by_doubling():
    duels, sizes = Duels(1, None, D, CPU), []
    contexts = Contexts(features=torch.ones(1, 1, 2, D).double(), ref_log_probs=torch.zeros(1, 1, 2).double())
    for _ in range(600):
        duels.add(contexts, torch.tensor([[[0, 1]]]), torch.ones(1, 1, dtype=torch.float64))
        sizes.append(duels._held["count"].shape[1])
    assert len(set(sizes)) <= 5  # amortised O(1) a duel
    assert sizes[-1] <= 1200


def test_fresh_contexts_keep_every_duel_with_its_own_features():
    rng = np.random.default_rng(6)
    duels, differences, wins, told = Duels(R, None, D, CPU), [], [], 0.0
    for size in (3, 70, 5):
        features = tensor(rng.normal(size=(R, size, A, D)))
        contexts = Contexts(features=features, ref_log_probs=torch.zeros(R, size, A, dtype=torch.float64))
        actions = torch.as_tensor(rng.integers(0, A, size=(R, size, 2)))
        label = tensor(rng.random((R, size)))
        duels.add(contexts, actions, label)
        phi = contexts.features_of(actions)
        sign = torch.where(actions[..., 0] < actions[..., 1], 1.0, -1.0).to(torch.float64)
        said = actions[..., 0] != actions[..., 1]
        differences.append(sign[..., None] * (phi[:, :, 0] - phi[:, :, 1]))
        wins.append(said * torch.where(sign > 0, label, 1 - label))
        told = told + said.sum(-1)
    torch.testing.assert_close(duels.differences, torch.cat(differences, dim=1))
    torch.testing.assert_close(duels.wins, torch.cat(wins, dim=1))
    assert (duels.count.sum(-1) == told).all()
    assert (duels.informative == told).all()
    assert duels.used.tolist() == [78] * R


# ----------------------------------------------------------------------------------------------------- users' frames


def setting(pool, feedback: Any = "preference") -> Any:
    return Setting(R, 5, B, A, D, 1.0, (0.0, 1.0), pool, Reference(), feedback, 2)


def frame(**columns):
    held = {"context": [0, 4, 8], "first": [5, 4, 3], "second": [2, 5, 4], "preferred": [1.0, 0.0, 0.3]}
    return pd.DataFrame(held | columns, index=["u", "v", "w"])


def test_a_frame_is_one_batch_for_every_replicate():
    pool = pool_of(np.random.default_rng(7))
    for given in (frame(), frame(context=[0.0, 4.0, 8.0], preferred=[True, False, 0.3]), frame().iloc[::-1]):
        contexts, actions, label = frame_batch(given, pool, setting(pool))
        rows = slice(None, None, -1 if given.index[0] == "w" else 1)
        assert contexts.pool is pool
        assert contexts.index is not None
        for r in range(R):
            np.testing.assert_array_equal(contexts.index[r], [0, 4, 8][rows])
            np.testing.assert_array_equal(actions[r], [[5, 2], [4, 5], [3, 4]][rows])
            np.testing.assert_array_equal(label[r], [1.0, 0.0, 0.3][rows])
        Duels(R, pool, D, CPU).add(contexts, actions, label)


def test_a_frame_of_rewards():
    pool = pool_of(np.random.default_rng(8))
    given = pd.DataFrame({"context": [1, 2], "action": [0, 5], "reward": [-3.5, 7]})
    _, actions, reward = frame_batch(given, pool, setting(pool, "reward"))
    assert actions.shape == (R, 2, 1)
    assert reward[1].tolist() == [-3.5, 7.0]


BAD_FRAMES = {
    "context out of range": (frame(context=[0, 9, 8]), "context must be an integer in [0, 9), row 'v' has 9"),
    "negative action": (frame(first=[0, 1, -1]), "first must be an integer in [0, 6), row 'w' has -1"),
    "fractional action": (frame(second=[0, 1.5, 1]), "second must be an integer in [0, 6), row 'v' has 1.5"),
    "text for an id": (frame(context=["a", 0, 0]), "context must be an integer in [0, 9), row 'u' has 'a'"),
    "missing id": (frame(context=[None, 0, 0]), "context must be an integer in [0, 9), row 'u' has nan"),
    "no probability": (frame(preferred=[0, 1.2, 0]), "preferred must be a probability in [0, 1], row 'v' has 1.2"),
    "below 0": (frame(preferred=[0, 1, -0.2]), "preferred must be a probability in [0, 1], row 'w' has -0.2"),
    "nan label": (frame(preferred=[0, np.nan, 0]), "preferred must be a probability in [0, 1], row 'v' has nan"),
    "missing label": (frame(preferred=[0, 1, pd.NA]), "preferred must be a probability in [0, 1], row 'w' has <NA>"),
    "missing integer": (
        frame(preferred=pd.array([0, None, 1], dtype="Int64")),
        "preferred must be a probability in [0, 1], row 'v' has <NA>",
    ),
    "text label": (frame(preferred=["yes", 1, 0]), "preferred must be a probability in [0, 1], row 'u' has 'yes'"),
    "missing column": (frame().drop(columns="second"), "columns ['second'] are missing; there are ['context', 'first'"),
    "no rows": (frame().iloc[:0], "the frame has no rows"),
    "absent action": (frame(second=[2, 0, 4]), "second must be an action that its context offers, row 'v' has 0"),
}


@pytest.mark.parametrize("name", BAD_FRAMES)
def test_a_bad_frame_is_refused_by_column_and_row(name):
    given, message = BAD_FRAMES[name]
    pool = pool_of(np.random.default_rng(9), ragged=True)
    with pytest.raises(ValueError, match=r"^offline: ") as error:
        frame_batch(given, pool, setting(pool))
    assert message in str(error.value)


def test_a_frame_needs_a_finite_world_and_duels_or_rewards():
    pool = pool_of(np.random.default_rng(10))
    with pytest.raises(ValueError, match="needs a finite world"):
        frame_batch(frame(), None, setting(None))
    with pytest.raises(ValueError, match="duels or rewards, not ranking feedback"):
        frame_batch(frame(), pool, setting(pool, "ranking"))
    infinite = pd.DataFrame({"context": [1], "action": [0], "reward": [np.inf]})
    with pytest.raises(ValueError, match="reward must be finite, row 0 has inf"):
        frame_batch(infinite, pool, setting(pool, "reward"))
    with pytest.raises(ValueError, match=r"size: .* got 0"):
        Logged(Reference(), 0)


PROMPTS = ["Grüße?", "How?"]
RESPONSES = [["a", "b", "c"], ["d", "e", "f\n"]]


def test_duels_as_lines_for_language_models(tmp_path):
    duels = pd.DataFrame({"context": [0, 1, 0], "first": [2, 0, 0], "second": [1, 2, 1], "preferred": [0.6, 0.0, 1.0]})
    to_jsonl(duels, tmp_path / "duels.jsonl", prompts=PROMPTS, responses=RESPONSES)
    text = (tmp_path / "duels.jsonl").read_text(encoding="utf-8")
    assert "Grüße?" in text
    assert [json.loads(line) for line in text.splitlines()] == [
        {"prompt": "Grüße?", "chosen": "c", "rejected": "b"},
        {"prompt": "How?", "chosen": "f\n", "rejected": "d"},
        {"prompt": "Grüße?", "chosen": "a", "rejected": "b"},
    ]


@pytest.mark.parametrize(("label", "message"), [(0.5, "1 labels are exact ties"), (np.nan, "preferred must be")])
def test_labels_without_a_winner_are_refused(label, message, tmp_path):
    duels = pd.DataFrame({"context": [0, 1], "first": [0, 0], "second": [1, 2], "preferred": [label, 1.0]})
    with pytest.raises(ValueError, match=message):
        to_jsonl(duels, tmp_path / "duels.jsonl", prompts=PROMPTS, responses=RESPONSES)
    assert not (tmp_path / "duels.jsonl").exists()
