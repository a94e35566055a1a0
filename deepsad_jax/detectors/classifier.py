"""The supervised baseline: a binary classifier of known anomalies against the rest.

As in section 4 of Ruff et al., "Deep Semi-Supervised Anomaly Detection", ICLR 2020:
Deep SAD's encoder with random initial weights and one more linear unit, trained by
binary cross-entropy, where unlabeled examples count as normal.
"""

import dataclasses
from typing import Any, ClassVar

from deepsad_jax import epochs, model, networks, objectives, training
from deepsad_jax.detectors import deep

_KEY_USES = ("init", "train")


@dataclasses.dataclass(frozen=True)
class Classifier(deep.Deep):
    """The classifier; the score is the log-odds of an anomaly, which do not saturate.

    Attributes:
        encoder, train, dtype: as for `deep_sad.DeepSAD`.
        initial: a model of this method to go on from.
    """

    encoder: Any = None
    train: training.Stage = training.Stage()
    initial: model.Model | None = None
    dtype: str = "float32"

    method: ClassVar[str] = "supervised"
    uses_labels: ClassVar[bool] = True
    learns_from_anomalies: ClassVar[bool] = True

    def trained(self) -> dict[str, training.Stage]:
        return {"train": self.train}

    def objectives(self, shape: tuple[int, ...]) -> list[Any]:
        return [objectives.Classifier(self.pair(shape).encoder)]

    def check_initial(self, pair: networks.Pair) -> None:
        super().check_initial(pair)
        if objectives.Classifier(pair.encoder) != self.initial.objective:
            raise ValueError("initial is a model of another encoder")

    def fit_many(self, runs, *, plan=None, observe=None, keeper=None):
        sets, found = self.prepared(runs, plan)
        keys = [run.key for run in runs]
        trainer = epochs.Trainer(keys, sets, plan, _KEY_USES, observe, keeper)
        (objective,) = self.objectives(trainer.shape)
        if self.initial is None:
            variables = trainer.init(objective, "init")
        else:
            variables = trainer.put([self.initial.variables] * len(keys))
        variables = trainer.run("train", objective, self.train, variables)
        models = [
            model.make(self.method, objective, one, scaling, trainer.shape)
            for one, scaling in zip(trainer.take(variables), found, strict=True)
        ]
        return list(zip(models, trainer.records([[]] * len(keys)), strict=True))
