"""Name a generation, list the names, or take one back."""

from __future__ import annotations

from typing import Annotated

import typer

from ckpt.cli import output
from ckpt.cli.options import JsonOption, PidOption, StoreOption


def command(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="The tag; without one, all tags are listed.", show_default=False)
    ] = None,
    gen: Annotated[str, typer.Argument(metavar="GEN", help="What it names.")] = "latest",
    delete: Annotated[bool, typer.Option("--delete", "-d", help="Take the tag back; the generation stays.")] = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Move a tag that names another generation.")] = False,
    pid: PidOption = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    from ckpt.errors import NotFoundError, UsageError
    from ckpt.history import names
    from ckpt.history.open import Mode, open_store

    if name is None and delete:
        raise UsageError("--delete needs the tag's name")
    with open_store(store, Mode.READ if name is None else Mode.WRITE) as history:
        tags = dict(history.store.tags())
        if name is not None and delete:
            if name not in tags:
                raise NotFoundError(f"no tag {name}: there is {', '.join(sorted(tags)) or 'none'}")
            history.store.untag(name)
            number = tags.pop(name)
            text = f"{name} no longer names generation {number}"
        elif name is not None:
            number = history.resolve(gen, pid=pid)
            if tags.get(names.check_tag(name), number) != number and not force:
                raise UsageError(f"{name} names generation {tags[name]} already: --force moves it")
            history.store.tag(name, number)
            tags[name] = number
            text = f"{name} names generation {number}"
        else:
            text = "\n".join(f"{tag}  {number}" for tag, number in sorted(tags.items(), key=lambda item: item[1])) or "no tags"
    if json:
        output.print_json({"tags": dict(sorted(tags.items()))})
    else:
        output.say(text)
