"""The loop: its order, its schedules, its data, its choice of output, and what it refuses."""

import dataclasses
import json
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch

from simbandit import algorithms, compiled
from simbandit.algorithms.bandits import LinUCB
from simbandit.data import Logged, to_jsonl
from simbandit.draws import Draws
from simbandit.metrics import METRICS
from simbandit.oracles import BradleyTerry, FullInformation, NoisyReward, PlackettLuce
from simbandit.policies import LogLinear, Reference, Tabular, Uniform
from simbandit.simulate import Problem, recording, simulate
from simbandit.types import Contexts, Feedback, Info
from simbandit.worlds import LinearWorld, TableWorld

R, X, A, D, B, T = 3, 7, 5, 2, 4, 6
WORLD = LinearWorld(X, A, D, reference="softmax", context_law="zipf")
PLAIN = TableWorld(np.log(np.full((X, A), 1 / A)), np.arange(X * A).reshape(X, A) / (X * A))
DUELS = Problem(WORLD, BradleyTerry(), 0.8)
REWARDS = Problem(WORLD, NoisyReward(0.3), 0.8)
GREEDY = algorithms.create("greedy")


def untyped(value: Any) -> Any:
    return value


def run(problem: Any, algorithm: Any, **options: Any) -> Any:
    return simulate(problem, algorithm, **options)


def realise(replicates: int, draws: Draws, world: Any = WORLD) -> Any:
    return world.instance(replicates, draws)


# ------------------------------------------------------------------------------------------------- the order of things


class Diary:
    """Plays the policy of version v = number of updates; writes down every call and refuses states that are over."""

    feedbacks: ClassVar[tuple[Feedback, ...]] = ("preference", "reward", "ranking")
    needs_features: ClassVar[bool] = False
    offline: ClassVar[bool] = False
    consistent = False

    def __init__(self):
        self.entries: list = []

    def init(self, setting: Any) -> dict:
        self.setting = setting
        self.entries.append(("init",))
        return {"version": 0, "alive": True}

    def select(self, state: dict, contexts: Contexts, draws: Any) -> torch.Tensor:
        assert state["alive"]
        self.entries.append(("select", state["version"], draws.t))
        return torch.zeros(*contexts.shape, self.setting.n_select, dtype=torch.int64)

    def update(self, state: dict, contexts: Contexts, actions: Any, feedback: Any, draws: Any) -> tuple[dict, Info]:
        assert state["alive"]
        state["alive"] = False
        self.entries.append(("update", state["version"], tuple(feedback.shape)))
        return {"version": state["version"] + 1, "alive": True}, Info(
            fit_residual=torch.full((self.setting.replicates,), 10.0 + state["version"])
        )

    def policy(self, state: dict) -> Any:
        assert state["alive"]
        table = torch.zeros(self.setting.replicates, self.setting.contexts.shape[1], A).double()
        table[..., 0] = float(state["version"])
        return Tabular(table.log_softmax(-1))


class OfflineDiary(Diary):
    offline: ClassVar[bool] = True


def version(snapshot: Any) -> torch.Tensor:
    rows = snapshot.log_probs[:, 0]
    return (rows[:, 0] - rows[:, 1]).round()


def test_the_policy_that_plays_a_round_is_recorded_before_it_learns():
    diary = Diary()
    names = [("version", version), "queries", "fit_residual", "reward_regret"]
    results = run(DUELS, diary, rounds=3, batch_size=B, replicates=R, metrics=names, record="all")
    expected: list = [("init",)]
    for t in range(3):
        expected += [("select", t, t), ("update", t, (R, B))]
    assert diary.entries == expected
    frame = results.frame()
    assert list(frame.columns) == ["replicate", "round", "queries", "metric", "value"]
    wide = frame[frame["replicate"] == 1].pivot(index="round", columns="metric", values="value")
    assert wide["version"].tolist() == [0, 1, 2, 3]
    assert wide["queries"].tolist() == [0, B, 2 * B, 3 * B]
    assert frame.loc[frame["metric"] == "version", "queries"].tolist() == [0, B, 2 * B, 3 * B] * R
    # a fit exists only after the first update; round t shows the fit behind the policy that plays it
    assert wide["fit_residual"].tolist()[1:] == [10, 11, 12]
    assert np.isnan(wide["fit_residual"][0])
    assert wide["reward_regret"].isna().tolist() == [False, False, False, True]  # nothing is played in the last row
    log_probs = results.policy.log_probs(realise(R, Draws(0, R)).evaluation)
    assert torch.allclose(log_probs[..., 0] - log_probs[..., 1], torch.tensor(3.0).double())


def test_an_offline_algorithm_learns_once_from_reference_data():
    diary = OfflineDiary()
    results = run(
        DUELS, diary, rounds=T, batch_size=B, replicates=R, metrics=[("version", version), "cumulative_suboptimality"]
    )
    assert diary.entries == [("init",), ("update", 0, (R, T * B))]
    frame = results.frame()
    assert frame["metric"].unique().tolist() == ["version"]  # it has played nothing, so there is no regret to sum
    assert frame.loc[frame["replicate"] == 2, ["round", "queries", "value"]].to_numpy().tolist() == [
        [0, 0, 0],
        [T, T * B, 1],
    ]


