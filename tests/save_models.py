"""Writes models of this version among the test data, which later versions must read.

python -m tests.save_models          # once for each version, before its release
"""

import pathlib

import numpy as np

import deepsad_jax as sad
from deepsad_jax import estimators
from deepsad_jax.data import delimited

ROOT = pathlib.Path(__file__).parent / "data"
STAGE = sad.Stage(epochs=5, batch_size=32)


def write_rows(path):
    """A table of numbers, texts, booleans and gaps; its first rows are anomalies."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(150, 3)).round(2)
    x[:10] += 4
    lines = ["pressure,flow,hours,site,is_new"]
    for i, (pressure, flow, hours) in enumerate(x):
        site, is_new = rng.choice(["north", "south", "west"]), rng.random() < 0.3
        flow = "" if i % 9 == 0 else flow
        lines.append(f"{pressure},{flow},{int(100 * hours)},{site},{is_new}")
    path.write_text("\n".join(lines) + "\n")
    return x


def main():
    """Models, rows, and what the models say of the rows."""
    folder = ROOT / f"models-{'.'.join(sad.__version__.split('.')[:2])}"
    folder.mkdir()
    x = write_rows(folder / "rows.csv")
    table = delimited.read(str(folder / "rows.csv"))
    y = np.zeros(len(x), int)
    y[:5], y[20:50] = -1, 1
    deep = {"train": STAGE, "pretrain": STAGE}
    made = {
        "deep_sad": (estimators.DeepSAD(**deep), x),
        "table": (estimators.DeepSAD(scaling="robust", **deep), table),
        "kde": (estimators.KernelDensity(calibration="cross"), x),
    }
    said = {"x": x}
    for name, (estimator, rows) in made.items():
        estimator.fit(rows, y).save(folder / name)
        said[f"{name}_score"] = -estimator.score_samples(rows)
        said[f"{name}_p"] = estimator.p_values(rows)
        said[f"{name}_threshold"] = np.float64(estimator.threshold_)
    np.savez_compressed(folder / "expected.npz", **said)
    for path in folder.rglob("commit_success.txt"):  # names this machine's folders
        path.unlink()


if __name__ == "__main__":
    main()
