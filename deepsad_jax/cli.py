"""From a table with a few labels to decisions on new rows.

    deepsad fit parts.csv --label=status --anomaly=broken --normal=ok --model=pump
    deepsad score pump new.csv -o scored.csv
    deepsad evaluate pump labeled.csv
    deepsad explain pump new.csv
    deepsad suggest pump new.csv -o label.html
    deepsad fit new.csv --labels=labels.csv --from=pump --model=pump2
    deepsad info pump
    deepsad report pump
    deepsad export pump --output=pump.export

Tables are CSV of any kind, or Parquet; images lie in a folder with folders normal,
anomaly and unlabeled. "-" is the standard input or output. Nothing is overwritten.
`deepsad fit --help` and so on explain the flags.
"""

import csv
import importlib
import os
import sys
from collections.abc import Callable, Sequence

from absl import flags, logging

from deepsad_jax import __version__, console, usage, writing

METHODS = (
    *("deep_sad", "deep_svdd", "autoencoder", "vae", "m2", "m1_m2", "supervised"),
    *("ssad", "kde"),
)
# What a model that goes on from another one has from that.
_OF_MODEL = (
    *("ignore", "false_alarm_rate", "calibration", "evaluate", "method"),
    *("scaling", "seed"),
)
_WRITES = {
    "fit": "model",
    **dict.fromkeys(("score", "explain", "suggest", "export"), "output"),
}
_PLACES = {
    **dict.fromkeys(("score", "evaluate"), "scoring"),
    **dict.fromkeys(("explain", "suggest"), "asking"),
    "report": "report.folders",
    "export": "exporting",
}
# Those of `suggestions`, which takes a while to import.
STRATEGIES = ("mixture", "anomalous", "uncertain", "diverse")


def _of_labels(values: flags.FlagValues, of_model: str = "") -> None:
    flags.DEFINE_string(
        "label", None, f"Column with what is known.{of_model}", flag_values=values
    )
    for name, meaning in (("anomaly", "anomalies"), ("normal", "normal rows")):
        flags.DEFINE_multi_string(
            name,
            [],
            f"Value of that column in rows that are known {meaning}; several by "
            f"commas, or the flag again.{of_model}",
            flag_values=values,
        )


def _of_files(values: flags.FlagValues, by_default: str) -> None:
    flags.DEFINE_string(
        "separator", None, "Of cells, instead of the one found.", flag_values=values
    )
    flags.DEFINE_enum(
        "decimal",
        None,
        [".", ","],
        f"Mark of decimals; {by_default} by default.",
        flag_values=values,
    )


def _of_decisions(values: flags.FlagValues, default: float | None) -> None:
    flags.DEFINE_float(
        "false_alarm_rate",
        default,
        "Share of normal rows that may raise an alarm, in (0, 1)."
        + ("" if default else " That of the fit by default."),
        flag_values=values,
    )


def _fit_flags() -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_string("model", None, "New folder to write.", flag_values=values)
    _of_labels(values)
    flags.DEFINE_multi_string(
        "ignore",
        [],
        "Columns not to look at, such as numbers of parts; several by commas, or the "
        "flag again.",
        flag_values=values,
    )
    _of_decisions(values, 0.05)
    flags.DEFINE_string(
        "calibration",
        "0.2",
        "Share of the rows without known anomalies that is held out for the threshold "
        "and p-values; or cross, for tables with few rows: all are held out in turn, "
        "which takes six fits; or none.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "evaluate",
        True,
        "Whether to fit again for an evaluation on the labeled rows.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "from",
        None,
        "Model to go on from, on the file of which `deepsad suggest` has picked rows.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "labels", None, "What an expert has said of these rows.", flag_values=values
    )
    flags.DEFINE_enum("method", METHODS[0], METHODS, "How.", flag_values=values)
    flags.DEFINE_enum(
        "scaling",
        "minmax",
        ["minmax", "robust"],
        "Of numbers: to [0, 1], or by median and quartiles, where few are far off.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "epochs", None, "Of each stage, instead of its own.", 1, flag_values=values
    )
    flags.DEFINE_integer(
        "seed", 0, "The same gives the same bits.", 0, flag_values=values
    )
    _of_files(values, "a point")
    return values