@pytest.mark.parametrize("policy", [None, "log_linear", "given"])
def test_the_default_data_of_an_offline_algorithm_are_the_references(policy):
    """Bit for bit those of Logged(Reference(), rounds x batch_size); a given policy is the reference and draws them."""
    tilted = Tabular(torch.log_softmax(torch.tensor(np.random.default_rng(0).normal(size=(R, X, A))), -1))
    given, drawing = (tilted, tilted) if policy == "given" else (policy, Reference())
    options: dict[str, Any] = {"rounds": T, "batch_size": B, "replicates": R, "metrics": ["suboptimality"]}
    left, right = (
        run(DUELS, algorithms.create("dpo"), policy=given, offline=offline, **options).frame()
        for offline in (None, Logged(drawing, T * B))
    )
    assert left.equals(right)
    other = run(DUELS, algorithms.create("dpo"), policy=given, offline=Logged(Uniform(), T * B), **options).frame()
    assert not left.equals(other)


@pytest.mark.parametrize("offline", [False, True])
def test_logged_data_come_first(offline):
    diary = OfflineDiary() if offline else Diary()
    run(DUELS, diary, rounds=2, batch_size=B, replicates=R, offline=Logged(Uniform(), 9))
    first: list = [("init",), ("update", 0, (R, 9))]
    rounds = [("select", 1, 0), ("update", 1, (R, B)), ("select", 2, 1), ("update", 2, (R, B))]
    assert diary.entries == (first if offline else first + rounds)


class Peek(Diary):
    def update(self, state: dict, contexts: Contexts, actions: Any, feedback: Any, draws: Any) -> tuple[dict, Info]:
        self.seen: list = [*getattr(self, "seen", []), (contexts.index, actions, feedback)]
        return super().update(state, contexts, actions, feedback, draws)


class OfflinePeek(Peek):
    offline: ClassVar[bool] = True


def test_logged_actions_come_from_the_players_asked_for():
    first = Tabular(torch.eye(A)[torch.arange(X) % A].double().log().expand(R, -1, -1))
    second = Tabular(torch.eye(A)[(torch.arange(X) + 1) % A].double().log().expand(R, -1, -1))
    for oracle, k in ((BradleyTerry(), 2), (NoisyReward(0.1), 1), (PlackettLuce(3), 3)):
        peek = OfflinePeek()
        logged = Logged(first, 11, second)
        run(Problem(WORLD, oracle, 1.0), peek, rounds=1, replicates=R, offline=logged)
        index, actions, _ = peek.seen[0]
        assert actions.shape == (R, 11, k)
        assert torch.equal(actions[..., 0], index % A)
        if k > 1:
            assert torch.equal(actions[..., 1], (index + 1) % A)


def test_an_offline_algorithms_data_are_the_references():
    peek = OfflinePeek()
    run(DUELS, peek, rounds=500, batch_size=B, replicates=R)
    index, actions, _ = peek.seen[0]
    instance = realise(R, Draws(0, R))
    law = (instance.pool.weights[..., None] * instance.pool.ref_log_probs.exp()).numpy()
    for i in (0, 1):
        for r in range(R):
            counts = np.bincount(index[r] * A + actions[r, :, i], minlength=X * A).reshape(X, A)
            expected = 2000 * law[r]
            assert ((counts - expected) ** 2 / expected).sum() < 34 + 5 * np.sqrt(2 * 34)  # chi-squared, 34 freedoms
    assert not torch.equal(actions[..., 0], actions[..., 1])


def test_logged_and_online_data_use_different_streams():
    peek = Peek()
    run(DUELS, peek, rounds=1, batch_size=9, replicates=R, offline=Logged(Reference(), 9))
    assert not torch.equal(peek.seen[0][0], peek.seen[1][0])


# ------------------------------------------------------------------------------------------------- schedules


def test_recording_schedules():
    assert recording(3, "all") == {0, 1, 2, 3}
    assert recording(9, [4, 2]) == {0, 2, 4, 9}
    assert recording(9, []) == {0, 9}
    assert recording(20, "log") == set(range(21))
    long = sorted(recording(10_000, "log"))
    assert long[:65] == list(range(65))
    assert long[-1] == 10_000
    steps = np.diff(np.log10(long[64:]))
    # whole rounds near 64 are .0067 apart, ideal steps 1/24 = .0417
    assert steps.max() < 1 / 24 + 0.008
    assert 24 * np.log10(10_000 / 64) <= len(long) - 65 <= 24 * np.log10(10_000 / 64) + 1


