import dataclasses

import jax
import numpy as np
import pytest
import sklearn.linear_model
import sklearn.metrics

from deepsad_jax import model, networks, training
from deepsad_jax.detectors import classifier

FAST = training.Stage(training.Adam(1e-3, (30,)), epochs=40, batch_size=32)
NOTHING = dataclasses.replace(FAST, epochs=0)


@pytest.fixture(scope="module")
def shifted():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 0, 1], [200, 30, 200, 60])
    x = 0.5 + rng.normal(0, 0.1, (490, 10)) + 0.1 * labels[:, None]
    x = x.astype(np.float32)
    data = training.training_set(x[:230], np.repeat([0, -1], [200, 30]))
    return data, x[230:], labels[230:]


def fit(data, train=FAST, **options):
    return classifier.Classifier(train=train, **options).fit(jax.random.key(0), data)


def test_it_is_no_worse_than_logistic_regression(shifted):
    data, x_test, labels = shifted
    fitted, record = fit(data)
    scores = model.score(fitted, x_test)
    plain = sklearn.linear_model.LogisticRegression(C=100.0)
    plain.fit(data.x, data.semi_targets < 0)
    expected = sklearn.metrics.roc_auc_score(labels, plain.decision_function(x_test))
    spread = np.sqrt(0.25 / 60)  # of an AUROC of sixty anomalies
    assert sklearn.metrics.roc_auc_score(labels, scores) > expected - spread
    assert set(record.history) == {"train"} and fitted.base is None


def test_it_goes_on_from_a_model_of_its_own(shifted):
    data, x_test, _ = shifted
    first, _ = fit(data, NOTHING)
    again, _ = fit(data, NOTHING, initial=first)
    scores = (model.score(one, x_test) for one in (first, again))
    np.testing.assert_array_equal(*scores)
    other = networks.MLPEncoder((8,), 3)
    with pytest.raises(ValueError, match="initial is a model of another encoder"):
        fit(data, NOTHING, initial=first, encoder=other)


def test_without_known_anomalies_there_is_nothing_to_learn(shifted):
    data = shifted[0]._replace(semi_targets=0 * shifted[0].semi_targets)
    with pytest.raises(ValueError, match="supervised learns from known anomalies"):
        fit(data)
