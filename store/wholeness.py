"""Which generation can still be read, where one cannot: for whoever has met a damaged page and wants something that works.

A content that is damaged is met once: generations that name it are passed over by their manifests, without reading them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from store.fsck import bad_pages
from store.layouts import Layout
from store.reading import DamagedPageError
from store.records import StoreError


def newest_whole(numbers: Iterable[int], layouts: Callable[[int], dict[int, Layout]], read: Callable[[Layout], None]) -> int | None:
    """The newest of these of which every page can be had. `layouts`: of a generation, by space; `read`: raises StoreError."""
    bad: dict[int, set[int]] = {}
    for number in sorted(numbers, reverse=True):
        try:
            found = layouts(number).values()
            if any(True for layout in found for _page in bad_pages(layout, bad)):
                continue
            for layout in found:
                read(layout)
        except DamagedPageError as error:
            bad.setdefault(error.block, set()).add(error.slot)
        except StoreError:
            continue
        else:
            return number
    return None