@pytest.mark.parametrize("record", ["every", [-1], [7], [2.5], ["1"], 3, [float("nan")]])
def test_bad_schedules(record):
    with pytest.raises(ValueError, match=r"record: 'log', 'all' or rounds between 0 and 6"):
        run(DUELS, GREEDY, rounds=T, record=record)


@pytest.mark.parametrize("record", ["all", [3]])
def test_sums_run_over_all_rounds_whatever_is_recorded(record):
    options: dict[str, Any] = {"rounds": T, "batch_size": B, "replicates": R}
    names = ["reward_regret", "suboptimality", "cumulative_reward_regret", "cumulative_suboptimality"]
    every = run(DUELS, GREEDY, metrics=names, record="all", **options).frame()
    some = run(DUELS, GREEDY, metrics=names[2:], record=record, **options).frame()
    for name in names[:2]:
        terms = every[every["metric"] == name].pivot(index="replicate", columns="round", values="value").to_numpy()
        sums = some[some["metric"] == f"cumulative_{name}"].pivot(index="replicate", columns="round", values="value")
        for t in sums.columns:
            np.testing.assert_allclose(sums[t], B * terms[:, :t].sum(1), rtol=1e-12, atol=1e-14)
        assert list(sums.columns) == (list(range(T + 1)) if record == "all" else [0, 3, T])


# ------------------------------------------------------------------------------------------------- queries


@pytest.mark.parametrize(("oracle", "per_context"), [(BradleyTerry(), 1), (NoisyReward(1.0), 1), (PlackettLuce(4), 3)])
def test_a_ranking_of_k_costs_k_minus_1_queries(oracle, per_context):
    frame = run(Problem(WORLD, oracle, 1.0), GREEDY, rounds=2, batch_size=B, metrics=["queries"]).frame()
    assert frame["value"].tolist() == [0, B * per_context, 2 * B * per_context]


class Mirror:
    """Exact mirror ascent on J: log pi <- (1 - s) log pi + s (log ref + answer / kl_coef). Test only."""

    feedbacks: ClassVar[tuple[Feedback, ...]] = ("full",)
    needs_features: ClassVar[bool] = False
    offline: ClassVar[bool] = False
    consistent = True

    def __init__(self, step: float):
        self.step = step

    def init(self, setting: Any) -> tuple:
        self.setting = setting
        return (Tabular(setting.contexts.ref_log_probs),)

    def select(self, state: tuple, contexts: Contexts, draws: Any) -> torch.Tensor:
        return state[0].log_probs(contexts)

    def update(self, state: tuple, contexts: Contexts, actions: Any, feedback: Any, draws: Any) -> tuple:
        target = contexts.ref_log_probs + feedback / self.setting.kl_coef
        moved = (1 - self.step) * actions + self.step * target
        return (Tabular(moved.log_softmax(-1)),), Info()

    def policy(self, state: tuple) -> Any:
        return state[0]


def test_full_information_on_rewards_reaches_the_optimum():
    problem = Problem(WORLD, FullInformation(NoisyReward(0.7)), 0.4)
    exact = run(problem, Mirror(1.0), rounds=1, replicates=R)
    # rounding of log-probabilities of size 10 is 1e-15; squared by the divergence
    assert exact.final().max() < 1e-25
    results = run(problem, Mirror(0.5), rounds=5, replicates=R, record="all")
    gaps = results.frame().query("metric == 'suboptimality'").pivot(index="replicate", columns="round", values="value")
    assert (gaps.diff(axis=1).iloc[:, 1:] < 0).all(axis=None)


def test_full_information_on_duels_answers_win_probabilities_and_is_counted():
    problem = Problem(WORLD, FullInformation(BradleyTerry()), 0.9)

    class Spy(Mirror):
        def update(self, state: tuple, contexts: Contexts, actions: Any, feedback: Any, draws: Any) -> tuple:
            rewards = realise(R, Draws(0, R)).rewards(contexts)
            table = 1 / (1 + (rewards[..., None, :] - rewards[..., :, None]).exp())
            torch.testing.assert_close(feedback, (table * actions.exp()[..., None, :]).sum(-1), rtol=1e-12, atol=0)
            return super().update(state, contexts, actions, feedback, draws)

    names = ["oracle_evaluations", "queries", "reward_regret", "cumulative_reward_regret", "win_rate_vs_ref"]
    frame = run(problem, Spy(0.3), rounds=4, replicates=R, metrics=names, record="all").frame()
    mine = frame[frame["replicate"] == 0]
    assert mine.loc[mine["metric"] == "oracle_evaluations", "value"].tolist() == [0, 1, 2, 3, 4]
    assert mine.loc[mine["metric"] == "queries", "value"].unique().tolist() == [0]
    assert set(mine["metric"]) == {"oracle_evaluations", "queries", "win_rate_vs_ref"}  # no action was ever played
    wins = mine.loc[mine["metric"] == "win_rate_vs_ref", "value"]
    assert wins.iloc[0] == pytest.approx(0.5, abs=1e-12)
    assert wins.iloc[-1] > 0.51


# ------------------------------------------------------------------------------------------------- output


