"""Off-policy values: unbiased where they claim to be, intervals that cover, refusals that name the column."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from simbandit.off_policy import METHODS, _cross_fit, value

X, A, D, N = 5, 4, 3, 400
RNG = np.random.default_rng(0)
PHI = RNG.normal(size=(X, A, D))
THETA = np.array([1.0, -0.5, 0.3])
LOGGING, TARGET = (RNG.dirichlet(np.ones(A), size=X) * 0.8 + 0.05 for _ in range(2))


def logs(seed: int, rewards: np.ndarray, n: int = N) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    x = rng.integers(X, size=n)
    a = (LOGGING[x].cumsum(1) < rng.random((n, 1))).sum(1).clip(max=A - 1)
    r = rewards[x, a] + 0.5 * rng.normal(size=n)
    return pd.DataFrame({"context": x, "action": a, "reward": r, "propensity": LOGGING[x, a]})


LINEAR = PHI @ THETA
BENT = LINEAR + 2.0 * (np.arange(A) == 1)  # no linear model fits it


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rewards", [LINEAR, BENT], ids=["linear", "misspecified"])
def test_intervals_cover_the_truth(method, rewards):
    """300 logs of 400 rows: 95 % intervals, by an exact binomial test. The direct method must fail where its model is
    wrong: its interval is of the sampling error alone."""
    truth = float((TARGET * rewards).sum(1).mean())
    covered = []
    for seed in range(300):
        found = value(logs(seed, rewards), TARGET, method=method, features=PHI)
        covered.append(found.low <= truth <= found.high)
    share = float(np.mean(covered))
    if method == "dm" and rewards is BENT:
        assert share < 0.8
    else:
        assert stats.binomtest(sum(covered), 300, 0.95).pvalue > 1e-3


def test_formulas_by_hand():
    frame = pd.DataFrame(
        {"context": [0, 0, 1], "action": [0, 1, 1], "reward": [1.0, 2.0, 4.0], "propensity": [0.5, 0.5, 0.25]}
    )
    target = np.array([[1.0, 0.0], [0.5, 0.5]])
    weights, r = np.array([2.0, 0.0, 2.0]), np.array([1.0, 2.0, 4.0])
    ips = value(frame, target, method="ips")
    assert ips.estimate == pytest.approx((weights * r).mean())
    assert ips.effective_size == pytest.approx(16 / 8)
    error = (weights * r).std(ddof=1) / np.sqrt(3)
    assert ips.high - ips.estimate == pytest.approx(stats.t.ppf(0.975, 2) * error)
    snips = value(frame, target, method="snips")
    assert snips.estimate == pytest.approx(10 / 4)
    delta = np.sqrt((weights**2 * (r - 2.5) ** 2).sum()) / weights.sum()
    assert snips.high - snips.estimate == pytest.approx(stats.t.ppf(0.975, 2) * delta)
    assert value(frame, target, method="ips", clip=1.0).estimate == pytest.approx(5 / 3)
    twice = value(frame.rename(columns={"propensity": "p"}), target, method="snips", propensity="p")
    assert twice.estimate == pytest.approx(2.5)


def test_the_direct_methods_interval_is_the_regressions_sandwich():
    """One context, so that nothing else varies."""
    rng = np.random.default_rng(2)
    phi, a, r = rng.normal(size=(1, 4, 3)), rng.integers(4, size=30), rng.normal(size=30)
    frame = pd.DataFrame({"context": 0, "action": a, "reward": r})
    found = value(frame, np.array([[0.1, 0.2, 0.3, 0.4]]), method="dm", features=phi, ridge=0.5)
    seen, mean = phi[0, a], np.array([0.1, 0.2, 0.3, 0.4]) @ phi[0]
    V = np.linalg.inv(seen.T @ seen + 0.5 * np.eye(3))
    theta = V @ seen.T @ r
    error = np.sqrt(mean @ V @ (seen.T * (r - seen @ theta) ** 2) @ seen @ V @ mean)
    assert found.estimate == pytest.approx(mean @ theta)
    assert found.high - found.estimate == pytest.approx(stats.t.ppf(0.975, 29) * error)


def test_the_direct_methods_interval_has_the_contexts_that_were_drawn_too():
    """Several contexts: the variance of the target's values over the rows' contexts adds to the sandwich's."""
    frame = logs(3, BENT, 31)
    x, a, r = (frame[c].to_numpy() for c in ("context", "action", "reward"))
    found = value(frame.drop(columns="propensity"), TARGET, method="dm", features=PHI, ridge=0.5, level=0.9)
    seen, means = PHI[x, a], np.einsum("xa,xad->xd", TARGET, PHI)[x]
    V = np.linalg.inv(seen.T @ seen + 0.5 * np.eye(D))
    theta, mean = V @ seen.T @ r, means.mean(0)
    sandwich = mean @ V @ (seen.T * (r - seen @ theta) ** 2) @ seen @ V @ mean
    error = np.sqrt((means @ theta).var(ddof=1) / 31 + sandwich)
    assert found.estimate == pytest.approx((means @ theta).mean())
    assert found.high - found.estimate == pytest.approx(stats.t.ppf(0.95, 30) * error)
    assert found.estimate - found.low == pytest.approx(stats.t.ppf(0.95, 30) * error)
    assert found.effective_size == pytest.approx(31)


