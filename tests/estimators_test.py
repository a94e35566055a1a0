"""Estimators by scikit-learn's own checks, and what is ours: labels, guarantees, files.

All estimators are one class but for their options, so that the checks that fit many
times run for three of them; ALL_CHECKS=1 runs everything for all.
"""

import copy
import os
import pathlib
import pickle

import jax
import joblib
import numpy as np
import pytest
import scipy.stats
import sklearn.neighbors
from sklearn.base import clone
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator

import deepsad_jax as sad
from deepsad_jax import calibrated, estimators, held_out
from deepsad_jax.data import delimited

NONE = sad.Stage(epochs=0)
PAPER = {"members": 1, "companions": ()}
SHORT = {"train": sad.Stage(epochs=2), "pretrain": None}
_THOROUGH = ("DeepSAD", "SupervisedClassifier", "KernelDensity")
_OF_EACH = """
check_methods_subset_invariance check_outliers_train check_fit2d_1sample
check_estimators_unfitted check_set_params check_get_params_invariance
check_parameters_default_constructible check_estimator_repr check_mixin_order
check_no_attributes_set_in_init check_estimator_cloneable check_valid_tag_types
check_do_not_raise_errors_in_init_or_set_params check_estimators_empty_data_messages
""".split()


def for_checks(cls):
    """The estimator with labels of classes, which it refuses, taken as unlabeled."""

    def fit(self, X, y=None):
        found = None if y is None else np.asarray(y)
        wants = self.__sklearn_tags__().target_tags.required
        foreign = found is not None and found.ndim == 1 and found.size
        if foreign and (wants or not np.isin(found, (-1, 0, 1)).all()):
            y = np.zeros(found.shape, int)
            y[: wants * 2] = -1
        elif y is None and wants:
            y = np.zeros(np.shape(X)[0], int)
            y[:2] = -1
        return cls.fit(self, X, y)

    made = type(f"{cls.__name__}ForChecks", (cls,), {"fit": fit})
    globals()[made.__name__] = made  # for pickle
    made.__module__ = __name__
    stages = {"train", "pretrain"} & set(cls().get_params())
    return made(**dict.fromkeys(stages, NONE))


def checks():
    for cls in estimators.METHODS.values():
        for estimator, check in estimator_checks_generator(for_checks(cls)):
            name = getattr(check, "func", check).__name__
            is_all = cls.__name__ in _THOROUGH or "ALL_CHECKS" in os.environ
            is_second = bool(getattr(check, "keywords", {}).get("readonly_memmap"))
            if is_all or (name in _OF_EACH and not is_second):
                yield pytest.param(estimator, check, id=f"{cls.__name__}-{name}")


@pytest.mark.filterwarnings("ignore:.*too few for a false alarm rate")
@pytest.mark.filterwarnings("ignore:y has 1 and no -1")
@pytest.mark.parametrize("estimator, check", list(checks()))
def test_checks_of_scikit_learn(estimator, check):
    check(estimator)


