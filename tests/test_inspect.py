"""Inspection reports the contents of a pack: facts are compared with NumPy, pages and pictures with the facts."""

import html.parser
import json
import shutil
import subprocess
import sys
import tracemalloc

import keras
import numpy as np
import pytest

import tf_packnet as tp
from tests.conftest import ROOT
from tf_packnet import lifecycle
from tf_packnet.command_line.inspect_pack import parse_request
from tf_packnet.command_line.parsing import UsageError
from tf_packnet.errors import ArgumentError
from tf_packnet.inspection import html_page, pixels
from tf_packnet.inspection.capacity import Layer, free_capacity
from tf_packnet.inspection.contents import inspect_pack
from tf_packnet.inspection.opened_pack import FileFacts, open_pack
from tf_packnet.inspection.owner_maps import in_blocks
from tf_packnet.layers.weights import view
from tf_packnet.pruning import ownership
from tf_packnet.pruning.ranking import remaining
from tf_packnet.reporting import tensorboard

SHARE = 0.25


def learn(packed, tasks: int, share: float = SHARE, names=None) -> None:
    """Commit tasks that take exactly `share` of the free weights of each kernel, with random values."""
    rng = np.random.default_rng(1)
    for number in range(packed.committed_tasks + 1, packed.committed_tasks + tasks + 1):
        packed.begin_task(names[number - 1] if names else None)
        for weight in lifecycle.masked_weights(packed).values():
            weight.variable.assign(rng.normal(size=weight.variable.shape) * number)
            open_now = np.flatnonzero(ownership.candidates(weight.owner_map()))
            keep = np.zeros(weight.owner_map().shape, bool)
            keep.flat[rng.permutation(open_now)[: remaining(len(open_now), share)]] = True
            weight.prune(keep)
        packed.commit_task()


def image_model(shape=(6, 5, 1)) -> keras.Model:
    layers = [keras.Input(shape), keras.layers.Flatten(), keras.layers.Dense(12, name="dense_1")]
    return keras.Sequential([*layers, keras.layers.Dense(2, name="out")])


def run_record(packed, accuracy) -> dict:
    """Return the part of `results.json` that is read."""
    tasks = packed.committed_tasks
    maps = packed.owner_maps()
    owned = {path: [int((owner == task).sum()) for task in range(1, tasks + 1)] for path, owner in maps.items()}
    return {
        "accuracy": [accuracy[: index + 1] for index in range(tasks)],
        "tasks": [{"name": name, "class_names": [f"{name} a", f"{name} b"]} for name in packed.task_names],
        "weights": {"owned_by_layer": owned},
        "environment": {"packages": {"keras": "9.9"}},
    }


@pytest.fixture(scope="module")
def packed():
    packed = tp.pack(image_model())
    learn(packed, 3, names=["first", "second", "third"])
    return packed


