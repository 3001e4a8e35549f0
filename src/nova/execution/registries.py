"""Which registries builds may reach, and what their installers must know: read from pip's and npm's own configuration.

The project names no registry. What pip and npm on this host would use is what builds use: index addresses, folders with
packages, certificate bundle, proxy. Folders and bundle are bound read-only into the build, hosts are allowed through the
:mod:`proxy <nova.execution.registry_proxy>`.
"""

import ast
import asyncio
import importlib.util
import json
import os
import posixpath
import re
import ssl
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit
from urllib.request import getproxies

import certifi

from nova.errors import NovaError
from nova.execution.registry_proxy import Registry, Upstream

CA_BUNDLE = "/nova/ca.pem"
"""Where a build finds the certificate bundle."""
NO_NPMRC = {"userconfig": "/nova/npmrc-of-user", "globalconfig": "/nova/npmrc-of-host"}
"""Files that do not exist; npm refuses to read one file as both."""
RUN_PIP = "import sys; sys.path.insert(0, sys.argv.pop(1)); from runpy import run_module; " + (
    "run_module('pip', run_name='__main__', alter_sys=True)"
)
"""``python -c RUN_PIP <folder or wheel that holds pip> <pip's arguments>``"""
_DEFAULTS = (
    "import sys; sys.path.insert(0, sys.argv[1]); from pip._internal.models.index import PyPI; "
    "from pip import __version__; print(PyPI.simple_url, PyPI.file_storage_domain, __version__)"
)
_SECTIONS = ("global", "install", ":env:")
_PIP_LINE = re.compile(rf"({'|'.join(_SECTIONS)})\.([\w-]+)=(.+)")
_HREF = re.compile(r"""<a\s[^>]*?href\s*=\s*["']([^"'#]+)""", re.IGNORECASE)
_SYSTEM_BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")
_TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class Access:
    """What one installer needs: ``env`` for its process, ``paths`` bound read-only at their own place."""

    registries: frozenset[Registry]
    env: Mapping[str, str]
    ca_bundle: Path
    paths: tuple[Path, ...] = ()
    upstream: Upstream | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Pip:
    """The pip that builds run. ``source`` is its package folder or a wheel."""

    source: Path
    version: str
    access: Access

    @property
    def inside(self) -> str:
        """Where ``source`` is bound in a build."""
        return "/nova/pip.whl" if self.source.is_file() else "/nova/lib/pip"

    @property
    def search_path(self) -> str:
        return self.inside if self.source.is_file() else posixpath.dirname(self.inside)


@dataclass(frozen=True, slots=True)
class Npm:
    """The npm that builds run. ``root`` is its package folder."""

    root: Path
    version: str
    access: Access


async def find_pip() -> Pip:
    """pip as it is configured on this host. Raises ``runtime_unavailable`` when there is none."""
    source = _pip_source()
    search = str(source if source.is_file() else source.parent)
    out = await _output(sys.executable, "-I", "-c", _DEFAULTS, search)
    index, files_host, version = out.split()
    config = _pip_config(await _output(sys.executable, "-I", "-c", RUN_PIP, search, "config", "list"))
    return Pip(source, version, await asyncio.to_thread(pip_access, config, index, files_host))


def pip_access(config: Mapping[str, str], default_index: str, default_files_host: str) -> Access:
    """From ``pip config list`` (by option name) and pip's own defaults."""
    registries: set[Registry] = set()
    paths: set[Path] = set()
    offline = config.get("no-index", "").lower() in ("1", "true", "yes", "on")
    if not offline:
        # also with an index of the operator's own: some mirror the pages only and leave the files where they are
        registries.add(Registry(default_files_host, 443))
    if "index-url" not in config and not offline:
        registries.add(_registry(default_index, inside=False))
    addresses = [config.get("index-url", ""), *config.get("extra-index-url", "").split()]
    for address in filter(None, addresses):
        if (folder := _folder(address)) is not None:
            paths |= {folder, *_linked_folders(folder)}
        else:
            registries.add(_registry(address, inside=True))
    for place in config.get("find-links", "").split():
        if (folder := _folder(place)) is not None:
            paths.add(folder)
        else:
            registries.add(_registry(place, inside=True))
    passed = ("index-url", "extra-index-url", "find-links", "no-index", "trusted-host", "default-timeout", "retries")
    env = {f"PIP_{name.upper().replace('-', '_')}": config[name] for name in passed if name in config}
    env |= {"PIP_CERT": CA_BUNDLE, "PIP_CONFIG_FILE": os.devnull}
    proxy = config.get("proxy") or _host_proxy()
    return Access(
        registries=frozenset(registries),
        env=env,
        ca_bundle=_ca_bundle(config.get("cert")),
        paths=_outermost(path for path in paths if path.exists()),
        upstream=Upstream.of(proxy) if proxy else None,
    )


async def find_npm(node: Path) -> Npm:
    """The npm beside ``node``, else on the path. Raises ``runtime_unavailable`` when there is none."""
    root = _npm_root(node)
    listing = (str(node), str(root / "bin" / "npm-cli.js"), "config", "list", "--json")
    bare = [f"--{name}={path}" for name, path in NO_NPMRC.items()]
    config, defaults = await asyncio.gather(_output(*listing, cwd=root), _output(*listing, *bare, cwd=root))
    version = json.loads((root / "package.json").read_text())["version"]
    return Npm(root, version, npm_access(json.loads(config), json.loads(defaults)["registry"]))


