"""/proc/PID/smaps -> what maps does not tell of a mapping (fs/proc/task_mmu.c, show_smap_vma_flags).

Kept of VmFlags is what a call of the program makes and what can be made again; the kernel's own words are used:

    lo locked    lf locked when touched (MLOCK_ONFAULT)    dc not inherited by children    wf wiped in children
    dd left out of core dumps    hg, nh huge pages wanted, not wanted    sr, rr read in sequence, at random    mg may be merged
    sl sealed (mseal)    dp droppable    gd grows down    nr no swap reserved    pkN protection key N
    ac counts as memory promised (private ones: was writable once)    mw may be written (shared ones: opened for it)

Writing smaps walks the page tables of the whole process: about 6 ms for 1 GiB of small pages, while it runs.
"""

from __future__ import annotations

KEPT = frozenset(("lo", "lf", "dc", "wf", "dd", "hg", "nh", "sr", "rr", "mg", "sl", "dp", "gd", "nr", "ac", "mw"))
_KEY = b"ProtectionKey:"

#: (start, end) -> words, sorted
Advice = dict[tuple[int, int], tuple[str, ...]]


def parse_smaps(text: bytes) -> Advice:
    """What each mapping was advised. A text that was cut short ends the result there."""
    found: Advice = {}
    keys = _KEY in text
    head = text
    for part in text.split(b"VmFlags:")[1:]:
        words, _, rest = part.partition(b"\n")
        start, _, end = head[: head.find(b" ")].partition(b"-")
        kept = {word for word in words.decode().split() if word in KEPT}
        if keys and _KEY in head:
            number = int(head.partition(_KEY)[2].split(None, 1)[0])
            kept |= {f"pk{number}"} if number else set()
        found[int(start, 16), int(end, 16)] = tuple(sorted(kept))
        head = rest
    return found