def rows(n=240, seed=0):
    """Rows, our labels, and the truth: every tenth is an anomaly, a third are known."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 4))
    truth = np.arange(n) % 10 == 0
    X[truth] += 4
    y = np.where(np.arange(n) % 3 == 0, np.where(truth, -1, 1), 0)
    return X, y, truth


@pytest.fixture(scope="module")
def deep():
    return estimators.DeepSAD(**SHORT).fit(*rows()[:2])


@pytest.fixture(scope="module", params=[0.2, "cross", None])
def density(request):
    X, y, _ = rows()
    return estimators.KernelDensity(calibration=request.param).fit(X, y)


@pytest.mark.parametrize(
    "y, said",
    [
        (np.arange(240) % 3, "y contains 2; allowed are 1 known normal, 0 unlab"),
        (np.arange(240) % 2 == 0, "y holds booleans, which may mean either"),
        (-np.ones(240), "y is -1 for all rows, known anomalies; there must be oth"),
        (np.zeros(7), "inconsistent numbers of samples"),
    ],
)
def test_labels_of_another_kind_are_refused(y, said):
    X = rows()[0]
    for cls in (estimators.KernelDensity, estimators.DeepSAD):
        with pytest.raises(ValueError, match=said):
            cls().fit(X, y)


def test_ones_without_minus_ones_are_warned_of_once():
    X, y, _ = rows()
    with pytest.warns(UserWarning, match="1 means known normal") as found:
        estimators.KernelDensity(selection="none").fit(X, np.maximum(y, 0))
    assert len(found) == 1


@pytest.mark.parametrize(
    "arguments, said",
    [
        ({"false_alarm_rate": 0}, "false_alarm_rate is 0; it must be in"),
        (
            {"calibration": 1.5},
            r"calibration is 1.5; .* in \(0, 1\), \"cross\" or None",
        ),
        ({"calibration": "loo"}, "calibration is 'loo'"),
        ({"scaling": "log"}, "scaling is 'log'; it must be minmax or robust"),
        ({"kernel": "round"}, "kernel is 'round'"),
    ],
)
def test_arguments_out_of_range_are_refused_by_fit(arguments, said):
    with pytest.raises(ValueError, match=said):
        estimators.KernelDensity(**arguments).fit(rows()[0])


def test_arguments_are_those_of_the_method():
    found = estimators.SSAD().get_params()
    assert found["kappa"] == 1.0 and found["random_state"] == 0
    with pytest.raises(TypeError, match="unexpected keyword argument 'epochs'"):
        estimators.DeepSAD(epochs=3)
    stage = sad.Stage(epochs=7, batch_size=9)
    given = {"train": stage, "pretrain": None, "eta": 2.0}
    options = estimators.DeepSAD(**given, **PAPER).options()
    assert options == sad.detectors.deep_sad.DeepSAD(**given)


def test_without_calibration_the_model_is_that_of_the_function():
    X, y, _ = rows()
    options = {"calibration": None, "random_state": 5, **PAPER}
    made = estimators.DeepSAD(**options, **SHORT).fit(X, y)
    data = sad.training_set(X, y)
    model, record = sad.fit(jax.random.key(5), data, **SHORT)
    np.testing.assert_array_equal(-made.score_samples(X), sad.score(model, X))
    assert made.record_.history.keys() == record.history.keys()


def test_a_seed_gives_the_same_bits_and_another_one_others(deep):
    X, y, _ = rows()
    again = clone(deep).fit(X, y)
    np.testing.assert_array_equal(again.score_samples(X), deep.score_samples(X))
    assert again.threshold_ == deep.threshold_
    other = clone(deep).set_params(random_state=1).fit(X, y)
    assert not np.array_equal(other.score_samples(X), deep.score_samples(X))
    drawn = np.random.RandomState(3)
    assert clone(deep).set_params(random_state=drawn).fit(X, y).threshold_ > 0


def test_alarms_are_one_thing_however_they_are_asked_for(density):
    X = rows(seed=1)[0]
    score, decision = density.score_samples(X), density.decision_function(X)
    predicted = density.predict(X)
    np.testing.assert_array_equal(decision, score - density.offset_)
    np.testing.assert_array_equal(predicted, np.where(decision < 0, -1, 1))
    judged = density.calibrated_.judge(X)
    np.testing.assert_array_equal(judged.score, -score)
    np.testing.assert_array_equal(judged.is_anomaly, predicted == -1)
    assert 0 < np.mean(predicted == -1) < 0.3
    if density.calibration is None:
        assert np.isnan(judged.p_value).all()
        with pytest.raises(ValueError, match="no rows were held out"):
            density.p_values(X)
        return
    p = density.p_values(X)
    np.testing.assert_array_equal(p <= 0.05, predicted == -1)
    np.testing.assert_array_equal(judged.p_value, p)
    looser = density.calibrated_.judge(X, false_alarm_rate=0.2)
    np.testing.assert_array_equal(looser.is_anomaly, p <= 0.2)
    order = np.argsort(score)  # the more anomalous, the smaller the p-value
    assert np.all(np.diff(p[order]) >= 0)


def trained_on(model, X):
    """Numbers of the rows that a kernel density has kept."""
    kept = {row.tobytes() for row in np.float32(model.variables["params"]["x"])}
    prepared = model.preprocessing(X)
    return np.array([row.tobytes() in kept for row in prepared])


def test_rows_are_held_out_that_are_no_known_anomalies():
    X, y, _ = rows()
    made = estimators.KernelDensity().fit(X, y)
    held = ~trained_on(made.model_, X)
    assert held.sum() == round(0.2 * (y >= 0).sum()) and not (y[held] < 0).any()
    expected = np.sort(sad.score(made.model_, X[held]))
    np.testing.assert_array_equal(made.calibration_scores_, expected)
    low, high = X[~held].min(axis=0), X[~held].max(axis=0)
    np.testing.assert_array_equal(made.model_.preprocessing.low, low)
    np.testing.assert_array_equal(made.model_.preprocessing.high, high)


def test_cross_conformal_p_values_are_those_of_the_definition():
    X, y, _ = rows(90)
    new = rows(30, seed=2)[0]
    made = estimators.KernelDensity(
        calibration="cross", bandwidth=0.3, selection="none"
    ).fit(X, y)
    assert trained_on(made.model_, X).all()
    total, seen = np.ones(len(new)), np.zeros(len(X), int)
    for model in made.calibrated_.folds:
        held = ~trained_on(model, X)
        seen += held
        oracle = sklearn.neighbors.KernelDensity(bandwidth=0.3)
        prepared = model.preprocessing(X).astype(float)
        oracle.fit(prepared[~held])
        calibration = -oracle.score_samples(prepared[held])
        fresh = model.preprocessing(new).astype(float)
        scores = -oracle.score_samples(fresh)
        total += (calibration[:, None] >= scores).sum(axis=0)
    np.testing.assert_array_equal(seen, y >= 0)
    expected = total / (1 + (y >= 0).sum())
    np.testing.assert_allclose(made.p_values(new), expected, rtol=1e-12)


@pytest.mark.parametrize("calibration", [0.3, "cross"])
def test_false_alarms_are_as_rare_as_asked(calibration):
    rate, counts = 0.1, []
    for seed in range(12):
        X = np.random.default_rng(seed).normal(size=(300, 3))
        made = estimators.KernelDensity(
            calibration=calibration,
            false_alarm_rate=rate,
            selection="none",
            random_state=seed,
        ).fit(X[:200])
        counts.append(np.sum(made.predict(X[200:]) == -1))
    # Counts of 100 rows that share one threshold of 60 or 200 calibration rows.
    size = 60 if calibration == 0.3 else 200
    k = int(rate * (size + 1))
    chances = scipy.stats.betabinom(100, k, size + 1 - k)
    error = chances.std() / np.sqrt(len(counts))
    assert chances.mean() - 4 * error < np.mean(counts) < 100 * rate + 4 * error


def test_known_anomalies_alone_are_too_little_to_hold_out():
    X, y, _ = rows()
    y[:] = -1
    y[0] = 0
    with pytest.raises(ValueError, match="240 rows, 1 of them no known anomalies"):
        estimators.KernelDensity().fit(X, y)
    with pytest.raises(ValueError, match="1 rows that are not known .* for 5 folds"):
        estimators.KernelDensity(calibration="cross").fit(X, y)


@pytest.mark.filterwarnings("ignore:x looks scaled")
def test_few_rows_for_a_rate_are_warned_of_and_give_no_alarms():
    X = rows()[0]
    with pytest.warns(UserWarning, match="48 calibration rows are too few .* 99 are"):
        made = estimators.KernelDensity(false_alarm_rate=0.01).fit(X)
    assert made.threshold_ == np.inf and (made.predict(X + 50) == 1).all()


def table(n, seed=0):
    pandas = pytest.importorskip("pandas")
    X, y, _ = rows(n, seed)
    rng = np.random.default_rng(seed)
    frame = pandas.DataFrame(X, columns=["a", "b", "c", "d"])
    frame["site"] = rng.choice(["north", "south"], n)
    frame.loc[frame.index % 7 == 0, "b"] = np.nan
    return frame, y


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    frame, y = table(240)
    folder = tmp_path_factory.mktemp("models") / "pump"
    made = estimators.DeepSAD(train=NONE, pretrain=sad.Stage(epochs=1)).fit(frame, y)
    made.save(folder)
    return made, folder


def test_a_folder_holds_all_of_an_estimator(saved):
    made, folder = saved
    new, _ = table(100, seed=1)
    read = estimators.load(folder)
    assert type(read) is estimators.DeepSAD
    for name, value in made.get_params().items():
        assert read.get_params()[name] == value, name
    np.testing.assert_array_equal(read.feature_names_in_, made.feature_names_in_)
    assert read.n_features_in_ == 5
    for ask in ("score_samples", "p_values", "decision_function", "predict"):
        np.testing.assert_array_equal(getattr(read, ask)(new), getattr(made, ask)(new))
    np.testing.assert_array_equal(
        sad.score(sad.load(folder), new), -made.score_samples(new)
    )
    judged = calibrated.load(folder).judge(new)
    np.testing.assert_array_equal(judged.p_value, made.p_values(new))


def test_folders_of_others_are_refused(saved, tmp_path, deep):
    made, folder = saved
    with pytest.raises(ValueError, match="a model of deep_sad, not of vae"):
        estimators.VAE.load(folder)
    with pytest.raises(FileExistsError):
        made.save(folder)
    with pytest.raises(FileNotFoundError):
        estimators.load(tmp_path / "none")
    sad.save(deep.model_, tmp_path / "bare")
    with pytest.raises(ValueError, match="holds a model without calibration"):
        estimators.load(tmp_path / "bare")
    calibrated.save(deep.calibrated_, tmp_path / "calibrated")
    with pytest.raises(ValueError, match="holds no estimator"):
        estimators.load(tmp_path / "calibrated")


def test_arguments_that_cannot_be_written_are_named(deep, tmp_path):
    made = copy.copy(deep).set_params(initial=deep.model_)
    with pytest.warns(UserWarning, match="^initial cannot be written"):
        made.save(tmp_path / "model")
    assert estimators.load(tmp_path / "model").initial is None


@pytest.mark.parametrize("way", [pickle, joblib])
def test_pickles_score_the_same(deep, density, way, tmp_path):
    X = rows(seed=3)[0]
    for made in (deep, density):
        if way is joblib:
            joblib.dump(made, tmp_path / "made")
            read = joblib.load(tmp_path / "made")
        else:
            read = pickle.loads(pickle.dumps(made))
        np.testing.assert_array_equal(read.score_samples(X), made.score_samples(X))
        np.testing.assert_array_equal(read.predict(X), made.predict(X))


def test_columns_are_known_by_their_names(saved):
    made, _ = saved
    new, _ = table(20, seed=2)
    with pytest.raises(ValueError, match="must be in the same order"):
        made.predict(new[["b", "a", "c", "d", "site"]])
    with pytest.raises(ValueError, match="missing:\n- site"):
        made.predict(new.drop(columns="site"))
    with pytest.raises(ValueError, match="column 'a' holds texts"):
        made.predict(new.assign(a="high"))
    with pytest.warns(UserWarning, match="20 unknown texts in column 'site'"):
        assert made.predict(new.assign(site="west")).shape == (20,)


def test_searches_and_pipelines_take_partly_labeled_rows():
    X, y, _ = rows()
    X[y == -1] -= 3  # closer to the others
    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    search = GridSearchCV(
        estimators.KernelDensity(selection="none", calibration=None),
        {"bandwidth": [0.05, 0.2]},
        scoring=estimators.labeled_auroc,
        cv=folds,
        error_score="raise",
    ).fit(X, y)
    expected = np.zeros((3, 2))
    for i, (train, test) in enumerate(folds.split(X, y)):
        low, high = X[train].min(axis=0), X[train].max(axis=0)
        scaled, test = np.float32((X - low) / (high - low)), test[y[test] != 0]
        for j, bandwidth in enumerate((0.05, 0.2)):
            oracle = sklearn.neighbors.KernelDensity(bandwidth=bandwidth)
            scores = -oracle.fit(scaled[train]).score_samples(scaled[test])
            expected[i, j] = roc_auc_score(y[test] == -1, scores)
    found = search.cv_results_["mean_test_score"]
    np.testing.assert_allclose(found, expected.mean(axis=0), rtol=1e-12)
    assert 0.5 < found[0] != found[1] < 1
    piped = make_pipeline(StandardScaler(), clone(search.best_estimator_))
    again = cross_val_score(
        piped, X, y, scoring=estimators.labeled_auroc, cv=folds, error_score="raise"
    )
    # Standardizing changes nothing before the scaling to [0, 1].
    np.testing.assert_allclose(again, expected[:, search.best_index_], atol=1e-3)


def test_the_scorer_compares_what_is_labeled(deep):
    X, y, _ = rows(seed=4)
    kept = y != 0
    expected = roc_auc_score(y[kept] == -1, -deep.score_samples(X)[kept])
    assert estimators.labeled_auroc(deep, X, y) == expected
    with pytest.warns(UserWarning, match="no row of this part is known to be normal"):
        found = estimators.labeled_auroc(deep, X, np.minimum(y, 0))
    assert found == roc_auc_score(y == -1, -deep.score_samples(X))
    with pytest.warns(UserWarning, match="does not hold both"):
        assert np.isnan(estimators.labeled_auroc(deep, X, np.maximum(y, 0)))


def test_an_evaluation_is_of_rows_that_no_fit_has_seen(monkeypatch):
    X, y, truth = rows(600)
    fits = []
    method = sad.detectors.kde.KDE
    fit_many = method.fit_many

    def spy(self, runs, **options):
        fits.extend(runs)
        return fit_many(self, runs, **options)

    monkeypatch.setattr(method, "fit_many", spy)
    made = estimators.KernelDensity(selection="none", bandwidth=0.3)
    found = made.evaluate(X, y)
    assert not hasattr(made, "calibrated_") and len(fits) == held_out.FOLDS
    seen = np.zeros(600, int)
    for run in fits:
        seen[run.data.indices[: int(run.data.size)]] += 1
    calibration, known = seen == 0, y != 0
    assert calibration.sum() == round(0.2 * (y >= 0).sum())
    assert (seen[known & ~calibration] == held_out.FOLDS - 1).all()
    assert (seen[~known & ~calibration] == held_out.FOLDS).all()
    assert found.anomalies == (y == -1).sum()
    assert found.normals == (y[~calibration] == 1).sum()
    assert found.low < found.auroc <= found.high and found.auroc > 0.95
    assert found.detected >= 0.8 * found.anomalies
    assert found.against == "known normal"
    check_relative(found)


def check_relative(found):
    """On the scale of several models, 1 is the threshold of each."""
    normals, anomalous = found.relative
    assert (len(normals), len(anomalous)) == (found.normals, found.anomalies)
    assert (normals > 1).sum() == found.false_alarms
    assert (anomalous > 1).sum() == found.detected


def test_without_known_normal_rows_anomalies_are_compared_with_unlabeled_ones():
    X, y, _ = rows()
    made = estimators.KernelDensity(selection="none", bandwidth=0.3)
    found = made.evaluate(X, np.minimum(y, 0))
    assert found.against == "unlabeled" and found.normals > 100
    assert any("look worse than it is" in said for said in found.sentences())
    with pytest.raises(ValueError, match="there are 1 known anomalies and"):
        made.evaluate(X, np.where(np.arange(240) == 0, -1, y.clip(0)))


def test_an_evaluation_has_the_programs_of_the_fit(compiled):
    X, y, _ = rows()
    made = estimators.DeepSAD(**SHORT)
    X = X[:, :1] ** [1, 2, 3, 4, 5, 6, 7]  # as many columns as no other table has
    loops = {"jit(loop)", "jit(_fun)"}  # with XLA's options of ours, and without
    assert loops & {*compiled(made.fit, X, y)}
    stages, found = [], []

    def evaluate():
        found.append(
            made.evaluate(X, y, observe=lambda stage, *_: stages.append(stage))
        )

    assert not loops & {*compiled(evaluate)}
    assert stages == ["train"] * len(stages) != []
    check_relative(found[0])


def test_an_evaluation_scales_by_the_rows_that_it_trains_on():
    """Each anomaly alone has a value other than 0 in a column of its own."""
    rng = np.random.default_rng(0)
    X = np.hstack([rng.normal(size=(210, 3)), np.zeros((210, 10))])
    X[200:, 3:] = 0.02 * np.eye(10)
    y = np.repeat([1, 0, -1], [100, 100, 10])
    found = estimators.DeepSAD(**SHORT).evaluate(X, y)
    # Scaled by all rows, each would be at 1 where all others are at 0.
    assert found.auroc < 0.75 and found.detected <= 3


@pytest.mark.parametrize("name", ["deep_sad", "table", "kde"])
def test_models_of_version_0_2_score_as_they_did(name):
    """`tests/save_models.py` wrote them."""
    folder = pathlib.Path(__file__).parent / "data" / "models-0.2"
    expected = np.load(folder / "expected.npz")
    made = estimators.load(folder / name)
    X = expected["x"]
    if name == "table":
        X = delimited.read(str(folder / "rows.csv"))
    found = -made.score_samples(X)
    np.testing.assert_allclose(found, expected[f"{name}_score"], rtol=1e-5, atol=1e-6)
    # Rounding may move a score across one of the calibration's.
    step = 1.01 / (1 + len(made.calibration_scores_))
    np.testing.assert_allclose(made.p_values(X), expected[f"{name}_p"], atol=step)
    np.testing.assert_allclose(
        made.threshold_, expected[f"{name}_threshold"], rtol=1e-6
    )
