"""Random streams: the written key recomputed, bit-equal for any set of replicates and any order of rounds."""

import zlib

import numpy as np
import pytest
import torch
from scipy import stats

from simbandit.draws import Draws, block_length

SHAPES = [(), (3,), (7, 5), (40, 30), (150, 120)]


def by_key(seed, replicate, purpose, *block):
    """The documented contract, written out: SFC64(SeedSequence([seed, replicate, crc32(purpose), block]))."""
    entropy = [seed, replicate, zlib.crc32(purpose.encode()), *block]
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(entropy)))


@pytest.mark.parametrize(("shape", "rounds"), [((), 256), ((3,), 256), ((7, 5), 256), ((40, 30), 8), ((150, 120), 1)])
def test_a_block_holds_a_power_of_two_of_rounds_and_about_2_to_the_14_numbers(shape, rounds):
    assert block_length(int(np.prod(shape))) == rounds


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("law", ["uniform", "normal"])
@pytest.mark.parametrize("stream", ["", "offline/"])
def test_the_numbers_follow_from_the_written_key(shape, law, stream):
    draws = Draws(11, [4, 90], stream=stream)
    length = block_length(int(np.prod(shape)))
    for t in (0, length - 1, length, 2 * length + length // 3):
        now = getattr(draws.at(t), law)("labels", *shape)
        assert now.shape == (2, *shape)
        assert now.dtype == torch.float64
        for row, replicate in enumerate((4, 90)):
            generator = by_key(11, replicate, f"{law}/{stream}labels", t // length)
            draw = generator.random if law == "uniform" else generator.standard_normal
            np.testing.assert_array_equal(now[row], draw((length, *shape))[t % length])


def test_a_worlds_own_objects_follow_from_their_key():
    draws = Draws(3, 5, stream="offline/")  # the stream separates rounds, never the world
    theta = draws.once("theta", 6)
    weights = draws.once("weights", 2, 3, law="uniform")
    for replicate in range(5):
        np.testing.assert_array_equal(theta[replicate], by_key(3, replicate, "normal/once/theta").standard_normal(6))
        np.testing.assert_array_equal(weights[replicate], by_key(3, replicate, "uniform/once/weights").random((2, 3)))


def test_a_shared_draw_is_the_same_for_any_set_of_replicates():
    one, many = Draws(3, [17]).shared("features", 4, 2), Draws(3, 9).shared("features", 4, 2)
    assert one.shape == (1, 4, 2)
    assert torch.equal(one, many)
    assert not torch.equal(one, Draws(4, 9).shared("features", 4, 2))
    assert not torch.equal(one[0], Draws(3, [17]).once("features", 4, 2)[0])


def test_replicate_7_alone_equals_replicate_7_among_1000():
    alone, among = Draws(5, [7]), Draws(5, 1000)
    assert torch.equal(alone.once("theta", 3)[0], among.once("theta", 3)[7])
    for t in (0, 255, 256):
        assert torch.equal(alone.at(t).uniform("contexts", 3)[0], among.at(t).uniform("contexts", 3)[7])
        assert torch.equal(alone.at(t).normal("noise")[0], among.at(t).normal("noise")[7])


def test_rounds_may_be_visited_in_any_order_and_twice():
    T = 600  # three blocks
    forwards, shuffled = Draws(1, 2), Draws(1, 2)
    expected = [forwards.at(t).uniform("player0", 4).clone() for t in range(T)]
    for t in np.random.default_rng(0).permutation(T)[:80]:
        now = shuffled.at(int(t))
        assert torch.equal(now.uniform("player0", 4), expected[t])
        for other in (
            now.normal("player0", 4),
            now.uniform("player1", 4),
            shuffled.at(int(t) + 300).uniform("player0", 4),
        ):
            assert not torch.equal(other, expected[t])
        assert torch.equal(now.uniform("player0", 4), expected[t])


def test_two_shapes_of_one_purpose_do_not_get_into_each_others_way():
    draws = Draws(1, 2)
    now = draws.at(3)
    assert now.uniform("noise", 4).shape == (2, 4)
    assert now.uniform("noise", 4, 3).shape == (2, 4, 3)
    assert now.normal("noise", 4).shape == (2, 4)
    assert torch.equal(now.uniform("noise", 4), Draws(1, 2).at(3).uniform("noise", 4))


def series(seed=0, replicate=0, stream="", purpose="a", law="uniform", start=0):
    """4,096 numbers of one stream, as standard normal scores."""
    draws = Draws(seed, [replicate], stream=stream)
    numbers = np.concatenate([getattr(draws.at(t), law)(purpose, 16)[0].numpy() for t in range(start, start + 256)])
    return stats.norm.ppf(numbers) if law == "uniform" else numbers


def test_seeds_replicates_purposes_streams_laws_and_blocks_are_independent():
    changes = [
        {},
        {"seed": 1},
        {"replicate": 1},
        {"seed": 1, "replicate": 1},
        {"purpose": "b"},
        {"stream": "offline/"},
        {"stream": "validation/"},
        {"law": "normal"},
        {"start": 256},
    ]
    correlation = np.corrcoef([series(**change) for change in changes])
    off_diagonal = correlation[~np.eye(len(changes), dtype=bool)]
    assert np.abs(off_diagonal).max() < 5 / np.sqrt(4096)  # five standard errors; shared numbers would give 1


def test_uniforms_lie_in_the_half_open_unit_interval_and_have_their_law():
    draws = Draws(2, 6)
    uniform = torch.stack([draws.at(t).uniform("u", 50) for t in range(100)]).flatten().numpy()
    normal = torch.stack([draws.at(t).normal("n", 50) for t in range(100)]).flatten().numpy()
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert stats.kstest(uniform, "uniform").pvalue > 1e-3
    assert stats.kstest(normal, "norm").pvalue > 1e-3


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="seed: must be a non-negative integer, got -1"):
        Draws(-1, 3)
