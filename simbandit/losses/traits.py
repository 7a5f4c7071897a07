"""What a fit must know of a loss, by name; tests measure every entry, and that no loss is missing."""

BONUSES = frozenset(
    {"optimism", "pessimism", "value_optimism", "value_pessimism", "preference_optimism", "count_optimism"}
    | {"kl_penalty", "self_play_penalty"}
)
"""Losses of a single response (k = 1)."""

CALIBRATED = frozenset(
    {"xpo", "vpo_online", "vpo_offline", "selm", "se_popo", "copo", "hypo", "spac", "aihf", "slic", "tdpo2"}
)
"""Losses that need a calibration draw in column 2."""

_SAIL = frozenset({"sail_pr", "sail_rev_kl", "sail_reversed_sign", "sail_scaled", "sail_unscaled_batch"})
_RSPO = frozenset({"rspo_reverse_kl", "rspo_forward_kl", "rspo_chi_squared"})
_WINNERS = frozenset({"rpo", "orpo"})

POINTWISE = frozenset({"sppo", "critic", "bco", "nca", "kto", "apo_down", "depo", "sail_pp", "sail_released"}) | (
    _RSPO | _WINNERS | _SAIL | BONUSES | CALIBRATED
)
"""Losses in which a duel of a response with itself counts: they look at each response (or at the calibration draw) by
itself too. All others are constant there."""

REFERENCE_FREE = frozenset({"simpo", "orpo", "slic"})
"""Losses that a reference cannot enter: kl_coef weighs no KL in them."""

MOVING = (
    frozenset(
        {
            "inpo",
            "onpo",
            "sppo",
            "dno",
            "spac",
            "critic",
            "self_play_penalty",
            "hypo",
            "kl_penalty",
            "tdpo2",
            "wpo",
            "osp",
            "depo",
        }
    )
    | frozenset({"sail_dp", "sail_pp", "sail_released"})
    | (_RSPO | _SAIL)
)
"""Losses that look at the last policy: fresh data only."""

LABEL_FREE = frozenset({"osp", "sail_pp"}) | BONUSES
"""Losses that do not look at the label."""

BATCHED = frozenset({"aot", "aot_unpaired", "sail_unscaled_batch", "sail_released"})
"""Losses whose value for a duel depends on the other duels of its batch, or on how many there are: duels may not be
counted or split."""

NON_CONVEX = (
    frozenset(
        {"apo_down", "apo_zero", "bco", "kto", "nca", "discopop", "exo", "gpo_savage", "orpo", "chi_po", "f_dpo_js"}
    )
    | frozenset({"xpo", "vpo_online", "selm", "se_popo", "copo"})
    | frozenset({"optimism", "value_optimism", "preference_optimism", "count_optimism", "self_play_penalty"})
)
"""Losses that are not convex functions of a table's logits whatever the data: their fits need several starts. Losses
that look at the last policy are steps from it and start there; of them only `self_play_penalty` is named."""

DIVERGING = frozenset(
    {"kto", "apo_zero", "apo_down", "optimism", "value_optimism", "preference_optimism", "count_optimism"}
    | {"self_play_penalty"}
)
"""Losses without a finite minimiser whatever the win rates: only a fit's bound ends them."""

LINKED = frozenset({"f_dpo_forward_kl", "f_dpo_alpha"})
"""Cross-entropies of a margin that is not kl_coef times the log-ratio gap."""

CERTAIN = frozenset({"dpo", "rdpo", "wpo", "offset_dpo", "simpo", "rpo", "gpo_exponential", "gpo_savage"}) | LINKED
"""Losses whose minimiser is infinite where a response always wins (`rdpo`: where it wins more often than labels are
right), and finite else: they need a fit's bound then."""
