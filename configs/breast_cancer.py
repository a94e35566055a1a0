"""Deep SAD on the breast cancer table that scikit-learn ships; malignant is anomalous.

    python -m experiments.run --config=configs/breast_cancer.py

The pattern for a table of your own: --config.data.name=my_table.csv. No download.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.data.name = "breast_cancer"
    config.data.ratio_known_outlier = 0.05
    for stage in (config.pretrain, config.train):
        stage.learning_rate = 1e-3
        stage.batch_size = 64
    return config
