import json

import numpy as np
import tqdm

from deepsad_jax import console
from experiments import progress


def test_each_epoch_is_written_once_though_bars_are_disabled(tmp_path, monkeypatch):
    def disabled(total, label, unit, **options):
        return tqdm.tqdm(total=total, disable=True)  # as TQDM_DISABLE=1 does

    monkeypatch.setattr(console, "bar", disabled)
    path = tmp_path / "metrics.jsonl"
    with progress.OneRun(path, {"pretrain": 2, "train": 3}) as observe:
        for stage, epochs in (("pretrain", (1, 2)), ("train", (1, 3))):
            for done in epochs:
                observe(stage, done, {"loss": np.arange(1.0, done + 1)})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["stage"], line["epoch"], line["loss"]) for line in lines] == [
        ("pretrain", 1, 1.0),
        ("pretrain", 2, 2.0),
        ("train", 1, 1.0),
        ("train", 2, 2.0),
        ("train", 3, 3.0),
    ]
