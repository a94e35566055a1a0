"""The command deepsad: a table with a few labels in, decisions on new rows out."""

import csv
import dataclasses
import io
import json
import os
import re
import signal
import subprocess
import sys
import warnings

import jax
import numpy as np
import pandas as pd
import PIL.Image
import pytest
import sklearn.metrics

import deepsad_jax as sad
from deepsad_jax import cli, console, estimators, new_rows, scoring

LABELS = ("--label=status", "--anomaly=broken", "--normal=ok")
ADDED = ["score", "p_value", "is_anomaly"]
EPOCHS = 10


def made(rows=5000, new=20_000, seed=0):
    """Twelve columns of unlike scales, two of texts, gaps, a few labels; new rows."""
    rng = np.random.default_rng(seed)
    total = rows + new
    is_bad = np.zeros(total, bool)
    is_bad[rng.choice(rows, 60, replace=False)] = True
    is_bad[rows + rng.choice(new, new // 20, replace=False)] = True
    z = rng.normal(size=(total, 12))
    z[:, :4] = z[:, :4] @ rng.normal(size=(4, 4))
    z[is_bad, 2] += 6
    z[is_bad, 7] -= 6
    scale = 10.0 ** np.arange(-5, 7)
    table = pd.DataFrame((z + 3) * scale, columns=[f"x{i}" for i in range(12)])
    table["x3"] = (table["x3"] * 1e4).astype(int)
    towns = np.array(["Köln", "Paris", "New, York", 'the "Port"'])
    table.insert(3, "plant", rng.choice(towns, total))
    table["batch"] = [f"B{k}" for k in rng.integers(0, 40, total)]
    for name in ("x1", "x5", "batch"):
        table.loc[rng.random(total) < 0.03, name] = np.nan
    status = np.full(total, None, object)
    status[rng.choice(np.flatnonzero(is_bad[:rows]), 30, replace=False)] = "broken"
    status[rng.choice(np.flatnonzero(~is_bad[:rows]), 200, replace=False)] = "ok"
    table.insert(5, "status", status)
    truth = np.where(is_bad, "broken", "ok")[rows:]
    return table[:rows], table[rows:].reset_index(drop=True), truth


def run(*arguments, cwd, stdin=None):
    """The command in a process of its own: status, output, errors."""
    found = subprocess.run(
        [sys.executable, "-m", "deepsad_jax", *map(str, arguments)],
        cwd=cwd,
        input=stdin,
        capture_output=True,
        env=os.environ | {"PYTHONPATH": str(sad.__path__[0]) + "/.."},
    )
    return found.returncode, found.stdout.decode(), found.stderr.decode()


@pytest.fixture
def deepsad(capfd, monkeypatch):
    """The same in this process."""
    monkeypatch.setattr(console, "begin", lambda stop: None)
    monkeypatch.setattr(console, "use_plain_lines", lambda: None)
    monkeypatch.setattr(console, "keep_programs", lambda: None)

    def call(*arguments, stdin=None):
        for command in cli.COMMANDS.values():
            for name in command.flags:
                if name != "verbosity":
                    command.flags[name].unparse()
        if stdin is not None:
            text = io.TextIOWrapper(io.BytesIO(stdin))
            monkeypatch.setattr(sys, "stdin", text)
        capfd.readouterr()
        status = 0
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            monkeypatch.setattr(warnings, "showwarning", console._show_warning)
            try:
                cli.main(["deepsad", *map(str, arguments)])
            except SystemExit as error:
                status = error.code
        output, errors = capfd.readouterr()
        # Bars are not what is looked at.
        lines = [re.sub(r"^.*\r", "", line) for line in errors.splitlines()]
        kept = [line for line in lines if line.startswith(("error", "warning"))]
        return status, output, kept

    return call


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with files, a model of the command, and what it scores new rows."""
    folder = tmp_path_factory.mktemp("home")
    parts, new, truth = made()
    parts.to_csv(folder / "parts.csv", index=False)
    new.drop(columns="status").to_csv(folder / "new.csv", index=False)
    new[:2000].assign(status=truth[:2000]).to_csv(folder / "labeled.csv", index=False)
    flags = (*LABELS, "--model=pump", f"--epochs={EPOCHS}")
    status, output, errors = run("fit", "parts.csv", *flags, cwd=folder)
    assert status == 0, errors
    (folder / "fit.txt").write_text(output)
    status, output, errors = run(
        "score", "pump", "new.csv", "-o", "scored.csv", cwd=folder
    )
    assert status == 0, errors
    return folder


@pytest.fixture(scope="module")
def detector(home):
    """The estimator of the same rows, as pandas reads them."""
    parts = pd.read_csv(home / "parts.csv")
    y = parts.pop("status").map({"ok": 1, "broken": -1}).fillna(0).astype(int)
    stages = {"train": sad.Stage(), "pretrain": sad.training.PRETRAIN}
    stages = {n: dataclasses.replace(s, epochs=EPOCHS) for n, s in stages.items()}
    return estimators.DeepSAD(random_state=0, **stages).fit(parts, y)


@pytest.fixture(scope="module")
def scored(home):
    return pd.read_csv(home / "scored.csv")


def body(path, columns):
    """Lines of a file, up to the commas before the last columns."""
    lines = path.read_bytes().splitlines()
    return [line.rsplit(b",", columns)[0] if columns else line for line in lines]


# What is said and decided.


def test_scores_are_those_of_the_estimator_bit_for_bit(home, scored, detector):
    new = pd.read_csv(home / "new.csv")
    np.testing.assert_array_equal(scored["score"], -detector.score_samples(new))
    np.testing.assert_array_equal(scored["p_value"], detector.p_values(new))
    np.testing.assert_array_equal(scored["is_anomaly"], detector.predict(new) == -1)
    again = estimators.DeepSAD.load(home / "pump")
    np.testing.assert_array_equal(scored["score"], -again.score_samples(new))
    model = sad.load(home / "pump")
    np.testing.assert_array_equal(scored["score"], sad.score(model, new))


def test_the_columns_of_the_input_stay_as_they_are(home, scored):
    assert list(scored)[-3:] == ADDED
    assert body(home / "scored.csv", 3) == body(home / "new.csv", 0)
    assert scored["is_anomaly"].dtype == bool
    assert scored["p_value"].between(0, 1).all()
    assert not scored["score"].isna().any()


def test_alarms_are_about_as_many_as_asked_for(home, scored):
    is_bad = made()[2] == "broken"
    rate = scored["is_anomaly"][~is_bad].mean()
    # 994 held-out rows for 5 %: a standard deviation of 0.7 %.
    assert 0.03 < rate < 0.07
    assert sklearn.metrics.roc_auc_score(is_bad, scored["score"]) > 0.9
    (limit,) = re.findall(r"threshold +(\S+),", (home / "fit.txt").read_text())
    above = scored["score"] > float(limit)
    assert (above != scored["is_anomaly"]).sum() <= 1  # six digits are shown


def test_a_fit_says_what_it_has_made_of_the_file(home):
    output = " ".join((home / "fit.txt").read_text().split())
    assert "5000: 200 known normal, 30 known anomalies, 4770 unlabeled" in output
    assert "12 of numbers, 2 of texts; 20 features" in output
    assert "column 'x1' has missing values" in output
    assert "column 'plant' becomes one feature for each of its 4 texts" in output
    assert "column 'batch' becomes the frequency of its 40 texts" in output
    assert "994 rows held out" in output
    assert "at most 5 % of new normal rows" in output
    assert re.search(r"evaluation AUROC \d\.\d+ \(95 % interval", output)
    assert output.endswith("written to pump; see pump/report.html")


def test_info_says_the_same_later(home, deepsad):
    status, output, _ = deepsad("info", home / "pump")
    assert status == 0
    said = (home / "fit.txt").read_text().splitlines()[:-1]
    assert output.splitlines()[: len(said)] == said
    assert f"jax {jax.__version__}" in output


def test_a_fit_leaves_a_page_and_a_later_one_knows_less(home, deepsad, tmp_path):
    page = (home / "pump" / "report.html").read_text()
    output = " ".join((home / "fit.txt").read_text().split())
    # What the evaluation counts is what the page starts with.
    counts = re.findall(r"(\d+) of (\d+) \(", output)
    content = json.loads(re.search(r'"page-data">(.*?)</script>', page)[1])
    start = content["start"]
    found = content["hits"][start], 30, content["falseAlarms"][start], content["normal"]
    assert found == tuple(int(n) for pair in counts[:2] for n in pair)
    assert content["thresholds"][start] == 1.0
    later = tmp_path / "later.html"
    assert deepsad("report", home / "pump", "-o", later)[0] == 0
    assert "so that none are shown" in later.read_text()
    groups = page[page.index("Groups after training") :].split("</table>")[0]
    assert re.findall(r'row">([a-z ]+)</th><td class="number">(\d+)', groups) == [
        *(("known normal", "200"), ("unlabeled", "4770"), ("known anomalous", "30"))
    ]
    values = re.findall(r'<td class="number">([\d.e-]+)</td>', groups)
    assert float(values[7]) > float(values[1])  # known anomalies are farther
    assert "Most anomalous" in page and "Most anomalous" not in later.read_text()
    again = json.loads(re.search(r'"page-data">(.*?)</script>', later.read_text())[1])
    assert again == content


def test_an_evaluation_counts_as_scikit_learn_does(home, deepsad, scored):
    status, output, errors = deepsad("evaluate", home / "pump", home / "labeled.csv")
    assert (status, errors) == (0, [])
    truth = made()[2][:2000] == "broken"
    auroc = sklearn.metrics.roc_auc_score(truth, scored["score"][:2000])
    assert f"AUROC {auroc:.3f} (" in output
    alarms = scored["is_anomaly"][:2000]
    assert f"{(alarms & truth).sum()} of {truth.sum()} (" in output
    assert f"{(alarms & ~truth).sum()} of {(~truth).sum()} (" in output


def test_an_evaluation_on_rows_of_the_training_is_called_so(home, deepsad):
    model, file = home / "pump", home / "parts.csv"
    status, output, errors = deepsad("evaluate", model, file)
    assert status == 0 and "4770 rows are unlabeled and not looked at" in output
    (error,) = errors
    assert error.startswith("warning: 230 of the 230 labeled rows are among those")
    # By other values, of another column.
    flags = ("--label=plant", "--normal=Köln", "--anomaly=Paris")
    status, output, _ = deepsad("evaluate", model, file, *flags)
    table = pd.read_csv(file)
    assert f"of {(table['plant'] == 'Paris').sum()} (" in output


def test_another_rate_makes_other_alarms(home, deepsad, scored, tmp_path):
    flags = ("-o", tmp_path / "few.csv", "--false_alarm_rate=0.01")
    assert deepsad("score", home / "pump", home / "new.csv", *flags)[0] == 0
    few = pd.read_csv(tmp_path / "few.csv")
    np.testing.assert_array_equal(few["is_anomaly"], scored["p_value"] <= 0.01)
    assert 0 < few["is_anomaly"].sum() < scored["is_anomaly"].sum()


# How rows come in and go out.


def test_rows_are_scored_in_pieces(home, deepsad, scored, tmp_path, monkeypatch):
    monkeypatch.setattr(new_rows, "_BLOCK", 2048)
    monkeypatch.setattr(new_rows, "_CELLS", 0)  # 512 rows are read at once
    sizes, judged = [], new_rows.Source.judged

    def counted(given, block, rate):
        sizes.append((len(block.x), len(block.rows)))
        return judged(given, block, rate)

    monkeypatch.setattr(new_rows.Source, "judged", counted)
    path = tmp_path / "pieces.csv"
    assert deepsad("score", home / "pump", home / "new.csv", "-o", path)[0] == 0
    assert sizes == [(2048, 2048)] * 9 + [(1568, 1568)]
    assert path.read_bytes() == (home / "scored.csv").read_bytes()


def test_standard_input_and_output(home):
    lines = (home / "new.csv").read_bytes().splitlines(keepends=True)[:1001]
    status, output, errors = run("score", "pump", "-", cwd=home, stdin=b"".join(lines))
    assert status == 0, errors
    expected = (home / "scored.csv").read_bytes().splitlines(keepends=True)[:1001]
    assert output.encode() == b"".join(expected)
    assert "1000 rows" in errors and "error" not in errors


def test_a_reader_that_has_seen_enough_is_no_error(home):
    command = [sys.executable, "-m", "deepsad_jax", "score", "pump", "new.csv"]
    process = subprocess.Popen(
        command,
        cwd=home,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(sad.__path__[0]) + "/.."},
    )
    process.stdout.close()
    errors = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait() == 141 and "error" not in errors.lower()


def test_columns_in_another_order_and_some_more(home, deepsad, scored, tmp_path):
    new = pd.read_csv(home / "new.csv", dtype=str, keep_default_na=False)[:600]
    new = new[[*reversed(new.columns)]].assign(serial=range(600), status="")
    new.to_csv(tmp_path / "new.csv", index=False)
    status, output, errors = deepsad("score", home / "pump", tmp_path / "new.csv")
    assert status == 0
    (error,) = [e for e in errors if "columns that the training had not" in e]
    assert error.endswith("not looked at: 'serial'") and len(errors) == 1
    found = pd.read_csv(io.StringIO(output))
    assert list(found) == [*new.columns, *ADDED]
    # 600 rows are scored as 512 and as part of 20,000.
    np.testing.assert_array_equal(found["score"], scored["score"][:600])


def test_unknown_texts_and_gaps_are_counted_over_all_pieces(
    home, deepsad, tmp_path, monkeypatch
):
    monkeypatch.setattr(new_rows, "_BLOCK", 1024)
    new = pd.read_csv(home / "new.csv")[:3000]
    new.loc[[5, 2000, 2001], "plant"] = "Atlantis"
    new.loc[[7, 2900], "x0"] = np.nan
    new.to_csv(tmp_path / "new.csv", index=False)
    status, output, errors = deepsad("score", home / "pump", tmp_path / "new.csv")
    assert status == 0 and len(errors) == 1
    assert "3 unknown texts in column 'plant'" in errors[0]
    assert "2 missing in column 'x0'" in errors[0]
    assert np.isfinite(pd.read_csv(io.StringIO(output))["score"]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns=["x4", "x9"]), "has no column 'x4', 'x9'"),
        (
            lambda t: t.astype({"x2": str}).replace({"x2": {str(t["x2"][9]): "low"}}),
            "line 11, column 'x2': 'low' is not a number",
        ),
        (lambda t: t.assign(x2=1e30), "column 'x2'"),
        (lambda t: t.assign(score=1), "has a column 'score' already"),
        (lambda t: t.T.reset_index(drop=True).T, "has none of the columns of the"),
    ],
)
def test_new_rows_that_do_not_fit_are_refused(home, deepsad, tmp_path, change, message):
    change(pd.read_csv(home / "new.csv")[:50]).to_csv(tmp_path / "x.csv", index=False)
    output = tmp_path / "scored.csv"
    status, _, errors = deepsad(
        "score", home / "pump", tmp_path / "x.csv", "-o", output
    )
    assert status == 2 and len(errors) == 1 and message in errors[0], errors
    assert [path.name for path in tmp_path.iterdir()] == ["x.csv"]


def test_a_late_error_leaves_nothing_behind(home, deepsad, tmp_path, monkeypatch):
    monkeypatch.setattr(new_rows, "_BLOCK", 512)
    text = (home / "new.csv").read_text().splitlines()[:1500]
    text[1400] = text[1400].replace(text[1400].split(",")[0], "none", 1)
    (tmp_path / "x.csv").write_text("\n".join(text))
    path = tmp_path / "scored.csv"
    status, _, errors = deepsad("score", home / "pump", tmp_path / "x.csv", "-o", path)
    assert status == 2 and "line 1401, column 'x0': 'none' is not a number" in errors[0]
    assert [path.name for path in tmp_path.iterdir()] == ["x.csv"]
    table = pd.read_csv(home / "new.csv")[:1500]
    table.loc[1400, "x0"] = 1e30
    table.to_csv(tmp_path / "x.csv", index=False)
    status, _, errors = deepsad("score", home / "pump", tmp_path / "x.csv", "-o", path)
    assert status == 2 and "from line 1026 on, " in errors[0]
    assert f"{tmp_path}/x.csv contains 1e+30 (row 376, column 'x0')" in errors[0]
    assert [path.name for path in tmp_path.iterdir()] == ["x.csv"]


def test_an_interruption_leaves_nothing_behind(home, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "deepsad_jax", "score", home / "pump", "-"]
        + ["-o", tmp_path / "scored.csv"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(sad.__path__[0]) + "/.."},
    )
    lines = (home / "new.csv").read_bytes().splitlines(keepends=True)
    # More than a block, so that it is written while the next one is waited for.
    feed = b"".join(lines[1:]) * 4
    process.stdin.write(lines[0] + feed)
    process.stdin.flush()
    while not any(path.stat().st_size for path in tmp_path.iterdir()):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.wait(60)  # before the input ends, which would be a good end
    _, errors = process.communicate()
    assert process.returncode == 130
    said = "interrupted: nothing was saved; begin again by the same command"
    assert errors.decode().splitlines()[-1] == said
    assert not list(tmp_path.iterdir())


def test_a_file_without_rows_gives_one_without_rows(home, deepsad):
    names = (home / "new.csv").read_text().splitlines()[0]
    given = f"{names}\n".encode()
    status, output, errors = deepsad("score", home / "pump", "-", stdin=given)
    assert (status, output) == (0, f"{names},{','.join(ADDED)}\n")
    assert errors == ["warning: the standard input has no rows"]


# Other files.


def small(rows=300, seed=0):
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"a": rng.normal(size=rows), "b": 100 * rng.random(rows)})
    table["on"] = rng.random(rows) < 0.5
    table.loc[: rows // 20, "a"] += 10
    return table


KDE = ("--method=kde", "--noevaluate")
QUICK = ("--epochs=2", "--noevaluate")


def test_files_from_elsewhere(deepsad, tmp_path):
    # As a spreadsheet writes them: BOM, semicolons, decimal commas, CR LF.
    table = small()
    text = table.to_csv(index=False, sep=";", decimal=",", lineterminator="\r\n")
    (tmp_path / "x.csv").write_bytes("\ufeff".encode() + text.encode())
    model = tmp_path / "model"
    flags = (f"--model={model}", "--decimal=,", *KDE)
    status, output, errors = deepsad("fit", tmp_path / "x.csv", *flags)
    assert (status, errors) == (0, []) and "2 of numbers, 1 of booleans" in output
    status, output, errors = deepsad(
        "score", model, tmp_path / "x.csv", "-o", tmp_path / "y.csv"
    )
    assert (status, errors) == (0, [])
    found = (tmp_path / "y.csv").read_bytes().decode()
    assert found.count("\r\n") == 301 and found.splitlines()[0].endswith(
        ";score;p_value;is_anomaly"
    )
    assert [line.rsplit(";", 3)[0] for line in found.splitlines()] == text.splitlines()
    read = pd.read_csv(tmp_path / "y.csv", sep=";", decimal=",")
    expected = sad.score(sad.load(model), table)
    np.testing.assert_array_equal(read["score"], expected)


def test_a_file_without_names(deepsad, tmp_path):
    small().drop(columns="on").to_csv(tmp_path / "x.csv", index=False, header=False)
    model = tmp_path / "model"
    assert deepsad("fit", tmp_path / "x.csv", f"--model={model}", *KDE)[0] == 0
    status, output, _ = deepsad("score", model, tmp_path / "x.csv")
    assert status == 0 and len(output.splitlines()) == 300
    assert {len(line.split(",")) for line in output.splitlines()} == {5}


def test_parquet_in_and_out(deepsad, tmp_path):
    table = small().assign(status=["ok"] * 50 + [None] * 250, serial=range(300))
    table.to_parquet(tmp_path / "x.parquet")
    model = tmp_path / "model"
    flags = ("--label=status", "--normal=ok", "--ignore=serial", *KDE)
    status, output, _ = deepsad(
        "fit", tmp_path / "x.parquet", f"--model={model}", *flags
    )
    assert status == 0 and "column 'serial' is ignored" in output
    for name in ("y.parquet", "y.csv"):
        status, _, errors = deepsad(
            "score", model, tmp_path / "x.parquet", "-o", tmp_path / name
        )
        assert (status, errors) == (0, [])
    found = pd.read_parquet(tmp_path / "y.parquet")
    pd.testing.assert_frame_equal(found[table.columns], table, check_dtype=False)
    features = table.drop(columns=["status", "serial"])
    expected = sad.score(sad.load(model), features)
    np.testing.assert_array_equal(found["score"], expected)
    np.testing.assert_array_equal(pd.read_csv(tmp_path / "y.csv")["score"], expected)
    status, _, errors = deepsad("score", model, "-", "-o", "z.parquet", stdin=b"a\n1\n")
    assert status == 2 and "'b', 'on'" in errors[0]


def test_a_folder_of_images(deepsad, tmp_path):
    rng = np.random.default_rng(0)
    for kind, count, level in (("normal", 6, 60), ("unlabelled", 30, 60)):
        (tmp_path / "images" / kind).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, level, (9, 7), np.uint8)
            path = tmp_path / "images" / kind / f"{i:02d}.png"
            PIL.Image.fromarray(pixels).save(path)
    model, folder = tmp_path / "model", tmp_path / "images"
    flags = (f"--model={model}", *KDE)
    status, output, _ = deepsad("fit", folder, *flags)
    assert status == 0 and "36: 6 known normal, 0 known anomalies" in output
    status, output, _ = deepsad("score", model, folder)
    rows = list(csv.DictReader(io.StringIO(output)))
    assert status == 0 and len(rows) == 36
    pixels = np.array([np.asarray(PIL.Image.open(row["path"])) for row in rows])
    expected = sad.score(sad.load(model), pixels[..., None])
    np.testing.assert_array_equal([float(row["score"]) for row in rows], expected)
    status, _, errors = deepsad("fit", folder, "--model=x", *LABELS)
    assert status == 2 and "names columns" in errors[0]


def test_a_model_of_an_array_takes_columns_in_their_order(deepsad, tmp_path):
    x = np.random.default_rng(0).normal(size=(200, 3))
    estimators.KernelDensity().fit(x).save(tmp_path / "model")
    pd.DataFrame(x, columns=list("abc")).to_csv(tmp_path / "x.csv", index=False)
    status, output, errors = deepsad("score", tmp_path / "model", tmp_path / "x.csv")
    assert status == 0 and errors[0].startswith("warning: the model knows no names")
    found = pd.read_csv(io.StringIO(output))["score"]
    np.testing.assert_array_equal(found, sad.score(sad.load(tmp_path / "model"), x))
    few = b"a,b\n1,2\n"
    status, _, errors = deepsad("score", tmp_path / "model", "-", stdin=few)
    assert status == 2 and "has 2 columns, but the model takes" in errors[-1]
    (tmp_path / "folder").mkdir()
    status, _, errors = deepsad("score", tmp_path / "model", tmp_path / "folder")
    assert status == 2 and "is a folder, but the model takes tables" in errors[-1]
    status, _, errors = deepsad("evaluate", tmp_path / "model", tmp_path / "x.csv")
    assert status == 2 and "the model was fitted without labels" in errors[-1]


# Flags.


def test_the_same_seed_gives_the_same_bits(deepsad, tmp_path):
    small().to_csv(tmp_path / "x.csv", index=False)
    found = []
    for i, seed in enumerate((3, 3, 4)):
        model = tmp_path / f"model{i}"
        flags = (f"--model={model}", f"--seed={seed}", *QUICK)
        assert deepsad("fit", tmp_path / "x.csv", *flags)[0] == 0
        found.append(deepsad("score", model, tmp_path / "x.csv")[1])
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("calibration", ["cross", "none"])
def test_other_calibrations(deepsad, tmp_path, calibration):
    small(100).to_csv(tmp_path / "x.csv", index=False)
    model = tmp_path / "model"
    flags = (f"--calibration={calibration}", "--method=kde", f"--model={model}")
    status, output, _ = deepsad("fit", tmp_path / "x.csv", *flags)
    assert status == 0 and "not possible, since no anomaly is known" in output
    status, text, errors = deepsad("score", model, tmp_path / "x.csv")
    assert (status, errors) == (0, [])
    found = pd.read_csv(io.StringIO(text))
    if calibration == "none":
        assert found["p_value"].isna().all() and "of others it says nothing" in output
        assert found["is_anomaly"].sum() == 5
    else:
        assert "100 rows held out for it in turn" in output
        np.testing.assert_array_equal(found["is_anomaly"], found["p_value"] <= 0.05)


def test_labels_that_are_not_named_are_warned_of(deepsad, tmp_path):
    table = small(60).assign(Label=[1, 0] * 30)
    table.to_csv(tmp_path / "x.csv", index=False)
    status, _, errors = deepsad(
        "fit", tmp_path / "x.csv", f"--model={tmp_path / 'a'}", *KDE
    )
    assert status == 0
    assert errors[0].startswith("warning: column 'Label' is read as a feature")
    table["Label"] = ["ok", "odd", ""] * 20
    table.to_csv(tmp_path / "x.csv", index=False)
    flags = (*KDE, "--label=Label", "--normal=ok", f"--model={tmp_path / 'b'}")
    status, output, errors = deepsad("fit", tmp_path / "x.csv", *flags)
    assert status == 0 and "20 known normal, 0 known anomalies, 40 unl" in output
    assert "column 'Label' also holds odd (20 times)" in errors[0]


def test_values_may_hold_commas():
    assert cli._several("normal", ["a,b", '"New, York"']) == ["a", "b", "New, York"]


WRONG = [
    ("report nope", "there is no folder nope"),
    ("report .", "holds no finished run, sweep or comparison"),
    ("report pump", "pump/report.html exists, and nothing is overwritten"),
    ("", "a command is missing; choose fit, score, evaluate, explain"),
    ("fits", "'fits' is not a command"),
    ("fit", "an argument is missing: deepsad fit FILE --model=MODEL"),
    ("fit parts.csv", "--model is missing"),
    ("fit parts.csv --model=pump", "pump exists, and nothing is overwritten"),
    ("fit nope.csv --model=new", "there is no file nope.csv"),
    ("fit parts.csv --model=no/new", "new cannot be written: there is no folder"),
    ("fit parts.csv --model=new --anomaly=broken", "need --label"),
    ("fit parts.csv --model=new --label=status", "--label needs --anomaly or --norm"),
    ("fit parts.csv --model=new --label=state --normal=ok", "label is 'state', but"),
    ("fit parts.csv --model=new --label=status --normal=fine", "normal is 'fine', wh"),
    ("fit parts.csv --model=new --label=status --normal=ok --anomaly=ok", "both"),
    ("fit parts.csv --model=new --label=status --normal=", "--normal has an empty"),
    ("fit parts.csv --model=new --ignore=serial", "--ignore=serial, but the columns"),
    ("fit parts.csv --model=new --method=forest", "value should be one of"),
    ("fit parts.csv --model=new --epochs=0", "positive integer"),
    ("fit parts.csv --model=new --epochs=9 --method=kde", "but kde has none"),
    ("fit parts.csv --model=new --false_alarm_rate=5", "it must be in (0, 1)"),
    ("fit parts.csv --model=new --calibration=most", "--calibration is most; it must"),
    ("fit parts.csv --model=new --method=m2", "learns from known anomalies"),
    ("score pump", "an argument is missing: deepsad score MODEL FILE"),
    ("score nope new.csv", "there is no model nope"),
    ("score pump nope.csv", "there is no file nope.csv"),
    ("score pump new.csv -o new.csv", "new.csv exists, and nothing is overwritten"),
    ("score pump new.csv -o no/x.csv", "there is no folder"),
    ("score pump new.csv --label=a", "Unknown command line flag 'label'"),
    ("score pump new.csv more", "unexpected argument 'more'"),
    ("score . new.csv", "is not complete"),
    ("evaluate pump new.csv", "has no column 'status' of labels"),
    ("info", "an argument is missing"),
    ("export pump", "--output is missing"),
    ("export nope -o x", "there is no model nope"),
    ("export pump -o new.csv", "new.csv exists, and nothing is overwritten"),
    ("export pump -o no/x", "there is no folder"),
    ("export pump -o x --format=torch", "value should be one of"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_what_is_wrong_ends_in_one_sentence(
    home, deepsad, monkeypatch, arguments, message
):
    monkeypatch.chdir(home)
    before = sorted(home.iterdir())
    status, output, errors = deepsad(*arguments.split())
    assert status == 2 and output == ""
    assert len([e for e in errors if e.startswith("error: ")]) == 1
    assert message in errors[-1], errors
    assert sorted(home.iterdir()) == before


def test_help_is_no_error_and_names_every_flag(deepsad):
    assert deepsad("--help")[0] == deepsad("fit", "x", "-h")[0] == 0
    for name, command in cli.COMMANDS.items():
        status, output, _ = deepsad(name, "--help")
        assert status == 0 and command.usage in output
        for flag in set(command.flags) - {"o", "v", "verbosity"}:
            assert f"--{flag}" in output or f"--[no]{flag}" in output
    assert deepsad("--version")[1] == f"{sad.__version__}\n"


def test_all_methods_can_be_chosen():
    assert set(cli.METHODS) == set(estimators.METHODS)
    with_epochs = {"pretrain": 1, "train": 1}
    assert set(estimators.DeepSAD().options().stages()) == set(with_epochs)


def test_a_mistake_of_ours_is_a_traceback(deepsad, home, monkeypatch):
    def broken(*arguments):
        raise KeyError("x")

    monkeypatch.setattr(scoring, "score", broken)
    with pytest.raises(KeyError):
        deepsad("score", home / "pump", home / "new.csv")


LIGHT = """
import sys
from deepsad_jax import cli
try:
    cli.main()
finally:
    print(*sorted(sys.modules), file=sys.stderr)
"""


def test_scoring_imports_no_more_than_it_needs(home):
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, "score", home / "pump", home / "labeled.csv"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(sad.__path__[0]) + "/.."},
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stderr.splitlines()[-1].split())
    assert "deepsad_jax.scoring" in loaded
    assert not loaded & {"sklearn", "matplotlib", "scipy.stats", "pandas", "narwhals"}
    assert not loaded & {"deepsad_jax.estimators", "tensorflow_datasets"}
