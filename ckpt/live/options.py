"""What a capture is told before the freeze: which files, which work, which questions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from native._native import ffi

if TYPE_CHECKING:
    from ckpt.live.core import Track

U64 = 2**64 - 1


@dataclass(frozen=True, slots=True)
class WantRow:
    format: int
    prefix: str
    work: int
    options: Sequence[tuple[int, int, int, int, int]]


@dataclass(frozen=True, slots=True)
class QuestionRow:
    nr: int
    args: Sequence[int]
    answer_arg: int
    answer_size: int
    per_thread: bool


class CaptureOptions:
    """struct ckpt_capture_options with everything that it points to kept alive. Built before the freeze."""

    def __init__(
        self,
        *,
        proc_files: Sequence[str],
        thread_files: Sequence[str],
        wants: Sequence[WantRow],
        questions: Sequence[QuestionRow],
        tracks: Sequence[Track],
        paranoid: bool = False,
        no_inject: bool = False,
        scan_threads: int = 2,
        last_round: bool = False,
    ) -> None:
        self._keep: list[Any] = []
        raw = ffi.new("struct ckpt_capture_options *")
        raw.proc_files, raw.thread_files = self._names(proc_files), self._names(thread_files)
        raw.wants, raw.want_count = self._wants(wants), len(wants)
        raw.questions, raw.question_count = self._questions(questions), len(questions)
        raw.tracks = self._array("struct ckpt_track[]", (track.raw()[0] for track in tracks))
        raw.track_count = len(tracks)
        raw.scan_threads, raw.paranoid, raw.no_inject, raw.freeze_retries = scan_threads, int(paranoid), int(no_inject), 50
        raw.last_round = int(last_round)
        self.raw = raw

    def _hold(self, value: Any) -> Any:
        self._keep.append(value)
        return value

    def _array(self, kind: str, items: Iterable[Any]) -> Any:
        return self._hold(ffi.new(kind, list(items)))

    def _names(self, names: Sequence[str]) -> Any:
        strings = [self._hold(ffi.new("char[]", name.encode())) for name in names]
        return self._hold(ffi.new("const char *[]", [*strings, ffi.NULL]))

    def _wants(self, wants: Sequence[WantRow]) -> Any:
        rows = self._hold(ffi.new("struct ckpt_want[]", max(len(wants), 1)))
        for row, want in zip(rows, wants, strict=False):
            row.format, row.work, row.prefix = want.format, want.work, want.prefix.encode()[:47]
            row.options = self._array("struct ckpt_sockopt[]", [list(option) for option in want.options])
            row.option_count = len(want.options)
        return rows

    def _questions(self, questions: Sequence[QuestionRow]) -> Any:
        rows = self._hold(ffi.new("struct ckpt_question[]", max(len(questions), 1)))
        for row, question in zip(rows, questions, strict=False):
            row.nr, row.answer_arg, row.answer_size = question.nr, question.answer_arg, question.answer_size
            row.per_thread = int(question.per_thread)
            for index, argument in enumerate(question.args):
                row.arg[index] = argument & U64
        return rows
