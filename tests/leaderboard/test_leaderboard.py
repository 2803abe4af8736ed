"""The leaderboard of runs on disk: its order, its numbers, its words, and the page in a browser."""

import csv
import hashlib
import io
import json
import re
import shutil
import warnings
from collections.abc import Mapping
from html import unescape
from pathlib import Path

import numpy as np
import optuna
import pytest
from conftest import Command
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import create_trial
from scipy import stats
from sweeps.runs import write_grid, write_record, write_run

from vitlab.errors import UserError
from vitlab.leaderboard.leaderboard import make_leaderboard
from vitlab.leaderboard.ranking import Ranking, stand
from vitlab.leaderboard.results import read_results
from vitlab.leaderboard.table import as_csv
from vitlab.leaderboard.web_page import as_page, as_text
from vitlab.sweeps.search import STUDY, open_storage

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of 12 rows of 3 seeds, one failed and one interrupted run, and a job that made no directory."""
    sweep = tmp_path_factory.mktemp("grid") / "sweep"
    write_grid(sweep)
    write_run(sweep / "36", "model=vit_tiny", "optimizer.lr=0.001", "seed=3", status="failed")
    (sweep / "36" / "run.log").write_text("RuntimeError: out of | <memory>\n")
    write_run(sweep / "37", "model=vit_tiny", "optimizer.lr=0.001", "seed=4", status="interrupted")
    job = {"number": 38, "overrides": ["optimizer.lr=9"], "status": "failed", "reason": "ImportError: no such module"}
    write_record(sweep, job)
    make_leaderboard([sweep])
    return sweep


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "leaderboard.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def answer(folder: Path) -> tuple[Ranking, list[dict[str, str]], str]:
    """Ranking, the CSV's rows, and the Markdown, without files and figures."""
    standings = stand(read_results([folder]))
    return standings, list(csv.DictReader(io.StringIO(as_csv(standings)))), as_text(standings, "runs")


def three_seeds(folder: Path, lr: float, values: Mapping[int, float], **options: float) -> None:
    for seed, value in values.items():
        write_run(folder / f"{lr}_{seed}", f"optimizer.lr={lr}", f"seed={seed}", val=value, **options)


def test_numbers_are_numpy_s_and_scipy_s(grid: Path) -> None:
    table = rows(grid)
    scores: dict[tuple[str, str, str], dict[int, tuple[float, float]]] = {}
    for run in range(36):
        overrides = (grid / str(run) / ".hydra" / "overrides.yaml").read_text().split()
        metrics = json.loads((grid / str(run) / "metrics.json").read_text())
        values = dict(override.split("=") for override in overrides if override != "-")
        key = (values["model"], values["optimizer.lr"], values["optimizer.weight_decay"])
        scores.setdefault(key, {})[int(values["seed"])] = (metrics["val/acc"], metrics["test/acc"])
    assert len(table) == len(scores) == 12
    for row in table:
        pairs = np.array(list(scores[row["model"], row["optimizer.lr"], row["optimizer.weight_decay"]].values()))
        for column, name in ((0, "val/acc"), (1, "test/acc")):
            values = pairs[:, column]
            low, high = stats.t.interval(0.95, 2, loc=values.mean(), scale=stats.sem(values))
            found = [float(row[f"{name} {figure}"]) for figure in ("mean", "std", "95 % low", "95 % high")]
            assert found == pytest.approx([values.mean(), values.std(ddof=1), low, high])
        assert (row["runs"], row["seeds"]) == ("3", "0 1 2")
    means = [float(row["val/acc mean"]) for row in table]
    assert means == sorted(means, reverse=True)
    assert [row["place"] for row in table] == [str(place) for place in range(1, 13)]


def test_differences_are_tested_over_seeds_and_corrected(tmp_path: Path) -> None:
    best, near, far = {0: 0.700, 1: 0.712, 2: 0.705}, {0: 0.698, 1: 0.713, 2: 0.699}, {0: 0.601, 1: 0.611, 2: 0.603}
    for lr, values in ((0.1, far), (0.2, best), (0.3, near)):
        three_seeds(tmp_path, lr, values)
    _, (first, second, third), _ = answer(tmp_path)
    assert [row["optimizer.lr"] for row in (first, second, third)] == ["0.2", "0.3", "0.1"]
    p = {row: stats.ttest_rel(list(best.values()), list(other.values())).pvalue for row, other in ((1, near), (2, far))}
    assert float(third["p (Holm)"]) == pytest.approx(2 * p[2])
    assert float(second["p (Holm)"]) == pytest.approx(max(p[1], 2 * p[2]))
    assert first["verdict"] == "best"
    assert second["verdict"].startswith("not told apart from the best (p = 0.")
    assert third["verdict"].startswith("worse (p")


