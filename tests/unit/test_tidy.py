"""tools/tidy finds what exceeds the sizes, takes reasons, and the tree itself is tidy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]


def tidy(root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CHECKOUT / "tools" / "tidy"), str(root)]
    return subprocess.run(command, capture_output=True, text=True)


def write(root: Path, name: str, text: str) -> None:
    path = root / "lib" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_tree_is_tidy() -> None:
    run = tidy(CHECKOUT)
    assert run.returncode == 0, run.stdout + run.stderr


def test_long_files_and_functions_and_many_parameters_are_found(tmp_path: Path) -> None:
    body = "    pass\n" * 60
    write(tmp_path, "long.py", f"def f(a, b, c, d, e, f, g, *, h):\n{body}" + "\n" * 450)
    run = tidy(tmp_path)
    assert run.returncode == 1
    assert "lib/long.py: 511 lines" in run.stdout
    assert "lib/long.py:1 f: 61 lines" in run.stdout
    assert "lib/long.py:1 f: 8 parameters" in run.stdout


def test_what_just_fits_is_not_mentioned(tmp_path: Path) -> None:
    body = "    pass\n" * 59
    write(tmp_path, "fits.py", f"class C:\n  def f(self, a, b, c, d, e, f, g):\n{body}" + "\n" * 439)
    run = tidy(tmp_path)
    assert (run.returncode, run.stdout) == (0, "0 without a reason, 0 with one\n")


def test_a_reason_is_listed_and_accepted(tmp_path: Path) -> None:
    body = "    pass\n" * 60
    write(tmp_path, "long.py", f"def f(\n    a,  # tidy: one statement, told in one piece\n):\n{body}")
    run = tidy(tmp_path)
    assert run.returncode == 0
    assert "(one statement, told in one piece)" in run.stdout


def test_a_reason_inside_the_body_does_not_count(tmp_path: Path) -> None:
    write(tmp_path, "long.py", "def f():\n    x = 1  # tidy: no\n" + "    pass\n" * 60)
    assert tidy(tmp_path).returncode == 1


def test_cycles_are_found_even_through_functions_and_relative_imports(tmp_path: Path) -> None:
    write(tmp_path, "p/__init__.py", "")
    write(tmp_path, "p/a.py", "from . import b\n")
    write(tmp_path, "p/b.py", "def late():\n    from p.c import thing\n")
    write(tmp_path, "p/c.py", "import p.a\nthing = 1\n")
    write(tmp_path, "p/d.py", "import p.a\n")
    run = tidy(tmp_path)
    assert run.returncode == 1
    assert "p.a ⇄ p.b ⇄ p.c: import each other" in run.stdout
    assert "p.d" not in run.stdout
