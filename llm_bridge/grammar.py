"""A toy language whose best possible model is known: a template grammar written as a hidden Markov model.

A text is `<bos> about NOUN : SENTENCE SENTENCE ... <eos>`; the noun after "about" sets the topic, sentences keep it
nine times in ten, and verbs agree with their subject in number. Hidden state: topic x place in the sentence x number. A
third of the nouns belong to every topic, so the topic is not always known: the best predictor filters.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
TOPICS = {
    "sea": ("sailor boat wave fish harbor captain net gull", "steer float drift follow reach", "deep salty calm blue"),
    "farm": ("farmer cow tractor field hen barn plow seed", "plow feed plant gather raise", "green muddy ripe wide"),
    "city": (
        "driver train tower street shop office taxi bridge",
        "build cross visit pass cover",
        "busy grey tall loud",
    ),
    "music": ("singer drum song violin tune concert piano note", "play sing tune sound record", "soft slow merry solo"),
    "space": (
        "pilot rocket planet star comet probe crater moon",
        "orbit launch scan measure map",
        "dark cold vast far",
    ),
    "kitchen": ("cook pot spoon oven carrot bowl pan onion", "boil stir peel season serve", "hot sweet fresh sharp"),
}
"""Topic: nouns, verbs, adjectives; plurals and third persons take an s."""
COMMON_NOUNS = ["friend", "child", "stone", "letter"]
COMMON_VERBS = ["see", "like", "find", "move"]
COMMON_ADJECTIVES = ["old", "new", "small", "good", "bad", "red", "strange", "quiet"]
GOOD_WORDS = ("good", "new", "merry", "fresh", "sweet", "calm", "friend", "friends", "like", "likes")
"""The lexicon that a toy annotator likes."""
DETERMINERS = (("the", "a", "this"), ("the", "some", "these"))
KEEP_TOPIC, MORE, ADJECTIVE, COMMON = 0.9, 0.45, 0.5, 1 / 3


@dataclass(frozen=True)
class Grammar:
    """The hidden Markov model. Texts are lists of token ids that begin with <bos> and end with <eos>."""

    def __post_init__(self) -> None:
        assert abs(self.transition.sum(-1) - 1).max() < 1e-12

    @cached_property
    def words(self) -> tuple[str, ...]:
        """The vocabulary: special tokens first."""
        found = dict.fromkeys([*SPECIAL, "about", ":", "."])
        for determiners in DETERMINERS:
            found |= dict.fromkeys(determiners)
        for word in COMMON_ADJECTIVES:
            found[word] = None
        for topic in range(len(TOPICS)):
            for number in (0, 1):
                found |= dict.fromkeys([*self._nouns(topic, number), *self._verbs(topic, number)])
            found |= dict.fromkeys(self._adjectives(topic))
        return tuple(found)

    @cached_property
    def number_of(self) -> dict[str, int]:
        """Word to token id."""
        return {word: i for i, word in enumerate(self.words)}

    @cached_property
    def states(self) -> tuple[tuple[str, int, int], ...]:
        """(place, topic, number of the subject or object)."""
        places = ("det1", "adj1", "noun1", "verb", "det2", "adj2", "noun2")
        topics = range(len(TOPICS))
        opening = [("about", -1, 0), *(("subject", k, 0) for k in topics), *((":", k, 0) for k in topics)]
        body = [(place, k, n) for k in topics for place in places for n in (0, 1)]
        return (*opening, *body, *((".", k, 0) for k in topics), ("<eos>", -1, 0))

    @cached_property
    def transition(self) -> np.ndarray:
        """(S, S): the next hidden state; the first state is where every text starts, after <bos>."""
        at = {state: i for i, state in enumerate(self.states)}
        T, topics = np.zeros((len(at), len(at))), range(len(TOPICS))

        def go(source: tuple[str, int, int], *targets: tuple[str, int, int], p: float = 1.0) -> None:
            for target in targets:
                T[at[source], at[target]] += p / len(targets)

        go(("about", -1, 0), *(("subject", k, 0) for k in topics))
        go(("<eos>", -1, 0), ("<eos>", -1, 0))
        for k in topics:
            go(("subject", k, 0), (":", k, 0))
            go((":", k, 0), ("det1", k, 0), ("det1", k, 1))
            for n in (0, 1):
                go(("det1", k, n), ("adj1", k, n), p=ADJECTIVE)
                go(("det1", k, n), ("noun1", k, n), p=1 - ADJECTIVE)
                go(("adj1", k, n), ("noun1", k, n))
                go(("noun1", k, n), ("verb", k, n))
                go(("verb", k, n), ("det2", k, 0), ("det2", k, 1))
                go(("det2", k, n), ("adj2", k, n), p=ADJECTIVE)
                go(("det2", k, n), ("noun2", k, n), p=1 - ADJECTIVE)
                go(("adj2", k, n), ("noun2", k, n))
                go(("noun2", k, n), (".", k, 0))
            go((".", k, 0), ("<eos>", -1, 0), p=1 - MORE)
            go((".", k, 0), ("det1", k, 0), ("det1", k, 1), p=MORE * KEEP_TOPIC)
            others = [("det1", j, n) for j in topics if j != k for n in (0, 1)]
            go((".", k, 0), *others, p=MORE * (1 - KEEP_TOPIC))
        return T

    @cached_property
    def emission(self) -> np.ndarray:
        """(S, V): the word that a hidden state emits."""
        E = np.zeros((len(self.states), len(self.words)))

        def emit(row: int, words: tuple[str, ...] | list[str], p: float = 1.0) -> None:
            for word in words:
                E[row, self.number_of[word]] += p / len(words)

        for row, (place, k, n) in enumerate(self.states):
            if place in ("about", ":", ".", "<eos>"):
                emit(row, [place])
            elif place == "subject":
                emit(row, self._nouns(k, 0)[: -len(COMMON_NOUNS)])
            elif place.startswith("det"):
                emit(row, DETERMINERS[n])
            elif place.startswith("noun"):
                own = self._nouns(k, n)
                emit(row, own[: -len(COMMON_NOUNS)], 1 - COMMON)
                emit(row, own[-len(COMMON_NOUNS) :], COMMON)
            elif place.startswith("adj"):
                emit(row, self._adjectives(k))
            else:
                emit(row, self._verbs(k, n))
        return E

    def sample(self, n: int, rng: np.random.Generator) -> list[list[int]]:
        """n texts."""
        steps, state = self.transition.cumsum(-1), np.zeros(n, dtype=np.int64)
        words, end = self.emission.cumsum(-1), self.number_of["<eos>"]
        columns = []
        while True:
            uniforms = rng.random(n) * words[state, -1]
            columns.append((words[state] <= uniforms[:, None]).sum(-1))
            if (columns[-1] == end).all():
                break
            uniforms = rng.random(n) * steps[state, -1]
            state = (steps[state] <= uniforms[:, None]).sum(-1)
        table, start = np.stack(columns, axis=1), self.number_of["<bos>"]
        return [[start, *row[: row.index(end) + 1]] for row in table.tolist()]

    def log_probs(self, texts: list[list[int]], given: int = 1) -> np.ndarray:
        """Exact log-probability of each text after its first `given` tokens, by forward filtering: (n,) in nats.

        -inf for a text that the grammar cannot write. A text need not be finished.
        """
        result = np.zeros(len(texts))
        for i, text in enumerate(texts):
            belief, total = np.zeros(len(self.states)), 0.0
            belief[0] = 1.0
            for t, word in enumerate(text[1:], start=1):
                joint = belief * self.emission[:, word]
                mass = joint.sum()
                if mass == 0:
                    total = -np.inf
                    break
                total += np.log(mass) if t >= given else 0.0
                belief = joint / mass @ self.transition
            result[i] = total
        return result

    def text(self, ids: list[int]) -> str:
        """The words, without special tokens."""
        return " ".join(self.words[i] for i in ids if self.words[i] not in SPECIAL)

    def prompts(self) -> list[str]:
        """One prompt for every noun that can open a text."""
        return [f"about {noun} :" for k in range(len(TOPICS)) for noun in self._nouns(k, 0)[: -len(COMMON_NOUNS)]]

    def _topic(self, k: int) -> tuple[str, str, str]:
        return list(TOPICS.values())[k]

    def _nouns(self, k: int, n: int) -> list[str]:
        return [_inflected(word, n == 1) for word in [*self._topic(k)[0].split(), *COMMON_NOUNS]]

    def _verbs(self, k: int, n: int) -> list[str]:
        return [_inflected(word, n == 0) for word in [*self._topic(k)[1].split(), *COMMON_VERBS]]

    def _adjectives(self, k: int) -> list[str]:
        return [*self._topic(k)[2].split(), *COMMON_ADJECTIVES]


def _inflected(word: str, ending: bool) -> str:
    if not ending:
        return word
    if word == "child":
        return "children"
    return word + ("es" if word.endswith(("sh", "ch", "ss")) else "s")