def recorded_policies(problem: Problem, **options: Any) -> list[torch.Tensor]:
    seen: list[torch.Tensor] = []

    def keep(snapshot: Any) -> torch.Tensor:
        seen.append(snapshot.log_probs)
        return torch.zeros(R)

    run(problem, GREEDY, metrics=[("keep", keep)], **options)
    return seen


def test_the_output_may_be_the_average_of_the_recorded_policies():
    options: dict[str, Any] = {"rounds": T, "batch_size": B, "replicates": R, "record": [2, 5]}
    average = run(DUELS, GREEDY, output="average", **options)
    policies = recorded_policies(DUELS, **options)
    assert len(policies) == 4  # rounds 0, 2, 5, 6
    assert isinstance(average.policy, Tabular)
    torch.testing.assert_close(average.policy.table.exp(), torch.stack(policies).exp().mean(0), rtol=1e-12, atol=1e-15)
    last = run(DUELS, GREEDY, **options)
    pool = realise(R, Draws(0, R)).evaluation
    torch.testing.assert_close(last.policy.log_probs(pool), policies[-1])


def test_validation_takes_the_policy_that_predicts_held_out_duels_best():
    options: dict[str, Any] = {"rounds": T, "batch_size": B, "replicates": R, "record": "all"}
    chosen = run(DUELS, GREEDY, output=Logged(Uniform(), 50, Reference()), **options).policy
    policies = recorded_policies(DUELS, **options)
    draws = Draws(0, R, stream="validation/")
    instance = realise(R, draws)
    now = draws.at(0)
    contexts = instance.contexts(now, 50)
    first, second = (p.sample(contexts, now.uniform(f"player{i}", 50)) for i, p in enumerate((Uniform(), Reference())))
    wins = BradleyTerry().bind(instance).respond(contexts, torch.stack([first, second], -1), now)
    best = []
    for r in range(R):
        scores = []
        for table in policies:
            ratio = 0.8 * (table - instance.pool.ref_log_probs)[r, contexts.index[r]]
            margin = ratio[torch.arange(50), first[r]] - ratio[torch.arange(50), second[r]]
            p = torch.sigmoid(margin)
            scores.append(float((wins[r] * p.log() + (1 - wins[r]) * (1 - p).log()).mean()))
        best.append(int(np.argmax(scores)))
    assert isinstance(chosen, Tabular)
    assert len(set(best)) > 1  # replicates differ in their best round, or this would show little
    for r in range(R):
        torch.testing.assert_close(chosen.table[r], policies[best[r]][r], rtol=1e-12, atol=1e-12)


def test_best_is_validation_on_the_references_duels():
    options: dict[str, Any] = {"rounds": T, "batch_size": B, "replicates": R}
    best = run(DUELS, GREEDY, output="best", **options).policy
    same = run(DUELS, GREEDY, output=Logged(Reference(), 512), **options).policy
    assert isinstance(best, Tabular)
    assert isinstance(same, Tabular)
    assert torch.equal(best.table, same.table)


def test_validation_data_are_not_the_training_data():
    options: dict[str, Any] = {"rounds": T, "batch_size": B, "replicates": R}
    plain = run(DUELS, GREEDY, **options)
    validated = run(DUELS, GREEDY, output=Logged(Reference(), 20), **options)
    assert plain.frame().equals(validated.frame())


# ------------------------------------------------------------------------------------------------- data


@pytest.mark.parametrize("name", ["online_dpo", "greedy", "kl_ucb"])
def test_a_runs_duels_fed_back_reproduce_the_estimate(name):
    """The last policy has seen every duel, so logged data of the same duels must lead to it."""
    algorithm = algorithms.create(name, refit_growth=0.0) if name == "greedy" else algorithms.create(name)
    first = run(DUELS, algorithm, rounds=T, batch_size=B, replicates=[1], keep_data=True)
    data = first.data
    assert data is not None
    assert list(data.columns) == ["replicate", "round", "context", "first", "second", "preferred"]
    assert data["round"].tolist() == [t for t in range(T) for _ in range(B)]
    assert data["replicate"].unique().tolist() == [1]
    seen: list[torch.Tensor] = []

    def keep(snapshot: Any) -> torch.Tensor:
        seen.append(snapshot.log_probs)
        return torch.zeros(1)

    run(DUELS, algorithm, rounds=1, replicates=[1], offline=data, metrics=[("keep", keep)])
    pool = realise(1, Draws(0, [1])).evaluation
    # two fits of the same likelihood, each to a gradient of 1e-9 a duel
    torch.testing.assert_close(seen[0], first.policy.log_probs(pool), rtol=1e-6, atol=1e-6)


