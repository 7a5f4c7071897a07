"""What a policy would have earned, from the logs of another one: IPS, SNIPS, direct method, doubly robust, each with an
interval.

A log is a frame with columns context, action, reward and, for all methods but the direct one, the probability with
which the logging policy chose that action. Ids are positions in the target's table; `worlds.logged_rewards` makes such
a frame from a user's file and labels. The target is a policy's table: `policy.log_probs(contexts).exp()[0]`.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import stdtrit

Method = Literal["ips", "snips", "dm", "dr"]
METHODS = ("ips", "snips", "dm", "dr")


class Value(NamedTuple):
    """An estimated value with its interval; effective_size: (sum w)^2 / sum w^2, how many rows the weights leave."""

    estimate: float
    low: float
    high: float
    effective_size: float


def value(
    logs: pd.DataFrame,
    target: ArrayLike,
    *,
    method: Method = "dr",
    features: ArrayLike | None = None,
    propensity: str = "propensity",
    clip: float | None = None,
    ridge: float = 1.0,
    folds: int = 5,
    level: float = 0.95,
) -> Value:
    """E[r] under the target policy, (X, A) probabilities, from n logged rows. With w = target / propensity,

        ips     mean of w r                                       (Horvitz and Thompson)
        snips   sum w r / sum w                                   (Swaminathan and Joachims 2015, by the delta method)
        dm      mean of sum_a target_a r_hat(x, a)                r_hat: ridge regression on `features` (X, A, d)
        dr      mean of sum_a target_a r_hat + w (r - r_hat(a))   (Dudik et al. 2011), r_hat cross-fitted over `folds`

    ips and dr are unbiased if the propensities are right and positive wherever the target plays; dm if the model is
    linear: its interval (sandwich) holds the sampling error only, not a wrong model. clip: weights are cut there (None:
    never), which trades bias for variance. Intervals are Student's, two-sided, for rows that are independent.

    Raises ValueError for missing columns (propensities where the method needs them among them), ids outside the table,
    propensities outside (0, 1], rewards that are not finite, or dm and dr without features.
    """
    law = np.asarray(target, dtype=float)
    if law.ndim != 2 or (law < 0).any() or not np.allclose(law.sum(1), 1, atol=1e-9):
        raise ValueError(f"target: must be a table (X, A) of probabilities that sum to 1, got shape {law.shape}")
    if method not in METHODS:
        raise ValueError(f"method: must be one of {', '.join(METHODS)}, got {method!r}")
    if not 0 < level < 1:
        raise ValueError(f"level: must be in (0, 1), got {level}")
    x, a, r = _columns(logs, law.shape)
    n = len(r)
    if method in ("dm", "dr") and features is None:
        raise ValueError(f"features: {method} predicts rewards and needs features (X, A, d)")
    weights = np.ones(n) if method == "dm" else law[x, a] / _propensities(logs, propensity, method)
    if clip is not None:
        weights = np.minimum(weights, clip)
    size = float(weights.sum() ** 2 / max(float((weights**2).sum()), 1e-300))
    if method == "dm":
        estimate, error = _direct(x, a, r, law, _table(features, law.shape), ridge)
    elif method == "ips":
        estimate, error = _mean(weights * r)
    elif method == "snips":
        total = weights.sum()
        if total == 0:
            raise ValueError("logs: the target never plays a logged action, so snips is 0 / 0; use dm")
        estimate = float((weights * r).sum() / total)
        error = float(np.sqrt((weights**2 * (r - estimate) ** 2).sum()) / total)
    else:
        predicted = _cross_fit(x, a, r, _table(features, law.shape), ridge, folds)
        estimate, error = _mean((law[x] * predicted).sum(1) + weights * (r - predicted[np.arange(n), a]))
    reach = float(stdtrit(max(n - 1, 1), (1 + level) / 2)) * error
    return Value(estimate, estimate - reach, estimate + reach, size)


def _columns(logs: pd.DataFrame, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    missing = [c for c in ("context", "action", "reward") if c not in logs.columns]
    if missing:
        raise ValueError(f"logs: columns {missing} are missing; there are {list(logs.columns)}")
    if len(logs) < 2:
        raise ValueError(f"logs: an interval needs at least two rows, got {len(logs)}")
    for column, size in (("context", shape[0]), ("action", shape[1])):
        if not np.isin(logs[column].to_numpy(), np.arange(size)).all():
            raise ValueError(f"logs: {column} must be an integer in [0, {size}) in every row")
    rewards = logs["reward"].to_numpy(dtype=float)
    if not np.isfinite(rewards).all():
        raise ValueError("logs: reward must be finite in every row")
    return logs["context"].to_numpy(dtype=int), logs["action"].to_numpy(dtype=int), rewards


def _propensities(logs: pd.DataFrame, column: str, method: str) -> np.ndarray:
    if column not in logs.columns:
        raise ValueError(
            f"propensity: {method} needs the logging policy's probability of each action, and the logs have no column "
            f"{column!r}; use method='dm' if it is unknown"
        )
    p = logs[column].to_numpy(dtype=float)
    if not ((p > 0) & (p <= 1)).all():
        raise ValueError(f"propensity: must be in (0, 1] in every row, got {p[~((p > 0) & (p <= 1))][0]}")
    return p


def _table(features: ArrayLike | None, shape: tuple[int, ...]) -> np.ndarray:
    phi = np.asarray(features, dtype=float)
    if phi.ndim != 3 or phi.shape[:2] != shape:
        raise ValueError(f"features: must have shape ({shape[0]}, {shape[1]}, d), got {phi.shape}")
    return phi


def _mean(terms: np.ndarray) -> tuple[float, float]:
    return float(terms.mean()), float(terms.std(ddof=1) / np.sqrt(len(terms)))


def _ridge(phi: np.ndarray, r: np.ndarray, ridge: float) -> tuple[np.ndarray, np.ndarray]:
    inverse = np.linalg.inv(phi.T @ phi + ridge * np.eye(phi.shape[1]))
    return inverse @ (phi.T @ r), inverse


def _direct(
    x: np.ndarray, a: np.ndarray, r: np.ndarray, law: np.ndarray, phi: np.ndarray, ridge: float
) -> tuple[float, float]:
    """The direct estimate, and its standard error: contexts drawn, plus the sandwich of the regression."""
    seen = phi[x, a]
    theta, inverse = _ridge(seen, r, ridge)
    mean = np.einsum("xa,xad->xd", law, phi)[x]
    estimate, spread = _mean(mean @ theta)
    lever = mean.mean(0) @ inverse
    sandwich = float((((seen @ lever) * (r - seen @ theta)) ** 2).sum())
    return estimate, float(np.sqrt(spread**2 + sandwich))


def _cross_fit(x: np.ndarray, a: np.ndarray, r: np.ndarray, phi: np.ndarray, ridge: float, folds: int) -> np.ndarray:
    """Predicted rewards (n, A) of every row's context, by the regression on the folds that lack the row."""
    n = len(r)
    if not 2 <= folds <= n:
        raise ValueError(f"folds: must be between 2 and the number of rows {n}, got {folds}")
    fold, predicted = np.arange(n) % folds, np.empty((n, phi.shape[1]))
    for k in range(folds):
        own = fold == k
        theta, _ = _ridge(phi[x[~own], a[~own]], r[~own], ridge)
        predicted[own] = phi[x[own]] @ theta
    return predicted