def test_the_test_images_decide_nothing(tmp_path: Path) -> None:
    write_run(tmp_path / "0", "optimizer.lr=0.1", val=0.5, test=0.9)
    write_run(tmp_path / "1", "optimizer.lr=0.2", val=0.6, test=0.1)
    assert [row["optimizer.lr"] for row in answer(tmp_path)[1]] == ["0.2", "0.1"]


def test_runs_that_choose_by_their_loss_are_ordered_by_it(tmp_path: Path) -> None:
    choice = ("checkpoint.monitor=val/loss", "checkpoint.mode=min")
    write_run(tmp_path / "0", "optimizer.lr=0.1", *choice, val=0.5, **{"val/loss": 1.0})
    write_run(tmp_path / "1", "optimizer.lr=0.2", *choice, val=0.6, **{"val/loss": 1.3})
    standings, table, text = answer(tmp_path)
    assert (standings.metric, standings.mode) == ("val/loss", "min")
    assert [(row["optimizer.lr"], row["val/acc mean"]) for row in table] == [("0.1", "0.5"), ("0.2", "0.6")]
    assert "| # | lr | validation loss, nats | validation accuracy, % | test accuracy, % |" in text
    assert "with 1.0000 nats" in text


def test_runs_that_choose_by_the_average_of_the_weights_are_tested_by_it(tmp_path: Path) -> None:
    choice = "checkpoint.monitor=val/acc_ema"
    for number, accuracy in enumerate((0.5, 0.6)):
        averaged = {"val/acc_ema": accuracy, "test/acc_ema": accuracy - 0.1}
        write_run(tmp_path / str(number), f"optimizer.lr=0.{number + 1}", choice, val=0.9, test=0.8, **averaged)
    standings, table, text = answer(tmp_path)
    assert standings.metric == "val/acc_ema"
    assert [(row["optimizer.lr"], row["test/acc_ema mean"]) for row in table] == [("0.2", "0.5"), ("0.1", "0.4")]
    columns = (
        "| validation accuracy of the EMA weights, % | validation accuracy, % | test accuracy of the EMA weights, % |"
    )
    assert columns in text
    assert "with 60.00 % (one seed, so no interval); on the test images 50.00 %" in text


def test_runs_that_choose_by_different_metrics_are_ordered_by_accuracy(tmp_path: Path) -> None:
    write_run(tmp_path / "0", "checkpoint.monitor=val/loss", "checkpoint.mode=min", val=0.5)
    write_run(tmp_path / "1", val=0.6)
    assert answer(tmp_path)[0].metric == "val/acc"


def test_runs_without_validation_come_last_and_it_is_said(tmp_path: Path) -> None:
    write_run(tmp_path / "0", "data.val_size=0", val=None, test=0.99)
    write_run(tmp_path / "1", val=0.1, test=0.1)
    _, (first, last), text = answer(tmp_path)
    assert (first["data.val_size"], last["data.val_size"]) == ("5000", "0")
    assert (last["place"], last["val/acc mean"], last["test/acc mean"]) == ("", "", "0.99")
    assert "Last and without a place" in text


def test_a_score_that_is_no_number_is_not_the_best(tmp_path: Path) -> None:
    write_run(tmp_path / "0", "optimizer.lr=9", val=float("nan"))
    write_run(tmp_path / "1", val=0.1)
    assert [row["place"] for row in answer(tmp_path)[1]] == ["1", ""]


def test_nothing_validated_is_no_best(tmp_path: Path) -> None:
    write_run(tmp_path / "0", "data.val_size=0", val=None)
    text = answer(tmp_path)[2]
    assert "the test images choose nothing" in text
    assert "reproduce=" not in text


