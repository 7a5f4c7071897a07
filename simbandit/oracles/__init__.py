"""Annotators: what answers when actions are shown, exactly (`prob`, `mean`) and sampled (`respond`).

An oracle is a frozen description; `bind(instance)` gives it the truth, or draws it from the instance's streams.
Responses use the round's "annotator" uniforms (or "noise" normals), so every algorithm meets the same annotator. A
preference oracle is anything whose bound form has `win_table`; it need not come from rewards.
"""

from simbandit.oracles.asking import BoundPreference, Law, PreferenceOracle, Question
from simbandit.oracles.full import BoundFullInformation, FullInformation
from simbandit.oracles.games import clone, condorcet_not_borda, cycle, dice, rater_types, rock_paper_scissors
from simbandit.oracles.models import GPM, Bilinear, BladeChest, LinearPreference, pair_features
from simbandit.oracles.populations import Population
from simbandit.oracles.reward import (
    BernoulliReward,
    BoundBernoulliReward,
    BoundBradleyTerry,
    BoundNoisyReward,
    BoundPlackettLuce,
    BradleyTerry,
    NoisyReward,
    PlackettLuce,
    Thurstone,
)
from simbandit.oracles.tables import (
    HodgeMix,
    JudgeTable,
    PlantedEquilibrium,
    PreferenceTable,
    UniformTriangular,
    hodge,
)
from simbandit.oracles.wrappers import (
    AnnotatorPool,
    Drift,
    FlipNoise,
    LengthBias,
    PositionBias,
    PsiTransformed,
    SoftLabels,
    Symmetrised,
    Ties,
)

__all__ = [
    "GPM",
    "AnnotatorPool",
    "BernoulliReward",
    "Bilinear",
    "BladeChest",
    "BoundBernoulliReward",
    "BoundBradleyTerry",
    "BoundFullInformation",
    "BoundNoisyReward",
    "BoundPlackettLuce",
    "BoundPreference",
    "BradleyTerry",
    "Drift",
    "FlipNoise",
    "FullInformation",
    "HodgeMix",
    "JudgeTable",
    "Law",
    "LengthBias",
    "LinearPreference",
    "NoisyReward",
    "PlackettLuce",
    "PlantedEquilibrium",
    "Population",
    "PositionBias",
    "PreferenceOracle",
    "PreferenceTable",
    "PsiTransformed",
    "Question",
    "SoftLabels",
    "Symmetrised",
    "Thurstone",
    "Ties",
    "UniformTriangular",
    "clone",
    "condorcet_not_borda",
    "cycle",
    "dice",
    "hodge",
    "pair_features",
    "rater_types",
    "rock_paper_scissors",
]
