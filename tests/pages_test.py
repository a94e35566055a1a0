"""Pages in a real browser, from the disk and without network, against NumPy."""

import json
import pathlib
import re
import shutil

import numpy as np
import pytest

from deepsad_jax import evaluation
from deepsad_jax.report import examples, folders
from experiments import comparison, published, workdir

HOSTILE = "<script>alert(1)</script>"
QUOTED = """a "b" 'c' </script><!-- & <img src=x onerror=alert(2)>"""
WIDTHS = {"desktop": 1280, "phone": 390}


@pytest.fixture(scope="module")
def visit():
    """`visit(file, ...)`: the page; what goes wrong on it fails the module."""
    playwright = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("there is no chromium")
    wrong = []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])

        def open_page(file, **options):
            page = browser.new_context(offline=True, **options).new_page()
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.on("console", lambda message: wrong.append(message.text))
            page.on("dialog", lambda dialog: wrong.append(dialog.message))
            own = pathlib.Path(file).absolute().as_uri()
            page.on(
                "request",
                lambda r: (
                    None
                    if r.url == own or r.url.startswith("data:")
                    else wrong.append(r.url)
                ),
            )
            page.goto(own)
            return page

        yield open_page
        browser.close()
    assert wrong == []


def results(seed=0, auroc=0.9, **more):
    return {
        "method": "deep_sad",
        "data": f"folder/{QUOTED}.csv",
        "label": f"{HOSTILE}: 0 normal",
        "network": None,
        "seed": seed,
        "auroc": auroc,
        "average_precision": 0.8,
        "train_seconds": 1.5 + seed,
        "trained": True,
        "n_train": 100,
        "n_known_normal": 2,
        "n_known_outlier": 3,
        "n_test": 1000,
        "n_test_outlier": 100,
        "notes": [],
        **more,
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run with a thousand test rows, and its arrays."""
    folder, rng = tmp_path_factory.mktemp("run"), np.random.default_rng(0)
    label = (np.arange(1000) % 10 == 0).astype(int)
    score = np.exp(rng.normal(size=1000) + 2 * label).astype(np.float32)
    workdir.write_arrays(
        folder / "scores.npz",
        index=np.arange(1000),
        label=label,
        score=score,
        tested=np.ones(1000, bool),
        reference_untrained=rng.normal(size=1000),
    )
    figures = results(untrained_auroc=0.99, drift=[[HOSTILE, 0.5]])
    workdir.write_json(folder / "results.json", figures)
    workdir.write_json(folder / "config.json", {"data": {"name": QUOTED}})
    lines = [{"stage": "train", "epoch": i, "loss": 1 / i} for i in range(1, 6)]
    for i, line in enumerate(lines):
        for name in ("normal", "unlabelled", "anomaly"):
            line |= {f"distance_{name}": i + 1.0, f"isotropic_{name}": None}
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    found = folders.groups(score, label, np.ones(1000, bool))
    x = np.array([[QUOTED, str(i)] for i in range(1000)])
    kept = examples.kept(x, np.concatenate([*found.values()]), [HOSTILE, "number"])
    examples.save(folder / folders.EXAMPLES, kept)
    reasons = {int(found["Most anomalous"][0]): [(HOSTILE, QUOTED, "1 to 2", 0.75)]}
    folders.write(folder, reasons=reasons)
    return folder, score, label


def sweep_of(folder, runs):
    """The folder of a sweep of two methods and so many runs."""
    for i in range(runs):
        method, seed = ("deep_sad", "kde")[i % 2], i // 2
        place = folder / method / f"data-{i % 4 // 2}" / f"seed{seed}"
        place.mkdir(parents=True)
        workdir.write_json(place / "config.json", {})
        figures = results(seed, 0.4 + 0.5 * ((7 * i) % runs) / runs, method=method)
        workdir.write_json(place / "results.json", figures)
    rows = [
        {
            **{"method": method, "setting": f"data-{k}", "runs": runs // 4},
            **{"auroc_mean": 0.9 - 0.1 * j + 0.01 * k, "auroc_std": 0.02},
        }
        for j, method in enumerate(("deep_sad", "kde"))
        for k in range(2)
    ]
    workdir.write_json(folder / "summary.json", rows)
    folders.write(folder)
    return folder / folders.NAME


def told(page):
    """The numbers of the readout."""
    ids = ("value", "false-count", "false-share", "hit-count", "precision", "alarms")
    return {name: page.inner_text(f"#{name}") for name in ids}


def expected(score, label, threshold):
    alarm = score > threshold
    false, hits = int(alarm[label == 0].sum()), int(alarm[label == 1].sum())
    normal, anomalous = int((label == 0).sum()), int((label == 1).sum())
    precision = f"{100 * hits / (false + hits):.1f} %" if false + hits else "no alarms"
    return {
        "value": float(f"{threshold:.4g}"),
        "false-count": f"{false} of {normal}",
        "false-share": f"{100 * false / normal:.1f} %",
        "hit-count": f"{hits} of {anomalous}",
        "precision": precision,
        "alarms": float(f"{1000 * (false + hits) / len(score):.4g}"),
    }


def test_a_threshold_that_is_moved_gives_the_numbers_of_numpy(run, visit):
    folder, score, label = run
    page = visit(folder / folders.NAME, viewport={"width": 1280, "height": 2000})
    thresholds = page.evaluate(
        "JSON.parse(document.getElementById('page-data').textContent).thresholds"
    )

    def check():
        found = told(page)
        found |= {name: float(found[name]) for name in ("value", "alarms")}
        place = int(page.input_value("#slider"))
        assert found == expected(score, label, np.float64(thresholds[place]))
        return place

    first = check()
    page.focus("#slider")
    for key in ("ArrowRight", "ArrowRight", "PageUp", "ArrowLeft", "Home", "End"):
        page.keyboard.press(key)
        check()
    assert "0 of 900" in page.get_attribute("#slider", "aria-valuetext")
    box = page.locator("#histogram > svg").bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 0.3 * box["width"], middle)
    page.mouse.down()
    low = check()
    page.mouse.move(box["x"] + 0.7 * box["width"], middle)
    page.mouse.up()
    assert check() > low
    line = page.locator("#histogram .mark").bounding_box()
    np.testing.assert_allclose(line["x"] - box["x"], 0.7 * box["width"], atol=3)
    page.click("#reset")
    assert check() == first
    # Another share of anomalies, by Bayes' rule.
    page.fill("#share", "1")
    page.fill("#rows", "5000")
    alarm = score > thresholds[first]
    hits, false = (alarm[label == kind].mean() for kind in (1, 0))
    right, wrong = 0.01 * hits, 0.99 * false
    assert page.inner_text("#precision") == f"{100 * right / (right + wrong):.1f} %"
    np.testing.assert_allclose(
        float(page.inner_text("#alarms")), 5000 * (right + wrong), rtol=1e-3
    )
    low, high = evaluation.share_interval(int(alarm[label == 0].sum()), 900)
    interval = f"{100 * low:.1f} % to {100 * high:.1f} %"
    assert page.inner_text("#false-interval") == interval
    page.fill("#rows", "")
    assert page.inner_text("#alarms") == "not known"


def test_what_a_user_supplies_stays_text(run, visit):
    page = visit(run[0] / folders.NAME)
    text = page.inner_text("body")
    assert text.count(HOSTILE) > 20 and text.count(QUOTED) > 20
    assert "1 to 2" in text and "75 %" in text  # reasons
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 2


def test_doubts_are_said_on_the_page(run, visit):
    said = visit(run[0] / folders.NAME).inner_text(".cautions")
    assert "Only 3 anomalies were known" in said
    assert "is no better than the untrained network (99.0 %)" in said
    assert f"{HOSTILE} (0.50)" in said


def test_a_table_sorts_and_filters(tmp_path, visit):
    page = visit(sweep_of(tmp_path, 40))
    table = page.locator("table.sortable").nth(2)

    def column(number):
        cells = table.locator(f"tbody tr:not([hidden]) td:nth-child({number})")
        return cells.all_inner_texts()

    aurocs = np.array(column(4), float)
    assert len(aurocs) == 40 and (np.diff(aurocs) < 0).any()
    head = table.locator("th").nth(3)
    for order, sign in (("ascending", 1), ("descending", -1)):
        head.locator("button").press("Enter")
        assert head.get_attribute("aria-sort") == order
        np.testing.assert_array_equal(
            np.array(column(4), float), sign * np.sort(sign * aurocs)
        )
    table.locator("th button").first.click()
    names = column(1)
    assert names[0].endswith("seed0") and names.index(names[-1]) == 39
    page.fill("input[data-table=table-3]", "KDE seed1")
    assert {*column(2)} == {"kde"} and all("seed1" in name for name in column(1))
    count = len(column(1))
    assert page.inner_text("[data-count=table-3]") == f"{count} of 40 rows"
    links = table.locator("a").evaluate_all("all => all.map(a => a.href)")
    runs = {p.parent.as_uri() for p in tmp_path.rglob("seed*/results.json")}
    assert {link.rstrip("/") for link in links} == runs


def test_ranks_and_published_figures_stand_on_the_page(tmp_path, visit):
    figures = (published.Figure(95.0, 1.0, 10), None)
    cells = [
        comparison.Cell(
            f"{d} {HOSTILE}", m, {"ratio": 0.1}, [90 + 5 * j, 91 + 5 * j], f
        )
        for d in ("one", "two", "three")
        for j, (m, f) in enumerate(zip(("deep_sad", "kde"), figures, strict=True))
    ]
    about = {"table": "ratio", "command": "python -m experiments.paper"}
    comparison.write(tmp_path, comparison.compare(cells), about)
    folders.write(tmp_path)
    page = visit(tmp_path / folders.NAME)
    text = page.inner_text("main")
    ranks = page.locator("table").first.locator("tbody tr").all_inner_texts()
    assert [row.split()[:3] for row in ranks] == [
        ["kde", "1.00", "a"],
        ["deep_sad", "2.00", "a"],
    ]
    # Demsar's critical difference of two methods over three data sets.
    assert f"{1.960 * np.sqrt(2 * 3 / (6 * 3)):.2f}" in text
    assert re.search(r"90\.5 ± 0\.7\s+95\.0 ± 1\.0\s+-4\.5", text)
    assert f"one {HOSTILE}" in text


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS.values(), ids=list(WIDTHS))
def test_pages_fit_and_are_named_for_those_who_do_not_see(
    run, tmp_path, visit, width, scheme
):
    viewport = {"width": width, "height": 800}
    for file in (run[0] / folders.NAME, sweep_of(tmp_path, 8)):
        page = visit(file, viewport=viewport, color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        levels = page.eval_on_selector_all(
            "h1, h2, h3", "all => all.map(h => h.tagName)"
        )
        assert levels[0] == "H1" and levels.count("H1") == 1
        unnamed = "all => all.filter(i => !i.labels.length && !i.ariaLabel).length"
        assert page.eval_on_selector_all("input", unnamed) == 0
        unnamed = "all => all.filter(s => !s.ariaLabel && !s.ariaHidden).length"
        assert page.eval_on_selector_all("svg", unnamed) == 0
        if width < 600:
            text = page.evaluate(
                "() => { const t = document.querySelector('figure text'); return t ?"
                " t.getBoundingClientRect().height : 99; }"
            )
            assert text > 9


def test_a_thousand_runs_stay_small(tmp_path, run, visit):
    file = sweep_of(tmp_path, 1000)
    assert file.stat().st_size < 1e6
    assert (run[0] / folders.NAME).stat().st_size < 0.5e6  # a thousand rows
    page = visit(file)
    assert page.locator("table.sortable tbody tr").count() == 1006
