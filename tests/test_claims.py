"""Claims must be able to fail: planted errors are caught, few replicates are undecided, missing rows are errors."""

import numpy as np
import pandas as pd
import pytest

from simbandit.guarantees import Exponent, Frequency, Identity, MissingData, Monotone, Number, Ordering, judge
from simbandit.guarantees.claims import Sense
from tests.cases import power_law, rows

LABELS = {"algorithm": "gshf"}


def frame(exponent=0.5, replicates=40, seed=0, **labels):
    return power_law(replicates, seed, "cpu", exponent).assign(**(labels or LABELS))


def exponent(value, sense: Sense = "equals", tolerance=0.1, **kwargs):
    return Exponent("rate", "Theorem 1", "suboptimality", LABELS, value, tolerance, sense, window=(4, 100), **kwargs)


def test_a_true_exponent_holds_and_a_planted_wrong_one_fails():
    # (1 + t)^.5 from t = 4 on has local slope .5 t / (1 + t): .45 to .485
    assert exponent(0.5).judge(frame(0.5)).verdict == "holds"
    assert exponent(0.5).judge(frame(0.8)).verdict == "fails"
    assert exponent(0.5).judge(frame(0.2)).verdict == "fails"


def test_one_sided_exponents():
    assert exponent(0.5, "at most").judge(frame(0.2)).verdict == "holds"
    assert exponent(0.5, "at most").judge(frame(0.9)).verdict == "fails"
    assert exponent(0.5, "at least").judge(frame(0.9)).verdict == "holds"
    assert exponent(0.5, "at least").judge(frame(0.2)).verdict == "fails"


def test_too_few_replicates_are_undecided_and_never_pass():
    assert exponent(0.5, tolerance=0.02).judge(frame(0.5, replicates=2)).verdict == "undecided"
    one = exponent(0.5).judge(frame(0.5, replicates=1))
    assert (one.verdict, one.low, one.high) == ("undecided", -np.inf, np.inf)


def test_the_power_of_the_exponent():
    """A rate of .75 in place of .5 is caught every time, with the noise and size of a small study."""
    assert all(exponent(0.5).judge(frame(0.75, replicates=50, seed=s)).verdict == "fails" for s in range(20))


def test_an_exponent_along_a_label_uses_each_cells_last_round():
    parts = [power_law(30, n, "cpu", -1.0, scale=n**-0.5).assign(n=n) for n in (10, 40, 160)]
    claim = Exponent("in n", "Theorem 2", "suboptimality", {}, -0.5, 0.1, x="n")
    verdict = claim.judge(pd.concat(parts))
    assert verdict.verdict == "holds"
    assert verdict.measured == pytest.approx(-0.5, abs=0.05)


def test_an_exact_exponent_needs_no_replicates():
    values = 3.0 * np.array([[1.0, 2.0, 4.0]]) ** -1.5
    table = rows(values, queries=(1, 2, 4)).assign(**LABELS)
    claim = Exponent("rate", "-", "suboptimality", LABELS, -1.5, 1e-12, exact=True)
    assert claim.judge(table).verdict == "holds"
    assert claim.judge(table).low == claim.judge(table).high == pytest.approx(-1.5, abs=1e-14)


def duel(gap, factor=1.0, replicates=40, noise=1.0):
    rng = np.random.default_rng(2)
    shared = noise * rng.normal(size=(replicates, 1)) + 5
    small = rows(shared + 0.05 * rng.normal(size=(replicates, 1)), queries=(9,)).assign(algorithm="a")
    large = rows(shared + gap + 0.05 * rng.normal(size=(replicates, 1)), queries=(9,)).assign(algorithm="b")
    claim = Ordering("a < b", "-", "suboptimality", {"algorithm": "a"}, {"algorithm": "b"}, factor=factor)
    return claim, pd.concat([small, large])


def test_an_ordering_sees_a_paired_difference_far_below_the_spread_between_replicates():
    claim, table = duel(gap=0.1)
    assert claim.judge(table).verdict == "holds"
    claim, table = duel(gap=-0.1)
    assert claim.judge(table).verdict == "fails"
    claim, table = duel(gap=0.0)
    assert claim.judge(table).verdict == "undecided"


