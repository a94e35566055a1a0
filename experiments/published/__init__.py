"""Published figures, in percent, as tables beside this file.

`deep_sad.csv`: Ruff et al., "Deep Semi-Supervised Anomaly Detection", the ICLR 2020
submission (OpenReview HkgH0TEYwH, 25 September 2019), Tables 3 to 6. Raw SSAD of the
table `ratio` at 1 % and more is suspect: it contradicts the table `pollution` where
both have the same setting, and equals that table's polluted rows.

`adbench.csv`: Han et al., "ADBench: Anomaly Detection Benchmark", NeurIPS 2022, Tables
D6 to D19, at 1, 5 and 10 % of labeled anomalies.
"""

import csv
import pathlib
from typing import NamedTuple

_HERE = pathlib.Path(__file__).parent


class Figure(NamedTuple):
    """One cell of a table of the paper.

    Attributes:
        mean, std: AUROC in percent, over `runs` experiments.
    """

    mean: float
    std: float
    runs: int


# Table, data, method, ratio of labeled anomalies, pollution, known classes.
Cell = tuple[str, str, str, float, float, int]


def deep_sad() -> dict[Cell, Figure]:
    """The paper's Tables 3 to 6, by cell."""
    with (_HERE / "deep_sad.csv").open(newline="") as file:
        return {
            (
                *(row["table"], row["data"], row["method"]),
                *(float(row["ratio"]), float(row["pollution"]), int(row["classes"])),
            ): Figure(float(row["mean"]), float(row["std"]), int(row["runs"]))
            for row in csv.DictReader(file)
        }


def is_suspect(cell: Cell) -> bool:
    """Whether the paper contradicts itself there."""
    return cell[0] == "ratio" and cell[2] == "ssad" and cell[3] > 0


def adbench(metric: str) -> dict[tuple[int, str], dict[str, float]]:
    """ADBench's means over three seeds.

    Args:
        metric: AUCROC or AUCPR, the average precision.

    Returns:
        Percent by algorithm, for each percent labeled and data set.
    """
    with (_HERE / "adbench.csv").open(newline="") as file:
        return {
            (int(row.pop("percent")), row.pop("data")): {
                name: float(value) for name, value in row.items() if value
            }
            for row in csv.DictReader(file)
            if row.pop("metric") == metric
        }
