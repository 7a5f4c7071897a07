"""Conversations of several turns: a finite tree, its KL-regularised game, and MTPO, where credit goes back in time.

In turn h = 0 ... H - 1 the policy answers the state s (all that was said so far) with one of A responses, and the user
replies with one of U; after the last response an annotator compares two whole conversations, held independently. A
policy is a tuple of log-probabilities, one (..., S_h, A) per turn, S_h = (A U)^h; the state after (s, a, u) is number
(s A + a) U + u, the conversation that ends with a in s is number s A + a of L. Axes in front are batches.

    J(p, q) = sum p(l) P(l beats l') q(l') - kl_coef E_p sum_h KL(p || ref at s_h) + kl_coef E_q sum_h KL(q || ref).

By the chain rule the sum of KL terms is KL(p || ref) of whole conversations (the user's replies cancel). With a user
who leaves no choice (U = 1) every law over conversations belongs to one policy, so that the game is the one-shot game
over conversations: its equilibrium is `equilibrium.solve(preference, leaf_law(tree, ref).log(), kl_coef)`, turn by turn
by conditioning. With U > 1 the user's law is nobody's to tilt, and the one-shot game over conversations is another one.

For a fixed opponent the best response is softmax(ref + Q / kl_coef) with Q by backward induction, and J(best, q) - J(p,
q) = kl_coef E_p sum_h KL(p || best at s_h) exactly: hence the duality gap as a sum of non-negative terms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from simbandit.equilibrium import check_preference

Policy = tuple[Tensor, ...]
Credit = Literal["conversation", "reference", "last_turn"]


@dataclass(frozen=True, eq=False)
class Conversations:
    """preference (..., L, L) of whole conversations; ref, the reference policy; replies, for every turn but the last
    the user's probabilities (..., S_h, A, U). Raises ValueError naming what does not fit."""

    preference: Tensor
    ref: Policy
    replies: tuple[Tensor, ...] = ()

    def __post_init__(self) -> None:
        check_preference(self.preference)
        if len(self.replies) != len(self.ref) - 1:
            raise ValueError(f"replies: {len(self.ref)} turns need {len(self.ref) - 1} tables, got {len(self.replies)}")
        A, states = self.ref[0].shape[-1], 1
        for h, turn in enumerate(self.ref):
            if turn.shape[-2:] != (states, A):
                raise ValueError(f"ref: turn {h} needs shape (..., {states}, {A}), got {tuple(turn.shape)}")
            if h < len(self.replies):
                user = self.replies[h]
                if user.shape[-3:-1] != (states, A) or not bool((user.sum(-1) - 1).abs().max() < 1e-9):
                    raise ValueError(f"replies: turn {h} needs laws of shape (..., {states}, {A}, U)")
                states *= A * user.shape[-1]
        if self.preference.shape[-1] != states * A:
            raise ValueError(f"preference: {states * A} conversations end this tree, got {self.preference.shape[-1]}")


def reach(tree: Conversations, policy: Policy) -> list[Tensor]:
    """The probability of being in each state, per turn (..., S_h)."""
    laws = [torch.ones_like(policy[0][..., 0])]
    for turn, user in zip(policy, tree.replies, strict=False):
        laws.append((laws[-1][..., None, None] * turn.exp()[..., None] * user).flatten(-3))
    return laws


def leaf_law(tree: Conversations, policy: Policy) -> Tensor:
    """Probabilities of whole conversations, (..., L)."""
    return (reach(tree, policy)[-1][..., None] * policy[-1].exp()).flatten(-2)


def action_values(tree: Conversations, policy: Policy, opponent: Policy, kl_coef: float) -> list[Tensor]:
    """Q(s, a), per turn (..., S_h, A): the win rate against the opponent after a in s, less kl_coef times the KL terms
    of later turns, if the policy goes on. Those of this turn are in no Q (2405.14655)."""
    values = [_wins(tree, opponent)]
    for turn, ref, user in zip(policy[:0:-1], tree.ref[:0:-1], tree.replies[::-1], strict=True):
        ratio = torch.where(torch.isneginf(turn), 0.0, turn - ref)
        values.append(_before((turn.exp() * (values[-1] - kl_coef * ratio)).sum(-1), user))
    return values[::-1]


def best_response(tree: Conversations, opponent: Policy, kl_coef: float) -> Policy:
    """The policy that is best against the opponent, by soft backward induction."""
    Q, best = _wins(tree, opponent), []
    for h in reversed(range(len(tree.ref))):
        weights = tree.ref[h] + Q / kl_coef
        best.append(torch.log_softmax(weights, -1))
        if h:
            Q = _before(kl_coef * torch.logsumexp(weights, -1), tree.replies[h - 1])
    return tuple(best[::-1])