def test_nothing_finished(tmp_path: Path, in_process: Command) -> None:
    write_run(tmp_path / "0", status="failed")
    result = in_process("-m", "vitlab.leaderboard", str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert "No run is finished." in result.stdout
    assert "failed" in (tmp_path / "leaderboard.html").read_text()


def test_one_seed_has_no_interval_and_can_t_be_told(tmp_path: Path) -> None:
    three_seeds(tmp_path, 0.1, {0: 0.70, 1: 0.72})
    three_seeds(tmp_path, 0.2, {0: 0.60})
    _, (_, last), text = answer(tmp_path)
    assert (last["val/acc std"], last["val/acc 95 % low"], last["p (Holm)"]) == ("", "", "")
    assert last["verdict"] == "one seed: can't be told"
    assert "| 2 | 0.2 | 1 | 60.00 | one seed: none |" in text


def test_the_same_seed_twice_counts_once(tmp_path: Path) -> None:
    """A run done again gives the same number again: as a second seed it would make the mean look sure."""
    for path, value in (("0", 0.5), ("1", 0.6), ("2", 0.7)):
        write_run(tmp_path / path, f"seed={min(int(path), 1)}", f"name=run{path}", val=value)
    standings, (row,), text = answer(tmp_path)
    assert (row["runs"], float(row["val/acc mean"])) == ("2", pytest.approx(0.6))  # 0.5 and the newer 0.7
    assert [result.path.name for result in standings.repeated] == ["1"]
    assert "Left out" in text


def test_what_makes_runs_hard_to_compare_is_said(tmp_path: Path) -> None:
    write_run(tmp_path / "0", "optimizer.lr=0.1")
    other = {"val": {"images": 50, "sha256": "other"}, "test": {"images": 100, "sha256": "test"}}
    write_run(tmp_path / "1", manifest={"data": other, "git": {"revision": "1", "dirty": True}})
    text = answer(tmp_path)[2]
    assert "not all runs were validated on the same images" in text
    assert "tested on the same images" not in text
    assert "different revisions of the code" in text
    assert "changes that git does not know" in text


def test_failures_are_listed_with_reason_and_log_and_not_averaged(grid: Path) -> None:
    markdown = (grid / "leaderboard.md").read_text()
    failed = r"\| \S*36 \| .*lr=0.001 seed=3 \| failed \| 3 \| RuntimeError: out of &#124; <memory> \| \S*.log "
    assert re.search(failed, markdown)
    assert re.search(r"\| \S*38 \| optimizer.lr=9 \| failed \| 0 \| ImportError: no such module \| none \|", markdown)
    assert re.search(r"\| \S*37 \| .* \| interrupted \| 3 \|", markdown)
    assert sum(int(row["runs"]) for row in rows(grid)) == 36


def test_how_to_do_the_best_again(grid: Path) -> None:
    directories = rows(grid)[0]["directories"].split()
    markdown = (grid / "leaderboard.md").read_text()
    assert all(f"python train.py reproduce={directory}\n" in markdown for directory in directories)


def test_runs_stay_as_they_are_and_the_answer_can_be_made_anew(tmp_path: Path) -> None:
    def content() -> dict[str, str]:
        files = [file for file in tmp_path.rglob("*") if file.is_file() and not file.name.startswith("leaderboard.")]
        return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}

    write_run(tmp_path / "0", val=0.5)
    before = content()
    make_leaderboard([tmp_path])
    assert content() == before
    write_run(tmp_path / "1", "seed=1", val=0.6)
    make_leaderboard([tmp_path])
    assert float(rows(tmp_path)[0]["val/acc mean"]) == pytest.approx(0.55)


def test_terminal_and_several_directories(tmp_path: Path, in_process: Command) -> None:
    three_seeds(tmp_path / "sweep", 0.1, {0: 0.70, 1: 0.71, 2: 0.72})
    write_run(tmp_path / "runs=1" / "0", "optimizer.lr=0.2", val=0.5)
    write_run(tmp_path / "runs=1" / "1", "optimizer.lr=0.3", val=0.4)
    result = in_process("-m", "vitlab.leaderboard", "sweep", "runs=1", "out=answer", "top=1")
    assert result.returncode == 0, result.stderr
    assert "5 finished runs in 3 rows, best first by validation accuracy" in result.stdout
    assert re.search(r"\n +1 +0.1 +3 +71.00 ± 1.00 +68.52 to 73.48 +40.00 ± 0.00 +0:01:00 +best", result.stdout)
    assert "... and 2 more rows in the files" in result.stdout
    assert "  python train.py reproduce=sweep/0.1_0\n" in result.stdout
    assert [row["directories"] for row in rows(tmp_path / "answer")][1:] == ["runs=1/0", "runs=1/1"]
    assert not list((tmp_path / "runs=1").glob("leaderboard.*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "which runs? Name one or more directories"),
        (["nowhere"], "nowhere does not exist"),
        (["."], "there is no run in ."),
        ([".", "."], "several directories: say where the leaderboard goes, with out=<folder>"),
        ([".", "topp=3"], "unknown key 'topp'. Did you mean 'top'?"),
        ([".", "top=many"], "top=many must be a whole number"),
    ],
)
def test_refusals(arguments: list[str], message: str, in_process: Command) -> None:
    result = in_process("-m", "vitlab.leaderboard", *arguments)
    assert result.returncode == 2
    assert f"error: {message}" in result.stderr


def test_a_folder_that_can_t_be_written_to(tmp_path: Path) -> None:
    write_run(tmp_path / "0")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"can't write the leaderboard to .*file.*out="):
        make_leaderboard([tmp_path / "0"], tmp_path / "file")


