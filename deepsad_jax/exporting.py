"""The command `deepsad export`: a model as a program that needs no deepsad_jax."""

import json
import pathlib
from typing import Any

from deepsad_jax import calibrated, programs


def export(folder: str, options: Any) -> None:
    """Writes the program of a model, and says what it takes.

    Args:
        folder: where the model is.
        options: the flags of the command, see `cli`.

    Raises:
        ValueError: for what is wrong with the model or a flag.
        OSError: if it cannot be written.
    """
    made = calibrated.read(folder)
    try:
        programs.export(made, options.output, format=options.format)
    except ImportError as error:
        raise ValueError(str(error)) from error
    written = pathlib.Path(options.output)
    about = json.loads((written / "export.json").read_text())
    (rows,) = about["inputs"]
    names = ", ".join(output["name"] for output in about["outputs"])
    shape = ", ".join(map(str, rows["shape"]))
    print(f"{names} of rows [{shape}] of {rows['dtype']}")
    if "said" in about["decision"]:
        print(about["decision"]["said"])
    size = (written / about["file"]).stat().st_size / 1e6
    print(f"{about['file']}, {size:.2f} MB, and export.json written to {written}")
