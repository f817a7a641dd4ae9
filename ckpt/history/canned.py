"""The canned queries: plain SQL over the store's tables, one file each in queries/.

The first comment line is the description; a line "-- args: name=default other:number ..." names the parameters (":name" in the text),
those without "=" must be given, those of type number must read as one. The queries run unchanged in sqlite3 or Datasette, but for
`sharing`, which needs our function shared_pages().
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckpt.errors import CkptError, NotFoundError, UsageError


@dataclass(frozen=True, slots=True)
class Canned:
    name: str
    description: str
    parameters: tuple[tuple[str, str | None], ...]  #: (name, default)
    numbers: frozenset[str]  #: parameters that must read as a number
    sql: str


_HEADER = re.compile(r"\A-- (?P<description>[^\n]+)\n(?:-- args: (?P<args>[^\n]+)\n)?")


def canned_queries() -> dict[str, Canned]:
    """By name, read from queries/*.sql."""
    found = {}
    for path in sorted((Path(__file__).parent / "queries").glob("*.sql")):
        text = path.read_text(encoding="utf-8")
        match = _HEADER.match(text)
        if match is None:
            raise CkptError(f"{path.name} has no line of description")
        parameters, numbers = [], []
        for part in (match["args"] or "").split():
            declared, equals, default = part.partition("=")
            name, _, kind = declared.partition(":")
            parameters.append((name, default if equals else None))
            numbers += [name] if kind == "number" else []
        found[path.stem] = Canned(path.stem, match["description"], tuple(parameters), frozenset(numbers), text)
    return found


def bind(query: Canned, arguments: Sequence[str]) -> dict[str, Any]:
    """Values of a canned query's parameters from words: in order, or name=value. Numbers may be hex."""
    values = {name: _value(query, name, default) for name, default in query.parameters if default is not None}
    names = [name for name, _ in query.parameters]
    positional = iter(names)
    for word in arguments:
        name, equals, text = word.partition("=")
        if equals and name.isidentifier() and name not in names:
            raise UsageError(f"{query.name} has no parameter {name}: it takes {usage(query)}")
        if not (equals and name in names):
            name, text = next(positional, ""), word
        if not name:
            raise UsageError(f"{query.name} takes {usage(query)}: {word!r} is one too many")
        values[name] = _value(query, name, text)
    if missing := [name for name in names if name not in values]:
        raise UsageError(f"{query.name} needs {' '.join(missing)}: ckpt query {query.name} {usage(query)}")
    return values


def _value(query: Canned, name: str, text: str) -> Any:
    value = plain_value(text) if name in query.numbers else text or None
    if isinstance(value, str) and name in query.numbers:
        hint = f": 0x{text} is one" if isinstance(plain_value("0x" + text), int) and len(text) > 3 else ""
        raise UsageError(f"{query.name}: {name} must be a number, in decimal or with 0x in front, not {text!r}{hint}")
    return value


def usage(query: Canned) -> str:
    return " ".join(name.upper() if default is None else f"[{name}={default or 'any'}]" for name, default in query.parameters) or "nothing"


def plain_value(text: str) -> Any:
    """A number where it reads as one (0x7f.. too), NULL for nothing, else text."""
    if text == "":
        return None
    try:
        number = int(text, 0)
    except ValueError:
        return text
    return number - (1 << 64) if number >= 1 << 63 else number


def find_canned(name: str) -> Canned:
    """Raises NotFoundError that lists what there is."""
    queries = canned_queries()
    if name not in queries:
        raise NotFoundError(f"no canned query {name}: there is {', '.join(queries)}; anything with SELECT in it is run as SQL")
    return queries[name]
