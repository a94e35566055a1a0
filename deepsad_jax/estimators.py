"""The methods as estimators of scikit-learn.

    detector = DeepSAD(random_state=0).fit(table, y)     # +1 normal, 0 unknown, -1
    detector.predict(new)                                # +1 inlier, -1 anomaly
    detector.p_values(new)
    detector.save("pump"); detector = DeepSAD.load("pump")

Tables are given raw: arrays, or data frames with texts and missing values. As in all of
scikit-learn, `score_samples` is higher for what is more normal.
"""

import dataclasses
import os
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import sklearn.base
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils import check_random_state, column_or_1d, validation

from deepsad_jax import (
    calibrated,
    decisions,
    detectors,
    evaluation,
    explanations,
    held_out,
    labels,
    methods,
    model,
    programs,
    signatures,
    values,
)
from deepsad_jax.data import frames


class Detector(OutlierMixin, BaseEstimator):
    """The base of all estimators: one for each method, whose options are arguments.

    Args:
        random_state: a seed, a `np.random.RandomState`, or None; the same seed gives
            the same bits.
        false_alarm_rate: the share of normal rows for which `predict` may say -1.
        calibration: the share of the rows without known anomalies that is held out for
            p-values and the threshold, in (0, 1); "cross" for five folds that are held
            out in turn, which needs six fits, in one program; None for no p-values, and
            a threshold from the training rows, about which nothing is promised.
        scaling: of numbers, "minmax" or "robust"; see `tables.learn`.
        options: those of the method. A stage that is "default" is the method's; its
            batches are at most as large as the training set.

    Attributes:
        model_: a `model.Model`.
        record_: a `methods.Record` of the fit; not after `load`.
        calibrated_: a `calibrated.Calibrated`, which scores without scikit-learn.
        offset_: the threshold as of `score_samples`, of which it is the negative.
        n_features_in_, feature_names_in_: as in all of scikit-learn.
    """

    method: ClassVar[type[methods.Method]]

    def __init_subclass__(cls, method: type[methods.Method] | None = None, **defaults):
        super().__init_subclass__()
        if method is not None:
            cls.method, cls.__init__ = method, signatures.init_of(method, defaults)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.string = tags.input_tags.categorical = True
        tags.target_tags.required = self._needs_anomalies
        return tags

    @property
    def _needs_anomalies(self) -> bool:
        return getattr(self.method, "learns_from_anomalies", False)

    def options(self) -> methods.Method:
        """The options of the method."""
        chosen = {}
        for field in dataclasses.fields(self.method):
            value = getattr(self, field.name)
            is_default = isinstance(value, str) and value == "default"
            chosen[field.name] = field.default if is_default else value
        return self.method(**chosen)

    def fit(
        self, X: Any, y: Any = None, *, observe: methods.Observe | None = None
    ) -> "Detector":
        """Trains, and calibrates.

        Args:
            X: raw rows: an array of numbers `[n, ...]`, or a table, as pandas, polars,
                pyarrow and mappings are.
            y: +1 known normal, 0 unlabeled, -1 known anomaly, `[n]`; all unlabeled by
                default.
            observe: called as `observe(stage, epochs done, history)` while training.

        Raises:
            ValueError: for rows, labels or arguments that are not as said.
        """
        rows, targets = self._examples(X, y)
        made = self._held_out()
        is_cross = isinstance(self.calibration, str)
        fit = held_out.cross if is_cross else held_out.split
        self.calibrated_, self.record_ = fit(made, rows, targets, observe)
        _ = self.calibrated_.threshold  # warns where rows are too few for the rate
        return self

    def evaluate(
        self, X: Any, y: Any, *, observe: methods.Observe | None = None
    ) -> evaluation.Evaluation:
        """How well other fits tell labeled rows that they have not seen.

        Known anomalies are held out in turn, in up to five folds, together with known
        normal rows (unlabeled ones, where none are known); the fits are runs in one
        program, and this estimator stays as it is. Thresholds come from other rows that
        are held out, as many as those of `calibration`, or a fifth.

        Args:
            X, y, observe: as of `fit`.

        Raises:
            ValueError: as `fit`, or if there are fewer than two of a kind.
        """
        other = sklearn.base.clone(self)
        rows, targets = other._examples(X, y)
        return held_out.evaluate(other._held_out(), rows, targets, observe)

    def _held_out(self) -> held_out.Settings:
        share = self.calibration
        is_word = share is None or (isinstance(share, str) and share == "cross")
        if not is_word:
            try:
                decisions.check_rate("calibration", share)
            except ValueError as error:
                raise ValueError(f'{error}, "cross" or None') from None
        return held_out.Settings(
            self.options(),
            self.scaling,
            self.false_alarm_rate,
            0.0 if is_word else share,
            _seed(self.random_state),
        )

    def _examples(self, X, y):
        """Checked rows, an array or a frame, and their labels."""
        rows = self._checked(X, reset=True)
        if y is None:
            if self._needs_anomalies:
                raise ValueError(
                    f"requires y to be passed, but the target y is None: "
                    f"{type(self).__name__} learns from known anomalies"
                )
            return rows, np.zeros(len(rows), np.int8)
        y = column_or_1d(y, warn=True)
        validation.check_consistent_length(rows, y)
        y = y.astype(np.float64) if y.dtype.kind == "O" else y
        targets = labels.check_semi_targets("y", y, len(rows))
        if (targets == -1).all():
            raise ValueError(
                "y is -1 for all rows, known anomalies; there must be others, known "
                "normal (+1) or unlabeled (0)"
            )
        return rows, targets

    def _checked(self, X, reset=False):
        """X as an array or a frame, with the names and number of features checked."""
        if isinstance(X, np.ndarray) or not frames.is_table(X):
            least = 2 if reset else 1
            X = validation.validate_data(
                self,
                X,
                reset=reset,
                allow_nd=True,
                ensure_all_finite="allow-nan",
                ensure_min_samples=least,
            )
            return X.astype(np.float64) if X.dtype.kind == "b" else X
        frame = frames.read(X, "X")
        if not isinstance(X, (frames.Frame, Mapping)):
            validation.validate_data(self, X, reset=reset, skip_check_array=True)
        elif reset:  # what scikit-learn does not know; the model checks its names
            self.n_features_in_ = len(frame.names)
            if frame.named:
                self.feature_names_in_ = np.array(frame.names, object)
        return frame

    def score_samples(self, X: Any) -> np.ndarray:
        """Minus the anomaly score of raw rows, `[n]`: higher = more normal.

        Raises:
            ValueError: if X does not have the columns of the training.
        """
        return -self._detector().score(self._checked(X)).astype(np.float64)

    def decision_function(self, X: Any) -> np.ndarray:
        """`score_samples` minus `offset_`, `[n]`: below 0 for anomalies."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> np.ndarray:
        """+1 for inliers and -1 for anomalies, `[n]`: those whose p-values are at most
        the false alarm rate."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def fit_predict(self, X: Any, y: Any = None, **kwargs: Any) -> np.ndarray:
        """`predict` of the rows of `fit`."""
        return self.fit(X, y, **kwargs).predict(X)

    def p_values(self, X: Any) -> np.ndarray:
        """Conformal p-values of raw rows, `[n]`; see `decisions.p_values`.

        Raises:
            ValueError: also if calibration is None.
        """
        return self._detector().p_values(self._checked(X))

    def explain(self, X: Any, *, neighbors: int = 3) -> explanations.Explanation:
        """Why raw rows have their anomaly scores; see `explanations.explain`.

        Raises:
            ValueError: if X does not have the columns of the training.
        """
        return explanations.explain(
            self._detector(), self._checked(X), neighbors=neighbors
        )

    def _detector(self) -> calibrated.Calibrated:
        validation.check_is_fitted(self)
        return self.calibrated_

    @property
    def model_(self) -> model.Model:
        return self.calibrated_.model

    @property
    def threshold_(self) -> float:
        return self.calibrated_.threshold

    @property
    def offset_(self) -> float:
        return -self.calibrated_.threshold

    @property
    def calibration_scores_(self) -> np.ndarray:
        return np.concatenate(self.calibrated_.scores)

    def save(self, folder: str | os.PathLike) -> None:
        """Writes the fitted estimator to a new folder, arrays and JSON.

        The folder is also one of `calibrated.load` and `model.load`. Arguments that
        cannot be written, such as a model to start from, are left out with a warning.

        Raises:
            FileExistsError: if the folder exists.
            OSError: if it cannot be written.
        """
        detector, params, left_out = self._detector(), {}, []
        for name, value in self.get_params(deep=False).items():
            try:
                params[name] = values.to_json(value)
            except ValueError:
                left_out.append(name)
        if left_out:
            warnings.warn(
                f"{', '.join(left_out)} cannot be written and will have the default "
                "after load, which matters for another fit alone",
                UserWarning,
                stacklevel=2,
            )
        mine = {"n_features_in": self.n_features_in_, "params": params}
        if hasattr(self, "feature_names_in_"):
            mine["feature_names_in"] = list(self.feature_names_in_)
        details = {**detector.details, "estimator": mine}
        calibrated.save(dataclasses.replace(detector, details=details), folder)

    def export(self, folder: str | os.PathLike, *, format: str = "stablehlo") -> None:
        """Writes the fitted estimator as a program to a new folder.

        Args, Raises: as of `programs.export`.
        """
        programs.export(self._detector(), folder, format=format)

    @classmethod
    def load(cls, folder: str | os.PathLike, **own: Any) -> "Detector":
        """Reads what `save` has written.

        Args:
            folder: the folder.
            own: `encoder`, `decoder` and `loss` of your own, as of `model.load`.

        Raises:
            FileNotFoundError: if there is no such folder.
            ValueError: if it holds no estimator, or one of another method.
        """
        found = load(folder, **own)
        if not issubclass(cls, type(found)):
            found, wanted = found.method.method, cls.method.method
            raise ValueError(f"{folder} holds a model of {found}, not of {wanted}")
        return found if type(found) is cls else cls._of(found.calibrated_, own)

    @classmethod
    def _of(cls, detector, own):
        mine = detector.details["estimator"]
        params = {name: values.from_json(p) for name, p in mine["params"].items()}
        estimator = cls(**{**params, **own})
        estimator.calibrated_ = detector
        estimator.n_features_in_ = mine["n_features_in"]
        if "feature_names_in" in mine:
            estimator.feature_names_in_ = np.array(mine["feature_names_in"], object)
        return estimator


