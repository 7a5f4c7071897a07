"""Named games of the papers, each a `PreferenceTable`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from simbandit.oracles.tables import PreferenceTable
from simbandit.worlds import arrays


def cycle(a: float, b: float, c: float) -> PreferenceTable:
    """Three actions with margins P[0,1] = 1/2 + a, P[1,2] = 1/2 + b, P[2,0] = 1/2 + c, each in [-1/2, 1/2].

    Of one sign they are a cycle whose unregularised equilibrium is (b, c, a) / (a + b + c). COMAL's game (2410.23223)
    is cycle(-.4, -.4, -.3): equilibrium (4, 3, 4) / 11.
    """
    a, b, c = (arrays.number(name, value, -0.5, 0.5) for name, value in zip("abc", (a, b, c), strict=True))
    return PreferenceTable(0.5 + np.array([[0.0, a, -c], [-a, 0.0, b], [c, -b, 0.0]]))


def rock_paper_scissors(n_actions: int = 3, margin: float = 0.5) -> PreferenceTable:
    """Each of an odd number of actions beats the (n_actions - 1) / 2 before it, by `margin` in (0, 1/2].

    Circulant: with a uniform reference the equilibrium is uniform for every kl_coef.
    """
    n = arrays.count("n_actions", n_actions, 3)
    if n % 2 == 0:
        raise ValueError(f"n_actions: must be odd, so that each beats as many as it loses to, got {n}")
    margin = arrays.number("margin", margin, 0.0, 0.5, above=True)
    behind = (np.arange(n)[:, None] - np.arange(n)) % n
    return PreferenceTable(0.5 + margin * np.where(behind == 0, 0, np.where(behind <= n // 2, 1, -1)))


def dice(*faces: Sequence[float]) -> PreferenceTable:
    """The die that shows more wins; equal faces count half. Each argument is one die's faces, all alike probable.

    Without arguments those of Munos et al. (2312.00886): {2,4,9}, {1,6,8}, {3,5,7}, each beats the next with 5/9 and
    the equilibrium is uniform.
    """
    rolled = [arrays.finite("faces", arrays.array("faces", die, "n")) for die in faces or MUNOS_DICE]
    if len(rolled) < 2:
        raise ValueError("faces: needs at least two dice")
    return PreferenceTable(
        [[(np.sign(first[:, None] - second).mean() + 1) / 2 for second in rolled] for first in rolled]
    )


def rater_types(eps: float) -> PreferenceTable:
    """Three types of raters, each with one strict opinion and a tie otherwise (Munos et al. 2312.00886).

    1/3 - eps say y2 > y1, 1/3 + eps / 2 say y1 > y3, 1/3 + eps / 2 say y3 > y2; eps in [-2/3, 1/3]. Equilibrium
    (1/3 + eps / 2, 1/3 + eps / 2, 1/3 - eps), continuous in eps, whereas the best reward jumps from y1 to y2 at 0. The
    shares of the last two types are a reconstruction that gives the paper's equilibrium.
    """
    eps = arrays.number("eps", eps, -2 / 3, 1 / 3)
    one, other = (1 / 3 - eps) / 2, (1 / 3 + eps / 2) / 2
    return cycle(-one, -other, -other)


def condorcet_not_borda() -> PreferenceTable:
    """Action 0 beats each other by .02, action 1 beats action 2 by .45: Condorcet winner 0, Borda winner 1."""
    return cycle(0.02, 0.45, -0.02)


def clone(table: PreferenceTable, action: int, copies: int = 1) -> PreferenceTable:
    """The game with `copies` more of one action, at the end; an action and its clones tie.

    At every kl_coef the equilibrium splits the action's mass among its clones as the reference does.
    """
    preference = np.asarray(table.preference)
    n = preference.shape[-1]
    if not 0 <= action < n:
        raise ValueError(f"action: must be in 0 ... {n - 1}, got {action}")
    order = [*range(n), *[action] * arrays.count("copies", copies)]
    return PreferenceTable(preference[:, order][:, :, order])


MUNOS_DICE = ((2, 4, 9), (1, 6, 8), (3, 5, 7))
