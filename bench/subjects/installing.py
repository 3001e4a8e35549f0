"""Getting a peer by its name and version from npm or PyPI, once, into a cache of the benchmark's own."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.subjects.base import SetupFailed

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "nova-bench"
INSTALL_LIMIT_S = 300
PYTHON_TAG = f"py{sys.version_info.major}.{sys.version_info.minor}"


def npm_install(home: Path, package: str, version: str) -> None:
    """One package into ``home/node_modules``, without running scripts of packages. Raises SetupFailed."""
    npm = shutil.which("npm")
    if npm is None:
        raise SetupFailed("npm is not installed")
    home.mkdir(parents=True, exist_ok=True)
    (home / "package.json").write_text(json.dumps({"private": True, "dependencies": {package: version}}))
    _run([npm, "install", "--no-audit", "--no-fund", "--ignore-scripts"], home)


def pip_install(home: Path, packages: Sequence[str]) -> None:
    """Packages into a virtual environment of their own at ``home``. Raises SetupFailed."""
    home.parent.mkdir(parents=True, exist_ok=True)
    _run([sys.executable, "-m", "venv", str(home)], home.parent)
    _run([str(home / "bin" / "pip"), "install", "--quiet", *packages], home)


def _run(command: list[str], folder: Path) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=INSTALL_LIMIT_S)
    except subprocess.CalledProcessError as error:
        raise SetupFailed(f"{Path(command[0]).name} failed: {(error.stderr or error.stdout).strip()[-400:]}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SetupFailed(str(error)) from error