def npm_access(config: Mapping[str, object], default_registry: str) -> Access:
    """From ``npm config list --json``: the registry, those of scopes, certificates and proxy."""
    own = {name: str(value) for name, value in config.items() if name == "registry" or name.endswith(":registry")}
    env = {f"npm_config_{name}": value for name, value in own.items()}
    env |= {f"npm_config_{name}": path for name, path in NO_NPMRC.items()}
    env["npm_config_cafile"] = CA_BUNDLE
    if config.get("strict-ssl") is False:
        env["npm_config_strict_ssl"] = "false"
    proxy = str(config.get("https-proxy") or config.get("proxy") or "") or _host_proxy()
    cafile = config.get("cafile")
    return Access(
        registries=frozenset(_registry(url, inside=url != default_registry) for url in own.values()),
        env=env,
        ca_bundle=_ca_bundle(str(cafile) if cafile else None),
        upstream=Upstream.of(proxy) if proxy else None,
    )


def _pip_source() -> Path:
    spec = importlib.util.find_spec("pip")
    if spec is not None and spec.submodule_search_locations:
        return Path(spec.submodule_search_locations[0])
    bundled = importlib.util.find_spec("ensurepip")
    folders = [sysconfig.get_config_var("WHEEL_PKG_DIR")]
    if bundled is not None and bundled.origin is not None:
        folders.append(str(Path(bundled.origin).parent / "_bundled"))
    wheels = [wheel for folder in folders if folder for wheel in Path(folder).glob("pip-*.whl")]
    if not wheels:
        raise NovaError(
            "runtime_unavailable", "there is no pip on this host: install it beside Nova (python -m ensurepip)"
        )
    return max(wheels)


def _npm_root(node: Path) -> Path:
    prefix = node.resolve().parent.parent
    candidates = [prefix / "lib/node_modules/npm", prefix / "share/nodejs/npm"]
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        found = Path(folder, "npm").resolve()
        if found.name == "npm-cli.js":
            candidates.append(found.parent.parent)
    for root in candidates:
        if (root / "bin" / "npm-cli.js").is_file():
            return root
    raise NovaError("runtime_unavailable", "there is no npm on this host")


def _pip_config(listing: str) -> dict[str, str]:
    """``pip config list`` by option name; the environment wins over the ``install`` section, and that over ``global``."""
    by_rank: list[dict[str, str]] = [{}, {}, {}]
    for line in listing.splitlines():
        if match := _PIP_LINE.fullmatch(line.strip()):
            by_rank[_SECTIONS.index(match[1])][match[2]] = str(ast.literal_eval(match[3]))
    return by_rank[0] | by_rank[1] | by_rank[2]


def _registry(url: str, *, inside: bool) -> Registry:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise NovaError("runtime_unavailable", "a package registry of this host's configuration has no http(s) address")
    return Registry(parts.hostname.lower(), parts.port or (443 if parts.scheme == "https" else 80), inside)


def _folder(address: str) -> Path | None:
    """The folder on this host that an index address or a place for links names, if it is one."""
    if address.startswith("file://"):
        return Path(unquote(urlsplit(address).path))
    return None if "://" in address else Path(address).expanduser().absolute()


def _linked_folders(index: Path) -> set[Path]:
    """Folders outside a simple index that its pages lead to."""
    found: set[Path] = set()
    for page in index.glob("*/index.html"):
        base = page.parent.as_uri() + "/"
        for href in _HREF.findall(page.read_text(errors="replace")):
            target = urlsplit(urljoin(base, href))
            if target.scheme == "file":
                found.add(Path(unquote(target.path)).parent)
    return {folder for folder in found if not folder.is_relative_to(index)}


def _outermost(paths: Iterable[Path]) -> tuple[Path, ...]:
    """Without the paths that lie below another of them."""
    kept: list[Path] = []
    for path in sorted(paths):
        if not any(path.is_relative_to(above) for above in kept):
            kept.append(path)
    return tuple(kept)


def _ca_bundle(configured: str | None) -> Path:
    """One file of certificates: the installer's own setting, the environment's, the system's, or certifi's."""
    named = (configured, os.environ.get("SSL_CERT_FILE"), ssl.get_default_verify_paths().cafile, *_SYSTEM_BUNDLES)
    for name in filter(None, named):
        if Path(name).is_file():
            return Path(name).resolve()
    return Path(certifi.where())


def _host_proxy() -> str:
    proxies = getproxies()
    return proxies.get("https") or proxies.get("http") or ""


async def _output(*argv: str, cwd: Path | None = None) -> str:
    """What a helper of the package manager prints. Raises ``runtime_unavailable`` when it fails."""
    process = await asyncio.create_subprocess_exec(
        *argv, cwd=cwd, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            out, err = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    if process.returncode != 0:
        tail = err.decode(errors="replace").strip().splitlines()[-1:] or ["no output"]
        raise NovaError("runtime_unavailable", f"the package manager does not work: {tail[0]}")
    return out.decode()
