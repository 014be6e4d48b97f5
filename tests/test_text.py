"""Names with control characters, formulas or markup are harmless in all outputs."""

import csv
import io
import json
import re
import unicodedata

import matplotlib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tf_packnet as tp
from tests.conftest import make_mlp
from tests.test_packfile import commit
from tests.test_task_names import forged
from tf_packnet import text
from tf_packnet.errors import StoppedError, one_line
from tf_packnet.inspection import html_page
from tf_packnet.inspection.contents import inspect_pack
from tf_packnet.inspection.opened_pack import open_pack
from tf_packnet.inspection.owner_maps import draw_owner_map, to_rgb
from tf_packnet.inspection.tables import tables
from tf_packnet.packed.ownership_table import ownership_table
from tf_packnet.prediction import tables as prediction_tables
from tf_packnet.reporting import charts, exports, frames, progress, report, summary, tensorboard, tensorboard_runs
from tf_packnet.system.console import Console
from tf_packnet.system.streams import OutputStream

HOSTILE = {
    "title": "\x1b]0;owned\x07",
    "clear": "\x1b[2J\x1b[H",
    "c1": "\x9b31mred\x85",
    "bidi": "ab\u202egnp.exe",
    "zero width": "a\u200bb\ufeff",
    "lines": "a\nb\rc\td\x0be\u2028f",
    "surrogate": "\ud800x\udcff",
    "bytes": "\0\x08\x7f",
    "html": '<script>alert("1")</script>&amp;',
    "markdown": "a|b`c`*d*[e](javascript:f)\\",
    "rich": "[red]a[/red][/] :smile:",
    "mathtext": "$\\undefined{$ and $",
    "formula": "=cmd|' /C calc'!A0",
}
TEXTS = st.text(st.characters(exclude_categories=[]) | st.sampled_from("\x1b\x07\x9b\r\n\t\u202e\ud800=+-@|<$[]"))
every_name = pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)


def is_safe(shown: str) -> bool:
    """Whether a text has nothing but visible characters in lines, and can be stored."""
    shown.encode()
    return all(line.isprintable() for line in shown.split("\n"))


class TestPrintable:
    @given(TEXTS)
    def test_everything_is_visible(self, name):
        assert text.printable(name).isprintable()
        assert is_safe(text.printable_lines(name))
        assert text.printable_lines(name).count("\n") == name.count("\n")

    @given(st.text())
    def test_what_is_visible_stays(self, name):
        assert (text.printable(name) == name) == name.isprintable()

    @given(TEXTS.filter(lambda name: "\\" not in name))
    def test_can_be_read_back(self, name):
        escaped = text.printable(name)
        back = re.sub(r"\\(?:[tnr]|x..|u....|U........)", lambda found: eval(f'"{found[0]}"'), escaped)
        assert back == name

    def test_messages_of_errors(self):
        bad = "\x1b[2J\u202e\ud800"
        errors = [
            tp.ArgumentError("task", f"one of {bad}", type("Odd", (), {"__repr__": lambda self: bad})()),
            tp.PackFileError(f"{bad}.packnet", f"part {bad}", "is damaged"),
            StoppedError(bad),
            tp.DivergedError(bad),
        ]
        for error in errors:
            assert is_safe(str(error))
            assert r"\x1b[2J\u202e\ud800" in str(error)
        assert one_line(f"a\n  b {bad}") == r"a b \x1b[2J\u202e\ud800"


class TestJson:
    @given(TEXTS)
    def test_is_ascii_and_exact(self, name):
        shown = text.to_json({"name": name})
        assert shown.isascii()
        assert is_safe(shown)
        assert json.loads(shown) == {"name": name}


class TestCsv:
    @pytest.mark.parametrize("sign", [*"=+-@|\uff1d\uff0b\uff0d\uff20\ufe66", " =", "\t="])
    def test_formulas_are_quoted(self, sign):
        assert text.csv_cell(f"{sign}1+1") == "'" + text.printable(f"{sign}1+1")

    @pytest.mark.parametrize("value", [-1, 0.5, -2.5e-9, np.float32(-1), None, True, "-1", "+1", "-1.5e-9", "7", "-0."])
    def test_numbers_stay(self, value):
        assert text.csv_cell(value) is value

    @pytest.mark.parametrize("name", ["cat", "0-1", "a=b", "T-shirt/top", "猫", ""])
    def test_usual_names_stay(self, name):
        assert text.csv_cell(name) == name

    @given(TEXTS)
    def test_no_cell_begins_like_a_formula(self, name):
        cell = text.csv_cell(name)
        assert cell.isprintable()
        begins = unicodedata.normalize("NFKC", cell.lstrip(" "))[:1]
        assert begins not in ("=", "+", "-", "@") or float(cell) is not None

    @every_name
    def test_predictions(self, name):
        shown = prediction_tables.render("csv", name, [name], [[(name, 0.25), ("-1", 0.125)]])
        assert is_safe(shown)
        _, first, second = csv.reader(io.StringIO(shown))
        assert first == [text.csv_cell(name), "1", text.csv_cell(name), "0.25"]
        assert second[2:] == ["-1", "0.125"]


