"""The shallow baselines: kernel SSAD, one-class SVM, kernel density, Isolation Forest.

Each works on the features as they are or, as a hybrid, on the codes of an autoencoder
that is trained first or taken from an earlier run. All but SSAD see the training set
without its labels, known anomalies included, as in the paper.
"""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import ml_collections
import numpy as np
import sklearn.ensemble
import sklearn.model_selection

from deepsad_jax import (
    checkpoints,
    deep_sad,
    kde,
    kernels,
    metrics,
    networks,
    ocsvm,
    ssad,
    training,
)
from deepsad_jax.data import scenario
from experiments.methods import deep_sad as deep_sad_method
from experiments.methods.method import Method, Outcome

# The grids of the paper.
GAMMAS = 2.0 ** np.linspace(-7, 2, 10)
BANDWIDTHS = 2.0 ** np.linspace(0.5, 5, 10)
# The paper chooses gamma by the AUROC on a tenth of the test set.
SELECTION_SHARE, FOLDS = 0.1, 5

# Powers of larger numbers overflow.
_MOST_DEGREE, _MOST_COEF0 = 20, 1e6

Config = ml_collections.ConfigDict
Score = Callable[[np.ndarray], np.ndarray]


class _Detector(NamedTuple):
    """A family of detectors, one for each value of a hyper-parameter.

    Attributes:
        selections: ways to choose the value, the paper's first.
        parameter: its name.
        candidates: values to choose from.
        default: the value for `selection=none`, from the config and the examples.
        check: takes the config and semi_targets; raises ValueError for options of the
            method that are wrong.
        prepare: takes the config, examples `[n, D]` and semi_targets; returns a
            function from a value to a score. What all values share is done once.
    """

    selections: tuple[str, ...]
    parameter: str
    candidates: np.ndarray
    default: Callable[[Config, np.ndarray], float]
    check: Callable[[Config, np.ndarray], None]
    prepare: Callable[[Config, np.ndarray, np.ndarray], Callable[[float], Score]]


def _kernel(config: Config, gamma: float) -> kernels.Kernel:
    options = config.kernel
    return kernels.Kernel(gamma, options.coef0, options.name, options.degree)


def _check_kernel(config: Config) -> None:
    kernels.check_kernel(_kernel(config, 1.0))
    _check_least(config, "kernel.gamma", 0)
    options = config.kernel
    if not 1 <= options.degree <= _MOST_DEGREE:
        raise ValueError(
            f"config.kernel.degree is {options.degree}; it must be from 1 to "
            f"{_MOST_DEGREE}"
        )
    if not abs(options.coef0) <= _MOST_COEF0:
        raise ValueError(
            f"config.kernel.coef0 is {options.coef0}; it must be from "
            f"{-_MOST_COEF0:g} to {_MOST_COEF0:g}"
        )


def _check_least(config: Config, name: str, least: int) -> None:
    section, field = name.split(".")
    value = config[section][field]
    if not least <= value < np.inf:
        raise ValueError(
            f"config.{name} is {value}; it must be at least {least}, and finite"
        )


def _check_ssad(config, semi_targets):
    _check_kernel(config)
    ssad.check_options(semi_targets, **config.ssad)


def _prepare_ssad(config, x, semi_targets):
    gram = kernels.gram(_kernel(config, 1.0), x)

    def fit(gamma):
        model = ssad.fit(
            x, semi_targets, kernel=_kernel(config, gamma), gram=gram, **config.ssad
        )
        return functools.partial(ssad.score, ssad.compact(model))

    return fit


def _check_ocsvm(config, semi_targets):
    del semi_targets
    _check_kernel(config)
    ocsvm.check_options(**config.ocsvm)


def _prepare_ocsvm(config, x, semi_targets):
    del semi_targets
    gram = kernels.gram(_kernel(config, 1.0), x)

    def fit(gamma):
        model = ocsvm.fit(x, kernel=_kernel(config, gamma), gram=gram, **config.ocsvm)
        return functools.partial(ocsvm.score, ocsvm.compact(model))

    return fit


def _check_kde(config, semi_targets):
    del semi_targets
    kde.check_options(config.kde.kernel, 1.0)
    _check_least(config, "kde.bandwidth", 0)


def _prepare_kde(config, x, semi_targets):
    del semi_targets

    def fit(bandwidth):
        model = kde.fit(x, bandwidth=bandwidth, kernel=config.kde.kernel)
        return functools.partial(kde.score, model)

    return fit


def _check_forest(config, semi_targets):
    del semi_targets
    _check_least(config, "isoforest.n_trees", 1)
    _check_least(config, "isoforest.n_samples", 2)


def _prepare_forest(config, x, semi_targets):
    del semi_targets

    def fit(_):
        forest = sklearn.ensemble.IsolationForest(
            n_estimators=config.isoforest.n_trees,
            max_samples=min(config.isoforest.n_samples, len(x)),
            random_state=config.seed,
        ).fit(x)
        return lambda rows: -forest.score_samples(rows)

    return fit