def _score_flags() -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_string(
        "output",
        "-",
        "New file with the columns of the given one, and score, p_value and is_anomaly "
        "(true or false). The standard output by default.",
        short_name="o",
        flag_values=values,
    )
    _of_decisions(values, None)
    _of_files(values, "that of the fit")
    return values


def _page_flags(shows: str) -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_string(
        "output", None, f"New page (.html) {shows}.", short_name="o", flag_values=values
    )
    _of_labels(values, " That of the fit by default.")
    _of_files(values, "that of the fit")
    return values


def _explain_flags() -> flags.FlagValues:
    values = _page_flags("that shows the same, with the nearest known rows")
    flags.DEFINE_integer(
        "top", 20, "How many of the most anomalous rows.", 1, flag_values=values
    )
    return values


def _suggest_flags() -> flags.FlagValues:
    values = _page_flags("on which an expert labels them, and saves labels.csv")
    flags.DEFINE_integer("number", 20, "How many rows.", 1, flag_values=values)
    flags.DEFINE_enum(
        "strategy",
        STRATEGIES[0],
        STRATEGIES,
        "The most anomalous rows; those around the threshold; those that are unlike "
        "each other; or a mixture of all that.",
        flag_values=values,
    )
    return values


def _evaluate_flags() -> flags.FlagValues:
    values = flags.FlagValues()
    _of_labels(values, " That of the fit by default.")
    _of_decisions(values, None)
    _of_files(values, "that of the fit")
    return values


def _report_flags() -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_string(
        "output",
        None,
        "New file to write; report.html in the folder by default.",
        short_name="o",
        flag_values=values,
    )
    return values


def _export_flags() -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_string(
        "output", None, "New folder to write.", short_name="o", flag_values=values
    )
    flags.DEFINE_enum(
        "format",
        "stablehlo",
        ["stablehlo", "onnx"],
        "For JAX on cpu, cuda and tpu, or for onnxruntime, which needs jax2onnx.",
        flag_values=values,
    )
    return values


