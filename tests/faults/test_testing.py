"""What users' own tests import: the example of `docs/testing.md`, as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from cos_events.faults.kill_points import KILL_POINTS

PAGE = (Path(__file__).parents[2] / "docs/testing.md").read_text()


def test_the_example_of_the_page_passes(tmp_path: Path) -> None:
    application, test = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "shop.py").write_text(application)
    (tmp_path / "test_shop.py").write_text(test)
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_every_kill_point_stands_on_the_page() -> None:
    rows = re.findall(r"^\| (`\w+\.\w+`.*?) \|", PAGE.partition("## Kill points")[2], re.MULTILINE)
    named = []
    for row in rows:
        group = ""
        for name in re.findall(r"`([\w.]+)`", row):
            group = name.partition(".")[0] or group
            named.append(f"{group}.{name.partition('.')[2]}")
    assert named == list(KILL_POINTS)