def _default_gamma(config: Config, x: np.ndarray) -> float:
    """The config's gamma, or one over the median squared distance."""
    if config.kernel.gamma:
        return config.kernel.gamma
    few = np.random.default_rng(config.seed).permutation(x)[:1000].astype(np.float64)
    squared = np.asarray(kernels.base("rbf", few, few))
    positive = squared[squared > 0]
    return float(1 / np.median(positive)) if len(positive) else 1.0


def _default_bandwidth(config: Config, x: np.ndarray) -> float:
    """The config's bandwidth, or that of Scott's rule."""
    if config.kde.bandwidth:
        return config.kde.bandwidth
    spread = np.sqrt(np.mean(np.var(x, axis=0)))
    return float(spread * len(x) ** (-1 / (x.shape[1] + 4))) or 1.0


_BY_LABELS = ("test_auc", "train_labels", "none")
_OF_GAMMA = (_BY_LABELS, "gamma", GAMMAS, _default_gamma)
_DETECTORS = {
    "ssad": _Detector(*_OF_GAMMA, _check_ssad, _prepare_ssad),
    "ocsvm": _Detector(*_OF_GAMMA, _check_ocsvm, _prepare_ocsvm),
    "kde": _Detector(
        ("likelihood", *_BY_LABELS),
        "bandwidth",
        BANDWIDTHS,
        _default_bandwidth,
        _check_kde,
        _prepare_kde,
    ),
    "isoforest": _Detector(
        ("none",), "", np.array([]), lambda *_: 0.0, _check_forest, _prepare_forest
    ),
}


def run(
    problems: Sequence[scenario.Scenario],
    configs: Sequence[Config],
    on_epochs: Callable | None = None,
    keepers: Sequence[checkpoints.Keeper] | None = None,
) -> Iterator[Outcome]:
    """Fits and scores; see `Method.run`."""
    if not configs[0].hybrid:
        for problem, config in zip(problems, configs, strict=True):
            x = _rows(problem.x_train[problem.indices])
            yield _outcome(problem, config, x, _rows(problem.x_test), on_epochs)
        return
    autoencoders = deep_sad_method.AUTOENCODER.run(
        problems, [_of_autoencoder(config) for config in configs], on_epochs, keepers
    )
    for problem, config, trained in zip(problems, configs, autoencoders, strict=True):
        encoder = networks.encoder_variables(trained.model.autoencoder)
        encode = functools.partial(
            deep_sad.embed, trained.model.replace(encoder=encoder)
        )
        x, x_test = (
            np.asarray(encode(jnp.asarray(part)))
            for part in (problem.x_train[problem.indices], problem.x_test)
        )
        outcome = _outcome(problem, config, x, x_test, on_epochs)
        reference = {"ae": trained.scores}
        if config.method in ("ssad", "ocsvm") and config.kernel.name != "linear":
            linear = config.copy_and_resolve_references()
            linear.kernel.name = "linear"
            fit = _DETECTORS[config.method].prepare(linear, x, problem.semi_targets)
            reference["linear"] = np.asarray(fit(1.0)(x_test))
        yield outcome._replace(
            reference_scores=reference,
            seconds={**trained.seconds, **outcome.seconds},
            history=trained.history,
            model=trained.model,
            network=trained.network,
        )


def check(problem: scenario.Scenario, config: Config) -> None:
    """Raises ValueError for what of a config does not fit; see `Method.check`."""
    detector, selection = _DETECTORS[config.method], _selection(config)
    training.check_inputs("the training set", problem.x_train)
    training.check_inputs("the test set", problem.x_test)
    if selection not in detector.selections:
        raise ValueError(
            f"config.selection is {config.selection!r}; for {config.method} it must be "
            f'one of {", ".join(detector.selections)}, or "" for the first of these'
        )
    known = int(np.sum(problem.semi_targets == -1))
    others = len(problem.semi_targets) - known
    if selection == "train_labels" and known < 2:
        raise ValueError(
            f"config.selection train_labels needs at least 2 known anomalies, but "
            f"there are {known}; raise ratio_known_outlier or choose none"
        )
    if selection == "train_labels" and others < min(FOLDS, known):
        raise ValueError(
            f"config.selection train_labels needs at least {min(FOLDS, known)} "
            f"examples that are no known anomalies, but there are {others}; choose none"
        )
    rarest = min(np.sum(problem.labels_test == label) for label in (0, 1))
    if selection == "test_auc" and rarest < 2:
        raise ValueError(
            "config.selection test_auc needs at least 2 test examples of each kind; "
            "choose none"
        )
    size = len(problem.indices)
    if selection == "likelihood" and size < 2:
        raise ValueError(
            f"config.selection likelihood needs at least 2 training examples, but "
            f"there are {size}; choose none"
        )
    detector.check(config, problem.semi_targets)
    if selection == "train_labels":
        for train, _ in _folds(config, problem.semi_targets):
            detector.check(config, problem.semi_targets[train])
    if not config.hybrid:
        if config.load_model:
            raise ValueError(
                f"config.load_model is for networks and hybrids; {config.method} has "
                "no network unless config.hybrid is True"
            )
        return
    if not config.load_model:
        if not config.pretrain.enabled:
            raise ValueError(
                "config.hybrid needs the codes of an autoencoder: leave "
                "config.pretrain.enabled on, or name a model by config.load_model"
            )
    else:
        deep_sad_method.check_autoencoder(problem, config)
    deep_sad_method.AUTOENCODER.check(problem, _of_autoencoder(config))


