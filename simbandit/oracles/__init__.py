"""Annotators: who answers, and how."""

from simbandit.oracles.full import FullInformation as FullInformation
from simbandit.oracles.reward import BradleyTerry as BradleyTerry
from simbandit.oracles.reward import NoisyReward as NoisyReward
from simbandit.oracles.reward import PlackettLuce as PlackettLuce
