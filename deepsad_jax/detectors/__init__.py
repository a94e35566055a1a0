"""The methods: each is a frozen dataclass of its options, with `check` and `fit`.

`METHODS` has them by the short names that configs use.
"""

from deepsad_jax.detectors import (
    classifier,
    deep_sad,
    generative,
    isolation_forest,
    kde,
    kernel_machines,
)

METHODS = {
    "deep_sad": deep_sad.DeepSAD,
    "deep_svdd": deep_sad.DeepSVDD,
    "autoencoder": deep_sad.Autoencoder,
    "vae": generative.VAE,
    "m2": generative.M2,
    "m1_m2": generative.M1M2,
    "supervised": classifier.Classifier,
    "ssad": kernel_machines.SSAD,
    "ocsvm": kernel_machines.OneClassSVM,
    "kde": kde.KDE,
    "isoforest": isolation_forest.IsolationForest,
}
