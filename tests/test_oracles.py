"""Annotators: exact probabilities by hand and by enumeration, samples against them, exact (full)
information."""

import itertools
import math
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from simbandit.draws import Draws
from simbandit.oracles import BradleyTerry, FullInformation, NoisyReward, PlackettLuce
from simbandit.types import Feedback
from simbandit.worlds import LinearWorld, TableWorld

R, X, A, D, B = 3, 7, 5, 2, 4
FINITE = LinearWorld(X, A, D, reference="softmax")
FRESH = LinearWorld(None, A, D, n_evaluation=X)
REFERENCE = np.array([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]])
RAGGED = TableWorld(
    np.log(REFERENCE, where=REFERENCE > 0, out=np.full((2, 3), -np.inf)), [[1.0, 2.0, 9.0], [0.0, -1.0, 0.5]]
)


def untyped(value) -> Any:
    return value


def setup(oracle: Any, world: Any = FINITE, replicates: int = R, batch: int = B) -> Any:
    draws = Draws(0, replicates)
    instance = world.instance(replicates, draws)
    return oracle.bind(instance), instance, instance.contexts(draws.at(0), batch), draws


def some_actions(k, replicates=R, batch=B):
    return torch.randint(A, (replicates, batch, k), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("world", [FINITE, FRESH], ids=["finite", "fresh"])
@pytest.mark.parametrize(("temperature", "flip_rate"), [(1.0, 0.0), (0.3, 0.2), (2.0, 1.0)])
def test_bradley_terry_probabilities(world, temperature, flip_rate):
    bound, instance, contexts, _ = setup(BradleyTerry(temperature=temperature, flip_rate=flip_rate), world)
    actions = some_actions(2)
    prob = bound.prob(contexts, actions[..., 0], actions[..., 1])
    rewards = instance.rewards(contexts)
    for r, b in np.ndindex(R, B):
        difference = float(rewards[r, b, actions[r, b, 0]] - rewards[r, b, actions[r, b, 1]]) / temperature
        honest = 1 / (1 + math.exp(-difference))
        assert prob[r, b] == pytest.approx((1 - flip_rate) * honest + flip_rate * (1 - honest), rel=1e-13)
    back = bound.prob(contexts, actions[..., 1], actions[..., 0])
    np.testing.assert_allclose(prob + back, 1.0, rtol=1e-14)
    assert bound.prob(contexts, actions[..., 0], actions[..., 0]).eq(0.5).all()


def test_soft_labels_are_probabilities_and_hard_labels_compare_the_annotators_uniforms():
    soft, _, contexts, draws = setup(BradleyTerry("soft", flip_rate=0.1))
    hard, *_ = setup(BradleyTerry("hard", flip_rate=0.1))
    actions = some_actions(2)
    prob = soft.prob(contexts, actions[..., 0], actions[..., 1])
    assert torch.equal(soft.respond(contexts, actions, draws.at(3)), prob)
    label = hard.respond(contexts, actions, draws.at(3))
    assert label.dtype == torch.float64
    assert torch.equal(label, (draws.at(3).uniform("annotator", B) < prob).double())


@pytest.mark.parametrize("flip_rate", [0.0, 0.3])
def test_hard_labels_have_their_probability(flip_rate):
    bound, _, contexts, draws = setup(BradleyTerry(temperature=0.5, flip_rate=flip_rate), batch=1)
    actions = some_actions(2, batch=1)
    wins = torch.stack([bound.respond(contexts, actions, draws.at(t)) for t in range(4000)]).sum(0)
    prob = bound.prob(contexts, actions[..., 0], actions[..., 1])
    for r in range(R):
        # a fixed seed; a correct oracle fails one such test in a thousand
        assert stats.binomtest(int(wins[r, 0]), 4000, float(prob[r, 0])).pvalue > 1e-3


@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_rankings_by_enumeration(temperature):
    bound, instance, contexts, _ = setup(PlackettLuce(3, temperature))
    chosen = (0, 3, 4)
    total = torch.zeros(R, B, dtype=torch.float64)
    for order in itertools.permutations(chosen):
        ranked = torch.tensor(order).expand(R, B, 3)
        prob = bound.prob(contexts, ranked)
        total += prob
        for r, b in np.ndindex(R, B):
            weights = [math.exp(float(instance.rewards(contexts)[r, b, a]) / temperature) for a in order]
            expected = math.prod(weights[i] / sum(weights[i:]) for i in range(3))
            assert prob[r, b] == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(total, 1.0, rtol=1e-13)


def test_a_ranking_of_two_is_a_duel():
    pair, _, contexts, _ = setup(PlackettLuce(2, temperature=0.7))
    duel, *_ = setup(BradleyTerry(temperature=0.7))
    actions = some_actions(2)
    np.testing.assert_allclose(pair.prob(contexts, actions), duel.prob(contexts, *actions.unbind(-1)), rtol=1e-13)
    np.testing.assert_array_equal(pair.win_table(contexts), duel.win_table(contexts))


def test_sampled_rankings_have_their_probability():
    bound, _, contexts, draws = setup(PlackettLuce(3), batch=1)
    actions = torch.tensor([[[4, 0, 2]], [[1, 3, 0]], [[2, 4, 1]]])
    orders = list(itertools.permutations(range(3)))
    rounds = 6000
    seen = torch.stack([bound.respond(contexts, actions, draws.at(t)) for t in range(rounds)])[:, :, 0].numpy()
    for r in range(R):
        counts = [int((seen[:, r] == order).all(-1).sum()) for order in orders]
        expected = [float(bound.prob(contexts, actions[..., list(order)])[r, 0]) for order in orders]
        assert sum(counts) == rounds  # positions 0 ... k - 1, each once
        assert stats.chisquare(counts, rounds * np.array(expected)).pvalue > 1e-3  # a fixed seed


def test_noisy_rewards():
    bound, instance, contexts, draws = setup(NoisyReward(0.5), batch=1)
    actions = some_actions(1, batch=1)
    expected = np.take_along_axis(instance.rewards(contexts).numpy(), actions.numpy(), 2)
    np.testing.assert_array_equal(bound.mean(contexts, actions), expected)
    np.testing.assert_array_equal(bound.mean(contexts), instance.rewards(contexts))
    noise = torch.stack([bound.respond(contexts, actions, draws.at(t)) for t in range(2000)]).numpy() - expected[..., 0]
    assert stats.kstest(noise.flatten() / 0.5, "norm").pvalue > 1e-3  # a fixed seed
    silent, *_ = setup(NoisyReward(0.0), batch=1)
    np.testing.assert_array_equal(silent.respond(contexts, actions, draws.at(0)), expected[..., 0])


@pytest.mark.parametrize("oracle", [BradleyTerry(flip_rate=0.1), PlackettLuce(3), NoisyReward(1.0)], ids=repr)
@pytest.mark.parametrize("world", [FINITE, FRESH], ids=["finite", "fresh"])
def test_a_replicates_answers_do_not_depend_on_the_others(world, oracle):
    actions = some_actions(oracle.n_select, replicates=9)
    answers = []
    for replicates, rows in ((range(9), actions), ([7], actions[7:8])):
        draws = Draws(2, replicates)
        bound = oracle.bind(world.instance(len(replicates), draws))
        instance = world.instance(len(replicates), draws)
        answers.append([bound.respond(instance.contexts(draws.at(t), B), rows, draws.at(t))[-2:] for t in (0, 99)])
    for crowd, alone in zip(*answers, strict=True):
        np.testing.assert_allclose(crowd[0], alone[0], atol=1e-12)


@pytest.mark.parametrize("world", [FINITE, FRESH, RAGGED], ids=["finite", "fresh", "ragged"])
def test_full_information_of_a_preference_oracle(world):
    oracle = BradleyTerry(temperature=0.5, flip_rate=0.2)
    full, instance, *_, draws = setup(FullInformation(oracle), world)
    contexts = instance.evaluation
    table = full.win_table(contexts)
    shape = contexts.ref_log_probs.shape
    assert table.shape == (*shape, shape[-1])
    offered = contexts.ref_log_probs > -torch.inf
    logits = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    policy = torch.log_softmax(logits.masked_fill(~offered, -torch.inf), -1)
    answer = full.respond(contexts, policy, draws.at(0))
    bound = oracle.bind(instance)
    expected = torch.zeros(shape, dtype=torch.float64)
    for a, b in itertools.product(range(shape[-1]), repeat=2):
        both = offered[..., a] & offered[..., b]
        prob = bound.prob(contexts, *(torch.full(shape[:2], action) for action in (a, b)))
        np.testing.assert_allclose(table[..., a, b], torch.where(both, prob, 0.5), rtol=1e-13)
        expected[..., a] += torch.where(both, prob, 0.5) * policy[..., b].exp()
    np.testing.assert_allclose(answer, expected, rtol=1e-12)
    assert answer[~offered].sub(0.5).abs().le(1e-15).all()


def test_full_information_in_chunks_is_the_same(monkeypatch):
    for world in (FINITE, RAGGED, replace(FINITE, fixed=True)):
        full, instance, *_ = setup(FullInformation(BradleyTerry()), world)
        whole = full.win_rates(instance.evaluation, instance.evaluation.ref_log_probs)
        monkeypatch.setattr("simbandit.oracles.reward.TABLE_NUMBERS", 2 * R * A * A)
        pieces = full.win_rates(instance.evaluation, instance.evaluation.ref_log_probs)
        monkeypatch.undo()
        np.testing.assert_allclose(pieces, whole, atol=1e-15)


def test_full_information_of_a_reward_oracle():
    full, instance, *_, draws = setup(FullInformation(NoisyReward(3.0)))
    answer = full.respond(instance.evaluation, instance.evaluation.ref_log_probs, draws.at(0))
    np.testing.assert_array_equal(answer, instance.rewards(instance.evaluation))


@dataclass(frozen=True)
class Cyclic:
    """A general preference without any reward: rock, paper, scissors."""

    @property
    def feedback(self) -> Feedback:
        return "preference"

    @property
    def n_select(self) -> int:
        return 2

    def bind(self, instance: Any) -> Any:
        beats = torch.tensor([[0.5, 0.9, 0.2], [0.1, 0.5, 0.7], [0.8, 0.3, 0.5]], dtype=torch.float64)
        return SimpleNamespace(win_table=lambda contexts: beats.expand(*contexts.shape, 3, 3))


def test_full_information_needs_a_win_table_and_no_rewards():
    world = TableWorld(np.full((X, 3), -np.log(3)))
    full, instance, *_, draws = setup(FullInformation(Cyclic()), world)
    policy = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log().expand(R, X, 3)
    answer = full.respond(instance.evaluation, policy, draws.at(0))
    np.testing.assert_allclose(answer, np.broadcast_to([0.61, 0.48, 0.46], (R, X, 3)), rtol=1e-13)


def test_a_foreign_instance_needs_only_rewards():
    bound, instance, contexts, _ = setup(BradleyTerry())
    foreign = BradleyTerry().bind(SimpleNamespace(rewards=instance.rewards))
    pair = some_actions(2).unbind(-1)
    np.testing.assert_array_equal(foreign.prob(contexts, *pair), bound.prob(contexts, *pair))


def test_unbound_oracles_say_what_to_do():
    contexts: Any = None
    draws = actions = contexts
    calls = [
        lambda: BradleyTerry().prob(contexts, actions, actions),
        lambda: BradleyTerry().respond(contexts, actions, draws),
        lambda: PlackettLuce(3).prob(contexts, actions),
        lambda: PlackettLuce(3).respond(contexts, actions, draws),
        lambda: NoisyReward(1.0).mean(contexts),
        lambda: NoisyReward(1.0).respond(contexts, actions, draws),
        lambda: FullInformation(BradleyTerry()).respond(contexts, actions, draws),
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match=r"does not know the truth yet: use `simulate`, or `\.bind\(instance\)`"):
            call()


def test_oracles_describe_themselves():
    assert [
        o.n_select for o in (BradleyTerry(), PlackettLuce(4), NoisyReward(1.0), FullInformation(BradleyTerry()))
    ] == [2, 4, 1, 0]
    assert [setup(o)[0].feedback for o in (BradleyTerry(), PlackettLuce(4), NoisyReward(1.0))] == [
        "preference",
        "ranking",
        "reward",
    ]
    assert FullInformation(BradleyTerry()) == FullInformation(BradleyTerry())
    assert hash(PlackettLuce(4)) != hash(PlackettLuce(3))
    assert repr(BradleyTerry()) == "BradleyTerry(labels='hard', temperature=1.0, flip_rate=0.0)"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: BradleyTerry(labels=untyped("firm")), "labels: must be 'hard' or 'soft', got 'firm'"),
        (lambda: BradleyTerry(temperature=0.0), "temperature: must be finite and > 0, got 0.0"),
        (lambda: BradleyTerry(temperature=math.nan), "temperature: must be finite and > 0, got nan"),
        (lambda: BradleyTerry(flip_rate=1.2), r"flip_rate: must be in \[0, 1\], got 1.2"),
        (lambda: PlackettLuce(1), "k: must be an integer >= 2, got 1"),
        (lambda: PlackettLuce(untyped(2.5)), "k: must be an integer >= 2, got 2.5"),
        (lambda: PlackettLuce(3, temperature=-1.0), "temperature: must be finite and > 0, got -1.0"),
        (lambda: NoisyReward(-0.1), "noise_std: must be finite and >= 0, got -0.1"),
        (lambda: NoisyReward(math.inf), "noise_std: must be finite and >= 0, got inf"),
    ],
)
def test_oracles_refuse(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    "oracle", [BradleyTerry(), PlackettLuce(3), NoisyReward(1.0), FullInformation(BradleyTerry())], ids=repr
)
def test_reward_oracles_refuse_a_world_without_rewards(oracle):
    instance = TableWorld(np.full((X, 3), -np.log(3))).instance(R, Draws(0, R))
    with pytest.raises(ValueError, match=r"oracle: \w+ needs a world with rewards, and this one has none"):
        oracle.bind(instance)


def test_full_information_refuses_an_oracle_that_can_only_sample():
    sampler: Any = SimpleNamespace(bind=lambda instance: SimpleNamespace(respond=None))
    with pytest.raises(
        ValueError, match="oracle: FullInformation needs win probabilities or mean rewards, SimpleNamespace"
    ):
        setup(FullInformation(sampler))


@pytest.mark.parametrize("oracle", [BradleyTerry(), PlackettLuce(3), NoisyReward(1.0)], ids=repr)
def test_the_number_of_actions_is_checked(oracle):
    bound, _, contexts, draws = setup(oracle)
    with pytest.raises(ValueError, match=rf"actions: \w+ takes {oracle.n_select} per context, got 4"):
        bound.respond(contexts, some_actions(4), draws.at(0))
