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


def advice(found: Inspection) -> tuple[str, str]:
    """What to do next, and the code that does it."""
    load, save = ("tp.load_pack", "tp.save_pack(packed, ") if found.one_file else _KERAS
    names = {"file": found.file or "pack.keras", "load": load, "save": save}
    if found.open_task is not None and found.tasks:
        return f"Task {found.open_task} is open: commit it before the next one begins.", _OPEN.format(**names)
    if found.room is not None and found.room.at_most == 0:
        return "The pack is full; its tasks can be used and exported.", _USE.format(
            file=file, name=found.tasks[-1].name
        )
    tasks = len(found.tasks) + 1
    rate = found.room.final_prune(tasks) if found.room else 0.75
    said = (
        f"The next task takes as large a share as the last ones did with final_prune = {rate:.6g} after {tasks} tasks."
        if found.room
        else "Say how many tasks there will be, and what share of the weights shall be free after them."
    )
    classes = next(iter(found.tasks[-1].outputs.values()), 2) if found.tasks else 2
    said += " x and y are its examples."
    name = f"task_{tasks}"
    return said, _NEXT.format(
        **names,
        final_prune=f"{rate:.6g}",
        tasks=tasks if found.room else 5,
        name=name,
        classes=classes,
    )