def test_rewards_are_kept_and_fed_back_too():
    first = run(REWARDS, GREEDY, rounds=T, batch_size=B, replicates=[2], keep_data=True)
    data = first.data
    assert data is not None
    assert list(data.columns) == ["replicate", "round", "context", "action", "reward"]
    offline = run(REWARDS, algorithms.create("kl_pcb", radius=0.0, ridge=0.1), rounds=1, replicates=[2], offline=data)
    pool = realise(1, Draws(0, [2])).evaluation
    torch.testing.assert_close(offline.policy.log_probs(pool), first.policy.log_probs(pool), rtol=1e-10, atol=1e-10)


def test_kept_duels_are_what_was_asked_and_answered():
    data = run(DUELS, GREEDY, rounds=T, batch_size=B, replicates=R, keep_data=True, seed=3).data
    assert data is not None
    assert len(data) == R * T * B
    draws = Draws(3, R)
    instance = realise(R, draws)
    oracle = BradleyTerry().bind(instance)
    for t, rows in data.groupby("round"):
        by = [torch.tensor(rows[c].to_numpy(copy=True)).view(R, B) for c in ("context", "first", "second", "preferred")]
        contexts = instance.contexts(draws.at(int(str(t))), B)
        assert torch.equal(contexts.index, by[0])
        wins = draws.at(int(str(t))).uniform("annotator", B) < oracle.prob(contexts, by[1], by[2])
        assert torch.equal(wins.double(), by[3])


def test_kept_duels_become_lines_for_trainers(tmp_path):
    data = run(DUELS, GREEDY, rounds=2, batch_size=B, keep_data=True).data
    assert data is not None
    prompts = [f"context {x}" for x in range(X)]
    texts = [[f"{x}/{a}" for a in range(A)] for x in range(X)]
    to_jsonl(data, tmp_path / "duels.jsonl", prompts=prompts, responses=texts)
    lines = [json.loads(line) for line in (tmp_path / "duels.jsonl").read_text().splitlines()]
    for line, row in zip(lines, data.to_dict("records"), strict=True):
        pair = (f"{row['context']:.0f}/{row['first']:.0f}", f"{row['context']:.0f}/{row['second']:.0f}")
        winner, loser = pair if row["preferred"] == 1 else pair[::-1]
        assert line == {"prompt": f"context {row['context']:.0f}", "chosen": winner, "rejected": loser}


def test_data_are_kept_only_on_request():
    assert run(DUELS, GREEDY, rounds=1).data is None


# ------------------------------------------------------------------------------------------------- policies


def test_the_reference_that_learners_receive():
    for asked, world, kind in (
        (None, WORLD, LogLinear),
        ("log_linear", WORLD, LogLinear),
        ("tabular", WORLD, Tabular),
        (None, PLAIN, Tabular),
    ):
        diary = Diary()
        run(Problem(world, BradleyTerry(), 1.0), diary, rounds=1, replicates=R, policy=untyped(asked))
        pool = realise(R, Draws(0, R), world).evaluation
        assert type(diary.setting.policy) is kind
        torch.testing.assert_close(diary.setting.policy.log_probs(pool), pool.ref_log_probs)
    own, diary = Uniform(), Diary()
    run(DUELS, diary, rounds=1, policy=own)
    assert diary.setting.policy is own


def test_the_setting_says_what_a_learner_may_know():
    diary = Diary()
    run(DUELS, diary, rounds=T, batch_size=B, replicates=R)
    known = {f.name: getattr(diary.setting, f.name) for f in dataclasses.fields(diary.setting)}
    assert known["replicates"] == R
    assert (known["rounds"], known["batch_size"], known["n_actions"], known["dim"]) == (T, B, A, D)
    assert (known["kl_coef"], known["feedback"], known["n_select"]) == (0.8, "preference", 2)
    assert known["reward_range"] == (-2.0, 2.0)
    assert known["theta_bound"] == 2.0


# ------------------------------------------------------------------------------------------------- bad input

