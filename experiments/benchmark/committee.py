"""What the companions of `estimators.DeepSAD` cost, beside the paper's method alone."""

import subprocess
import sys

# Prints the seconds of a first fit, with compilation, and of a second.
_FIT = """
import sys, time
import numpy as np
from deepsad_jax import estimators
rows, columns, kind = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
rng = np.random.default_rng(0)
x, y = rng.normal(size=(rows, columns)), np.zeros(rows, int)
y[: rows // 100] = -1
x[y == -1] += 2
paper = {"members": 1, "companions": ()} if kind == "paper" else {}
for _ in range(2):
    began = time.perf_counter()
    estimators.DeepSAD(random_state=0, **paper).fit(x, y)
    print(time.perf_counter() - began)
"""


def committee(sizes: list[int], repeats: int, columns: int = 20) -> list[dict]:
    """Seconds of fits with defaults and of the paper's, in turn, in new processes.

    Args:
        sizes: numbers of rows.
        repeats: how often; the least counts.
        columns: of the tables.
    """
    rows = []
    for size in sizes:
        taken = {"paper": [], "default": []}
        for _ in range(repeats):
            for kind, times in taken.items():
                command = [sys.executable, "-c", _FIT, str(size), str(columns), kind]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    raise RuntimeError(done.stderr)
                times.append([float(line) for line in done.stdout.split()])
        first, second = (
            {kind: min(one[i] for one in times) for kind, times in taken.items()}
            for i in (0, 1)
        )
        rows.append(
            {
                "rows": size,
                "paper_first_s": first["paper"],
                "default_first_s": first["default"],
                "first_ratio": first["default"] / first["paper"],
                "paper_second_s": second["paper"],
                "default_second_s": second["default"],
                "second_ratio": second["default"] / second["paper"],
            }
        )
    return rows