def test_doubly_robust_by_hand():
    """Row i belongs to fold i mod 3, and the regression of the other two predicts it; weights are cut at 1.5."""
    frame = logs(4, BENT, 17)
    x, a, r, p = (frame[c].to_numpy() for c in ("context", "action", "reward", "propensity"))
    w = np.minimum(TARGET[x, a] / p, 1.5)
    assert 0 < (w == 1.5).mean() < 1
    terms = np.empty(17)
    for i in range(17):
        others = [j for j in range(17) if j % 3 != i % 3]
        seen = PHI[x[others], a[others]]
        theta = np.linalg.solve(seen.T @ seen + 0.5 * np.eye(D), seen.T @ r[others])
        terms[i] = TARGET[x[i]] @ PHI[x[i]] @ theta + w[i] * (r[i] - PHI[x[i], a[i]] @ theta)
    found = value(frame, TARGET, method="dr", features=PHI, ridge=0.5, folds=3, clip=1.5)
    assert found.estimate == pytest.approx(terms.mean())
    assert found.high - found.estimate == pytest.approx(stats.t.ppf(0.975, 16) * terms.std(ddof=1) / np.sqrt(17))
    assert found.effective_size == pytest.approx(w.sum() ** 2 / (w**2).sum())


def test_a_rows_own_reward_does_not_predict_it():
    x, a, r = RNG.integers(X, size=23), RNG.integers(A, size=23), RNG.normal(size=23)
    moved = r + 100 * (np.arange(23) == 4)
    one, two = (_cross_fit(x, a, rewards, PHI, 1.0, 5) for rewards in (r, moved))
    assert (one[4] == two[4]).all()
    assert (one[5] != two[5]).any()


def test_a_good_model_makes_doubly_robust_narrower_than_weighting():
    frame = logs(0, LINEAR)
    length = {m: np.ptp(value(frame, TARGET, method=m, features=PHI)[1:3]) for m in ("ips", "dr", "dm")}
    assert length["dr"] < 0.8 * length["ips"]
    assert length["dm"] < length["dr"]


def test_the_logging_policy_is_worth_its_mean_reward():
    frame = logs(1, LINEAR)
    assert value(frame, LOGGING, method="ips").estimate == pytest.approx(frame["reward"].mean())
    assert value(frame, LOGGING, method="ips").effective_size == pytest.approx(N)


GOOD = logs(0, LINEAR, 20)


@pytest.mark.parametrize(
    ("frame", "target", "options", "message"),
    [
        (GOOD.drop(columns="propensity"), TARGET, {"method": "ips"}, "propensity: ips needs the logging policy's prob"),
        (GOOD.drop(columns="propensity"), TARGET, {"features": PHI}, "propensity: dr needs .* use method='dm'"),
        (GOOD.assign(propensity=0.0), TARGET, {"method": "snips"}, r"propensity: must be in \(0, 1\]"),
        (GOOD.assign(propensity=1.5), TARGET, {"method": "ips"}, r"propensity: must be in \(0, 1\] .* got 1.5"),
        (GOOD.assign(propensity=np.nan), TARGET, {"method": "ips"}, r"propensity: must be in \(0, 1\]"),
        (GOOD.assign(context=X), TARGET, {"method": "ips"}, r"logs: context must be an integer in \[0, 5\)"),
        (GOOD.assign(action=0), np.eye(A)[[1] * X], {"method": "snips"}, "logs: the target never plays"),
        (GOOD, np.tile([1.5, -0.5, 0, 0], (X, 1)), {"method": "ips"}, "target: must be a table"),
        (GOOD, TARGET, {"method": "dr"}, "features: dr predicts rewards"),
        (GOOD, TARGET, {"method": "dm", "features": PHI[:2]}, r"features: must have shape \(5, 4, d\)"),
        (GOOD, TARGET, {"method": "mrdr"}, "method: must be one of ips, snips, dm, dr"),
        (GOOD, 2 * TARGET, {"method": "ips"}, "target: must be a table"),
        (GOOD.drop(columns="reward"), TARGET, {"method": "ips"}, r"logs: columns \['reward'\] are missing"),
        (GOOD.assign(action=A), TARGET, {"method": "ips"}, r"logs: action must be an integer in \[0, 4\)"),
        (GOOD.assign(reward=np.nan), TARGET, {"method": "ips"}, "logs: reward must be finite"),
        (GOOD[:1], TARGET, {"method": "ips"}, "logs: an interval needs at least two rows"),
        (GOOD, TARGET, {"features": PHI, "folds": 50}, "folds: must be between 2"),
        (GOOD, TARGET, {"method": "ips", "level": 1.0}, "level: must be in"),
    ],
)  # fmt: skip
def test_what_cannot_be_estimated_is_refused(frame, target, options, message):
    with pytest.raises(ValueError, match=message):
        value(frame, target, **options)


def test_the_direct_method_needs_no_propensities():
    found = value(GOOD.drop(columns="propensity"), TARGET, method="dm", features=PHI)
    assert found.low < found.estimate < found.high