def _seed(random_state) -> int:
    if isinstance(random_state, (int, np.integer)) and random_state >= 0:
        return int(random_state)
    return int(check_random_state(random_state).randint(2**31))


class DeepSAD(
    Detector,
    method=detectors.deep_sad.DeepSAD,
    members=2,
    companions=("linear", "forest", "extra", "isolation"),
):
    """Deep SAD, which learns from unlabeled rows, known normal ones and anomalies.

    Networks and cheaper detectors judge together, which tells most where labels are few
    and unlabeled rows are not clean: docs/few_labels.md has the figures. `members=1,
    companions=()` is the paper's.
    """


class DeepSVDD(Detector, method=detectors.deep_sad.DeepSVDD):
    """Deep SVDD, for which all rows of the training are unlabeled."""


class AutoencoderDetector(Detector, method=detectors.deep_sad.Autoencoder):
    """An autoencoder's reconstruction error; it sees no labels."""


class VAE(Detector, method=detectors.generative.VAE):
    """A variational autoencoder's negative bound; it sees no labels."""


class M2(Detector, method=detectors.generative.M2):
    """The generative model M2, which needs known anomalies."""


class M1M2(Detector, method=detectors.generative.M1M2):
    """M2 on the codes of a VAE, which needs known anomalies."""


class SupervisedClassifier(Detector, method=detectors.classifier.Classifier):
    """A classifier of known anomalies against the rest, as anomaly detector."""


class SSAD(Detector, method=detectors.kernel_machines.SSAD):
    """Semi-supervised anomaly detection with kernels."""


class KernelDensity(Detector, method=detectors.kde.KDE):
    """Kernel density estimation; it sees no labels."""


labeled_auroc = evaluation.labeled_auroc
METHODS = {cls.method.method: cls for cls in Detector.__subclasses__()}


def load(folder: str | os.PathLike, **own: Any) -> Detector:
    """The estimator of any method that `save` has written; see `Detector.load`."""
    detector = calibrated.load(folder, **own)
    found = detector.model.info["method"]
    if found not in METHODS or "estimator" not in detector.details:
        raise ValueError(f"{folder} holds no estimator; read it with calibrated.load")
    return METHODS[found]._of(detector, own)
