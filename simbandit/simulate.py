"""The loop: a world is realised, an oracle bound to its truth; then contexts, actions, feedback, record, update."""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from simbandit import metrics as metric_registry
from simbandit.data import Logged, frame_batch
from simbandit.draws import LOGGED, Draws
from simbandit.metrics import CUMULATIVE, MetricFunction
from simbandit.output import Kept, Output
from simbandit.policies import LogLinear, Network, Reference, Tabular, concatenate
from simbandit.results import Results
from simbandit.snapshots import Game, Snapshot, best_reward
from simbandit.types import Algorithm, Contexts, Info, Oracle, Playing, Policy, Setting, World
from simbandit.worlds.arrays import affordable

Record = Literal["log", "all"] | Sequence[int]
PolicyClass = Literal["tabular", "log_linear", "network"]
CHUNK_NUMBERS = 2**24  # float64 numbers in a chunk's largest tables: 128 MB, of which a handful exist at a time
LARGEST_CHUNK = 256  # beyond, tables leave the cache; below, the loop's own overhead shows
MOST_REPLICATES = 10**7
STRETCH_NUMBERS = 2**15  # features of a replicate that are drawn for a stretch of rounds
LONGEST_STRETCH = 64
HIDDEN = 32  # units of a "network"
INTEGERS = (int, np.integer)


@dataclass(frozen=True)
class Problem:
    """What is to be solved: a world, an annotator, and the weight of KL(pi || pi_ref)."""

    world: World
    oracle: Oracle
    kl_coef: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.kl_coef) and self.kl_coef > 0):
            raise ValueError(f"kl_coef: must be a finite number > 0, got {self.kl_coef}")


def simulate(
    problem: Problem,
    algorithm: Algorithm,
    *,
    rounds: int,
    batch_size: int = 1,
    replicates: int | Sequence[int] = 1,
    seed: int = 0,
    device: str = "cpu",
    offline: pd.DataFrame | Logged | None = None,
    policy: PolicyClass | Policy | None = None,
    metrics: Sequence[str | tuple[str, MetricFunction]] | None = None,
    record: Record = "log",
    output: Output = "last",
    keep_data: bool = False,
    progress: bool = False,
) -> Results:
    """Runs an algorithm on a problem and returns exact metrics per replicate.

    rounds, batch_size: interactions are rounds x batch_size; one update a round.
    replicates: how many, or the replicates' own numbers: replicate 7 is the same trajectory alone or among 1,000.
    offline: logged data that the algorithm learns from before the first round: a frame (context, first, second,
        preferred; or context, action, reward), or `Logged`, drawn per replicate. An offline algorithm given none draws
        rounds x batch_size interactions from the reference.
    policy: the class that direct methods fit: "log_linear" (default where the world has features), "tabular",
        "network" (one hidden layer of 32 tanh units over the features), or a Policy, which then is the reference.
    metrics: registered names, `cumulative_` and a name, or the user's own (name, function of Snapshot) pairs.
    record: "log" (every round up to 64, then 24 a decade), "all", or a list of rounds; round 0 and the end always.
    output: which policy Results holds: the "last", the "average" of the recorded ones (in probability space), or the
        "best" by validation: the recorded one whose implied reward predicts held-out duels best, 512 of the reference,
        or those of `Logged(policy, size)`.
    keep_data: keep contexts, actions and feedback of every round, for `Results.data`.

    Replicates run in chunks that follow from the problem alone, so the answer does not depend on the machine.
    Raises ValueError naming the argument, what was wrong and what is allowed.
    """
    for name, value in (("rounds", rounds), ("batch_size", batch_size)):
        if not isinstance(value, INTEGERS) or value < 1:
            raise ValueError(f"{name}: must be an integer >= 1, got {value!r}")
    ids = _replicate_numbers(replicates)
    if isinstance(algorithm, type) or not isinstance(algorithm, Algorithm):
        raise TypeError(f"algorithm: must be an object such as algorithms.create('greedy'), got {algorithm!r}")
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: {device!r} is not there (torch finds no CUDA device); use 'cpu'")
    affordable("batch_size", batch_size * max(1, problem.oracle.n_select), f"one round of {batch_size:,} contexts")
    if problem.oracle.feedback not in algorithm.feedbacks:
        raise ValueError(
            f"oracle: {type(problem.oracle).__name__} answers with {problem.oracle.feedback} feedback, and "
            f"{type(algorithm).__name__} learns from {' or '.join(algorithm.feedbacks)}"
        )
    schedule = recording(rounds, record)
    size = chunk_size(problem, rounds * batch_size, len(ids))
    chunks = [ids[i : i + size] for i in range(0, len(ids), size)]
    bar = tqdm(total=len(chunks) * rounds, unit="round", disable=None if progress else True, leave=False)
    with bar:
        parts = [
            _Run(problem, algorithm, chunk, seed, device, rounds, batch_size, policy, metrics).run(
                schedule, offline, output, keep_data, bar
            )
            for chunk in chunks
        ]
    return Results(
        pd.concat([frame for frame, _, _ in parts], ignore_index=True),
        policy=concatenate([final for _, final, _ in parts]),
        data=pd.concat([data for _, _, data in parts], ignore_index=True) if keep_data else None,
        configuration={
            "problem": problem,
            "algorithm": algorithm,
            "rounds": rounds,
            "batch_size": batch_size,
            "seed": seed,
        },
    )