def test_an_ordering_by_a_factor():
    claim, table = duel(gap=5.0, factor=1.5, noise=0.1)
    assert claim.judge(table).verdict == "holds"
    claim, table = duel(gap=5.0, factor=3.0, noise=0.1)
    assert claim.judge(table).verdict == "fails"


def test_an_ordering_pairs_by_replicate_not_by_position():
    claim, table = duel(gap=0.1)
    shuffled = table.sample(frac=1, random_state=np.random.default_rng(0))
    assert claim.judge(shuffled).measured == pytest.approx(claim.judge(table).measured, rel=1e-12)
    apart = table.assign(replicate=np.where(table["algorithm"] == "a", table["replicate"], table["replicate"] + 99))
    with pytest.raises(MissingData, match="share no replicate"):
        claim.judge(apart)


def number(value, tolerance, sense: Sense = "equals", **kwargs):
    return Number("value", "Table 2", "suboptimality", LABELS, value, tolerance, sense, **kwargs)


def test_a_number_with_its_tolerance():
    table = rows(np.random.default_rng(0).normal(2.0, 0.5, size=(60, 2)), queries=(1, 8)).assign(**LABELS)
    assert number(2.0, 0.3).judge(table).verdict == "holds"
    assert number(2.5, 0.1).judge(table).verdict == "fails"
    assert number(2.0, 0.01).judge(table).verdict == "undecided"
    assert number(2.3, 0.0, "at most").judge(table).verdict == "holds"
    assert number(2.3, 0.0, "at least").judge(table).verdict == "fails"
    first = rows(np.array([[7.0, 0.0], [7.0, 0.0]]), queries=(1, 8)).assign(**LABELS)
    assert number(7.0, 0.0, at=1).judge(first).verdict == "holds"
    assert number(7.0, 0.0, at=8).judge(first).verdict == "fails"
    with pytest.raises(MissingData, match="round 3 was not recorded"):
        number(7.0, 0.0, at=3).judge(first)


def test_an_exact_number_of_one_replicate():
    table = rows(np.array([[0.25]]), queries=(0,)).assign(**LABELS)
    assert number(0.25, 1e-12).judge(table).verdict == "undecided"
    assert number(0.25, 1e-12, exact=True).judge(table).verdict == "holds"
    assert number(0.26, 1e-12, exact=True).judge(table).verdict == "fails"


def test_what_is_not_finite_fails():
    table = rows(np.array([[1.0], [np.nan], [1.0]]), queries=(0,)).assign(**LABELS)
    for claim in (number(1.0, 5.0), number(1.0, 5.0, exact=True), number(9.0, 0.0, "at most")):
        assert claim.judge(table).verdict == "fails"
    curve = rows(np.array([[1.0, np.inf], [1.0, 2.0]]), queries=(4, 8)).assign(**LABELS)
    assert exponent(1.0).judge(curve).verdict == "fails"
    assert Monotone("m", "-", "suboptimality", LABELS, "round", "increasing").judge(curve).verdict == "fails"


def test_an_identity_of_two_metrics_or_of_one_with_zero():
    x = np.random.default_rng(1).normal(size=(5, 3)) * 100
    left, right = rows(x, "left", (0, 1, 2)), rows(x * (1 + 1e-13), "right", (0, 1, 2))
    table = pd.concat([left, right]).assign(**LABELS)
    assert Identity("i", "-", "left", LABELS, 1e-12, other="right").judge(table).verdict == "holds"
    assert Identity("i", "-", "left", LABELS, 1e-15, other="right").judge(table).verdict == "fails"
    residual = rows(np.array([[1e-13, np.nan]]), "residual", (0, 1)).assign(**LABELS)
    assert Identity("i", "-", "residual", LABELS, 1e-12).judge(residual).verdict == "fails"
    assert Identity("i", "-", "residual", {**LABELS, "round": 0}, 1e-12).judge(residual).verdict == "holds"
    with pytest.raises(MissingData, match="do not share all their rows"):
        Identity("i", "-", "left", LABELS, 1.0, other="right").judge(table.iloc[:-1])