def stages(config: Config) -> dict[str, int]:
    """The stages of a run with their steps; see `Method.stages`."""
    trained = {}
    if config.hybrid:
        trained = deep_sad_method.AUTOENCODER.stages(_of_autoencoder(config))
    steps = 1
    if _selection(config) == "test_auc":
        steps = len(_DETECTORS[config.method].candidates)
    return {**trained, "fit": steps}


def _selection(config: Config) -> str:
    if config.method in ("ssad", "ocsvm") and config.kernel.name == "linear":
        return "none"  # there is no gamma to choose
    return config.selection or _DETECTORS[config.method].selections[0]


def _of_autoencoder(config: Config) -> Config:
    """The config of the run that trains the autoencoder alone."""
    single = config.copy_and_resolve_references()
    single.method, single.hybrid = "autoencoder", False
    return single


def _rows(x: np.ndarray) -> np.ndarray:
    rows = x.reshape(len(x), -1)
    return rows / np.float32(255) if x.dtype == np.uint8 else rows.astype(np.float32)


def _outcome(problem, config, x, x_test, on_epochs) -> Outcome:
    began = time.perf_counter()
    tested = None
    if _selection(config) == "test_auc" and not config.selection_in_test:
        tested = np.ones(len(x_test), bool)
        tested[_selection_set(problem.labels_test, config.seed)] = False
    score, found = _fit(problem, config, x, x_test, on_epochs)
    seconds = time.perf_counter() - began
    scores = np.asarray(score(x_test))
    details = {"hybrid": config.hybrid, "selection": found}
    return Outcome(scores, {}, {"train": seconds}, {}, None, None, details, tested)


def _fit(problem, config, x, x_test, on_epochs) -> tuple[Score, dict[str, Any]]:
    """The detector of the chosen value, and how it was chosen."""
    detector, selection = _DETECTORS[config.method], _selection(config)
    semi_targets, candidates = problem.semi_targets, detector.candidates
    fit = detector.prepare(config, x, semi_targets)
    found = {"by": selection, "parameter": detector.parameter}

    def done(steps):
        if on_epochs is not None:
            on_epochs("fit", steps, None, {})

    if selection == "none":
        found["value"] = detector.default(config, x)
        chosen = fit(found["value"])
        done(1)
        return chosen, found
    if selection == "test_auc":
        few = _selection_set(problem.labels_test, config.seed)
        found |= {"examples": len(few), "in_test": config.selection_in_test}
        labels, criterion, fitted = problem.labels_test[few], [], []
        for value in candidates:
            fitted.append(fit(value))
            criterion.append(metrics.auroc(labels, fitted[-1](x_test[few])))
            done(len(criterion))
    elif selection == "train_labels":
        criterion = _cross_validated_auroc(detector, config, x, semi_targets)
    else:
        folds = min(FOLDS, len(x))
        criterion = kde.cross_validate(
            x, candidates, kernel=config.kde.kernel, folds=folds
        )
    best = int(np.argmax(criterion))
    found["value"] = candidates[best]
    found |= {"candidates": candidates, "criterion": np.asarray(criterion)}
    if selection == "test_auc":
        return fitted[best], found
    chosen = fit(candidates[best])
    done(1)
    return chosen, found


def _selection_set(labels: np.ndarray, seed: int) -> np.ndarray:
    """Rows of a tenth of the test set, of both kinds, drawn by the seed."""
    rng = np.random.default_rng(seed)
    parts = []
    for label in (0, 1):
        rows = rng.permutation(np.flatnonzero(labels == label))
        parts.append(rows[: max(1, int(SELECTION_SHARE * len(rows)))])
    return np.sort(np.concatenate(parts))


def _cross_validated_auroc(detector, config, x, semi_targets) -> np.ndarray:
    """Mean AUROC of known anomalies against all others in held-out training folds."""
    labels = (semi_targets == -1).astype(int)
    aurocs = []
    for train, held_out in _folds(config, semi_targets):
        fit = detector.prepare(config, x[train], semi_targets[train])
        aurocs.append(
            [
                metrics.auroc(labels[held_out], fit(value)(x[held_out]))
                for value in detector.candidates
            ]
        )
    return np.mean(aurocs, axis=0)


def _folds(config, semi_targets) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows to train on and rows held out, with known anomalies in each of them."""
    labels = (semi_targets == -1).astype(int)
    folds = sklearn.model_selection.StratifiedKFold(
        min(FOLDS, labels.sum()), shuffle=True, random_state=config.seed
    )
    return folds.split(labels, labels)


METHOD = Method(run, check, stages)
