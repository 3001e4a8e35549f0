"""A worker's environment, built from nothing: what the platform says, then what the function says."""

import os
from typing import Any, Final

from nova.agent.config import AgentConfig
from nova.agent.messages import InitHead

GUEST_HOST: Final = "127.0.0.1"

_SEARCH_PATHS = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "PYTHONPATH": "{code}:{code}/deps",
    "NODE_PATH": "{code}/node_modules:{code}/deps/node_modules:{code}",
    "LD_LIBRARY_PATH": "{code}/lib:{code}/deps/lib:{code}",
}
_LAYER_PATHS = {
    "PATH": "{layer}/bin",
    "PYTHONPATH": "{layer}/python:{layer}",
    "NODE_PATH": "{layer}/nodejs/node_modules:{layer}/node_modules",
    "LD_LIBRARY_PATH": "{layer}/lib",
}
_RESERVED_PREFIXES = ("NOVA_", "AWS_LAMBDA_", "LAMBDA_")
_SHADOW = "NOVA_SHADOW"
"""Set by the platform in instances that run copies of calls; no function may set it."""


def base(code_dir: str) -> dict[str, str]:
    """What holds before a function is known; also the environment in which a standing worker boots."""
    paths = {name: value.replace("{code}", code_dir) for name, value in _SEARCH_PATHS.items()}
    return paths | {"HOME": "/tmp", "TMPDIR": "/tmp", "LANG": "C.UTF-8", "TZ": "UTC"}


def guest(port: int, token: str) -> dict[str, str]:
    """How code inside finds the guest API, which knows it by ``token``."""
    return {"NOVA_API_URL": f"http://{GUEST_HOST}:{port}", "NOVA_API_TOKEN": token} if port else {}


def durable(port: int) -> dict[str, str]:
    """Where libraries of the Lambda durable-execution protocol record, as they look it up. They want something to sign with;
    nobody reads the signature."""
    return {
        "AWS_ENDPOINT_URL_LAMBDA": f"http://{GUEST_HOST}:{port}",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "nova",
        "AWS_SECRET_ACCESS_KEY": "nova",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def _with_layers(own: str, place: str, layers: int, *, first: bool) -> str:
    """A search path with the layers, the last one first. They come behind the function's own code, but before the system's
    programs."""
    places = [place.replace("{layer}", f"/layers/{number}") for number in reversed(range(layers))]
    return ":".join([*places, own] if first else [own, *places])


def build(init: InitHead, code_dir: str) -> dict[str, str]:
    """Every variable of a worker but :func:`guest` and the ones of a single call.

    The function's own values go before the platform's on a search path and replace the other base values; reserved
    names are the platform's alone.
    """
    env = base(code_dir)
    for name, place in _LAYER_PATHS.items() if init.layers else ():
        env[name] = _with_layers(env[name], place, init.layers, first=name == "PATH")
    for name, value in init.env.items():
        if name in _SEARCH_PATHS:
            env[name] = f"{value}:{env[name]}"
        elif name == _SHADOW or not name.startswith(_RESERVED_PREFIXES):
            env[name] = value
    function = init.function
    env.update(
        NOVA_FUNCTION_NAME=function.name,
        NOVA_FUNCTION_ID=function.id,
        NOVA_FUNCTION_VERSION=str(function.version),
        NOVA_TENANT=function.tenant,
        NOVA_NAMESPACE=function.namespace,
        NOVA_MEMORY_LIMIT_MB=str(init.memory_mb),
        NOVA_TIMEOUT_S=str(init.timeout_s),
        NOVA_RUNTIME=init.runtime,
        NOVA_MODE=init.mode,
        NOVA_CODE_DIR=code_dir,
        NOVA_HANDLER=init.handler,
        NOVA_INPUT_FD="3",
        NOVA_RESULT_FD="4",
        AWS_LAMBDA_FUNCTION_NAME=function.name,
        AWS_LAMBDA_FUNCTION_VERSION=str(function.version),
        AWS_LAMBDA_FUNCTION_MEMORY_SIZE=str(init.memory_mb),
        AWS_LAMBDA_LOG_GROUP_NAME=f"/nova/{function.tenant}/{function.namespace}/{function.name}",
        AWS_LAMBDA_LOG_STREAM_NAME=f"[{function.version}]{init.instance_id}",
        LAMBDA_TASK_ROOT=code_dir,
        _HANDLER=init.handler,
    )
    return env


def worker_init(config: AgentConfig, init: InitHead, api_token: str) -> dict[str, Any]:
    """The object of the init line. ``api_token``: what the worker shows to the guest API."""
    env = build(init, config.code_dir) | guest(config.guest_port, api_token)
    if init.mode == "durable":
        env = durable(config.guest_port) | env
    return {
        "handler": init.handler,
        "entry": os.path.join(config.code_dir, init.entry),
        "code_dir": config.code_dir,
        "mode": init.mode,
        "concurrency": init.concurrency,
        "open_files": init.open_files,
        "env": env,
    }