FRAME = pd.DataFrame({"context": [0, 6], "first": [0, 4], "second": [1, 2], "preferred": [1.0, 0.25]})
REWARD_FRAME = pd.DataFrame({"context": [0], "action": [2], "reward": [float("inf")]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, "rounds: must be an integer >= 1, got 0"),
        ({"rounds": 2.5}, "rounds: must be an integer >= 1, got 2.5"),
        ({"rounds": float("nan")}, "rounds: must be an integer >= 1, got nan"),
        ({"batch_size": -1}, "batch_size: must be an integer >= 1, got -1"),
        ({"batch_size": 10**12}, "batch_size: .* GB"),
        ({"replicates": 0}, "replicates: must be at least 1"),
        ({"replicates": -2}, "replicates: must be at least 1 and at most 10,000,000, got -2"),
        ({"replicates": 10**9}, "replicates: must be at least 1 and at most"),
        ({"replicates": []}, "replicates: a count >= 1, or different integers"),
        ({"replicates": [1, 1]}, "replicates: .*different"),
        ({"replicates": [-1]}, "replicates: .*>= 0"),
        ({"replicates": 1.5}, "replicates: .*got 1.5"),
        ({"seed": -1}, "seed: must be a non-negative integer, got -1"),
        ({"device": "cuda:9"}, "device: 'cuda:9' is not there"),
        ({"metrics": ["suboptimalty"]}, "metrics: no metric is called 'suboptimalty'; did you mean suboptimality"),
        ({"metrics": ["cumulative_regret"]}, "metrics: no metric is called 'cumulative_regret'"),
        ({"metrics": "suboptimality"}, "metrics: must be a list of names, got the single text"),
        ({"policy": "table"}, "policy: 'tabular', 'log_linear', 'network' or a Policy, got 'table'"),
        ({"policy": 3}, "policy: 'tabular', 'log_linear', 'network' or a Policy, got 3"),
        ({"output": "bset"}, r"output: 'last', 'average', 'best' or Logged\(policy, size\), got 'bset'"),
        ({"offline": FRAME.drop(columns="second")}, r"offline: columns \['second'\] are missing"),
        ({"offline": FRAME.head(0)}, "offline: the frame has no rows"),
        (
            {"offline": FRAME.assign(context=[0, X])},
            rf"offline: context must be an integer in \[0, {X}\), row 1 has {X}",
        ),
        ({"offline": FRAME.assign(first=[-1, 0])}, r"offline: first must be an integer in \[0, 5\), row 0 has -1"),
        ({"offline": FRAME.assign(second=[0.5, 0])}, r"offline: second must be an integer in \[0, 5\), row 0 has 0.5"),
        (
            {"offline": FRAME.assign(preferred=[1, np.nan])},
            r"offline: preferred must be a probability .* row 1 has nan",
        ),
        ({"offline": FRAME.assign(preferred=[2, 0])}, r"offline: preferred must be a probability in \[0, 1\], row 0"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        run(DUELS, GREEDY, **({"rounds": 2} | options))


@pytest.mark.parametrize("kl_coef", [0.0, -1.0, float("nan"), float("inf")])
def test_kl_coef_must_be_positive(kl_coef):
    with pytest.raises(ValueError, match=f"kl_coef: must be a finite number > 0, got {kl_coef}"):
        Problem(WORLD, BradleyTerry(), kl_coef)


@pytest.mark.parametrize(
    ("problem", "algorithm", "message"),
    [
        (REWARDS, "online_dpo", "oracle: NoisyReward answers with reward feedback, and Direct learns from preference"),
        (REWARDS, "gshf_online", "oracle: NoisyReward answers with reward feedback, and GSHF learns from preference"),
        (DUELS, "nothing", "oracle: BradleyTerry answers with preference feedback, and RewardOnly learns from reward"),
        (Problem(WORLD, PlackettLuce(3), 1.0), "kl_ucb", "answers with ranking feedback, and KLUCB learns from"),
        (Problem(WORLD, FullInformation(BradleyTerry()), 1.0), "greedy", "answers with full feedback"),
        (Problem(PLAIN, BradleyTerry(), 1.0), "greedy", "world: Greedy needs features and this world has none"),
        (Problem(LinearWorld(None, A, D), BradleyTerry(), 1.0), "rso", "world: rso .* needs a finite world"),
    ],
)
def test_what_does_not_fit_together_is_refused(problem, algorithm, message):
    class RewardOnly(Diary):
        feedbacks: ClassVar[tuple[Feedback, ...]] = ("reward",)

    chosen = RewardOnly() if algorithm == "nothing" else algorithms.create(algorithm)
    with pytest.raises(ValueError, match=message):
        run(problem, chosen, rounds=2)


def test_more_that_does_not_fit_together():
    fresh = Problem(LinearWorld(None, A, D, n_evaluation=9), BradleyTerry(), 1.0)
    no_rewards = Problem(TableWorld(np.log(np.full((X, A), 1 / A))), untyped(Ties()), 1.0)
    full = Problem(WORLD, FullInformation(BradleyTerry()), 1.0)
    cases: list[tuple[Problem, Any, dict[str, Any], str]] = [
        (fresh, GREEDY, {"policy": "tabular"}, "policy: 'tabular' needs a finite world"),
        (Problem(PLAIN, BradleyTerry(), 1.0), Diary(), {"policy": "log_linear"}, "policy: 'log_linear' needs features"),
        (fresh, GREEDY, {"keep_data": True}, "keep_data: needs a finite world"),
        (Problem(WORLD, PlackettLuce(3), 1.0), GREEDY, {"keep_data": True}, "keep_data: .*duels or rewards"),
        (fresh, GREEDY, {"output": "average"}, "output: 'average' and validation need a finite world"),
        (REWARDS, GREEDY, {"output": Logged(Uniform(), 3)}, "output: validation needs duels"),
        (fresh, GREEDY, {"offline": FRAME}, "offline: a frame refers to contexts by id and needs a finite world"),
        (Problem(WORLD, PlackettLuce(3), 1.0), GREEDY, {"offline": FRAME}, "offline: frames hold duels or rewards"),
        (REWARDS, GREEDY, {"offline": REWARD_FRAME}, "offline: reward must be finite, row 0 has inf"),
        (full, Mirror(1.0), {"offline": Logged(Uniform(), 3)}, "offline: logged data hold actions"),
        (full, Mirror(1.0), {"keep_data": True}, "keep_data: "),
        (REWARDS, GREEDY, {"metrics": ["win_rate_vs_ref"]}, "metrics: win_rate_vs_ref needs an oracle"),
        (no_rewards, Diary(), {"metrics": ["suboptimality"]}, "metrics: suboptimality needs a world with rewards"),
        (no_rewards, Diary(), {"metrics": ["cumulative_reward_regret"]}, "metrics: cumulative_reward_regret needs a"),
        (REWARDS, GREEDY, {"metrics": ["fit_value"]}, "metrics: fit_value had no value in this run"),
    ]
    for problem, algorithm, options, message in cases:
        with pytest.raises(ValueError, match=message):
            run(problem, algorithm, rounds=2, **options)
    assert set(run(no_rewards, Diary(), rounds=2).frame()["metric"]) == {"kl_to_ref", "win_rate_vs_ref"}


class Ties:
    """A general preference: every duel is a coin flip."""

    feedback = "preference"
    n_select = 2

    def bind(self, instance: Any) -> "Ties":
        return self

    def respond(self, contexts: Contexts, actions: torch.Tensor, draws: Any) -> torch.Tensor:
        return (draws.uniform("annotator", contexts.shape[1]) < 0.5).double()

    def win_rates(self, contexts: Contexts, log_probs: torch.Tensor) -> torch.Tensor:
        return torch.full_like(log_probs, 0.5)


def test_a_logged_action_that_its_context_does_not_offer():
    ragged = TableWorld(np.array([[0.0, -np.inf], np.log([0.4, 0.6])]), np.zeros((2, 2)), np.ones((2, 2, D)))
    frame = pd.DataFrame({"context": [1, 0], "first": [0, 0], "second": [1, 1], "preferred": [1, 1]})
    with pytest.raises(ValueError, match="offline: second must be an action that its context offers, row 1 has 1"):
        run(Problem(ragged, BradleyTerry(), 1.0), GREEDY, rounds=1, offline=frame)


@pytest.mark.parametrize("algorithm", ["greedy", type(GREEDY), None])
def test_an_algorithm_is_an_object(algorithm):
    with pytest.raises(TypeError, match=r"algorithm: must be an object such as algorithms.create\('greedy'\)"):
        run(DUELS, algorithm, rounds=1)


def test_bad_sizes_of_logged_data():
    with pytest.raises(ValueError, match="size: logged data needs at least one interaction, got 0"):
        Logged(Uniform(), 0)


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("model", ["shared", "disjoint"])
@pytest.mark.parametrize("law", ["sphere", "per_arm", "ball", "pool", "ragged"])
def test_rounds_played_in_one_go_are_the_rounds_one_by_one(model, law, kernels, monkeypatch):
    """Where only some rounds are recorded LinUCB plays those between them in one go: the same actions, rewards and
    numbers, whatever is recorded, and after any number of rounds more."""
    if kernels and not compiled.AVAILABLE:
        pytest.skip("the extra `compiled` (numba) is not installed")
    monkeypatch.setattr(compiled, "AVAILABLE", kernels)
    lengths = []
    play = LinUCB.play
    monkeypatch.setattr(LinUCB, "play", lambda *given: lengths.append(given[2].shape[1]) or play(*given))
    A, d, R = 5, 3, 4
    if law == "ragged":
        offered = np.array([[1, 1, 1, 0, 1], [1, 1, 0, 0, 1.0]])
        features = np.random.default_rng(0).exponential(size=(2, A, d))
        table = offered / offered.sum(-1, keepdims=True)  # what is not offered has features, hence a reward, of 0
        world = LinearWorld(2, A, d, features=features, theta=-np.ones(d), reference=table)
    elif law == "pool":
        world = LinearWorld(6, A, d)
    else:
        world = LinearWorld(None, A, d * A if law == "per_arm" else d, features=law, n_evaluation=2)
    problem, algorithm = Problem(world, NoisyReward(0.5), 1.0), algorithms.create("linucb", model=model)

    def regret(rounds, record):
        names = ["cumulative_reward_regret", "queries", "policy_reward_regret"]
        frame = simulate(problem, algorithm, rounds=rounds, replicates=R, metrics=names, record=record).frame()
        return np.asarray(frame["value"])[np.isin(frame["round"], (70, 150))]

    one_by_one = regret(150, "all")
    assert not lengths
    assert len(one_by_one) == 2 * 3 * R
    np.testing.assert_allclose(regret(150, [70]), one_by_one, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(regret(170, [70, 150]), one_by_one, rtol=1e-9, atol=1e-9)
    assert max(lengths) == 64
    assert sum(lengths) == 150 + 170


def test_in_one_go_every_metric_is_that_of_the_rounds_one_by_one():
    """Each by itself, as it decides whether a recorded round begins a stretch."""
    problem = Problem(LinearWorld(4, 5, 3), NoisyReward(0.5), 1.0)

    def values(name: str, record: Any) -> np.ndarray:
        names, linucb = [name, "queries"], algorithms.create("linucb")  # some have no value here, queries always
        frame = simulate(problem, linucb, rounds=50, replicates=2, metrics=names, record=record).frame()
        return np.asarray(frame["value"])[(frame["metric"] == name) & np.isin(frame["round"], (0, 20, 50))]

    seen = set()
    for name, metric in METRICS.items():
        if not metric.needs_rewards and name not in ("kl_to_ref", "queries", "confidence_radius", "informative_pairs"):
            continue  # of games and of fits
        one_by_one = values(name, "all")
        np.testing.assert_allclose(values(name, [20]), one_by_one, rtol=1e-9, atol=1e-9, err_msg=name)
        seen |= {name} if len(one_by_one) else set()
    assert {"estimation_error", "confidence_radius", "queries", "suboptimality", "reward_regret"} <= seen


def test_in_one_go_the_average_policy_is_that_of_the_recorded_rounds():
    problem = Problem(LinearWorld(4, 5, 3), NoisyReward(0.5), 1.0)
    options, laws = {"rounds": 50, "replicates": 2, "record": [3, 20], "output": "average"}, []
    for name in ("suboptimality", "reward_regret"):  # 3 and 20 begin stretches, or are played by themselves
        policy = run(problem, algorithms.create("linucb"), metrics=[name], **options).policy
        laws.append(policy.log_probs(realise(2, Draws(0, 2), problem.world).pool))
    torch.testing.assert_close(*laws)


@pytest.mark.parametrize("options", [{"keep_data": True}, {"batch_size": 2}])
def test_what_is_kept_and_batches_are_not_played_in_one_go(options, monkeypatch):
    monkeypatch.setattr(LinUCB, "play", lambda *given: pytest.fail("several rounds were played in one go"))
    problem = Problem(LinearWorld(4, 5, 3), NoisyReward(0.5), 1.0)
    names = ["cumulative_reward_regret"]  # which alone does not forbid it
    kept = run(problem, algorithms.create("linucb"), rounds=30, replicates=2, metrics=names, record=[20], **options)
    assert not options.get("keep_data") or len(kept.data) == 2 * 30


class Asked:
    """A user's annotator, which only answers what it is asked."""

    feedback, n_select = "reward", 1

    def bind(self, instance: Any) -> "Asked":
        self.bound = NoisyReward(0.5).bind(instance)
        return self

    def respond(self, contexts: Contexts, actions: torch.Tensor, draws: Any) -> torch.Tensor:
        return self.bound.respond(contexts, actions, draws)


def test_rounds_are_not_played_in_one_go_where_the_annotator_only_answers():
    regrets = []
    for oracle in (Asked(), NoisyReward(0.5)):
        problem, names = Problem(LinearWorld(4, 5, 3), untyped(oracle), 1.0), ["cumulative_reward_regret"]
        regrets.append(
            simulate(problem, algorithms.create("linucb"), rounds=30, replicates=2, metrics=names, record=[20]).frame()
        )
    np.testing.assert_allclose(regrets[0]["value"], regrets[1]["value"], rtol=1e-9)


def test_a_recorded_round_is_played_by_itself_where_a_metric_is_of_what_is_played(monkeypatch):
    problem, algorithm = (
        Problem(LinearWorld(None, 5, 3, n_evaluation=2), NoisyReward(0.5), 1.0),
        algorithms.create("linucb"),
    )
    lengths = []
    play = LinUCB.play
    monkeypatch.setattr(LinUCB, "play", lambda *given: lengths.append(given[2].shape[1]) or play(*given))

    def mine(snapshot):
        return None if snapshot.actions is None else snapshot.actions[:, 0, 0].double()

    for metric in ("reward_regret", ("mine", mine)):
        lengths.clear()
        names = ["cumulative_reward_regret", metric]
        frames = [
            simulate(problem, algorithm, rounds=30, replicates=4, metrics=names, record=record).frame()
            for record in ("all", [7, 20])
        ]
        assert lengths == [6, 12, 9]
        values = [np.asarray(frame["value"])[np.isin(frame["round"], (7, 20))] for frame in frames]
        np.testing.assert_allclose(values[1], values[0], rtol=1e-12, atol=1e-12)


def test_rounds_are_not_played_in_one_go_where_every_policy_counts():
    seen = []

    def of_policy(snapshot):
        seen.append(snapshot.actions.shape[1])
        return torch.zeros(2, dtype=torch.float64)

    problem = Problem(LinearWorld(None, 5, 3, n_evaluation=2), NoisyReward(0.5), 1.0)
    options = {"rounds": 40, "replicates": 2, "record": [40]}
    simulate(problem, algorithms.create("linucb"), metrics=[("cumulative_mine", of_policy)], **options)
    assert seen == [1] * 40