def _replicate_numbers(replicates: int | Sequence[int]) -> list[int]:
    if isinstance(replicates, INTEGERS):
        if not 1 <= replicates <= MOST_REPLICATES:
            raise ValueError(f"replicates: must be at least 1 and at most {MOST_REPLICATES:,}, got {replicates:,}")
        return list(range(int(replicates)))
    numbers = list(replicates) if isinstance(replicates, Iterable) else []
    if not numbers or len(set(numbers)) < len(numbers) or any(not isinstance(r, INTEGERS) or r < 0 for r in numbers):
        raise ValueError(f"replicates: a count >= 1, or different integers >= 0, got {replicates!r}")
    return [int(r) for r in numbers]


def recording(rounds: int, record: Record) -> set[int]:
    """The rounds at which metrics are recorded, 0 and `rounds` among them."""
    if record == "all":
        return set(range(rounds + 1))
    if record == "log":
        tail = np.geomspace(64, max(rounds, 64), 1 + math.ceil(24 * math.log10(max(rounds, 64) / 64)))
        return {*range(min(rounds, 64) + 1), *(int(t) for t in tail.round() if t <= rounds), rounds}
    listed = set(record) if isinstance(record, Iterable) else {-1}
    if any(not isinstance(t, INTEGERS) or not 0 <= t <= rounds for t in listed):
        raise ValueError(f"record: 'log', 'all' or rounds between 0 and {rounds}, got {record!r}")
    return listed | {0, rounds}