@pytest.fixture(scope="module")
def folder(packed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pack")
    packed.save(folder / "pack.keras")
    (folder / "results.json").write_text(json.dumps(run_record(packed, [0.5, 0.75, 1.0])))
    return folder


def test_facts_match_the_owner_maps(packed, folder):
    found = inspect_pack(*open_pack(folder / "pack.keras", folder / "results.json"))
    owner = packed.owner_maps()["dense_1/kernel"]
    (layer,) = found.layers
    assert (layer.path, layer.shape, layer.outputs, layer.weights) == ("dense_1/kernel", (30, 12), 12, 360)
    assert layer.owned == tuple((owner == task).sum() for task in (1, 2, 3))
    assert found.free == layer.free == (owner == 0).sum()
    assert [task.name for task in found.tasks] == ["first", "second", "third"]
    assert [task.weights for task in found.tasks] == list(layer.owned)
    assert [task.share for task in found.tasks] == [owned / 360 for owned in layer.owned]
    assert [task.accuracy for task in found.tasks] == [0.5, 0.75, 1.0]
    assert found.tasks[0].classes() == "first a, first b"
    assert found.tasks[0].outputs == {"out": 2}
    assert found.bytes == (folder / "pack.keras").stat().st_size
    assert found.notes == ()
    assert json.loads(json.dumps(found.to_json()))["tasks"][2]["when_learned"] == 1.0


def test_a_record_of_fewer_tasks_is_used_and_one_of_another_pack_is_not(packed):
    record = run_record(packed, [0.5, 0.75, 1.0])
    earlier = {**record, "accuracy": record["accuracy"][:2]}  # the pack learned one more task since
    found = inspect_pack(packed, FileFacts("p", 1, results=earlier))
    assert [task.accuracy for task in found.tasks] == [0.5, 0.75, None]
    assert [task.class_names for task in found.tasks][2] is None
    owned = {"dense_1/kernel": [1, *record["weights"]["owned_by_layer"]["dense_1/kernel"][1:]]}
    others = [
        {**record, "weights": {"owned_by_layer": owned}},
        {**record, "tasks": record["tasks"][::-1]},
        {**record, "accuracy": [[1.0, 1.0, 1.0]]},  # multinet: all at once
    ]
    for other in others:
        found = inspect_pack(packed, FileFacts("p", 1, results=other))
        assert found.accuracy == ()
        assert "another pack" in found.notes[0]
    assert "not that of a run" in inspect_pack(packed, FileFacts("p", 1, results={"accuracy": 3})).notes[0]


def test_results_may_be_missing_or_damaged(folder, tmp_path):
    shutil.copy(folder / "pack.keras", tmp_path)
    for content, note in [(None, ()), ("{", ("results.json in the same folder cannot be read",)), ("[]", None)]:
        if content is not None:
            (tmp_path / "results.json").write_text(content)
        notes = inspect_pack(*open_pack(tmp_path / "pack.keras", tmp_path / "results.json")).notes
        assert note is None and len(notes) == 1 or notes == note


def test_other_files_are_refused(tmp_path):
    plain = tmp_path / "plain.keras"
    image_model().save(plain)
    (tmp_path / "text.keras").write_text("words")
    (tmp_path / "zip.keras").write_bytes(b"PK\x03\x04 and no more")
    expected = {"plain": "not a Sequential", "text": "packed.save", "zip": "that can be loaded"}
    for name, reason in expected.items():
        with pytest.raises(ArgumentError, match=reason):
            open_pack(tmp_path / f"{name}.keras")


def test_free_capacity_counts_like_the_prune_rounds():
    # Half of the free weights: 12 of 25, 6 of 13, 4 of 7, 2 of 3, 0 of 1.
    room = free_capacity([Layer("a", 10, (50, 25), 25)])
    assert (room.released, room.measured, room.comfortable, room.at_most) == (0.5, 2, 1, 4)
    assert (room.layer, room.gets, room.outputs) == ("a", 6, 10)
    assert room.final_prune(3) == 0.125
    assert free_capacity([Layer("a", 10, (), 25)]) is None
    full = free_capacity([Layer("a", 10, (25,), 0)])
    assert (full.comfortable, full.at_most, full.released) == (0, 0, 0.0)
    # Up to the limit of a pack.
    endless = free_capacity([Layer("a", 1, (10,) * 4, 10**9)])
    assert (endless.comfortable, endless.at_most, endless.layer) == (250, 250, None)
    for each in (room, full, endless):
        assert str(each).endswith(".")


def test_free_capacity_and_plan_agree(packed):
    room = inspect_pack(packed).room
    np.testing.assert_allclose(room.released, 1 - SHARE, rtol=1e-3)
    assert room.comfortable > 0

    def few(more: int) -> list:
        tasks = 3 + more
        return tp.plan(packed, tasks, room.final_prune(tasks)).too_few()

    assert not few(room.comfortable)
    assert few(room.comfortable + 1)


def test_owners_are_counted_in_pieces(monkeypatch):
    owner = np.random.default_rng(0).integers(0, 256, (13, 17), np.uint8)
    monkeypatch.setattr(ownership, "_CHUNK", 10)
    counts = ownership.count_by_owner(owner)
    assert counts[0] == ((owner == 0) | (owner == 255)).sum()
    assert counts[1:].tolist() == [(owner == task).sum() for task in range(1, 255)]


def test_blocks_show_the_most_frequent_owner_and_take_little_memory():
    grid = (np.random.default_rng(0).random((23, 10)) < 0.4) * np.random.default_rng(1).integers(
        1, 5, (23, 10), np.uint8
    )
    cells, block = in_blocks(grid, 4)
    assert block == (6, 3)
    for row in range(4):
        for column in range(4):
            part = grid[row * 6 : row * 6 + 6, column * 3 : column * 3 + 3]
            counts = [(part == task).sum() for task in range(1, 5)]
            assert cells[row, column] == (counts.index(max(counts)) + 1 if max(counts) else 0)
    large = np.zeros((3000, 4000), np.uint8)
    large[::7] = 254
    tracemalloc.start()
    in_blocks(large, 192)
    ownership.count_by_owner(large)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12e6  # pieces of a million, eight bytes each


def test_strips_are_in_proportion():
    row = pixels.strip([50, 20, 30], 10)[0].tolist()
    assert row == [1, 1, 2, 2, 2, 0, 0, 0, 0, 0]
    assert pixels.strip([3], 4)[0].tolist() == [0, 0, 0, 0]


def test_weight_counts_are_histograms(packed):
    weights = lifecycle.masked_weights(packed)
    maps = packed.owner_maps()
    largest, counts = pixels.weight_counts(weights, maps, 3)
    owner, value = maps["dense_1/kernel"], view(weights["dense_1/kernel"].frozen)
    assert largest == np.abs(value[owner > 0]).max()
    for task in (1, 2, 3):
        expected, _ = np.histogram(value[owner == task], bins=pixels.BINS, range=(-largest, largest))
        assert counts[task - 1].sum() == expected.sum()
        assert np.abs(counts[task - 1] - expected).sum() <= 2  # values on an edge
        np.testing.assert_array_equal(np.sort(pixels.values_of(weights, maps, task)), np.sort(value[owner == task]))


def test_filters_are_the_weights_as_images(packed):
    path, tiles = pixels.filters(packed, packed.owner_maps())
    assert (path, tiles.shape) == ("dense_1/kernel", (12, 6, 5, 1))
    packed.select_task(3)
    kernel = np.asarray(packed.get_layer("dense_1").kernel)  # all that tasks own, nothing else
    for unit in range(12):
        np.testing.assert_array_equal(tiles[unit, ..., 0], kernel[:, unit].reshape(6, 5))
    sheet = pixels.filter_sheet(tiles, 8)
    assert sheet.shape == (2 * 7 + 1, 8 * 6 + 1, 3)


def test_filters_of_convolutions():
    layers = [keras.Input((8, 8, 3)), keras.layers.Conv2D(4, (3, 2)), keras.layers.Flatten(), keras.layers.Dense(2)]
    packed = tp.pack(keras.Sequential(layers))
    learn(packed, 1)
    _, tiles = pixels.filters(packed, packed.owner_maps())
    kernel = np.asarray(packed.layers[1].kernel)
    np.testing.assert_array_equal(tiles, np.moveaxis(kernel, -1, 0))


def text_model() -> keras.Model:
    words = keras.Input((7,), dtype="int32")
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(20, 4)(words))
    return keras.Model(words, keras.layers.Dense(2)(x))


