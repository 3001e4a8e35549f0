"""What ``orbit init`` writes: the sample code of a runtime and a function.yaml for it."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import nova.runtimes
from nova.cli.project import MANIFEST
from nova.runtimes import manifest
from nova.runtimes.manifest import Manifest

_YAML = """\
name: {name}
runtime: {runtime}
handler: {handler}
# memory_mb: 128
# timeout_s: 30
# env_vars: {{GREETING: Hello}}
"""


@cache
def languages() -> Mapping[str, Manifest]:
    """Every runtime that comes with Nova, by id and by its other names. What of it a server has is the server's to say."""
    folders = sorted(file.parent for file in Path(nova.runtimes.__path__[0]).glob("*/runtime.toml"))
    found = [manifest.load(folder) for folder in folders]
    return {name: each for each in found for name in (each.id, *each.aliases)}


def files(runtime: str, name: str) -> dict[str, str] | None:
    """File name → text of a new project; None for a runtime that is not known. ``runtime`` may carry a version."""
    language = languages().get(runtime) or languages().get(runtime.rstrip("0123456789.x"))
    if language is None:
        return None
    handler = language.default_handler
    return {
        language.inline_name(handler): language.template.lstrip("\n"),
        MANIFEST: _YAML.format(name=name, runtime=runtime, handler=handler),
    }
