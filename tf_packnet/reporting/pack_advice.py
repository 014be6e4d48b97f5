"""How to go on with a pack, in words and in code."""

from tf_packnet.reporting.inspection import Inspection

_NEXT = """\
import keras
import tf_packnet as tp

packed = {load}("{file}")
schedule = tp.EqualShare(final_prune={final_prune}, num_tasks={tasks}, rounds=8)
packed.begin_task("{name}", num_classes={classes})
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
packed.compile(optimizer="adam", loss=loss, metrics=["accuracy"])
packed.fit(x, y, epochs=40)  # the day
night = [tp.PruneRoundScheduler(schedule), tp.GradientMask(), tp.TaskMaskSnapshot("masks/")]
packed.fit(x, y, epochs=40, callbacks=night)  # the night
{save}"{file}")"""
_OPEN = """\
import keras
import tf_packnet as tp

packed = {load}("{file}")
packed.commit_task()  # or the night first: fit with PruneRoundScheduler, GradientMask and TaskMaskSnapshot
{save}"{file}")"""
_USE = """\
import keras
import tf_packnet as tp

packed = {load}("{file}")
packed.select_task("{name}")  # predict, evaluate and __call__ now compute as this task"""

_KERAS = ("keras.models.load_model", "packed.save(")
_ONE_FILE = ("tp.load_pack", "tp.save_pack(packed, ")


def advice(found: Inspection) -> tuple[str, str]:
    """What to do next, and the code that does it."""
    load, save = _ONE_FILE if found.one_file else _KERAS
    names = {"file": found.file or "pack.keras", "load": load, "save": save}
    if found.open_task is not None:
        said = f"Task {found.open_task} is open: commit it before the next one begins."
        return said, _OPEN.format(**names)
    if found.room is not None and found.room.at_most == 0:
        said = "The pack is full; its tasks can be used and exported."
        return said, _USE.format(**names, name=found.tasks[-1].name)
    number = len(found.tasks) + 1
    tasks, rate = (number, found.room.final_prune(number)) if found.room else (5, 0.75)
    said = (
        f"With final_prune = {rate:.6g} after {number} tasks, the next one takes as large a share as the last ones did."
        if found.room
        else "Say how many tasks there will be, and what share of the weights shall be free after them."
    )
    classes = next(iter(found.tasks[-1].outputs.values()), 2) if found.tasks else 2
    names |= {"final_prune": f"{rate:.6g}", "tasks": tasks, "name": f"task_{number}", "classes": classes}
    return f"{said} x and y are its examples.", _NEXT.format(**names)
