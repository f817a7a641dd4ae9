"""The direction of imports (pyproject.toml, [tool.importlinter]) holds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports; import sys; sys.exit(lint_imports(cache_dir=None))"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )


def test_imports_go_one_way() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_the_linter_sees_a_wrong_import(tmp_path: Path) -> None:
    """The contracts bite: native importing ckpt is found."""
    import shutil

    for name in ("ckpt", "native", "store", "bpf"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so", "__pycache__", "src"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "native" / "wrong.py").write_text("import ckpt.model\n")
    done = lint(tmp_path)
    assert done.returncode != 0
    assert "native.wrong" in done.stdout
