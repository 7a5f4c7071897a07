"""What SAIL's studies share: exact gradients of losses over the policy's own pairs, followed to where they lead."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from simbandit.objective import PairLogProbs

LOWEST = -40.0  # of a logit below the largest: the edge of the policies considered


def natural_flow(
    loss: Callable[..., Tensor],
    start: Tensor,
    ref: Tensor,
    preference: Tensor,
    kl_coef: float,
    *,
    step_size: float,
    steps: int,
    copies: int = 1,
) -> Tensor:
    """log pi (S, A) at the end of natural-gradient steps of at most 1/2 from the logits `start` (S, A).

    The gradient is that of the exact expectation of `loss` over pairs of pi, identical ones too, at now = last = pi,
    with labels `preference` (A, A), ref (A,); divided by pi it has the same interior fixed points with the same
    stability and does not stall near the vertices. copies: every pair stands so often in the batch, at a share of its
    weight (some losses look at the batch's size, A^2 copies). Ends early where no log pi moves by more than 1e-12.
    """
    (S, A), theta = start.shape, start
    pairs = torch.cartesian_prod(*[torch.arange(A, device=start.device)] * 2).repeat(copies, 1)
    label = preference[pairs[:, 0], pairs[:, 1]].expand(S, -1)
    for _ in range(steps):
        theta = theta.detach().requires_grad_(True)
        log_pi = torch.log_softmax(theta, -1)
        still = log_pi.detach()
        seen = PairLogProbs(log_pi[:, pairs], still[:, pairs], ref[pairs].expand(S, -1, -1))
        value = (still[:, pairs].sum(-1).exp() / copies * loss(seen, label, kl_coef)).sum()
        (gradient,) = torch.autograd.grad(value, theta)
        moved = theta.detach() - (step_size * gradient / still.exp()).clamp(-0.5, 0.5)
        theta = (moved - moved.amax(-1, keepdim=True)).clamp_min(LOWEST)
        if float((torch.log_softmax(theta, -1) - still).abs().max()) < 1e-12:
            break
    return torch.log_softmax(theta.detach(), -1)
