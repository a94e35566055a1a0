import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.linear_model
import sklearn.metrics

from deepsad_jax import losses, networks, supervised, training

FAST = training.Optimization(1e-3, epochs=40, milestones=(30,), batch_size=32)
SPEC = networks.mlp_for_table(10)


@pytest.fixture(scope="module")
def shifted():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 0, 1], [200, 30, 200, 60])
    x = 0.5 + rng.normal(0, 0.1, (490, 10)) + 0.1 * labels[:, None]
    x = x.astype(np.float32)
    data = training.training_set(x[:230], np.repeat([0, -1], [200, 30]))
    return data, x[230:], labels[230:]


def test_it_is_no_worse_than_logistic_regression(shifted):
    data, x_test, labels = shifted
    fitted = supervised.fit(jax.random.key(0), data, network=SPEC, train=FAST)
    scores = np.asarray(supervised.score(fitted, x_test))
    plain = sklearn.linear_model.LogisticRegression(C=100.0)
    plain.fit(data.x, data.semi_targets < 0)
    expected = sklearn.metrics.roc_auc_score(labels, plain.decision_function(x_test))
    spread = np.sqrt(0.25 / 60)  # of an AUROC of sixty anomalies
    assert sklearn.metrics.roc_auc_score(labels, scores) > expected - spread


def test_without_known_anomalies_there_is_nothing_to_learn(shifted):
    data = shifted[0]._replace(semi_targets=0 * shifted[0].semi_targets)
    with pytest.raises(ValueError, match="supervised learns from known anomalies"):
        supervised.fit(jax.random.key(0), data, network=SPEC, train=FAST)


def test_the_loss_is_the_cross_entropy_of_the_logits():
    objective = supervised.objective(SPEC)
    params, model_state = objective.init(jax.random.key(0))
    x = np.random.default_rng(0).random((12, 10), np.float32)
    semi_targets = np.array([0, 1, -1] * 4)
    per_example, _ = objective.loss(
        params, model_state, training.Batch(x, semi_targets), jax.random.key(1)
    )
    model = supervised.Classifier(SPEC)
    logits, _ = model.apply(
        {"params": params, **model_state}, x, True, mutable=["batch_stats"]
    )
    expected = losses.classification_loss(logits, semi_targets)
    np.testing.assert_allclose(per_example, expected, rtol=1e-6)
    # A score is the logit that evaluation has, whatever else is in the batch.
    alone = objective.score(params, model_state, x[:1])
    together = objective.score(params, model_state, x)
    np.testing.assert_allclose(alone, together[:1], rtol=1e-5)
    assert jnp.shape(together) == (12,)
