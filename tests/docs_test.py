"""Every code block of the README and the docs: Python runs, commands are understood.

Blocks of Python of a page share one namespace and one temporary folder, with small
stand-ins for what is the user's. The cells of notebooks are executed by `.ci/docs`.
Commands must have flags and configs that exist; those of `deepsad` on the pages of
`RUN` are run, on a small table.
"""

import csv
import importlib
import pathlib
import re
import shlex
import sys
import types

import jax
import numpy as np
import pytest
from absl import flags

import deepsad_jax as sad
from deepsad_jax import cli, console

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
)
# ```python and ```sh, and what belongs to other libraries: ```{code-block} python.
_FENCE = re.compile(
    r"^(?P<fence>`{3,})(?P<kind>python|sh|\{code-block\} (?:python|sh))\n"
    r"(?P<code>.*?)^(?P=fence)$",
    re.DOTALL | re.MULTILINE,
)
RUN = ("docs/command.md",)
_ROWS, _COLUMNS = 128, 4
_PROGRAMS = ("experiments", "tests")


def blocks(page, kind):
    """Blocks of a kind with the numbers of their first lines."""
    text = page.read_text(encoding="utf-8")
    return [
        (text[: found.start()].count("\n") + 2, found["code"])
        for found in _FENCE.finditer(text)
        if found["kind"].removeprefix("{code-block} ") == kind
        and (kind == "sh" or "{" not in found["kind"])
    ]


def commands(page):
    """Commands of a page, as words; lines that go on are joined."""
    found = []
    for _, code in blocks(page, "sh"):
        for line in code.replace("\\\n", " ").splitlines():
            for part in line.split("&&"):
                words = shlex.split(part.rstrip().removesuffix("&"), comments=True)
                if words:
                    found.append(words)
    return found


def fresh():
    """Flags of `deepsad` as a new process has them."""
    for command in cli.COMMANDS.values():
        for name in command.flags:
            if name != "verbosity":
                command.flags[name].unparse()


def name_of(page):
    return page.relative_to(ROOT).as_posix()


def with_blocks(kind):
    pages = [page for page in PAGES if blocks(page, kind)]
    return pytest.mark.parametrize("page", pages, ids=map(name_of, pages))


@pytest.fixture(scope="module")
def rows():
    x = np.random.default_rng(0).normal(size=(_ROWS, _COLUMNS)).astype(np.float32)
    targets = np.zeros(_ROWS, int)
    x[:8] += 4
    targets[:8], targets[8:48] = -1, 1
    return x, targets


@pytest.fixture(scope="module")
def detector(rows):
    """A detector that is fitted, for pages that go on from one."""
    return sad.estimators.DeepSAD(random_state=0, **few_epochs()).fit(*rows)


def few_epochs():
    stage = sad.Stage(sad.training.Adam(1e-3), epochs=2, batch_size=64)
    return {"train": stage, "pretrain": stage}


@pytest.fixture
def stand_ins(rows, request):
    """What a page may take for granted."""
    x, targets = rows
    names = {
        "sad": sad,
        "jax": jax,
        "np": np,
        "pathlib": pathlib,
        "x_train": x,
        "semi_targets": targets,
        "x_new": x[:10],
        "table": x,
        "y": targets,
        "new": x[:10],
    }
    source = "".join(code for _, code in blocks(request.param, "python"))
    if "detector" in source and "detector = " not in source:
        names["detector"] = request.getfixturevalue("detector")
    return names


class _Networks(
    sad.estimators.DeepSAD,
    method=sad.detectors.deep_sad.DeepSAD,
    members=1,
    companions=(),
):
    """Without companions, whose fits an evaluation repeats."""


def _quick(monkeypatch, source):
    """Stages of estimators and fits have few epochs where nothing else is said."""
    if ".evaluate(" in source:
        monkeypatch.setattr(sad.estimators, "DeepSAD", _Networks)
    for cls in (sad.detectors.deep_sad.DeepSAD, sad.detectors.deep_sad.Autoencoder):
        for name, stage in few_epochs().items():
            if name in cls.__dataclass_fields__:
                field = cls.__dataclass_fields__[name]
                monkeypatch.setattr(field, "default", stage)
    options = sad.fit.__kwdefaults__
    monkeypatch.setattr(sad.fit, "__kwdefaults__", {**options, **few_epochs()})