def test_monotone_in_a_label():
    def table(means, noise=0.02, replicates=30):
        rng = np.random.default_rng(4)
        return pd.concat(
            rows(m + noise * rng.normal(size=(replicates, 1)), queries=(6,)).assign(width=w)
            for w, m in zip((3, 10, 20, 40), means, strict=True)
        )

    claim = Monotone("m", "-", "suboptimality", {}, "width", "increasing")
    assert claim.judge(table((1, 2, 3, 4))).verdict == "holds"
    assert claim.judge(table((1, 2, 1.5, 4))).verdict == "fails"
    assert claim.judge(table((1, 2, 2, 4))).verdict == "undecided"
    falling = Monotone("m", "-", "suboptimality", {}, "width", "decreasing", tolerance=0.1)
    assert falling.judge(table((4, 3, 3, 1))).verdict == "holds"
    assert falling.judge(table((4, 3, 3.5, 1))).measured == pytest.approx(-0.5, abs=0.02)


def test_missing_rows_and_ambiguous_filters_name_the_claim_and_the_filter():
    table = frame(0.5, algorithm="gshf", n=4)
    with pytest.raises(MissingData, match=r"claim 'rate': no rows with algorithm='dpo'.*takes 'gshf'"):
        Exponent("rate", "-", "suboptimality", {"algorithm": "dpo"}, 1.0, 0.1).judge(table)
    with pytest.raises(MissingData, match="claim 'rate': there is no label 'batch'; the labels are algorithm, n"):
        Exponent("rate", "-", "suboptimality", {"batch": 1}, 1.0, 0.1).judge(table)
    with pytest.raises(MissingData, match=r"fewer than two values of queries in the window \(999"):
        Exponent("rate", "-", "suboptimality", {}, 1.0, 0.1, window=(999, 9999)).judge(table)
    two = pd.concat([table, table.assign(n=8)])
    with pytest.raises(ValueError, match=r"claim 'rate': several values per replicate and queries: narrow.* by n"):
        exponent(0.5).judge(two)
    with pytest.raises(ValueError, match="claim 'value': several values per replicate: narrow the filter by n"):
        number(1.0, 0.1).judge(two)


def test_filters_on_labels_of_mixed_types():
    table = pd.concat(
        [
            rows(np.array([[float(i)]]), queries=(0,)).assign(**labels)
            for i, labels in enumerate([{"n": 4}, {"n": "all"}, {"n": 0.5}, {"flag": True}, {"flag": False, "n": 4}])
        ],
        ignore_index=True,
    )
    found = [
        Number("v", "-", "suboptimality", where, i, 0.0, exact=True).judge(table).verdict
        for i, where in enumerate(
            [{"n": 4, "flag": None}, {"n": "all"}, {"n": 0.5}, {"n": None}, {"n": 4, "flag": False}]
        )
    ]
    assert found == ["holds"] * 5


def test_judge_gives_one_row_per_claim_and_keeps_failures():
    table = judge((exponent(0.5), number(99.0, 1.0)), frame(0.5))
    assert list(table.columns) == ["claim", "source", "paper", "measured", "low", "high", "verdict"]
    assert table["verdict"].tolist() == ["holds", "fails"]
    assert table["paper"].tolist() == ["= x^0.5 (+- 0.1)", "= 99 (+- 1)"]
    absent = Number("elsewhere", "-", "win_rate", LABELS, 1.0, 0.1)
    with pytest.raises(MissingData, match="elsewhere"):
        judge((absent,), frame())
    assert judge((absent,), frame(), partial=True)["verdict"].tolist() == ["no data"]


def test_a_frequency_is_judged_at_its_worst_abscissa_by_the_exact_interval():
    def verdict(most, replicates):
        hits = {10: 0, 40: most, 160: 0}
        parts = [rows((np.arange(replicates) < h)[:, None] * 1.0, "hit", (1,)).assign(n=n) for n, h in hits.items()]
        return Frequency("coverage", "Theorem 2", "hit", {}, 0.05, x="n").judge(pd.concat(parts))

    assert verdict(0, 128).verdict == "holds"
    assert verdict(0, 50).verdict == "undecided"  # no event in 50 replicates may still be a probability of 7 %
    assert verdict(6, 128).verdict == "undecided"
    assert verdict(25, 128).verdict == "fails"
    assert verdict(25, 128).measured == 25 / 128
    with pytest.raises(ValueError, match="'coverage': suboptimality must be 0 or 1"):
        Frequency("coverage", "-", "suboptimality", LABELS, 0.05, x="queries").judge(frame())
