"""Deep SAD on the 8x8 digits that scikit-learn ships: the embedded main job.

    python -m experiments.run --config=configs/digits.py

Nines are normal; a few fours are known anomalies, the other eight digits are not known
at all. No download; under a minute on two CPU cores.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.network = "digits_LeNet"
    config.data.name = "digits"
    config.data.normal_class = 9
    config.data.known_outlier_class = 4
    config.data.ratio_known_outlier = 0.1
    # 108 normal training images: small batches.
    for stage in (config.pretrain, config.train):
        stage.batch_size = 32
        stage.learning_rate = 1e-3
    return config
