"""plan(now, wanted): the ordered remote calls that turn a living tree into what a generation says. Pure data, pure code.

Which processes there are is made right before (kin.py says how): here each wanted task has one of now.

Stages run in this order, for each process: its threads that came since are ended (by the executor); mappings; descriptors;
attributes; threads that went are made again (by the executor); each thread's attributes; pages (by the executor); what can be done
only when they stand; signals; timers; registers (by the executor).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from ckpt.kinds.task.terminal import doubted
from ckpt.model import Plan, Snapshot, Stage, Task
from ckpt.plan.attributes import plan_attributes
from ckpt.plan.batch import Batch
from ckpt.plan.clocks import behind
from ckpt.plan.describe import as_json, as_lines
from ckpt.plan.descriptors import opened_paths, plan_tables
from ckpt.plan.mappings import LayoutPlan, paths_to_check, plan_layout
from ckpt.plan.newborn import Frame
from ckpt.plan.objects import object_paths, plan_objects
from ckpt.plan.sharing import own_kinds, shared
from ckpt.plan.sources import FileIdentity, World
from ckpt.plan.threads import plan_threads
from ckpt.procfs import Segment

#: In the order in which they run; each in all tasks before the next.
STAGES = (
    "mappings",
    "descriptors-freed",
    "descriptors-made",
    "descriptors-shared",
    "descriptors",
    "attributes",
    "threads",
    "signals",
    "timers",
    "finish",
)

_IN_PLACE_ADVICE = "; ckpt restore --replace"  #: no advice to somebody who restores

__all__ = ["STAGES", "FileIdentity", "World", "as_json", "as_lines", "paths_of", "plan"]


def plan(
    now: Snapshot,
    wanted: Snapshot,
    world: World,
    *,
    tcp: str = "reset",
    reserved: Mapping[int, int] | None = None,
    newborn: Collection[int] = (),
    segments: Mapping[int, Segment] | None = None,
    scratch: bool = False,
) -> Plan:
    """`world`: identities of `paths_of(now, wanted)`. `reserved`: pid -> number of the tracker's descriptor in it.
    `segments`: the System V segments that there are.
    `scratch`: they have a mount namespace of their own, and nothing is to be left outside it (scratch.py).
    `newborn`: tasks of now that are empty copies of another process, to become the wanted ones. now has all wanted tasks (kin.py)."""
    restoring = all(task.pid in newborn for task in wanted.tasks)
    refusals: list[str] = []
    warnings = [] if restoring else behind(now, wanted)
    batches: dict[tuple[str, int], Batch] = {}
    ends: dict[int, tuple[int, ...]] = {}
    spawns: dict[int, tuple[int, ...]] = {}
    objects = plan_objects(now, wanted, world, segments or {})
    refusals += objects.refusals
    warnings += objects.warnings
    tables = plan_tables(now, wanted, tcp, reserved or {}, world, objects=objects, newborn=restoring, scratch=scratch)
    for task in wanted.tasks:
        before = doubted(now.task(task.pid), newborn)
        fresh, has = task.pid in newborn, shared(task, wanted)
        frame = Frame(before, task, (now.features, wanted.features)) if fresh and "vm" not in has else None
        layout = LayoutPlan() if "vm" in has else plan_layout(before, task, now.files, world, frame, objects)
        threads = plan_threads(before, task)
        attributes = plan_attributes(_framed(before, task) if fresh else before, task, own_kinds(has))
        refusals += [*layout.refusals, *tables[task.pid].refusals, *attributes.refusals, *threads.refusals]
        warnings += [*layout.warnings, *tables[task.pid].warnings, *attributes.warnings]
        table = tables[task.pid]
        layout.finish.extend(table.told.calls)
        found = (layout.batch, table.freed, table.made, table.shared, table.placed, *attributes.batches, layout.finish)
        batches |= {(name, task.pid): batch for name, batch in zip(STAGES, found, strict=True)}
        ends[task.pid], spawns[task.pid] = threads.end, threads.spawn
    order = [(name, task.pid) for name in STAGES for task in wanted.tasks]
    stages = tuple(Stage(*key, tuple(batches[key].calls)) for key in order if batches[key].calls)
    said = (line.removesuffix(_IN_PLACE_ADVICE) if restoring else line for line in refusals)
    ended = tuple(sorted(next(iter(tables.values())).ended)) if tables else ()
    return Plan(stages, ends, spawns, objects.made, tuple(said), tuple(warnings), ended=ended)


def paths_of(now: Snapshot, wanted: Snapshot, *, newborn: Collection[int] = ()) -> set[str]:
    """Files that the plan may have to map or open again: the caller says what stands there (in the target's root)."""
    here = {task.pid: task for task in now.tasks}
    mapped = (paths_to_check(here[task.pid], task, newborn=task.pid in newborn) for task in wanted.tasks if task.pid in here)
    return opened_paths(wanted).union(object_paths(wanted), *mapped)


def _framed(newborn: Task, wanted: Task) -> Task:
    """The newborn as it is once its frame stands."""
    return replace(newborn, attributes={**newborn.attributes, "memory": wanted.attributes.get("memory", {})})
