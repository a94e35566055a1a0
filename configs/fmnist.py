"""Deep SAD on Fashion-MNIST, with the hyper-parameters of the original (ICLR 2020,
section 4).

    python -m experiments.run --config=configs/fmnist.py

The paper's experiments vary data.normal_class, data.known_outlier_class and the ratios.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.network = "fmnist_LeNet"
    config.data.name = "fmnist"
    config.data.ratio_pollution = 0.1
    return config
