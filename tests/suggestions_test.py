"""Which rows are suggested, by what each strategy is meant to find."""

import numpy as np
import pytest

from deepsad_jax import cli, suggestions

SCORES = np.array([0.1, 0.9, 0.5, 0.45, 0.8, 0.2, 0.85, 0.55])
PLACES = np.array([[0], [10], [1], [0], [10], [2], [9], [1]], float)


def suggest(**options):
    return suggestions.suggest(SCORES, 0.5, PLACES, **options).tolist()


def test_anomalous_are_those_of_the_highest_scores():
    assert suggest(number=3, strategy="anomalous") == [1, 6, 4]


def test_uncertain_are_as_many_above_as_below_the_threshold():
    # 0.55 is the last above, 0.5 the first that is not.
    assert set(suggest(number=2, strategy="uncertain")) == {7, 2}
    assert set(suggest(number=4, strategy="uncertain")) == {7, 2, 3, 4}


def test_diverse_are_far_from_each_other_and_from_what_is_labeled():
    seen = np.arange(8) == 1  # at 10
    first, second = suggest(number=2, strategy="diverse", labeled=seen)
    assert PLACES[first] == 0 and PLACES[second] in (4, 5, 9, 2)
    rng = np.random.default_rng(0)
    groups = np.repeat(np.eye(5) * 100, 20, axis=0) + rng.normal(size=(100, 5))
    chosen = suggestions.suggest(
        rng.random(100), 0.5, groups, number=5, strategy="diverse"
    )
    assert sorted(chosen // 20) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("strategy", suggestions.STRATEGIES)
def test_no_row_twice_and_none_that_is_labeled(strategy):
    rng = np.random.default_rng(0)
    scores, embeddings = rng.random(60), rng.normal(size=(60, 3))
    seen = np.arange(60) % 3 == 0
    for number in (1, 7, 40, 100):
        chosen = suggestions.suggest(
            scores, 0.9, embeddings, number=number, strategy=strategy, labeled=seen
        )
        assert len(set(chosen.tolist())) == len(chosen) == min(number, 40)
        assert not seen[chosen].any()


def test_a_mixture_is_from_the_middles_of_groups_of_high_scores():
    rng = np.random.default_rng(0)
    middles = np.repeat(100 * np.eye(5), 20, axis=0)
    embeddings = middles + rng.normal(size=(100, 5))
    scores = np.repeat([5.0, 4.0, 3.0, 2.0, 1.0], 20) + 0.1 * rng.random(100)
    chosen = suggestions.suggest(scores, 4.5, embeddings, number=2)
    # The upper two fifths are the first two groups, the higher one first.
    assert (chosen // 20).tolist() == [0, 1]
    for group, row in enumerate(chosen):
        own = embeddings[20 * group : 20 * group + 20]
        far = np.linalg.norm(own - own.mean(axis=0), axis=1)
        assert row - 20 * group == far.argmin()


def test_equal_rows_make_fewer_groups_and_the_highest_scores_fill_up():
    scores = np.arange(10.0)
    embeddings = np.repeat([[0.0], [1.0]], 5, axis=0)
    assert suggestions.suggest(scores, 0, embeddings, number=3).tolist() == [9, 8, 4]


@pytest.mark.parametrize(
    "options, said",
    [
        ({"number": 0}, "number is 0; it must be at least 1"),
        (
            {"number": 2, "strategy": "best"},
            "strategy is 'best'; it must be one of mix",
        ),
        ({"number": 2, "labeled": [True]}, "8 scores, 8 embeddings and 1 marks"),
    ],
)
def test_what_is_wrong_is_said(options, said):
    with pytest.raises(ValueError, match=said):
        suggest(**options)


def test_the_command_names_the_same_strategies():
    assert cli.STRATEGIES == suggestions.STRATEGIES