def chunk_size(problem: Problem, interactions: int, replicates: int) -> int:
    """Replicates advanced at once: a power of two, at most 256, so that the largest tables stay near 128 MB."""
    if replicates == 1:
        return 1
    evaluation = problem.world.instance(2, Draws(0, 2)).evaluation
    (X, A), d = (evaluation.shape[1], evaluation.n_actions), 0
    if evaluation.has_features:
        d = evaluation.features.shape[-1]
    shared = not evaluation.has_features or evaluation.features.stride(0) == 0
    fresh = evaluation.index is None  # then tables over contexts exist only while a policy is evaluated
    numbers = X * A * (2 if fresh else 4 + (0 if shared else d))
    if getattr(problem.oracle, "oracle", problem.oracle).feedback == "preference":
        numbers += X * A**2  # the table of win probabilities
    if problem.oracle.feedback == "preference":  # the index of distinct pairs, and their counts
        pairs = X * A * (A - 1) // 2
        numbers += pairs // 2 + min(interactions, pairs) * (d + 6)
    return min(replicates, max(1, min(LARGEST_CHUNK, 2 ** (max(1, CHUNK_NUMBERS // numbers).bit_length() - 1))))


class _Run:
    """One chunk of replicates."""

    def __init__(
        self,
        problem: Problem,
        algorithm: Algorithm,
        ids: list[int],
        seed: int,
        device: str,
        rounds: int,
        batch_size: int,
        policy: PolicyClass | Policy | None,
        metrics: Sequence[str | tuple[str, MetricFunction]] | None,
    ):
        self.algorithm, self.ids, self.rounds, self.batch_size = algorithm, ids, rounds, batch_size
        self.kl_coef = problem.kl_coef
        self.reference = policy if isinstance(policy, Policy) else Reference()  # an LM's world has no table of it
        self.draws = Draws(seed, ids, device)
        self.logged_draws = Draws(seed, ids, device, stream=LOGGED)
        self.validation_draws = Draws(seed, ids, device, stream="validation/")
        self.instance = problem.world.instance(len(ids), self.draws)
        if algorithm.needs_features and self.instance.dim is None:
            raise ValueError(
                f"world: {type(algorithm).__name__} needs features and this world has none; give `features=` to the "
                "world or choose an algorithm on tabular policies"
            )
        self.oracle = problem.oracle.bind(self.instance)
        self.exact = self.oracle.feedback == "full"
        self.setting = Setting(
            replicates=len(ids),
            rounds=rounds,
            batch_size=batch_size,
            n_actions=self.instance.n_actions,
            dim=self.instance.dim,
            kl_coef=problem.kl_coef,
            reward_range=self.instance.reward_range,
            contexts=self.instance.pool,
            policy=self._reference(policy),
            feedback=self.oracle.feedback,
            n_select=self.oracle.n_select,
            theta_bound=self.instance.theta_bound,
            own_dim=getattr(self.instance, "own_dim", None),
            device=torch.device(device),
        )
        asked = metric_registry.defaults(self.instance, self.oracle) if metrics is None else metrics
        if not asked:
            raise ValueError("metrics: needs at least one name; leave it out for the defaults")
        self.metrics = metric_registry.resolve(asked, self.instance.has_rewards)
        self.cumulative = any(name.startswith(CUMULATIVE) for name, _ in self.metrics)
        self.best = None
        if self.instance.has_rewards and self.instance.pool is not None:
            self.best = best_reward(self.instance.rewards(self.instance.pool), self.instance.pool.ref_log_probs)
        self.game = None
        if hasattr(self.oracle, "win_table"):
            self.game = Game(self.oracle, self.instance.evaluation, problem.kl_coef)
        self.columns: dict[str, list[tuple[int, float, Tensor]]] = {name: [] for name, _ in self.metrics}
        self.totals: dict[str, Tensor] = {}  # of cumulative metrics that have had a value
        self.data: list[tuple[int, Contexts, Tensor, Tensor]] = []
        summed, shown = ({f for name, f in self.metrics if name.startswith(CUMULATIVE) is b} for b in (True, False))
        played = summed <= metric_registry.OF_PLAY
        self.joins = shown <= metric_registry.OF_POLICY  # whether a recorded round can be the first of a stretch
        self.stretch = 1
        plays = isinstance(algorithm, Playing) and algorithm.plays and batch_size == 1
        if plays and played and hasattr(self.oracle, "outcomes"):
            own, dim = self.setting.own_dim or 1, self.setting.dim or 1
            features = own if own < dim else self.setting.n_actions * dim  # a vector for all actions, or one each
            self.stretch = max(1, min(LONGEST_STRETCH, STRETCH_NUMBERS // features))
        self.informative = torch.zeros(len(ids), dtype=torch.float64, device=device)
        self.queries, self.logged = 0.0, 0
        self.info = Info()

    def run(
        self,
        schedule: set[int],
        offline: pd.DataFrame | Logged | None,
        output: Output,
        keep_data: bool,
        bar: tqdm,
    ) -> tuple[pd.DataFrame, Policy, pd.DataFrame]:
        algorithm, oracle, instance = self.algorithm, self.oracle, self.instance
        if keep_data and (instance.pool is None or oracle.feedback not in ("preference", "reward")):
            raise ValueError("keep_data: needs a finite world (contexts must have ids) and duels or rewards")
        if offline is not None and self.exact:
            raise ValueError("offline: logged data hold actions, and FullInformation answers policies")
        state = algorithm.init(self.setting)
        chosen = Kept(output, instance, oracle, self.validation_draws, self.kl_coef)
        ask = getattr(algorithm, "ask", None)  # active methods choose the contexts of their questions
        if algorithm.offline:
            self._record(0, True, algorithm.policy(state), None, None)
            offline = Logged(self.reference, self.rounds * self.batch_size) if offline is None else offline
        if offline is not None:
            contexts, actions, feedback = self._logged(offline)
            state, self.info = algorithm.update(state, contexts, actions, feedback, self.logged_draws.at(0))
            self.logged = feedback.shape[1]
        for t, length in self._stretches(schedule, keep_data):
            now = self.draws.at(t, length)
            contexts = instance.evaluation if self.exact else instance.contexts(now, length * self.batch_size)
            if length > 1:
                assert isinstance(algorithm, Playing)
                policy = algorithm.policy(state)
                state, actions, info = algorithm.play(state, contexts, oracle.outcomes(contexts, now), now)
                self._record(t, t in schedule, policy, contexts, actions)
                if t in schedule:
                    chosen.consider(policy)
                self._count(actions)
                self.info = info
                bar.update(length)
                continue
            if ask is not None:
                contexts = ask(state, contexts, now)
            actions = algorithm.select(state, contexts, now)
            feedback = oracle.respond(contexts, actions, now)
            policy = algorithm.policy(state)
            self._record(t, t in schedule, policy, contexts, actions)
            if t in schedule:
                chosen.consider(policy)
            if keep_data:
                self.data.append((t, contexts, actions, feedback))
            self._count(actions)
            state, self.info = algorithm.update(state, contexts, actions, feedback, now)
            bar.update()
        if algorithm.offline:
            self.queries = float(self.logged)
            bar.update(self.rounds)
        policy = algorithm.policy(state)
        self._record(self.rounds, True, policy, None, None)
        chosen.consider(policy)
        return self._frame(), chosen.policy(), self._data_frame()

    def _reference(self, policy: PolicyClass | Policy | None) -> Policy:
        pool, dim, device = self.instance.pool, self.instance.dim, self.draws.device
        if policy is None:
            policy = "tabular" if dim is None else "log_linear"
        if policy == "tabular":
            if pool is None:
                raise ValueError("policy: 'tabular' needs a finite world; use 'log_linear' or give n_contexts=")
            return Tabular(pool.ref_log_probs)
        if policy in ("log_linear", "network"):
            if dim is None:
                raise ValueError(f"policy: {policy!r} needs features, this world has none; use 'tabular'")
            if policy == "log_linear":
                return LogLinear(torch.zeros(len(self.ids), dim, dtype=torch.float64, device=device))
            inner, bias = (self.draws.once(f"network {i}", *n, HIDDEN) for i, n in enumerate([(dim,), ()]))
            return Network.at_reference(inner, bias)
        if not isinstance(policy, Policy):
            raise ValueError(f"policy: 'tabular', 'log_linear', 'network' or a Policy, got {policy!r}")
        return policy

    def _logged(self, offline: pd.DataFrame | Logged) -> tuple[Contexts, Tensor, Tensor]:
        if not isinstance(offline, Logged):
            return frame_batch(offline, self.instance.pool, self.setting)
        now = self.logged_draws.at(0)
        contexts = self.instance.contexts(now, offline.size)
        players = [
            offline.policy,
            offline.second or offline.policy,
            *[offline.policy] * (self.oracle.n_select - 2),
        ]
        columns = [
            player.sample(contexts, now.uniform(f"player{i}", offline.size))
            for i, player in enumerate(players[: self.oracle.n_select])
        ]
        actions = torch.stack(columns, dim=-1)
        return contexts, actions, self.oracle.respond(contexts, actions, now)

    def _stretches(self, schedule: set[int], keep_data: bool) -> Iterator[tuple[int, int]]:
        """(first round, rounds) that are played in one go: a recorded round by itself where a metric is of what is
        played in it, else as the first of those up to the next; and what is kept by itself."""
        t, rounds, recorded = 0, 0 if self.algorithm.offline else self.rounds, sorted(schedule)
        while t < rounds:
            length = 1
            if self.stretch > 1 and not keep_data and (self.joins or t not in schedule):
                length = min(recorded[bisect(recorded, t)] - t, self.stretch)
            yield t, length
            t += length

    def _count(self, actions: Tensor) -> None:
        self.queries += 0 if self.exact else actions.shape[1] * max(1, actions.shape[-1] - 1)
        if not self.exact and actions.shape[-1] == 2:
            self.informative = self.informative + (actions[..., 0] != actions[..., 1]).sum(-1)

    def _record(self, t: int, wanted: bool, policy: Policy, contexts: Contexts | None, actions: Tensor | None) -> None:
        if not (wanted or (self.cumulative and actions is not None)):
            return
        snapshot = Snapshot(
            instance=self.instance,
            oracle=self.oracle,
            kl_coef=self.kl_coef,
            policy=policy,
            info=self.info,
            queries=self.queries,
            oracle_evaluations=t if self.exact else 0,
            informative=self.informative,
            best_rewards=self.best,
            game=self.game,
            contexts=contexts,
            actions=actions,
        )
        computed: dict[MetricFunction, Tensor | None] = {}
        for name, function in self.metrics:
            is_sum, value = name.startswith(CUMULATIVE), None
            if (wanted and not is_sum) or (is_sum and actions is not None):
                if function not in computed:
                    computed[function] = function(snapshot)
                value = computed[function]
            if is_sum and value is not None:
                self.totals.setdefault(name, torch.zeros_like(value))
            shown = self.totals.get(name) if is_sum else value
            if wanted and shown is not None:
                self.columns[name].append((t, self.queries, shown))
            if is_sum and value is not None:
                count = self.batch_size if self.exact or actions is None else actions.shape[1]
                self.totals[name] = self.totals[name] + count * value

    def _frame(self) -> pd.DataFrame:
        """Long: one row per replicate, recorded round and metric."""
        parts = []
        for name, rows in self.columns.items():
            if not rows:
                continue
            values = torch.stack([value for _, _, value in rows], dim=1).cpu().numpy()
            parts.append(
                pd.DataFrame(
                    {
                        "replicate": np.repeat(np.asarray(self.ids, dtype=np.int64), len(rows)),
                        "round": np.tile(np.asarray([t for t, _, _ in rows], dtype=np.int64), len(self.ids)),
                        "queries": np.tile(np.asarray([float(q) for _, q, _ in rows]), len(self.ids)),
                        "metric": name,
                        "value": values.reshape(-1),
                    }
                )
            )
        if not parts:
            raise ValueError(f"metrics: {', '.join(self.columns)} had no value in this run; name one that has")
        return pd.concat(parts, ignore_index=True)

    def _data_frame(self) -> pd.DataFrame:
        """One row per interaction: replicate, round, context, then first, second, preferred (or action, reward)."""
        frames = []
        for t, contexts, actions, feedback in self.data:
            assert contexts.index is not None
            names = ["action"] if actions.shape[-1] == 1 else ["first", "second"]
            frame = pd.DataFrame({"replicate": np.repeat(self.ids, feedback.shape[1]), "round": t})
            frame["context"] = contexts.index.reshape(-1).cpu().numpy()
            for i, name in enumerate(names):
                frame[name] = actions[..., i].reshape(-1).cpu().numpy()
            frame["reward" if len(names) == 1 else "preferred"] = feedback.reshape(-1).cpu().numpy()
            frames.append(frame)
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