COMMANDS = {
    "fit": usage.Command("FILE --model=MODEL", "Trains a model.", 1, _fit_flags()),
    "score": usage.Command("MODEL FILE", "Scores new rows.", 2, _score_flags()),
    "evaluate": usage.Command(
        "MODEL FILE", "Says how good a model is on labeled rows.", 2, _evaluate_flags()
    ),
    "explain": usage.Command(
        "MODEL FILE", "Says why rows are anomalous.", 2, _explain_flags()
    ),
    "suggest": usage.Command(
        "MODEL FILE", "Picks the rows to label next.", 2, _suggest_flags()
    ),
    "info": usage.Command("MODEL", "Says what a model is.", 1, flags.FlagValues()),
    "report": usage.Command(
        "FOLDER", "Writes a page about a model, a run or many.", 1, _report_flags()
    ),
    "export": usage.Command(
        "MODEL --output=FOLDER",
        "Makes a program of a model, to be run without this library.",
        1,
        _export_flags(),
    ),
}
for _command in COMMANDS.values():
    _command.flags["verbosity"] = flags.FLAGS["verbosity"]
    _command.flags.set_gnu_getopt()


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command and exits: 0 if all is well, 2 after a sentence, 128 + a signal.

    Args:
        argv: the program and its arguments; `sys.argv` by default.
    """
    console.begin(console.Stop())
    name, *arguments = list(sys.argv if argv is None else argv)[1:] or [""]
    if name in console.HELP or (name == "help" and not arguments):
        print(usage.overview((__doc__ or "").strip(), COMMANDS))
        sys.exit(0)
    if name == "--version":
        print(__version__)
        sys.exit(0)
    if name in COMMANDS and console.HELP & set(arguments):
        print(usage.explained(name, COMMANDS[name]))
        sys.exit(0)
    try:
        given, values = _parsed(name, arguments)
    except (flags.Error, ValueError) as error:
        console.fail(error, f"error: {error}")
    try:
        _check_files(name, given, values)
        _prepare(name)
        _function(name, values)(*given, values)
        sys.stdout.flush()
    except BrokenPipeError:  # who reads our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        if (sentence := console.sentence(error)) is None:
            raise  # a mistake of ours
        trace = logging.get_verbosity() >= logging.DEBUG
        console.fail(error, sentence, trace=trace)


def _function(name: str, values: flags.FlagValues) -> Callable[..., None]:
    place = _PLACES.get(name, "fitting")
    if name == "fit" and values["from"].value:
        place = "continuing"
    return getattr(importlib.import_module(f"deepsad_jax.{place}"), name)


def _prepare(name: str) -> None:
    from deepsad_jax import cpu_settings

    cpu_settings.keep_freed_memory(name == "fit")
    console.keep_programs()


def _parsed(name: str, arguments: list[str]) -> tuple[list[str], flags.FlagValues]:
    """Arguments and flags of a command, with lists made of several values."""
    if name not in COMMANDS:
        said = f"{name!r} is not a command" if name else "a command is missing"
        raise ValueError(f"{said}; choose {', '.join(COMMANDS)}, or --help")
    command = COMMANDS[name]
    values = command.flags
    given = values([name, *arguments])[1:]
    if values["verbosity"].present:
        logging.use_absl_handler()
    else:
        console.use_plain_lines()
    if len(given) != command.takes:
        if len(given) > command.takes:
            raise ValueError(f"unexpected argument {given[command.takes]!r}")
        raise ValueError(f"an argument is missing: deepsad {name} {command.usage}")
    for flag in ("anomaly", "normal", "ignore"):
        if flag in values:
            values[flag].value = _several(flag, values[flag].value)
    _check(values)
    return given, values


def _several(flag: str, written: list[str]) -> list[str]:
    """Values that are separated by commas; one that has commas stands in quotes."""
    try:
        rows = csv.reader(written, skipinitialspace=True, strict=True)
        found = [value.strip() for row in rows for value in row or [""]]
    except csv.Error as error:
        raise ValueError(f"--{flag} is {','.join(written)}: {error}") from error
    if "" in found:
        raise ValueError(f"--{flag} has an empty value; empty cells are unlabeled")
    return found


def _check(values: flags.FlagValues) -> None:
    """Raises ValueError for flags that say too little, or what cannot be."""
    rate = values["false_alarm_rate"].value if "false_alarm_rate" in values else None
    if rate is not None and not 0 < rate < 1:
        raise ValueError(f"--false_alarm_rate is {rate:g}; it must be in (0, 1)")
    if "separator" in values and values["separator"].value in ("\\t", "tab"):
        values["separator"].value = "\t"
    if "format" in values and not values["output"].value:
        raise ValueError("--output is missing: the name of a new folder")
    if "model" not in values:
        return
    if not values["model"].value:
        raise ValueError("--model is missing: the name of a new folder")
    if bool(values["labels"].value) != bool(values["from"].value):
        raise ValueError("--labels and --from belong together: answers, and who asked")
    if values["from"].value:
        for flag in _OF_MODEL:
            if values[flag].present:
                raise ValueError(
                    f"--{flag} is that of the model of --from; leave it out"
                )
        return
    label, meant = values["label"].value, values["anomaly"].value
    meant = meant or values["normal"].value
    if meant and label is None:
        raise ValueError("--anomaly and --normal need --label, their column")
    if label is not None and not meant:
        raise ValueError("--label needs --anomaly or --normal, or both: its values")
    share = values["calibration"].value
    if share in ("cross", "none"):
        return
    try:
        is_share = 0 < float(share) < 1
    except ValueError:
        is_share = False
    if not is_share:
        raise ValueError(
            f"--calibration is {share}; it must be in (0, 1), cross or none"
        )


def _check_files(name: str, given: list[str], values: flags.FlagValues) -> None:
    """Raises OSError for what is not there, or is there already."""
    *model, file = given if "FILE" in COMMANDS[name].usage else [*given, "-"]
    if name == "fit" and values["from"].value:
        model = [values["from"].value]
    if model and not os.path.isdir(model[0]):
        what = "folder" if name == "report" else "model"
        raise FileNotFoundError(f"there is no {what} {model[0]}")
    answers = values["labels"].value if "labels" in values else None
    for needed in (file, answers):
        if needed not in ("-", None) and not os.path.exists(needed):
            raise FileNotFoundError(f"there is no file {needed}")
    new = values[_WRITES[name]].value if name in _WRITES else "-"
    if new in ("-", None):
        return
    writing.check_new(new)
    above = os.path.dirname(os.path.abspath(new))
    if not os.path.isdir(above):
        raise FileNotFoundError(f"{new} cannot be written: there is no folder {above}")
    if not os.access(above, os.W_OK):
        raise PermissionError(f"{new} cannot be written: {above} is not writable")
