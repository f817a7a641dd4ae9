"""All kinds as one table: what C is to do while frozen, in one order, and the way back from an answer to the kind that asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from ckpt.kinds.base import Answer, FdKind, Question, TaskKind, Wants, fd_kinds, task_kinds
from ckpt.kinds.fd import sigio

#: Read for every process whatever the kinds want: who it is and how its memory lies.
PROCESS_FILES = ("stat", "status", "maps")
THREAD_FILES = ("stat", "status")


@dataclass(frozen=True, slots=True)
class Asked:
    kind: TaskKind
    question: Question


@dataclass(frozen=True, slots=True)
class Table:
    fd_kinds: tuple[FdKind, ...]
    wants: tuple[Wants, ...]  #: C's rows; the first that fits a descriptor wins
    task_kinds: tuple[TaskKind, ...]
    questions: tuple[Asked, ...]  #: C's questions; the index comes back with the answer
    process_files: tuple[str, ...]
    thread_files: tuple[str, ...]

    def answers(self, kind: TaskKind, by_index: Mapping[int, Answer]) -> Sequence[Answer]:
        """The answers to this kind's own questions, in its order; empty if they were not asked."""
        own = [by_index[index] for index, asked in enumerate(self.questions) if asked.kind is kind and index in by_index]
        return own if len(own) == len(kind.questions) else []


@cache
def table() -> Table:
    descriptors, attributes = fd_kinds(), task_kinds()
    questions = tuple(Asked(kind, question) for kind in attributes for question in kind.questions)
    process = [name for kind in attributes if not kind.per_thread for name in kind.proc_files]
    thread = [name for kind in attributes if kind.per_thread for name in kind.proc_files]
    return Table(
        tuple(descriptors),
        tuple(sigio.asked(row) for kind in descriptors for row in kind.wants),
        tuple(attributes),
        questions,
        tuple(dict.fromkeys((*PROCESS_FILES, *process))),
        tuple(dict.fromkeys((*THREAD_FILES, *thread))),
    )
