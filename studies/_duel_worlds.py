"""The synthetic worlds of the contextual dueling papers: one context, arms at the corners of a cube."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from simbandit.draws import Draws
from simbandit.types import Contexts
from simbandit.worlds import Realisation


@dataclass(frozen=True)
class CubeArms:
    """Rewards <phi, theta*>, redrawn for every replicate; the reference is uniform.

    arms "random": n_actions arms uniform on {-1, 1}^dim / sqrt(dim), theta* uniform on the sphere of radius theta_norm
        (the GINOP paper's section F as we recall it).
    arms "all": the 2^dim sign vectors, not scaled, plus (U[0, 1] - 1) / 10; theta* = U[0, 1]^dim, only its first two
        coordinates kept, scaled to theta_norm (the code released with VACDB, 2310.00968, as it stands).
    arms "corners": the 2^dim sign vectors themselves; one theta* for all replicates, default_rng(23333).random(dim)
        scaled to theta_norm (the same code up to the paper's submission: commit 8a4bb7e, 27 September 2023).
    """

    arms: Literal["random", "all", "corners"]
    dim: int
    theta_norm: float
    n_actions: int = 32

    def __post_init__(self) -> None:
        if self.arms != "random" and self.n_actions != 2**self.dim:
            raise ValueError(f"n_actions: all sign vectors are {2**self.dim}, got {self.n_actions}")

    def instance(self, replicates: int, draws: Draws) -> Realisation:
        A, d = self.n_actions, self.dim
        if self.arms == "random":
            phi = torch.where(draws.once("arms", A, d, law="uniform") < 0.5, -1.0, 1.0).double() / math.sqrt(d)
            theta = draws.once("theta", d)
            largest = 1.0
        else:
            corners = torch.from_numpy(2.0 * (np.arange(A)[:, None] >> np.arange(d) & 1) - 1).to(draws.device)
            if self.arms == "all":
                phi = corners + (draws.once("arms", A, d, law="uniform") - 1) / 10
                theta = draws.once("theta", d, law="uniform")
                theta[:, 2:] = 0.0
                largest = 1.1 * math.sqrt(d)
            else:
                phi = corners.expand(replicates, A, d)
                theta = torch.from_numpy(np.random.default_rng(23333).random(d)).to(draws.device).expand(replicates, d)
                largest = math.sqrt(d)
        theta = theta / theta.norm(dim=-1, keepdim=True) * self.theta_norm
        pool = Contexts(
            index=torch.zeros(replicates, 1, dtype=torch.int64, device=draws.device),
            features=phi[:, None],
            ref_log_probs=torch.full((replicates, 1, A), -math.log(A), dtype=torch.float64, device=draws.device),
            weights=torch.ones(replicates, 1, dtype=torch.float64, device=draws.device),
        )
        bound = largest * self.theta_norm
        return Realisation(
            replicates,
            A,
            d,
            (-bound, bound),
            pool,
            pool,
            theta=theta,
            reward_table=(phi @ theta[..., None]).squeeze(-1)[:, None],
            theta_bound=self.theta_norm,
            draws=draws,
        )
