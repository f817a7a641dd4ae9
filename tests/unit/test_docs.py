"""What is written down agrees with what is there: every command stands in the README, every mark has its meaning."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.faults.faults import PHASES

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"


def committed() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name]


def test_every_command_stands_in_the_readme() -> None:
    from ckpt.cli.main import command_help

    text = README.read_text()
    missing = [name for name in command_help() if f"`ckpt {name}" not in text]
    assert missing == []
    assert {"snapshot", "log", "check"} <= set(command_help())


def test_the_readme_names_no_command_that_is_not_there() -> None:
    from ckpt.cli.main import command_help

    named = set(re.findall(r"^\| `ckpt ([a-z]+)", README.read_text(), re.M))
    assert named - set(command_help()) == set()


def test_every_option_of_the_readme_is_known() -> None:
    """`--option` in a row of the table of commands stands in the source of that command."""
    wrong = []
    for row in re.findall(r"^\| `ckpt ([a-z]+)[^|]*\|.*$", README.read_text(), re.M):
        line = next(text for text in README.read_text().splitlines() if text.startswith(f"| `ckpt {row}"))
        source = "".join(path.read_text() for path in (ROOT / "ckpt/cli").glob(f"{row}*.py"))
        known = source + (ROOT / "ckpt/cli/options.py").read_text()
        wrong += [f"{row} {option}" for option in re.findall(r"--[a-z-]+", line) if f'"{option}"' not in known]
    assert wrong == []


def test_every_mark_has_its_meaning() -> None:
    """Each name that the code passes to ckpt_mark stands in tests/faults/faults.py, where the kill tests find it."""
    marks: set[str] = set()
    for path in (ROOT / "native" / "src").glob("*.c"):
        marks |= set(re.findall(r'ckpt_mark\("([^"]+)"\)', path.read_text()))
    for path in (ROOT / "ckpt").rglob("*.py"):
        marks |= set(re.findall(r'(?:\blap|\bmark)\("([^"]+)"\)', path.read_text()))
    assert marks - set(PHASES) == set()
    assert marks, "no mark is left in the code: the kill tests would test nothing"


def test_no_file_names_a_machine() -> None:
    """No home or work folder of whoever wrote it, and no address but the loopback and the documentation's."""
    forbidden = re.compile(r"/home/[a-z]\w+/|/Users/\w+/|/work/\w+|/tmp/wt\b|https?://(?:10|192\.168)\.\d")
    found = []
    for path in committed():
        if path.suffix in {".so", ".o", ".db", ".png"} or not path.is_file() or path == Path(__file__).resolve() or ".venv" in path.parts:
            continue
        found += [f"{path.relative_to(ROOT)}: {match}" for match in sorted(set(forbidden.findall(path.read_text(errors="replace"))))]
    assert found == []


def test_nothing_built_is_committed() -> None:
    built = [str(path.relative_to(ROOT)) for path in committed() if {".venv", "build", "__pycache__"} & set(path.parts)]
    assert built[:5] == []


def test_links_lead_somewhere() -> None:
    for page in [README, ROOT / "ARCHITECTURE.md", *(ROOT / "tests").rglob("README.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