@every_name
def test_predictions_as_table_and_json(name):
    table = prediction_tables.render("table", name, [name], [[(name, 0.25)]])
    assert is_safe(table)
    assert f"task {text.printable(name)}" in " ".join(table.split("\n")[0].split()) or len(text.printable(name)) > 20
    shown = prediction_tables.render("json", name, [name], [[(name, 0.25)]])
    assert is_safe(shown)
    assert json.loads(shown)["predictions"] == [{"example": name, "classes": [{"class": name, "probability": 0.25}]}]


class TestConsole:
    @every_name
    @pytest.mark.parametrize("terminal", [False, True])
    def test_prints_names_as_they_are(self, name, terminal):
        from rich.table import Table
        from rich.text import Text

        console = Console(file=io.StringIO(), width=200, force_terminal=terminal, no_color=True)
        table = Table(title=name, caption=name, title_style="", caption_style="", header_style="")
        table.add_column(name)
        table.add_row(name)
        console.print(table)
        console.print(name, Text(name), soft_wrap=True)
        shown = console.file.getvalue()
        assert is_safe(shown)
        assert shown.count(text.printable(name)) >= 5 - ("\t" in name or "\n" in name)
        widths = {len(line) for line in shown.splitlines() if line.startswith(("┏", "┃", "┡", "│", "└"))}
        assert len(widths) == 1

    @pytest.mark.parametrize(
        "size", ["0", "1", "19", "-5", "", "eighty", "²", "٣", "8" * 5000, "99999999999", "1e3", "80.0", " 80"]
    )
    def test_ignores_sizes_that_make_no_sense(self, size):
        with pytest.MonkeyPatch.context() as patch:  # undone before pytest itself pads a line to this width
            patch.setenv("COLUMNS", size)
            patch.setenv("LINES", size)
            console = Console(file=io.StringIO())
            assert 20 <= console.width <= 1000
            console.print("a line")
            assert console.file.getvalue() == "a line\n"

    def test_takes_sizes_that_make_sense(self, monkeypatch):
        monkeypatch.setenv("COLUMNS", "132")
        assert Console(file=io.StringIO()).width == 132

    @pytest.mark.parametrize("settings", [{"TERM": "dumb"}, {"TERM": "unknown"}, {"TERM": ""}, {"NO_COLOR": "1"}])
    def test_no_colours(self, settings, monkeypatch):
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        console = Console(file=io.StringIO())
        console.print("a line", style="bold red")
        assert console.file.getvalue() == "a line\n"

    def test_draws_tables_in_ascii_where_the_output_is(self):
        from rich.table import Table

        stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="backslashreplace")
        console = Console(file=OutputStream(stream, "standard output", True), width=40)
        table = Table("猫")
        table.add_row("é")
        console.print(table)
        stream.flush()
        shown = stream.buffer.getvalue().decode("ascii")
        assert r"\u2502" not in shown
        assert "| \\xe9" in shown


class TestProgress:
    @every_name
    def test_of_a_run(self, name):
        task = tp.tasks.from_arrays("x", np.eye(40, dtype=np.float32), np.arange(40) % 2, batch_size=4)
        stream = [task]
        object.__setattr__(task, "name", name)
        console = Console(file=io.StringIO(), width=200)
        with progress.RunProgress(stream, console) as display:
            callback = display.stage(task, "train")
            callback.set_params({"epochs": 1})
            callback.on_train_begin()
            callback.on_epoch_end(0, {"loss": 0.5})
            callback.on_train_end()
            display.log(name)
        shown = console.file.getvalue()
        assert is_safe(shown)
        assert shown.count(text.printable(name)) == 2

    @every_name
    def test_of_a_run_on_a_terminal(self, name):
        from tf_packnet.reporting.experiment_progress import ExperimentProgress

        console = Console(file=io.StringIO(), width=200, force_terminal=True, no_color=True, legacy_windows=False)
        with ExperimentProgress(console) as display:
            display.add_run(3)
            display.start_run(name, 3)
            display.advance_run(name, 1)
            display._progress.refresh()
            display.end_run(name, 1.0, "accuracy 0.5", name)
        shown = console.file.getvalue()
        assert text.printable(name) in shown
        drawn = re.sub(r"\x1b\[(\?25[lh]|2K|1A|\d*;?\d*m)|\r", "", shown)  # what the progress display itself writes
        assert is_safe(drawn)


