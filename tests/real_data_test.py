"""Real MNIST and ODDS files through the command's own function.

The folder is named by the environment variable DEEPSAD_TEST_DATA and holds `mnist.npz`
and the tables as `NAME.mat`; without it these tests are skipped.
"""

import json
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
# Tables 3 to 6 of Ruff et al., ICLR 2020 submission, beside the checkout.
PUBLISHED = (
    pathlib.Path(__file__)
    .parents[2]
    .joinpath(*("shared", "reference", "published", "deep_sad_tables.json"))
)

# Mean AUROC in percent of the PyTorch original over five seeds, its split and its
# pretraining mended; the labeled anomalies and the split decide about +-2.5 for the
# hardest of these.
ORIGINAL = {"cardio": 98.4, "thyroid": 99.5}


def published(**fields):
    """Mean, standard deviation and number of the published experiments of a row."""
    if not PUBLISHED.is_file():
        pytest.skip("the published tables are not there")
    records = json.loads(PUBLISHED.read_text())["records"]
    (found,) = [r for r in records if all(r[k] == v for k, v in fields.items())]
    return found["mean_auc"], found["std_auc"], found["experiments"]


@needs
@pytest.mark.parametrize("table", ORIGINAL)
def test_tables_reach_the_originals_auroc(table, tmp_path):
    values = []
    for seed in range(3):
        config = odds.get_config(table)
        config.data.dir, config.seed = DATA, seed
        values.append(100 * run.run(config, str(tmp_path / str(seed)))["auroc"])
    assert np.mean(values) == pytest.approx(ORIGINAL[table], abs=2.5)
    # And what is published, up to two deviations of the difference of such means.
    mean, std, count = published(table="odds", dataset=table, method="Deep SAD")
    assert np.mean(values) > mean - 2 * std * np.sqrt(1 / count + 1 / len(values))


@needs
def test_mnist_runs_from_the_command_to_the_pictures(tmp_path):
    config = mnist.get_config()
    config.data.dir = DATA
    config.data.ratio_known_outlier, config.data.ratio_pollution = 0.01, 0.1
    config.pretrain.epochs = config.train.epochs = 2
    results = run.run(config, str(tmp_path / "run"))
    # 5,923 zeros, as many polluting anomalies as make a tenth of the unlabeled, and
    # one labeled in a hundred: the counts of the original's protocol.
    assert results["n_train"] == 6647 and results["n_test"] == 10_000
    assert results["n_known_outlier"] == 66
    assert (tmp_path / "run" / "samples.png").stat().st_size > 10_000
    # One of the published 90 pairs of classes, with fewer labels and epochs.
    mean, std, _ = published(
        **{"table": "scenario_ii", "dataset": "MNIST", "method": "Deep SAD"},
        gamma_p=0.1,
    )
    assert 100 * results["auroc"] > mean - 2 * std
