"""What an installation without extras can import."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

import cos_events

HIDE = """
import sys

hidden = set(sys.argv[1].split(","))


class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Hidden())
import cos_events
for name in cos_events.__all__:
    getattr(cos_events, name)
import cos_events.app, cos_events.relay, cos_events.cli.status, cos_events.cli.worker
"""


def required(name: str, found: set[str]) -> set[str]:
    """This distribution, and what it requires without any extra; by their names."""
    if (normal := name.lower().replace("_", "-")) in found:
        return found
    found.add(normal)
    for line in metadata.requires(name) or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            required(requirement.name, found)
            for extra in requirement.extras:
                found |= {
                    each.name.lower()
                    for each in map(Requirement, metadata.requires(requirement.name) or ())
                    if each.marker and each.marker.evaluate({"extra": extra})
                }
    return found


def test_what_an_application_imports_needs_no_extra() -> None:
    distributions = required("cos-events", set())
    hidden = {
        module
        for module, owners in metadata.packages_distributions().items()
        if not distributions & {each.lower().replace("_", "-") for each in owners}
    }
    assert "fastapi" in hidden
    done = subprocess.run(
        [sys.executable, "-c", HIDE, ",".join(hidden - {"cos_events", "workers"})],
        capture_output=True,
        text=True,
        cwd=Path(cos_events.__file__).parents[1],
        check=False,
    )
    assert done.returncode == 0, done.stderr
