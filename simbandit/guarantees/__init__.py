"""A paper's claims as objects, and the statistics that judge them."""

from simbandit.guarantees.bounds import Bound, Parameters, Respects
from simbandit.guarantees.claims import (
    Claim,
    Exponent,
    Frequency,
    Identity,
    Monotone,
    Number,
    Ordering,
    Verdict,
    judge,
)
from simbandit.guarantees.rates import GrowsLike, Growth, burn_in_sensitivity, growth
from simbandit.guarantees.rows import MissingData
from simbandit.guarantees.sample_complexity import Complexity, QueriesTo, complexity, queries_to

__all__ = [
    "Bound",
    "Claim",
    "Complexity",
    "Exponent",
    "Frequency",
    "GrowsLike",
    "Growth",
    "Identity",
    "MissingData",
    "Monotone",
    "Number",
    "Ordering",
    "Parameters",
    "QueriesTo",
    "Respects",
    "Verdict",
    "burn_in_sensitivity",
    "complexity",
    "growth",
    "judge",
    "queries_to",
]
