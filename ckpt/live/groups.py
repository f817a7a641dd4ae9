"""The calls of one stage of a plan as batches: what runs in one thread, and what runs in many at the same time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from ckpt.kinds.base import needs_result
from ckpt.live import act
from ckpt.live.core import Tree
from ckpt.model import Arg, RemoteArg, RemoteCall, Stage

_EACH_ITS_OWN = "threads"  #: the stage in which each thread is told about itself, whatever the others do


class Group:
    """Consecutive calls of a stage that run in one thread. Results of earlier groups are filled in when it runs."""

    def __init__(self, tid: int, first: int, calls: Sequence[RemoteCall]) -> None:
        self.tid, self.first, self.calls = tid, first, calls
        self.alone = all(arg.form is not Arg.RESULT or arg.value >= first for item in calls for arg in item.args)
        self.batch = act.Batch([_shift(item, first, ()) for item in calls] if first else calls) if self.alone else None
        self.data_bytes = self.batch.data_bytes if self.batch else 0

    def run(self, tree: Tree, results: list[int]) -> None:
        batch = self.batch or act.Batch([_shift(item, self.first, results) for item in self.calls])
        results += batch.run(tree, self.tid)


class Together:
    """Calls of several threads that do not need each other's results: they run at the same time."""

    data_bytes = 0  #: no thread has more than there is room for in any case

    def __init__(self, pid: int, runs: Mapping[int, Sequence[RemoteCall]]) -> None:
        self.pid, self.calls = pid, [item for calls in runs.values() for item in calls]
        self.lots = act.Lots(runs)

    def run(self, tree: Tree, results: list[int]) -> None:
        results += self.lots.run(tree, self.pid)


def groups_of(stage: Stage) -> Sequence[Group | Together]:
    runs = [(tid or stage.pid, list(calls)) for tid, calls in groupby(stage.calls, key=lambda item: item.tid)]
    if stage.name == _EACH_ITS_OWN and len(runs) > 1 and len(dict(runs)) == len(runs) and all(map(_is_plain, stage.calls)):
        return [Together(stage.pid, dict(runs))]
    groups, first = [], 0
    for tid, calls in runs:
        groups.append(Group(tid, first, calls))
        first += len(calls)
    return groups


def _is_plain(item: RemoteCall) -> bool:
    """Needs no result, and no address that only an open bridge tells."""
    if needs_result(item):
        return False
    for arg in item.args:  # noqa: SIM110 (as there)
        if arg.pointers:
            return False
    return True


def _shift(item: RemoteCall, first: int, results: Sequence[int]) -> RemoteCall:
    if not needs_result(item):
        return item

    def arg(one: RemoteArg) -> RemoteArg:
        if one.form is not Arg.RESULT:
            return one
        return RemoteArg(Arg.RESULT, one.value - first) if one.value >= first else RemoteArg(Arg.VALUE, results[one.value])

    return item._replace(args=tuple(arg(one) for one in item.args))