def duality_gap(tree: Conversations, policy: Policy, kl_coef: float) -> Tensor:
    """max_a J(a, p) - min_b J(p, b) = 2 kl_coef E_p sum_h KL(p || BR(p) at s_h), (...)."""
    total = torch.zeros_like(policy[0][..., 0, 0])
    for law, turn, best in zip(reach(tree, policy), policy, best_response(tree, policy, kl_coef), strict=True):
        d = torch.where(torch.isneginf(turn), 0.0, turn - best)
        p = turn.exp()
        missing = torch.where(torch.isneginf(turn), best.exp(), 0.0)
        terms = torch.where(d > -30, p * (d + torch.expm1(-d)), torch.exp(turn - d))
        total = total + (law * (terms + missing).sum(-1)).sum(-1)
    return 2 * kl_coef * total


class Trained(NamedTuple):
    """The last policy; its duality gap (...); the rounds taken; whether the gap met the tolerance (...)."""

    policy: Policy
    duality_gap: Tensor
    rounds: int
    converged: Tensor


def mtpo(
    tree: Conversations,
    kl_coef: float,
    *,
    rounds: int = 1000,
    step_size: float | None = None,
    credit: Credit = "conversation",
    tolerance: float = 1e-12,
) -> Trained:
    """MTPO (2405.14655): in every state pi(a|x) proportional to pi^(1 - k s) ref^(k s) exp(s Q(x, a)), k = kl_coef, s =
    step_size, Q of the policy against itself; from the reference. Exact: Q by backward induction.

    step_size: None is the paper's schedule 2 / (k (t + 2)) (their 1 / eta), with which KL to the equilibrium is O(1 /
    t); with one turn this is `mirror_descent`, and the algorithm registered as `mtpo`.
    credit: "conversation" is Q. Two shortcuts for comparison: "reference" values what follows as if the reference went
        on; "last_turn" credits the last response alone, so that earlier turns stay at the reference. Neither ends at
        the equilibrium where what is said first decides what can be said later.
    Stops where every batch's gap is at most `tolerance`, or after `rounds`; the gap says what was achieved. Complexity
    O(L^2) a round. Raises ValueError for kl_coef <= 0, a step or a credit that means nothing.
    """
    if not kl_coef > 0:
        raise ValueError(f"kl_coef: must be > 0, got {kl_coef}")
    if step_size is not None and not step_size > 0:
        raise ValueError(f"step_size: must be > 0 or None, got {step_size}")
    if credit not in ("conversation", "reference", "last_turn"):
        raise ValueError(f"credit: must be 'conversation', 'reference' or 'last_turn', got {credit!r}")
    lead = torch.broadcast_shapes(tree.preference.shape[:-2], *(turn.shape[:-2] for turn in tree.ref))
    policy, t = tuple(turn.expand(*lead, *turn.shape[-2:]) for turn in tree.ref), 0
    gap = duality_gap(tree, policy, kl_coef)
    while t < rounds and not bool((gap <= tolerance).all()):
        Q = action_values(tree, tree.ref if credit == "reference" else policy, policy, kl_coef)
        if credit == "last_turn":
            Q = [*(torch.zeros_like(q) for q in Q[:-1]), Q[-1]]
        s = 2 / (kl_coef * (t + 2)) if step_size is None else step_size
        pull = s * kl_coef
        policy = tuple(
            torch.log_softmax(torch.where(torch.isneginf(ref), ref, (1 - pull) * turn + pull * ref + s * q), -1)
            for turn, ref, q in zip(policy, tree.ref, Q, strict=True)
        )
        gap, t = duality_gap(tree, policy, kl_coef), t + 1
    return Trained(policy, gap, t, gap <= tolerance)


def clarifying_question(asks: float = 0.2, reward: float = 2.0) -> Conversations:
    """Two turns, two responses, two users: first answer at once (0) or ask back (1); then say 0 or 1.

    Asked, the user says which of the two he wants, each with probability 1/2, and the right answer is worth `reward`,
    the wrong one -`reward`; unasked he says nothing of use and either answer is worth 0. Conversations are compared by
    Bradley-Terry on their worth. The reference asks with probability `asks` and answers at random, so that asking is
    worth nothing to it on average: only with the credit of good answers is the question worth asking.
    """
    if not 0 < asks < 1:
        raise ValueError(f"asks: must lie in (0, 1), got {asks}")
    worth = torch.tensor([0.0, 0.0, 0.0, 0.0, reward, -reward, -reward, reward], dtype=torch.float64)
    first = torch.tensor([[1 - asks, asks]], dtype=torch.float64).log()
    even = torch.full((4, 2), 0.5, dtype=torch.float64)
    return Conversations(torch.sigmoid(worth[:, None] - worth), (first, even.log()), (even[:2].reshape(1, 2, 2),))


def _wins(tree: Conversations, opponent: Policy) -> Tensor:
    """P(conversation beats the opponent) - 1/2 at the last turn, (..., S, A)."""
    win = (tree.preference @ leaf_law(tree, opponent)[..., None]).squeeze(-1) - 0.5
    return win.unflatten(-1, tree.ref[-1].shape[-2:])


def _before(values: Tensor, user: Tensor) -> Tensor:
    """E of the next state's values (..., S A U) over the user's replies, (..., S, A)."""
    return (values.unflatten(-1, user.shape[-3:]) * user).sum(-1)
