"""A paper's claims as objects, and the statistics that judge them."""

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
from simbandit.guarantees.rows import MissingData

__all__ = [
    "Claim",
    "Exponent",
    "Frequency",
    "Identity",
    "MissingData",
    "Monotone",
    "Number",
    "Ordering",
    "Verdict",
    "judge",
]
