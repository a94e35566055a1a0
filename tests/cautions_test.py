"""What a page doubts, on data where that is known."""

import numpy as np
from scipy import stats

from deepsad_jax.report import cautions

RNG = np.random.default_rng(0)


def test_a_constant_network_has_collapsed():
    scores = RNG.normal(3, 1, 100)
    assert not cautions.of_scores(scores)
    assert "collapsed" in cautions.of_scores(3 + 1e-6 * scores)[0]
    assert "collapsed" in cautions.of_scores(np.ones(100))[0]


def test_few_labels_are_called_few():
    def said(known, normal, anomalous, method="ssad"):
        labels = np.repeat([0, 1], [normal, anomalous])
        return " ".join(cautions.of_numbers(method, known, labels))

    assert said(10, 20, 20) == said(None, 20, 20) == said(0, 20, 20, "kde") == ""
    assert "Only 9 anomalies" in said(9, 20, 20)
    assert "19 normal and 20 anomalous examples: these are few" in said(None, 19, 20)
    assert "Nothing can be said" in said(None, 20, 0)


def test_training_that_taught_nothing_is_named():
    assert not cautions.of_figures(0.9, 0.8, 0.7)
    assert "is not clear of" in cautions.of_figures(0.9, 0.8, 0.85)[0]
    assert "is no better than" in cautions.of_figures(0.9, 0.8, 0.95)[0]
    assert "below one half" in cautions.of_figures(0.4, 0.3, None)[0]


def test_columns_that_drift_are_found_and_no_others():
    train, test = RNG.normal(size=(400, 6)), RNG.normal(size=(300, 6))
    assert cautions.drift(train, test) == []
    test[:, 4] += 1
    test[:, 2] *= 5
    test[::3, 1] = np.nan  # gaps are no drift
    found = cautions.drift(train, test)
    assert [i for i, _ in found] == [4, 2]
    expected = stats.ks_2samp(train[:, 4], test[:, 4]).statistic
    np.testing.assert_allclose(found[0][1], expected)
    # Close to the bound: as SciPy's limit of the distribution decides.
    low, high = RNG.normal(size=(60, 200)), RNG.normal(1.1, 1, size=(40, 200))
    tests = [stats.ks_2samp(*pair) for pair in zip(low.T, high.T, strict=True)]
    p = stats.kstwobign.sf(np.sqrt(24) * np.array([t.statistic for t in tests]))
    assert 20 < np.sum(p < 1e-3 / 200) < 180
    found = cautions.drift(low, high)
    assert {i for i, _ in found} == set(np.flatnonzero(p < 1e-3 / 200).tolist())
    assert cautions.of_drift([("a", 0.51234)])[0].count("a (0.51)") == 1
    assert cautions.drift(train[:1], test) == cautions.of_drift([]) == []
