"""Real MNIST and ODDS files through the command's own function.

The folder is named by the environment variable DEEPSAD_TEST_DATA and holds `mnist.npz`
and the tables as `NAME.mat`; without it these tests are skipped.
"""

import os
import pathlib

import numpy as np
import pytest

from configs import mnist, odds
from experiments import run

DATA = os.environ.get("DEEPSAD_TEST_DATA", "")
needs = pytest.mark.skipif(
    not pathlib.Path(DATA, "mnist.npz").is_file() or not DATA,
    reason="DEEPSAD_TEST_DATA does not name a folder with the real data",
)

# Mean AUROC in per cent of the PyTorch original over five seeds, its split and its
# pretraining mended; the labelled anomalies and the split decide about +-2.5 for the
# hardest of these.
ORIGINAL = {"cardio": 98.4, "thyroid": 99.5}


@needs
@pytest.mark.parametrize("table", ORIGINAL)
def test_tables_reach_the_originals_auroc(table, tmp_path):
    values = []
    for seed in range(3):
        config = odds.get_config(table)
        config.data.dir, config.seed = DATA, seed
        values.append(100 * run.run(config, str(tmp_path / str(seed)))["auroc"])
    assert np.mean(values) == pytest.approx(ORIGINAL[table], abs=2.5)


@needs
def test_mnist_runs_from_the_command_to_the_pictures(tmp_path):
    config = mnist.get_config()
    config.data.dir = DATA
    config.data.ratio_known_outlier, config.data.ratio_pollution = 0.01, 0.1
    config.pretrain.epochs = config.train.epochs = 2
    results = run.run(config, str(tmp_path / "run"))
    # 5,923 zeros, as many polluting anomalies as make a tenth of the unlabelled, and
    # one labelled in a hundred: the counts of the original's protocol.
    assert results["n_train"] == 6647 and results["n_test"] == 10_000
    assert results["n_known_outlier"] == 66
    assert results["auroc"] > 0.5
    assert (tmp_path / "run" / "samples.png").stat().st_size > 10_000