PYTHON = [page for page in PAGES if blocks(page, "python")]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("page", "stand_ins"),
    [(page, page) for page in PYTHON],
    indirect=["stand_ins"],
    ids=map(name_of, PYTHON),
)
def test_python_of_a_page_runs(page, stand_ins, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    for name, key in {"x": "x_train", "semi_targets": "y", "new": "x_new"}.items():
        np.save(tmp_path / f"{name}.npy", stand_ins[key])
    _quick(monkeypatch, page.read_text("utf-8"))
    module = types.ModuleType("page")  # classes of a page are found where they are
    module.__dict__.update(stand_ins)
    monkeypatch.setitem(sys.modules, "page", module)
    for line, code in blocks(page, "python"):
        padded = "\n" * (line - 1) + code  # errors name the line of the page
        exec(compile(padded, name_of(page), "exec"), module.__dict__)


def test_python_of_other_libraries_is_python():
    (page,) = [p for p in PAGES if p.name == "coming_from.md"]
    found = [m for m in _FENCE.finditer(page.read_text("utf-8")) if "{" in m["kind"]]
    assert len(found) >= 3
    for match in found:
        if match["kind"].endswith("python"):
            compile(match["code"], page.name, "exec")


@with_blocks("sh")
def test_commands_of_a_page_are_understood(page):
    for words in commands(page):
        while "=" in words[0] or words[0] == "srun":  # variables of the environment
            words = words[2:] if words[0] == "srun" else words[1:]
        program, *arguments = words
        if program == "deepsad":
            fresh()
            given, _ = cli._parsed(arguments[0], arguments[1:])
            assert given
        elif "python" in program:
            _check_python(arguments)
        else:
            known = ("python3", "pip", "git", "cd", "curl")
            assert program in known or _exists(program), words


def _exists(program):
    return (ROOT / program).exists() or program.startswith(".venv/bin/")


def _check_python(arguments):
    if arguments[0] != "-m":
        assert (ROOT / arguments[0]).is_file(), arguments
        if arguments[0].startswith("examples/"):  # which take no flags
            return None
        return _check_flags(ROOT / arguments[0], arguments[1:])
    name, *rest = arguments[1:]
    if name.partition(".")[0] not in _PROGRAMS:
        assert name in ("pytest", "venv", "sphinx", "deepsad_jax", "pip", "build")
        return None
    path = ROOT / name.replace(".", "/")
    path = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    assert path.is_file(), name
    return _check_flags(path, rest)


def _check_flags(path, arguments):
    """Flags are those of the program, and fields of a config exist."""
    text, known = path.read_text("utf-8"), set()
    if "argparse" in text:
        known = set(re.findall(r'add_argument\(\s*"--(\w+)"', text))
    else:
        name = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        importlib.import_module(name)
        known = set(flags.FLAGS)
    config = None
    for word in arguments:
        if not word.startswith("--"):
            continue
        flag, _, value = word.removeprefix("--").partition("=")
        if flag == "config":
            config = _config(value)
        elif flag.startswith("config."):
            _check_field(config or _config("configs/digits.py"), flag)
        else:
            assert flag in known or flag.removeprefix("no") in known, (path, word)


def _config(value):
    """The config of a file that is here; the default one for files of the user."""
    file, _, argument = value.partition(":")
    if not file.startswith("configs/") or file == "configs/saved.py":
        file, argument = "configs/default.py", ""
    module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    return module.get_config(argument) if argument else module.get_config()


def _check_field(config, flag):
    for part in flag.split(".")[1:]:
        assert part in config, flag
        config = config[part]


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The tables that commands of a page name, small, in a folder of their own."""
    rng = np.random.default_rng(0)
    kinds = ["broken"] * 12 + ["ok"] * 40 + [""] * 148
    for name, header in {
        "parts.csv": ["number", "x1", "x2", "plant", "status"],
        "labeled.csv": ["number", "x1", "x2", "plant", "status"],
        "new.csv": ["number", "x1", "x2", "plant"],
    }.items():
        with open(tmp_path / name, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            for i, kind in enumerate(kinds):
                values = rng.normal(4.0 * (kind == "broken"), 1, 2).round(3)
                row = [i, *values, "AB"[i % 2], kind]
                writer.writerow(row[: len(header)])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(console, "begin", lambda stop: None)  # signals are pytest's
    monkeypatch.setattr(console, "keep_programs", lambda: None)
    return tmp_path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", RUN)
def test_commands_of_a_page_run(name, files, capfd):
    done = 0
    for words in commands(ROOT / name):
        if words[0] != "deepsad" or "--labels=labels.csv" in words:
            continue  # answers come from a browser
        if words[1] == "fit":
            words = [*words, "--epochs=2", "--noevaluate"]
        fresh()
        try:
            cli.main(words)
        except SystemExit as error:
            assert not error.code, (words, capfd.readouterr().err)
        done += 1
    assert done >= 5
    assert (files / "scored.csv").read_text().startswith("number,x1,x2,plant,score")
    assert (files / "label.html").stat().st_size > 1000