@pytest.fixture(scope="module")
def hostile_pack(tmp_path_factory):
    """A pack whose task and classes have all the hostile names, as a file of an earlier version may."""
    folder = tmp_path_factory.mktemp("hostile")
    packed = commit(tp.pack(make_mlp()), "first", 1, num_classes=len(HOSTILE))
    info = {"tasks": {"first": {"class_names": list(HOSTILE.values()), "accuracy": 0.5}}}
    tp.save_pack(packed, folder / "pack.packnet", info=info)
    name = "".join(HOSTILE.values())
    return open_pack(forged(folder / "pack.packnet", name)), name


class TestInspection:
    def test_tables(self, hostile_pack):
        contents = inspect_pack(*hostile_pack[0])
        assert contents.tasks[0].name == hostile_pack[1]  # exact as data
        console = Console(file=io.StringIO(), width=5000)
        console.print(tables(contents, console))
        shown = console.file.getvalue()
        assert is_safe(shown)
        for name in HOSTILE.values():
            assert text.printable(name) in shown

    def test_json(self, hostile_pack):
        shown = text.to_json(inspect_pack(*hostile_pack[0]).to_json())
        assert is_safe(shown)
        assert json.loads(shown)["tasks"][0]["name"] == hostile_pack[1]

    def test_page(self, hostile_pack, tmp_path):
        packed, file = hostile_pack[0]
        html_page.write(tmp_path / "page.html", packed, inspect_pack(packed, file))
        page = (tmp_path / "page.html").read_bytes().decode("utf-8")
        assert is_safe(page)
        assert "<script" not in page
        assert r"\x1b]0;owned\x07" in page

    def test_of_the_library(self, hostile_pack, capsys):
        packed = hostile_pack[0][0]
        packed.summary()
        assert is_safe(capsys.readouterr().out)
        assert is_safe(ownership_table(packed.owner_maps(), packed.task_names))
        assert is_safe(repr(packed))
        assert is_safe(repr(inspect_pack(packed)))
        with pytest.raises(tp.ArgumentError) as caught:
            packed.select_task("\x1b[2J")
        assert is_safe(str(caught.value))


def result_of(name):
    return {
        "config": {
            "dataset": name,
            "approach": "packnet",
            "final_prune": 0.5,
            "prune_rounds": 1,
            "train_epochs": 1,
            "retrain_epochs": 1,
            "seed": 0,
            "export": True,
        },
        "tasks": [{"number": 1, "name": name, "class_names": [name, "b"]}],
        "accuracy": [[0.5]],
        "weights": {"owned": [5], "prunable": 10},
        "free_fraction": {"overall": 0.5, "layers": {f"{name}/kernel": 0.5}},
        "average_accuracy": 0.5,
        "validation_accuracy": [],
    }


@every_name
def test_results_of_a_run(name, tmp_path):
    console = Console(file=io.StringIO(), width=2000)
    summary.print_results(result_of(name), tmp_path / "x", console)
    shown = console.file.getvalue()
    assert is_safe(shown)
    assert shown.count(text.printable(name)) == 3


@every_name
def test_results_of_an_experiment(name):
    frame = frames.tidy([result_of(name)], [])
    shown = frame.map(text.csv_cell).to_csv(index=False)
    assert is_safe(shown)
    (row,) = csv.DictReader(io.StringIO(shown))
    assert row["task_name"] == row["dataset"] == text.csv_cell(name)
    assert (row["accuracy"], row["seed"], row["validation_accuracy"]) == ("0.5", "0", "")
    assert (row["learning_accuracy"], row["forward_transfer"], row["accuracy_before"]) == ("0.5", "", "")