def two_inputs() -> keras.Model:
    inputs = [keras.Input((6, 6, 1)), keras.Input((3,))]
    x = keras.layers.Concatenate()([keras.layers.Flatten()(inputs[0]), inputs[1]])
    return keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Dense(5)(x)))


class Reader(html.parser.HTMLParser):
    """Collects the tags and the text of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.tags if name == tag]


def check_page(page: str) -> Reader:
    """Check that the page is self-contained and that every picture has a description."""
    read = Reader(page)
    for tag, attrs in read.tags:
        assert tag not in ("script", "iframe", "object")
        for name in ("src", "href"):
            assert attrs.get(name, "data:").startswith("data:")
    assert "url(" not in page
    assert all(attrs.get("alt") for attrs in read.all("img"))
    assert all(attrs.get("scope") in ("row", "col") for attrs in read.all("th"))
    assert [tag for tag, _ in read.tags if tag in ("h1", "h2")][0] == "h1"
    assert len(read.all("h1")) == 1
    return read


@pytest.mark.parametrize("make", [image_model, text_model, two_inputs])
@pytest.mark.parametrize("tasks", [0, 1])
def test_pages_of_any_model(make, tasks):
    packed = tp.pack(make())
    learn(packed, tasks)
    read = check_page(html_page.render(packed, inspect_pack(packed)))
    assert ("Filters of the first layer" in read.text) == (make is image_model)
    assert "is open" not in read.text
    assert ("No task owns any" in read.text) == (tasks == 0)


def test_a_page_with_many_tasks_stays_small_and_escapes_names(tmp_path):
    model = keras.Sequential([keras.Input((9,)), keras.layers.Dense(40, name="n" * 90), keras.layers.Dense(2)])
    packed = tp.pack(model)
    names = [f"<script>{number}</script>&" for number in range(60)]
    learn(packed, 60, share=0.02, names=names)
    found = inspect_pack(packed, FileFacts("pack.keras", 10, results=run_record(packed, [0.9] * 60)))
    html_page.write(tmp_path / "deeper" / "page.html", packed, found)
    page = (tmp_path / "deeper" / "page.html").read_text()
    read = check_page(page)
    assert "<script>59</script>&" in read.text
    assert len(page) < 200_000
    assert len(read.all("svg")) < 80  # a swatch a row of the table, no curve a task


def test_the_code_of_the_page_runs(packed, folder, tmp_path):
    """The code of the page runs, and the new task takes the same share as the others."""
    found = inspect_pack(packed, FileFacts("pack.keras", 10))
    text, code = html_page.advice(found)
    shutil.copy(folder / "pack.keras", tmp_path)
    rng = np.random.default_rng(0)
    code = code.replace('"pack.keras"', repr(str(tmp_path / "pack.keras"))).replace("masks/", str(tmp_path))
    code = code.replace("epochs=40", "epochs=8, verbose=0")
    exec(code, {"x": rng.random((16, 6, 5, 1), np.float32), "y": np.arange(16) % 2})
    more = inspect_pack(keras.models.load_model(tmp_path / "pack.keras"))
    assert len(more.tasks) == 4
    np.testing.assert_allclose(more.tasks[3].weights / found.free, SHARE, atol=0.01)
    assert "final_prune" in text


def test_an_open_task_is_reported(packed, tmp_path):
    packed.save(tmp_path / "pack.keras")
    again = keras.models.load_model(tmp_path / "pack.keras")
    again.begin_task("fourth")
    found = inspect_pack(again)
    assert (found.open_task, len(found.tasks), found.free) == ("fourth", 3, inspect_pack(packed).free)
    assert "commit_task" in html_page.advice(found)[1]


PROBE = """<!doctype html><body><script>
const page = %s;
const found = {};
let left = %s.length;
function look(width) {
  const frame = document.createElement("iframe");
  frame.style.width = width + "px";
  frame.style.height = "900px";
  frame.onload = () => {
    const root = frame.contentDocument.documentElement;
    const images = [...frame.contentDocument.images];
    found[width] = {
      wide: root.scrollWidth, shown: root.clientWidth, broken: images.filter(i => !i.naturalWidth).length,
      images: images.length, loaded: frame.contentWindow.performance.getEntriesByType("resource").length
    };
    if (--left == 0) document.title = JSON.stringify(found);
  };
  frame.srcdoc = page;
  document.body.append(frame);
}
for (const width of %s) look(width);
</script>"""


@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed")
def test_the_page_in_a_browser(packed, tmp_path):
    """The page fits wide and narrow windows, loads no resources, and logs nothing."""
    names = ["first", "a_name_without_a_single_space_" * 4, "third"]
    other = tp.pack(image_model())
    learn(other, 3, names=names)
    found = inspect_pack(other, FileFacts("pack.keras", 10, results=run_record(other, [0.5, 0.75, 1.0])))
    page = json.dumps(html_page.render(other, found)).replace("</", "<\\/")
    (tmp_path / "probe.html").write_text(PROBE % (page, [1280, 400], [1280, 400]))
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions"]
    command += ["--disable-background-networking", "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--virtual-time-budget=5000", "--dump-dom", f"file://{tmp_path / 'probe.html'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    title = done.stdout.partition("<title>")[2].partition("</title>")[0]
    seen = json.loads(title)
    for width in ("1280", "400"):
        assert seen[width]["wide"] <= seen[width]["shown"] <= int(width)
        assert seen[width]["images"] == 3  # a strip, a map, filters
        assert (seen[width]["broken"], seen[width]["loaded"]) == (0, 0)
    assert "CONSOLE" not in done.stderr


def test_tensorboard_shows_the_same(packed, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    record = run_record(packed, [0.5, 0.75, 1.0])
    free = {"overall": 0.5, "layers": {}}
    for task in (1, 2, 3):
        maps = {path: owner * (owner <= task) for path, owner in packed.owner_maps().items()}
        so_far = {**record, "accuracy": record["accuracy"][:task], "average_accuracy": 0.5, "free_fraction": free}
        tensorboard.log_pack(tmp_path, packed, maps, so_far, task)
    board = EventAccumulator(str(tmp_path / "pack"), size_guidance={"tensors": 0})
    board.Reload()
    import tensorflow as tf

    def points(tag: str) -> list:
        return [(event.step, tf.make_ndarray(event.tensor_proto)) for event in board.Tensors(tag)]

    task_board = EventAccumulator(str(tmp_path / "task_2_second"), size_guidance={"tensors": 0})
    task_board.Reload()
    scores = task_board.Tensors("accuracy/test_after_n_tasks")
    assert [(event.step, float(tf.make_ndarray(event.tensor_proto))) for event in scores] == [(2, 0.75), (3, 0.75)]
    for tag in ("accuracy_matrix", "ownership", "filters/dense_1/kernel"):
        assert [step for step, _ in points(tag)] == [1, 2, 3]
        assert tf.io.decode_png(points(tag)[0][1][2]).shape[2] == 3
    owner = packed.owner_maps()["dense_1/kernel"]
    for task, name in enumerate(packed.task_names, start=1):
        ((step, buckets),) = points(f"weights/{task}_{name}")
        assert (step, buckets[:, 2].sum()) == (task, (owner == task).sum())


BAD = [
    ([], "--pack: expected the file of a pack"),
    (["--pack="], "--pack: expected the file of a pack"),
    (["--pack=nowhere.keras"], "No such file"),
    (["--pack=."], "Is a directory"),
    (["--pack=a\0b"], "null byte"),
    (["--pack=HERE", "--format=xml"], "--format=xml"),
    (["--pack=HERE", "--html=."], "not a folder"),
    (["--pack=HERE", "--html=HERE"], "another file than the pack"),
    (["--pack=HERE", "--html=HERE/page.html"], "is a file"),
    (["--pack=HERE", "--html="], "not a folder"),
    (["--pack=HERE", "extra"], "is not a flag"),
    (["--pak=HERE"], "Did you mean: pack"),
]


@pytest.mark.parametrize(("arguments", "reason"), BAD, ids=lambda value: str(value))
def test_bad_flags(arguments, reason, folder):
    there = [argument.replace("HERE", str(folder / "pack.keras")) for argument in arguments]
    with pytest.raises((UsageError, ArgumentError)) as caught:
        parse_request(["inspect_pack.py", *there])
    assert reason in str(caught.value)


def run(*arguments: str, **how) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "launch/inspect_pack.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **how)


def test_the_command(folder, tmp_path):
    done = run(
        f"--pack={folder / 'pack.keras'}", "--format=json", f"--html={tmp_path / 'page.html'}", cwd=ROOT / "launch"
    )
    assert done.returncode == 0, done.stderr
    assert [task["accuracy"] for task in json.loads(done.stdout)["tasks"]] == [0.5, 0.75, 1.0]
    check_page((tmp_path / "page.html").read_text())


def test_the_command_refuses_in_one_line(tmp_path):
    (tmp_path / "no.keras").write_text("words")
    done = run("--pack=no.keras", "--html=page.html", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        "inspect_pack.py: --pack=no.keras: "
        "expected a pack file (.keras or .packnet), written by packed.save or save_pack\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["no.keras"]


def test_tables_fit_the_terminal(packed):
    from rich.console import Console

    from tf_packnet.inspection.tables import tables

    found = inspect_pack(packed)
    for width in (60, 80, 140):
        console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
        console.print(tables(found, console))
        shown = console.export_text()
        assert max(map(len, shown.splitlines())) <= width
        assert f"{found.free:,}" in shown
        assert "…" not in shown


def test_packs_of_one_file(packed, tmp_path):
    said = {name: {"class_names": ["yes", "no"], "accuracy": 0.5} for name in packed.task_names}
    tp.save_pack(packed, tmp_path / "x.pack", info={"tasks": said})
    found = inspect_pack(*open_pack(tmp_path / "x.pack"))
    assert found.layers == inspect_pack(packed).layers
    assert [(task.accuracy, task.class_names) for task in found.tasks] == [(0.5, ("yes", "no"))] * 3
    assert 0 < sum(task.bytes for task in found.tasks) < found.bytes
    assert "tp.load_pack" in html_page.advice(found)[1]
