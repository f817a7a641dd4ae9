"""A plan as lines for a person (`--dry-run`) and as plain values for `--json`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ckpt.model import Arg, Plan, RemoteArg, RemoteCall


def as_lines(plan: Plan) -> Iterator[str]:
    for line in plan.refusals:
        yield f"refused: {line}"
    yield from plan.family
    for pid, tids in plan.threads_end.items():
        if tids:
            yield f"task {pid}: end thread{'s'[: len(tids) > 1]} {', '.join(map(str, tids))}"
    for stage in plan.stages:
        yield f"task {stage.pid}: {stage.name}"
        for item in stage.calls:
            yield f"    {item.note}" + (f" (in thread {item.tid})" if item.tid and item.tid != stage.pid else "")
    for pid, tids in plan.threads_spawn.items():
        if tids:
            yield f"task {pid}: make thread{'s'[: len(tids) > 1]} {', '.join(map(str, tids))} again"
    for line in plan.warnings:
        yield f"warning: {line}"


def as_json(plan: Plan) -> dict[str, Any]:
    """Plain values with stable keys."""
    return {
        "refusals": list(plan.refusals),
        "warnings": list(plan.warnings),
        "family": list(plan.family),
        "threads_end": {str(pid): list(tids) for pid, tids in plan.threads_end.items() if tids},
        "threads_spawn": {str(pid): list(tids) for pid, tids in plan.threads_spawn.items() if tids},
        "stages": [{"name": stage.name, "pid": stage.pid, "calls": [_call(item) for item in stage.calls]} for stage in plan.stages],
    }


def _call(item: RemoteCall) -> dict[str, Any]:
    return {"nr": item.nr, "args": [_arg(arg) for arg in item.args], "note": item.note, "tid": item.tid}


def _arg(arg: RemoteArg) -> dict[str, Any] | int:
    if arg.form is Arg.VALUE:
        return arg.value
    return {"result": arg.value} if arg.form is Arg.RESULT else {"bytes": len(arg.data)}