def test_a_search_is_a_row_a_trial(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    study = optuna.create_study(storage=open_storage(tmp_path), study_name=STUDY, direction="maximize")
    for trial in range(14):
        lr, depth = 10 ** draw.uniform(-4, -2), draw.integers(1, 13)
        augment = draw.choice(["basic", "none"])
        typed = (f"optimizer.lr={lr}", f"model.depth={depth}", f"augment={augment}")
        value = 0.6 - abs(np.log10(lr) + 3) / 10  # the learning rate decides
        write_run(tmp_path / str(trial), *typed, val=value)
        spaces = {"optimizer.lr": FloatDistribution(1e-4, 1e-2, log=True), "model.depth": IntDistribution(1, 12)}
        study.add_trial(
            create_trial(params={"optimizer.lr": lr, "model.depth": int(depth)}, distributions=spaces, value=value)
        )
    write_run(tmp_path / "14", "optimizer.lr=0.5", status="interrupted")
    job = {"number": 14, "status": "pruned", "reason": "hopeless"}
    write_record(tmp_path, job)
    make_leaderboard([tmp_path])
    assert len(rows(tmp_path)) == 14
    assert list(rows(tmp_path)[0])[1:4] == ["optimizer.lr", "model.depth", "augment"]
    text = (tmp_path / "leaderboard.md").read_text()
    assert "95 % interval" not in text
    assert "rows have one seed. To see: python train.py -m optimizer.lr=" in text
    shares = dict(re.findall(r"\| (optimizer.lr|model.depth) \| (\d+)% \|", text))
    assert int(shares["optimizer.lr"]) > 60
    assert sum(map(int, shares.values())) in (99, 100, 101)
    assert "| pruned | 3 | hopeless |" in text
    assert "importance of parameters" in (tmp_path / "leaderboard.html").read_text().lower()


@pytest.mark.parametrize("count", [1, 2])
def test_few_runs_have_a_page_too(tmp_path: Path, count: int) -> None:
    for number in range(count):
        write_run(tmp_path / str(number), f"optimizer.lr={10.0**-number}", f"model.pool={('cls', 'mean')[number]}")
    page = as_page(stand(read_results([tmp_path])), "few")
    assert page.count("<img ") == (1 if count == 1 else 3)


def test_many_settings_stand_behind_the_figures_and_fit(tmp_path: Path) -> None:
    keys = ("optimizer.lr", "optimizer.eps", "label_smoothing", "model.depth", "model.patch_size", "data.batch_size")
    for number in range(2):
        write_run(tmp_path / str(number), *(f"{key}={number + 1}" for key in keys), val=0.5 + 0.1 * number)
    write_run(tmp_path / "2", *(f"{key}=2" for key in keys), "seed=1", val=0.7)
    standings, _, text = answer(tmp_path)
    names = "lr | eps | label_smoothing | depth | patch_size | batch_size"
    assert f"| beside the best | {names} |" in text
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib's, where a figure has no room
        as_page(standings, "many")


def test_the_page_escapes_what_runs_say(grid: Path) -> None:
    page = (grid / "leaderboard.html").read_text()
    assert "<memory>" not in page
    assert "out of | <memory>" in unescape(page)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
def test_the_page_in_a_browser(grid: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    requests, errors = [], []
    with playwright.sync_playwright() as session:
        browser = session.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto((grid / "leaderboard.html").as_uri())
        table = page.locator("table.sortable").first

        def column(name: str) -> list[str]:
            heads = table.locator("th").all_inner_texts()
            return table.locator(f"tbody td:nth-child({heads.index(name) + 1})").all_inner_texts()

        def click(name: str) -> None:
            table.locator("th", has_text=re.compile(f"^{re.escape(name)}$")).click()

        assert column("#") == [str(place) for place in range(1, 13)]
        rates = [float(rate) for rate in column("lr")]
        assert rates != sorted(rates)
        click("lr")
        assert [float(rate) for rate in column("lr")] == sorted(rates, reverse=True)
        click("lr")
        assert [float(rate) for rate in column("lr")] == sorted(rates)
        click("model")
        assert column("model") == sorted(column("model"), reverse=True)
        click("#")
        click("#")
        assert column("#") == [str(place) for place in range(1, 13)]
        sizes = page.eval_on_selector_all("img", "images => images.map(i => i.naturalWidth)")
        overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        browser.close()
    assert len(sizes) == 4
    assert min(sizes) > 300
    assert overflow == 0
    assert errors == []
    assert all(url.startswith(("file:", "data:")) for url in requests)
