"""Build the sdist, and from it the wheel; install that elsewhere, and run the demo from there.

python ops/dist_check.py [PYTHON]
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NEEDED = {
    *("pyproject.toml", "constraints.txt", "celeryconfig.py", "Makefile", "docker-compose.yml"),
    *("README.md", "CHANGELOG.md", "LICENSE", "ops/Dockerfile", "ops/runbook.md"),
    *("docs/architecture.md", "tests/conftest.py", ".ci/run", "workers/activity.py"),
}

EVERYTHING = """
import cos_events
for name in cos_events.__all__: getattr(cos_events, name)
import cos_events.app, cos_events.relay, cos_events.cli.status, cos_events.cli.worker
"""


def run(*command: object, cwd: Path) -> None:
    print("$", *command, flush=True)
    subprocess.run([str(each) for each in command], cwd=cwd, check=True)  # noqa: S603 - given above


def build() -> Path:
    """Build anew into `dist/`; the wheel is made from the sdist, which thus holds what it needs."""
    shutil.rmtree(ROOT / "dist", ignore_errors=True)
    run(sys.executable, "-m", "build", cwd=ROOT)
    (wheel,) = (ROOT / "dist").glob("*.whl")
    (sdist,) = (ROOT / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        found = {name.partition("/")[2] for name in archive.getnames()}
    if missing := NEEDED - found:
        sys.exit(f"{sdist.name} lacks {', '.join(sorted(missing))}")
    return wheel


def main() -> None:
    """Check the wheel; its demo ends with an error unless every event is delivered."""
    wheel = build()
    python = sys.argv[1] if len(sys.argv) > 1 else sys.executable
    with tempfile.TemporaryDirectory(prefix="cos-events-dist-") as folder:
        elsewhere = Path(folder)
        run(python, "-m", "venv", elsewhere / "venv", cwd=elsewhere)
        bin_ = elsewhere / "venv" / "bin"
        install = ("-m", "pip", "install", "-q", "--disable-pip-version-check")
        chosen = ("-c", ROOT / "constraints.txt", f"{wheel}[all]")
        run(bin_ / "python", *install, *chosen, cwd=elsewhere)
        run(bin_ / "cos-events", "--version", cwd=elsewhere)
        run(bin_ / "python", "-c", "import workers.celeryconfig", cwd=elsewhere)
        run(bin_ / "cos-events", "demo", "--events", 50, cwd=elsewhere)
        # Without any extra, what an application imports.
        run(python, "-m", "venv", elsewhere / "bare", cwd=elsewhere)
        bare = elsewhere / "bare" / "bin" / "python"
        run(bare, *install, "-c", ROOT / "constraints.txt", wheel, cwd=elsewhere)
        run(bare, "-c", EVERYTHING, cwd=elsewhere)


if __name__ == "__main__":
    main()