@every_name
def test_report_of_an_experiment(name, tmp_path):
    frame = pd.DataFrame({"dataset": pd.Series([name, "b"], dtype=object), "accuracy": [0.5, -0.25], "n": [1, 1]})
    content = report.Report(name, name, {}, {name: frame}, [name], f"x {name}", {"dataset": name}, [{name: name}])
    report.write(content, tmp_path)
    page = (tmp_path / "report.html").read_bytes().decode("utf-8")
    assert is_safe(page)
    assert "<script" not in page
    lines = (tmp_path / "summary.md").read_bytes().decode("utf-8")
    assert is_safe(lines)
    assert len(re.findall("^#", lines, re.MULTILINE)) == 1
    assert "<script" not in lines.replace(r"\<script", "").split("```")[0]
    rows = [line for line in lines.splitlines() if line.startswith("|")]
    assert len(rows) == 4
    assert {len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) for row in rows} == {4}
    assert "-0.2500" in rows[3]


@every_name
def test_charts(name):
    frame = pd.DataFrame({"x": [text.printable(name), "b"], "accuracy": [0.5, 0.4], "error": [0.5, 0.6]})
    frame = frame.assign(standard_error=0.1, n=2)
    figures = [charts.curves(frame, "x", None, ["accuracy"], name), charts.curves(frame, "x", "x", ["error"], name)]
    names = [text.printable(name), "b"]  # as in the tables of `frames`
    bars = pd.DataFrame({"approach": "packnet", "task_name": names, "accuracy": 0.5, "standard_error": 0.1})
    figures.append(charts.task_bars({0.5: bars}, name, "note"))
    figures.append(tensorboard.ownership_bars({name: np.ones((4, 4), np.uint8)}, 1))
    figures.append(tensorboard.accuracy_matrix([[0.5]], [name]))
    for figure in figures:
        figure.canvas.draw()
        shown = [each.get_text() for each in figure.findobj(matplotlib.text.Text)]
        assert all(is_safe(each) for each in shown)


def test_characters_that_no_font_has(tmp_path, recwarn):
    name = "猫 の 写真 🐶 \u0b95"
    frame = pd.DataFrame({"x": [name, "b"], "accuracy": [0.5, 0.4], "standard_error": 0.1, "n": 2})
    figure = charts.curves(frame, "x", None, ["accuracy"], name)
    for image in (report._png(figure), report._pdf(figure)):
        assert len(image) > 1000
    assert to_rgb(draw_owner_map(np.ones((4, 4), np.uint8), name, [name])).ndim == 3
    assert [str(each.message) for each in recwarn if "Glyph" in str(each.message)] == []


def test_tensorboard_of_a_pack(hostile_pack, tmp_path):
    packed = hostile_pack[0][0]
    name = hostile_pack[1]
    results = {**result_of(name), "tasks": [{"number": 1, "name": name}]}
    results["free_fraction"] = {"overall": 0.5, "layers": {"dense_1/kernel": 0.5}}
    tensorboard.log_pack(tmp_path, packed, packed.owner_maps(), results, 1)
    results["config"] = {"dataset": name, "seed": 1}
    tensorboard_runs.log_run(tmp_path, results, {})
    tensorboard_runs.log_experiment(tmp_path / "experiment", {text.file_name(name): results})
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(tmp_path / "pack"))
    board.Reload()
    assert all(is_safe(tag) for tag in board.Tags()["tensors"])
    assert (tmp_path / f"task_1_{text.file_name(name)}").is_dir()


@every_name
def test_file_names(name, tmp_path):
    short = text.file_name(name)
    assert short.isprintable()
    (tmp_path / f"task_254_{short}").mkdir()
    assert len(list(tmp_path.iterdir())) == 1


@given(TEXTS)
def test_a_file_name_is_one_part_of_a_path(name):
    short = text.file_name(name)
    assert len(short.encode()) <= 200
    assert not set(short) & {"/", "\0"}


@pytest.mark.parametrize("name", ["0-1", "airplane-automobile", "猫", "a b"])
def test_file_names_of_usual_tasks_stay(name):
    assert text.file_name(name) == name
    assert text.file_name("T-shirt/top") == "T-shirt_top"


@every_name
def test_sizes_of_exports(name):
    row = {"name": name, "weights": {"exported": 1, "dense": 2}, "bytes": {"exported": 1, "dense": 2}}
    row |= {"gzip_bytes": {"exported": 1, "dense": 2}, "times_smaller": 2.0, "flops": {"exported": 1, "dense": 2}}
    console = Console(file=io.StringIO(), width=500)
    console.print(exports.render([row | {"latency": {"1": 0.5}}]))
    assert is_safe(console.file.getvalue())
    assert text.printable(name) in console.file.getvalue()
    assert "batch" in console.file.getvalue()
