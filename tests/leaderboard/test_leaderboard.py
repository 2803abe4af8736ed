"""Test the leaderboard of runs on disk: order, numbers, sentences, and the page in a browser."""

import csv
import hashlib
import io
import json
import re
import shutil
import warnings
from collections.abc import Mapping
from html import unescape
from itertools import product
from pathlib import Path

import numpy as np
import optuna
import pytest
from conftest import ROOT, Command
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import create_trial
from pages import Page, check_page
from scipy import stats
from sweeps.runs import write_grid, write_record, write_run

from vitlab.errors import UserError
from vitlab.leaderboard.leaderboard import as_page, as_text, make_leaderboard
from vitlab.leaderboard.leaderboard_plots import draw_curves_of_runs, draw_times
from vitlab.leaderboard.ranking import Ranking, rank
from vitlab.leaderboard.results import read_results
from vitlab.leaderboard.table import as_csv
from vitlab.sweeps.search import STUDY, open_storage

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a sweep of 12 rows of 3 seeds, a failed and an interrupted run, and a job without a directory."""
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


def make_texts(folder: Path) -> tuple[Ranking, list[dict[str, str]], str]:
    """Return the ranking, the rows of the CSV, and the Markdown, without files and figures."""
    ranking = rank(read_results([folder]))
    return ranking, list(csv.DictReader(io.StringIO(as_csv(ranking)))), as_text(ranking, "runs")


def three_seeds(folder: Path, lr: float, values: Mapping[int, float], **options: float) -> None:
    for seed, value in values.items():
        write_run(folder / f"{lr}_{seed}", f"optimizer.lr={lr}", f"seed={seed}", val=value, **options)


def test_numbers_agree_with_numpy_and_scipy(grid: Path) -> None:
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
    _, (first, second, third), _ = make_texts(tmp_path)
    assert [row["optimizer.lr"] for row in (first, second, third)] == ["0.2", "0.3", "0.1"]
    p = {row: stats.ttest_rel(list(best.values()), list(other.values())).pvalue for row, other in ((1, near), (2, far))}
    assert float(third["p (Holm)"]) == pytest.approx(2 * p[2])
    assert float(second["p (Holm)"]) == pytest.approx(max(p[1], 2 * p[2]))
    assert first["verdict"] == "best"
    assert second["verdict"].startswith("no significant difference (p = 0.")
    assert third["verdict"].startswith("worse (p")


def test_test_images_do_not_affect_the_ranking(tmp_path: Path) -> None:
    write_run(tmp_path / "0", "optimizer.lr=0.1", val=0.5, test=0.9)
    write_run(tmp_path / "1", "optimizer.lr=0.2", val=0.6, test=0.1)
    assert [row["optimizer.lr"] for row in make_texts(tmp_path)[1]] == ["0.2", "0.1"]


def test_runs_that_monitor_the_loss_are_ranked_by_it(tmp_path: Path) -> None:
    choice = ("checkpoint.monitor=val/loss", "checkpoint.mode=min")
    write_run(tmp_path / "0", "optimizer.lr=0.1", *choice, val=0.5, **{"val/loss": 1.0})
    write_run(tmp_path / "1", "optimizer.lr=0.2", *choice, val=0.6, **{"val/loss": 1.3})
    ranking, table, text = make_texts(tmp_path)
    assert (ranking.metric, ranking.mode) == ("val/loss", "min")
    assert [(row["optimizer.lr"], row["val/acc mean"]) for row in table] == [("0.1", "0.5"), ("0.2", "0.6")]
    assert "| # | lr | validation loss, nats | validation accuracy, % | test accuracy, % |" in text
    assert "with 1.0000 nats" in text


def test_runs_that_monitor_ema_weights_are_tested_with_them(tmp_path: Path) -> None:
    choice = "checkpoint.monitor=val/acc_ema"
    for number, accuracy in enumerate((0.5, 0.6)):
        averaged = {"val/acc_ema": accuracy, "test/acc_ema": accuracy - 0.1}
        write_run(tmp_path / str(number), f"optimizer.lr=0.{number + 1}", choice, val=0.9, test=0.8, **averaged)
    ranking, table, text = make_texts(tmp_path)
    assert ranking.metric == "val/acc_ema"
    assert [(row["optimizer.lr"], row["test/acc_ema mean"]) for row in table] == [("0.2", "0.5"), ("0.1", "0.4")]
    columns = (
        "| validation accuracy of the EMA weights, % | validation accuracy, % | test accuracy of the EMA weights, % |"
    )
    assert columns in text
    assert "with 60.00 % (one seed, so no interval); on the test images 50.00 %" in text


def test_the_direction_of_a_metric_is_told_by_the_runs_that_monitor_it(tmp_path: Path) -> None:
    by_mine = ("checkpoint.monitor=val/mine", "checkpoint.mode=max")
    by_loss = ("checkpoint.monitor=val/loss", "checkpoint.mode=min")
    write_run(tmp_path / "0", "optimizer.lr=0.1", *by_mine, **{"val/mine": 1})
    write_run(tmp_path / "1", "optimizer.lr=0.2", *by_loss, **{"val/mine": 2, "val/other": 1})
    for order in (1, -1):
        ranking = rank(read_results([tmp_path])[::order], metric="val/mine")
        assert (ranking.mode, ranking.ranked[0].results[0].path.name) == ("max", "1")
    with pytest.raises(UserError, match=r"metric=val/other: .* take metric=val/loss or metric=val/acc"):
        rank(read_results([tmp_path]), metric="val/other")


def test_test_images_do_not_rank_runs(tmp_path: Path) -> None:
    write_run(tmp_path / "0", **{"val/f1": 0.5, "test/f1": 0.5, "test/mine": 1})
    for metric, instead in (("test/acc", "val/acc"), ("test/f1", "val/f1"), ("test/mine", "val/acc")):
        with pytest.raises(UserError, match=f"metric={metric}: .* metric={instead}$"):
            rank(read_results([tmp_path]), metric=metric)


def test_runs_with_different_monitors_are_ranked_by_accuracy(tmp_path: Path) -> None:
    write_run(tmp_path / "0", "checkpoint.monitor=val/loss", "checkpoint.mode=min", val=0.5)
    write_run(tmp_path / "1", val=0.6)
    assert make_texts(tmp_path)[0].metric == "val/acc"


def test_runs_without_validation_come_last(tmp_path: Path) -> None:
    write_run(tmp_path / "0", "data.val_size=0", val=None, test=0.99)
    write_run(tmp_path / "1", val=0.1, test=0.1)
    _, (first, last), text = make_texts(tmp_path)
    assert (first["data.val_size"], last["data.val_size"]) == ("5000", "0")
    assert (last["place"], last["val/acc mean"], last["test/acc mean"]) == ("", "", "0.99")
    assert "Last and without a rank" in text


def test_a_nan_score_has_no_rank(tmp_path: Path) -> None:
    write_run(tmp_path / "0", "optimizer.lr=9", val=float("nan"))
    write_run(tmp_path / "1", val=0.1)
    assert [row["place"] for row in make_texts(tmp_path)[1]] == ["1", ""]


def test_without_validation_there_is_no_best_run(tmp_path: Path) -> None:
    write_run(tmp_path / "0", "data.val_size=0", val=None)
    text = make_texts(tmp_path)[2]
    assert "No run was validated" in text
    assert "reproduce=" not in text


def test_no_run_is_finished(tmp_path: Path, in_process: Command) -> None:
    write_run(tmp_path / "0", status="failed")
    result = in_process("-m", "vitlab.leaderboard", str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert "No run is finished." in result.stdout
    assert "failed" in (tmp_path / "leaderboard.html").read_text()


def test_one_seed_has_no_interval_and_no_comparison(tmp_path: Path) -> None:
    three_seeds(tmp_path, 0.1, {0: 0.70, 1: 0.72})
    three_seeds(tmp_path, 0.2, {0: 0.60})
    _, (_, last), text = make_texts(tmp_path)
    assert (last["val/acc std"], last["val/acc 95 % low"], last["p (Holm)"]) == ("", "", "")
    assert last["verdict"] == "one run: cannot be compared"
    assert "| 2 | 0.2 | 1 | 60.00 | one run: none |" in text


def test_the_newest_of_repeated_runs_counts_whatever_its_time_zone(tmp_path: Path) -> None:
    for name, started, score in (("a", "2026-03-01T13:30:00+00:00", 0.7), ("b", "2026-03-01T14:00:00+01:00", 0.6)):
        run = write_run(tmp_path / name, val=score)
        manifest = json.loads((run / "manifest.json").read_text())
        (run / "manifest.json").write_text(json.dumps({**manifest, "started": started}))
    ranking = rank(read_results([tmp_path]))
    assert [row.score.mean for row in ranking.ranked] == [0.7]
    assert [result.path.name for result in ranking.repeated] == ["b"]


def test_the_same_seed_twice_counts_once(tmp_path: Path) -> None:
    """A repeated run gives the same score; as a second seed it would make the interval too narrow."""
    for path, value in (("0", 0.5), ("1", 0.6), ("2", 0.7)):
        write_run(tmp_path / path, f"seed={min(int(path), 1)}", f"name=run{path}", val=value)
    ranking, (row,), text = make_texts(tmp_path)
    assert (row["runs"], float(row["val/acc mean"])) == ("2", pytest.approx(0.6))  # 0.5 and the newer 0.7
    assert [result.path.name for result in ranking.repeated] == ["1"]
    assert "Left out" in text


def test_differences_that_hinder_comparison_are_reported(tmp_path: Path) -> None:
    write_run(tmp_path / "0", "optimizer.lr=0.1")
    other = {"val": {"images": 50, "sha256": "other"}, "test": {"images": 100, "sha256": "test"}}
    write_run(tmp_path / "1", manifest={"data": other, "git": {"revision": "1", "dirty": True}})
    text = make_texts(tmp_path)[2]
    assert "runs were validated on different images" in text
    assert "tested on different images" not in text
    assert "different revisions of the code" in text
    assert "uncommitted changes" in text


def test_failures_are_listed_with_reason_and_log_and_not_averaged(grid: Path) -> None:
    markdown = (grid / "leaderboard.md").read_text()
    failed = r"\| \S*36 \| .*lr=0.001 seed=3 \| failed \| 3 \| RuntimeError: out of &#124; <memory> \| \S*.log "
    assert re.search(failed, markdown)
    assert re.search(r"\| \S*38 \| optimizer.lr=9 \| failed \| 0 \| ImportError: no such module \| none \|", markdown)
    assert re.search(r"\| \S*37 \| .* \| interrupted \| 3 \|", markdown)
    assert sum(int(row["runs"]) for row in rows(grid)) == 36


def test_the_commands_reproduce_the_best_row(grid: Path) -> None:
    directories = rows(grid)[0]["directories"].split()
    markdown = (grid / "leaderboard.md").read_text()
    assert all(f"python train.py reproduce={directory}\n" in markdown for directory in directories)


def test_the_commands_trust_the_user_s_own_classes(tmp_path: Path) -> None:
    run = write_run(tmp_path / "0", "callbacks.mine._target_=mine.Callback", "seed=0")
    assert f"reproduce={run} trusted_targets=[mine.]\n" in make_texts(tmp_path)[2].replace("'", "")


def test_runs_stay_unchanged_and_the_leaderboard_can_be_updated(tmp_path: Path) -> None:
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
    assert f"  python {ROOT / 'train.py'} reproduce=sweep/0.1_0\n" in result.stdout
    assert [row["directories"] for row in rows(tmp_path / "answer")][1:] == ["runs=1/0", "runs=1/1"]
    assert not list((tmp_path / "runs=1").glob("leaderboard.*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name one or more directories"),
        (["nowhere"], "nowhere does not exist"),
        (["."], "there is no run in ."),
        ([".", "."], "several directories: choose one for the leaderboard with out=<folder>"),
        ([".", "topp=3"], "unknown key 'topp'. Did you mean 'top'?"),
        ([".", "top=many"], "top=many must be a whole number"),
    ],
)
def test_wrong_arguments_are_errors(arguments: list[str], message: str, in_process: Command) -> None:
    result = in_process("-m", "vitlab.leaderboard", *arguments)
    assert result.returncode == 2
    assert f"error: {message}" in result.stderr


def test_an_unwritable_folder_is_an_error(tmp_path: Path) -> None:
    write_run(tmp_path / "0")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write the leaderboard to .*file.*out="):
        make_leaderboard([tmp_path / "0"], tmp_path / "file")


def test_a_search_has_a_row_for_each_trial(tmp_path: Path) -> None:
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
    assert "95% CI" not in text
    assert "To add seeds: python train.py -m optimizer.lr=" in text
    shares = dict(re.findall(r"\| (optimizer.lr|model.depth) \| (\d+)% \|", text))
    assert int(shares["optimizer.lr"]) > 60
    assert sum(map(int, shares.values())) in (99, 100, 101)
    assert "| pruned | 3 | hopeless |" in text
    assert "importance of parameters" in (tmp_path / "leaderboard.html").read_text().lower()


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_runs_make_a_page(tmp_path: Path, count: int) -> None:
    for number in range(count):
        write_run(tmp_path / str(number), f"optimizer.lr={10.0**-number}", f"model.pool={('cls', 'mean')[number]}")
    page = as_page(rank(read_results([tmp_path])), "few")
    assert page.count("<img ") == (1 if count == 1 else 4)


def test_scores_by_time_are_joined_per_model(tmp_path: Path) -> None:
    for width, seed, minutes in product((64, 128), (0, 1), (1, 4, 16)):
        overrides = (f"model.embed_dim={width}", f"trainer.max_time=00:00:{minutes:02}:00", f"seed={seed}")
        score = 0.3 + 0.01 * minutes + 0.001 * width + 0.02 * seed
        write_run(tmp_path / f"{width}_{seed}_{minutes}", *overrides, val=score, seconds=60.0 * minutes)
    figure, caption = draw_times(rank(read_results([tmp_path])))
    axes = figure.axes[0]
    assert axes.get_xscale() == "log"
    assert axes.get_ylabel() == "validation accuracy, %"
    assert "standard deviation" in caption
    drawn = {container.get_label(): container for container in axes.containers}
    assert set(drawn) == {"embed_dim 64", "embed_dim 128"}
    points, _, bars = drawn["embed_dim 64"].lines
    assert list(points.get_xdata()) == [1, 4, 16]
    assert points.get_ydata() == pytest.approx([38.4, 41.4, 53.4])
    low, high = bars[0].get_segments()[0][:, 1]
    assert (high - low) / 2 == pytest.approx(np.std([37.4, 39.4], ddof=1))


def test_what_a_run_decides_by_its_length_divides_no_line(tmp_path: Path) -> None:
    for minutes in (1, 16):
        given = (f"trainer.max_time=00:00:{minutes:02}:00", "data.root=$\\frac")
        run = write_run(tmp_path / str(minutes), *given, seconds=60.0 * minutes)
        other = write_run(tmp_path / f"{minutes}_other", *given, "model.depth=3", seconds=60.0 * minutes)
        for file in (run / "config.yaml", other / "config.yaml"):
            file.write_text(file.read_text().replace("compile: auto", f"compile: {str(minutes > 1).lower()}"))
    ranking = rank(read_results([tmp_path]))
    assert "compile" in ranking.names
    figure, _ = draw_times(ranking)
    assert [len(line.lines[0].get_xdata()) for line in figure.axes[0].containers] == [2, 2]
    machine = tmp_path / "16" / "config.yaml"  # what follows from the machine does
    machine.write_text(machine.read_text().replace("precision: auto", "precision: bf16-mixed"))
    figure, _ = draw_times(rank(read_results([tmp_path])))
    assert len(figure.axes[0].containers) == 3


def test_a_legend_shows_dollar_signs(tmp_path: Path) -> None:
    for root in ("$x$", "$\\y$"):
        write_run(tmp_path / root[1:-1].strip("\\"), f"data.root={root}")
    ranking = rank(read_results([tmp_path]))
    for draw in (draw_times, draw_curves_of_runs):
        figure, _ = draw(ranking)
        legend = (*figure.legends, figure.axes[0].get_legend())[0]
        assert ["$" in text.get_text() for text in legend.get_texts()] == [True, True]
        figure.draw_without_rendering()  # raises for a formula that is none


def test_many_settings_follow_the_scores_and_fit(tmp_path: Path) -> None:
    keys = (
        "optimizer.lr",
        "optimizer.eps",
        "loss.label_smoothing",
        "model.depth",
        "model.patch_size",
        "data.batch_size",
    )
    for number in range(2):
        write_run(tmp_path / str(number), *(f"{key}={number + 1}" for key in keys), val=0.5 + 0.1 * number)
    write_run(tmp_path / "2", *(f"{key}=2" for key in keys), "seed=1", val=0.7)
    ranking, _, text = make_texts(tmp_path)
    names = "lr | eps | label_smoothing | depth | patch_size | batch_size"
    assert f"| compared with the best | {names} |" in text
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib's, where a figure has no room
        as_page(ranking, "many")


def test_the_page_has_contents_and_no_broken_link(grid: Path) -> None:
    page = Page((grid / "leaderboard.html").read_text())
    check_page(page, grid)
    assert page.sections[:4] == ["Summary", "Table", "Scores", "Time"]
    assert page.sections[-1] == "Reproduce the best"
    assert all("reproduce=" in command for command in page.commands)


def test_the_page_escapes_messages_of_runs(grid: Path) -> None:
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
    assert len(sizes) == 5
    assert min(sizes) > 300
    assert overflow == 0
    assert errors == []
    assert all(url.startswith(("file:", "data:")) for url in requests)


def test_folds_are_averaged_and_paired_as_seeds_are(tmp_path: Path) -> None:
    values = {0.1: (0.50, 0.62, 0.55), 0.2: (0.47, 0.58, 0.53)}
    for lr, of_folds in values.items():
        for fold, value in enumerate(of_folds):
            images = {"data": {"val": {"images": 10, "sha256": f"fold {fold}"}}}
            given = [f"optimizer.lr={lr}", "data.folds=3", f"data.fold={fold}"]
            write_run(tmp_path / f"{lr}_{fold}", *given, val=value, manifest=images)
    ranking, lines, text = make_texts(tmp_path)
    assert [line["folds"] for line in lines] == ["0 1 2", "0 1 2"]
    assert [row.score.n for row in ranking.ranked] == [3, 3]
    assert lines[1]["test"] == "paired"
    assert float(lines[1]["p (Holm)"]) == pytest.approx(stats.ttest_rel(*values.values()).pvalue)
    assert "mean of 3 folds" in text
    assert "different images" not in text


def write_folds(folder: Path, lr: float, split: int, seeds: int = 1, folds: int = 2) -> None:
    for fold, seed in product(range(folds), range(seeds)):
        images = {"data": {"val": {"images": 10, "sha256": f"{split} {fold} of {folds}"}}}
        given = [f"optimizer.lr={lr}", f"data.split_seed={split}", f"data.folds={folds}", f"data.fold={fold}"]
        path = folder / f"{lr}_{split}_{folds}_{fold}_{seed}"
        write_run(path, *given, f"seed={seed}", val=0.5 + lr * (1 + fold) + seed / 50, manifest=images)


def test_folds_of_different_splits_are_not_paired(tmp_path: Path) -> None:
    write_folds(tmp_path / "seed", 0.1, split=1)
    write_folds(tmp_path / "seed", 0.15, split=2)
    write_folds(tmp_path / "number", 0.1, split=1)
    write_folds(tmp_path / "number", 0.15, split=1, folds=3)
    for folder in (tmp_path / "seed", tmp_path / "number"):
        _, lines, text = make_texts(folder)
        assert [line["test"] for line in lines] == ["", "Welch"]
        assert "validated on different images" in text


def test_folds_with_several_seeds_are_counted_as_runs(tmp_path: Path) -> None:
    write_folds(tmp_path, 0.1, split=1, seeds=2)
    text = make_texts(tmp_path)[2]
    assert "mean of 4 runs" in text
    assert "different images" not in text


def test_one_fold_per_row_asks_for_more_folds(tmp_path: Path) -> None:
    for lr in (0.1, 0.2):
        write_run(tmp_path / str(lr), f"optimizer.lr={lr}", "data.folds=3", "data.fold=0", val=lr)
    text = make_texts(tmp_path)[2]
    assert "-m optimizer.lr=0.2 data.folds=3 data.fold=0,1,2" in text
    assert "seed=" not in text
