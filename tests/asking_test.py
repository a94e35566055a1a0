"""The loop of an expert: explain, suggest, the page in a real browser, fit again."""

import csv
import json
import re

import numpy as np
import pandas as pd
import pytest

import deepsad_jax as sad
from deepsad_jax import (
    asking,
    attributions,
    calibrated,
    continuing,
    explanations,
    new_rows,
)
from deepsad_jax.report import sheet
from tests.cli_test import deepsad  # noqa: F401 (a fixture)
from tests.pages_test import HOSTILE, QUOTED, visit  # noqa: F401

LABELS = ("--label=status", "--anomaly=broken", "--normal=ok")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model of a table whose names and texts are hostile, and new rows."""
    folder, rng = tmp_path_factory.mktemp("home"), np.random.default_rng(0)
    n, is_bad = 600, np.arange(600) % 15 == 0
    table = pd.DataFrame(rng.normal(size=(n, 3)), columns=[HOSTILE, "b", "c"])
    table.loc[is_bad, HOSTILE] += 8
    table["site"] = rng.choice([QUOTED, "south"], n)
    table.insert(0, "part", [f"no. {i}" for i in range(n)])
    table["status"] = np.where(is_bad, "broken", "ok")
    table.loc[100:, "status"] = None
    table[:300].to_csv(folder / "parts.csv", index=False)
    table[300:].drop(columns="status").to_csv(folder / "new.csv", index=False)
    return folder


@pytest.fixture
def pump(home, deepsad):  # noqa: F811
    """The model, made by the first test that needs it."""
    if not (home / "pump").exists():
        flags = (*LABELS, "--ignore=part", "--epochs=20", "--noevaluate")
        model = f"--model={home / 'pump'}"
        status, _, errors = deepsad("fit", home / "parts.csv", model, *flags)
        assert status == 0, errors
    return home / "pump"


@pytest.fixture
def asked(home, pump, deepsad):  # noqa: F811
    """The page that asks about new rows."""
    path = home / "label.html"
    if not path.exists():
        flags = ("--number=6", "-o", path)
        status, output, errors = deepsad("suggest", pump, home / "new.csv", *flags)
        assert status == 0, errors
        assert output.endswith(f"written to {path}\n")
    return path


def keys(page):
    """Row numbers and fingerprints of a page."""
    return json.loads(re.search(r"const sheet = (.*);", page.read_text())[1])["keys"]


def write(path, answers):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([["row", "fingerprint", "label"], *answers])
    return f"--labels={path}"


def test_explain_tells_of_the_rows_of_the_highest_scores(home, pump, deepsad):  # noqa: F811
    new, path = home / "new.csv", home / "why.html"
    status, output, _ = deepsad("explain", pump, new, "--top=5", "-o", path)
    assert status == 0
    made = sad.estimators.load(pump)
    table = pd.read_csv(new)
    scores = -made.score_samples(table.drop(columns="part"))
    order = np.argsort(-scores)[:5]
    found = re.findall(r"^row (\d+): score ([^\s,]+)", output, re.M)
    assert [int(number) - 1 for number, _ in found] == order.tolist()
    np.testing.assert_allclose([float(s) for _, s in found], scores[order], rtol=1e-3)
    value = table[HOSTILE][order[0]]
    assert f"{HOSTILE} is {value:.4g}, usual " in output
    assert "Anomalous" not in path.read_text()


def test_rows_are_asked_once_and_those_of_the_training_never(home, asked, deepsad):  # noqa: F811
    numbers = [number for number, _ in keys(asked)]
    assert len(set(numbers)) == 6
    flags = (home / "pump", home / "parts.csv", "--number=300")
    status, output, _ = deepsad("suggest", *flags)
    found = {int(number) for number in re.findall(r"^row (\d+):", output, re.M)}
    assert status == 0 and found == set(range(101, 301))  # the others have a status


def test_parquet_is_asked_about_as_csv_is(home, pump, deepsad, monkeypatch):  # noqa: F811
    monkeypatch.setattr(asking, "_POOL", 20)
    monkeypatch.setattr(new_rows, "_BLOCK", 64)  # several blocks, which are thinned
    monkeypatch.setattr(new_rows, "_CELLS", 0)
    pd.read_csv(home / "new.csv").to_parquet(home / "new.parquet")
    said = []
    for name in ("new.csv", "new.parquet"):
        status, output, _ = deepsad("suggest", pump, home / name, "--number=6")
        assert status == 0
        said.append(output)
    assert said[0] == said[1]
    flags = ("--top=1", "-o", home / "one.html")
    assert deepsad("explain", pump, home / "new.parquet", *flags)[0] == 0
    assert "<small>part no. " in (home / "one.html").read_text()


def test_answers_are_clicked_typed_undone_and_saved(asked, visit, tmp_path):  # noqa: F811
    page = visit(asked, viewport={"width": 390, "height": 800})
    said, current = page.locator("#said"), page.locator("article:visible h2")
    first = current.inner_text()
    assert f"Row {keys(asked)[0][0]} part no. " in first
    assert page.locator("article:visible").count() == 1
    text = page.locator("article:visible").inner_text()
    assert HOSTILE in text and page.evaluate("document.scripts.length") == 1
    assert any(QUOTED in t for t in page.locator("td").all_text_contents())
    assert page.evaluate("document.body.scrollWidth") <= 390
    page.get_by_role("button", name="Anomalous").click()
    page.keyboard.press("n")
    page.keyboard.press("d")
    assert said.inner_text() == "3 of 6 answered"
    page.keyboard.press("u")
    assert said.inner_text().startswith("2 of 6 answered")
    page.keyboard.press("d")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("a")  # the second is anomalous after all
    again = page.context.new_page()  # nothing is lost, though nothing was saved
    again.goto(page.url)
    assert again.locator("#said").inner_text() == "3 of 6 answered, those of before"
    with again.expect_download() as download:
        again.get_by_role("button", name="Save").click()
    assert download.value.suggested_filename == "labels.csv"
    download.value.save_as(tmp_path / "labels.csv")
    rows = list(csv.reader(open(tmp_path / "labels.csv")))
    expected = zip(keys(asked), ("anomaly", "anomaly", "unknown"), strict=False)
    assert rows[0] == ["row", "fingerprint", "label"]
    assert rows[1:] == [[str(n), mark, what] for (n, mark), what in expected]
    assert page.evaluate("localStorage.length") == 1


def test_leaving_is_warned_of_until_all_is_saved(asked, visit):  # noqa: F811
    page = visit(asked)
    leave = "() => !dispatchEvent(new Event('beforeunload', {cancelable: true}))"
    assert not page.evaluate(leave)
    page.keyboard.press("a")
    assert page.evaluate(leave)
    with page.expect_download():
        page.keyboard.press("s")
    assert not page.evaluate(leave)


def test_a_fit_goes_on_with_what_the_page_has_saved(home, pump, asked, deepsad):  # noqa: F811
    marks = keys(asked)
    answers = [(*key, "anomaly") for key in marks[:2]] + [(*marks[2], "normal")]
    answers += [(*marks[3], "unknown")]
    labels = write(home / "labels.csv", answers)
    model, new = home / "pump2", home / "new.csv"
    flags = (labels, f"--from={pump}", f"--model={model}", "--epochs=40")
    status, output, errors = deepsad("fit", new, *flags)
    assert status == 0, errors
    # 100 of the first training were labeled, and 7 of these broken.
    rows = "400: 94 known normal, 9 known anomalies, 297 unlabeled"
    assert rows in output and "going on from pump" in output
    page = (model / "report.html").read_text()
    assert "new.csv, going on from pump" in page and "Usual<" in page
    before, after = calibrated.load(pump), calibrated.load(model)
    assert after.model.preprocessing == before.model.preprocessing
    x = pd.read_csv(new).drop(columns="part")
    one, other = (sad.score(made.model, x) for made in (before, after))
    places = [number - 1 for number, _ in marks]
    assert (other[places[:2]] / one[places[:2]] > other.mean() / one.mean()).all()
    held = np.isin(after.examples.held, sad.examples.fingerprints(after.model, x))
    assert held.all() and len(held) in (58, 59, 60)  # two are anomalies now
    # Who has answered is not asked again, not even what nobody knows.
    status, output, _ = deepsad("suggest", model, new, "--number=300")
    found = {int(number) for number in re.findall(r"^row (\d+):", output, re.M)}
    assert status == 0 and found == set(range(1, 301)) - {p + 1 for p in places[:4]}


def test_going_on_with_the_same_rows_keeps_the_same_held_out(home, pump, deepsad):  # noqa: F811
    made, model = calibrated.load(pump), home / "pump3"
    table = pd.read_csv(home / "parts.csv").drop(columns=["part", "status"])
    marks = sad.examples.fingerprints(made.model, table)
    row = int(np.flatnonzero(np.isin(marks, made.examples.held))[-1])
    answers = [(row + 1, f"{marks[row]:016x}", "anomaly")]
    labels = write(home / "one.csv", answers)
    flags = (labels, f"--from={pump}", f"--model={model}", "--epochs=1")
    status, output, errors = deepsad("fit", home / "parts.csv", *flags)
    assert status == 0, errors
    assert "300: 93 known normal, 8 known anomalies, 199 unlabeled" in output
    expected = set(made.examples.held.tolist()) - {int(marks[row])}
    assert set(calibrated.load(model).examples.held.tolist()) == expected


def test_some_rows_that_were_held_out_do_not_make_a_file_the_same():
    prints, held = np.array([5, 7, 5, 9, 5, 8]), np.array([5, 7, 5])
    assert continuing._same(prints, held).tolist() == [0, 1, 2]  # each as often
    assert continuing._same(prints[:2], held) is None
    assert continuing._same(prints, np.array([5, 6])) is None
    assert continuing._same(prints, held[:0]) is None


@pytest.mark.parametrize(
    "change, said",
    [
        (
            lambda key: (key[0] + 1, key[1], "anomaly"),
            "is not the one that was labeled",
        ),
        (lambda key: (10_000, key[1], "anomaly"), "is not the one that was labeled"),
        (lambda key: (*key, "odd"), "line 2 is .* one of normal, anomaly, unknown"),
        (lambda key: (*key, "unknown"), "no row that is normal or an anomaly"),
    ],
)
def test_answers_about_other_rows_are_refused(home, asked, deepsad, change, said):  # noqa: F811
    labels = write(home / "wrong.csv", [change(keys(asked)[0])])
    model = home / "never"
    flags = (labels, f"--from={home / 'pump'}", f"--model={model}")
    status, _, errors = deepsad("fit", home / "new.csv", *flags)
    assert status == 2 and len(errors) == 1 and re.search(said, errors[0]), errors
    assert not model.exists()


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--labels=x.csv"], "--labels and --from belong together"),
        (["--from=x"], "--labels and --from belong together"),
        (["--from=x", "--labels=y", "--method=kde"], "--method is that of the model"),
        (["--from=nowhere", "--labels=y"], "there is no model nowhere"),
    ],
)
def test_flags_that_do_not_go_together(home, deepsad, flags, said):  # noqa: F811
    status, _, errors = deepsad("fit", home / "new.csv", "--model=never", *flags)
    assert status == 2 and said in errors[0]


def test_models_that_cannot_learn_from_labels_say_so(home, asked, deepsad, tmp_path):  # noqa: F811
    kde = sad.estimators.KernelDensity(selection="none")
    kde.fit(pd.read_csv(home / "new.csv").drop(columns=["part", "site"])).save(
        tmp_path / "kde"
    )
    labels = write(tmp_path / "labels.csv", [(*keys(asked)[0], "anomaly")])
    flags = (labels, f"--from={tmp_path / 'kde'}", f"--model={tmp_path / 'new'}")
    status, _, errors = deepsad("fit", home / "new.csv", *flags)
    assert status == 2 and "a model of kde, which learns nothing" in errors[0]


def test_images_are_shown_with_their_maps_on_one_scale(home, pump, visit, tmp_path):  # noqa: F811
    rng, made = np.random.default_rng(0), calibrated.load(pump)
    x = rng.integers(0, 255, (2, 4, 5, 1), dtype=np.uint8)
    values = np.zeros((2, 20))
    values[0, 3], values[1, 3], values[1, 7] = 1.0, 0.5, -1.0
    found = attributions.Attributions(values, np.ones(2), 0.5, np.zeros(2))
    near = explanations.Neighbors(np.zeros((2, 1), int), np.zeros((2, 1)))
    kept = made.examples._replace(x=x)
    way = "integrated gradients"
    why = explanations.Explanation(x, found, way, (4, 5), None, kept, near, near)
    rows = [
        asking.Row(i + 1, "", x[i], "0" * 16, 1.0, 0.5, True, 0.0, False)
        for i in range(2)
    ]
    cells = [{"path": QUOTED}, {"path": HOSTILE}]
    text = sheet.page(asking.Asked(rows, cells, why, 2), "x", made, asks=True)
    (tmp_path / "images.html").write_text(text)
    page = visit(tmp_path / "images.html")
    assert QUOTED in page.locator("article:visible h2").inner_text()
    assert page.locator("article:visible img").count() == 4
    pixels = """() => [...document.querySelectorAll("article")].map((a) => {
        const image = a.querySelectorAll("img")[1];
        const canvas = document.createElement("canvas");
        [canvas.width, canvas.height] = [5, 4];
        const context = canvas.getContext("2d");
        context.drawImage(image, 0, 0, 5, 4);
        return [...context.getImageData(0, 0, 5, 4).data];
    })"""
    first, second = np.array(page.evaluate(pixels)).reshape(2, 20, 4)[..., :3]
    np.testing.assert_array_equal(first[3], (178, 34, 24))
    np.testing.assert_array_equal(second[3], np.round([212, 140, 135]))
    np.testing.assert_array_equal(second[7], (33, 92, 170))
    assert (first[4:] == 246).all()
