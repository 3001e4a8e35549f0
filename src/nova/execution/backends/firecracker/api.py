"""What we say to one Firecracker process over its unix socket, as types, and its refusals as our errors.

Paths are those that the process sees: inside its jail.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import httpx

from nova.errors import NovaError

REQUEST_S: Final = 10.0
SNAPSHOT_S: Final = 60.0
"""Writing or reading the memory of the largest machine."""
_SAID_MOST: Final = 500


@dataclass(frozen=True, slots=True)
class TokenBucket:
    """``size`` tokens that refill in ``refill_time`` ms."""

    size: int
    refill_time: int

    @classmethod
    def per_second(cls, amount: int) -> "TokenBucket":
        return cls(amount, 1000)


@dataclass(frozen=True, slots=True)
class RateLimiter:
    """Bytes and operations; None: not limited."""

    bandwidth: TokenBucket | None = None
    ops: TokenBucket | None = None


@dataclass(frozen=True, slots=True)
class BootSource:
    kernel_image_path: str
    boot_args: str
    initrd_path: str | None = None


@dataclass(frozen=True, slots=True)
class MachineConfig:
    vcpu_count: int
    mem_size_mib: int
    smt: bool = False


@dataclass(frozen=True, slots=True)
class Drive:
    drive_id: str
    path_on_host: str
    is_root_device: bool
    is_read_only: bool
    rate_limiter: RateLimiter | None = None


@dataclass(frozen=True, slots=True)
class NetworkInterface:
    iface_id: str
    guest_mac: str
    host_dev_name: str
    rx_rate_limiter: RateLimiter | None = None
    tx_rate_limiter: RateLimiter | None = None


@dataclass(frozen=True, slots=True)
class Vsock:
    guest_cid: int
    uds_path: str


@dataclass(frozen=True, slots=True)
class MachineSetup:
    """Everything that a machine is told before it starts."""

    boot: BootSource
    machine: MachineConfig
    drives: tuple[Drive, ...]
    vsock: Vsock
    network: NetworkInterface | None = None


class FirecrackerApi:
    """One process's API. Raises NovaError ``dependency_unavailable`` with what Firecracker said, whatever went wrong."""

    def __init__(self, socket_path: Path) -> None:
        self._client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(socket_path)),
            base_url="http://firecracker",
            timeout=REQUEST_S,
            trust_env=False,
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def configure(self, setup: MachineSetup) -> None:
        await self._put("/machine-config", asdict(setup.machine))
        await self._put("/boot-source", asdict(setup.boot))
        for drive in setup.drives:
            await self._put(f"/drives/{drive.drive_id}", asdict(drive))
        if setup.network is not None:
            await self._put(f"/network-interfaces/{setup.network.iface_id}", asdict(setup.network))
        await self._put("/vsock", asdict(setup.vsock))

    async def limit_interface(self, interface: NetworkInterface) -> None:
        """Hold an interface of a machine that goes on from another, whose limits it has else. Absent limits end old ones."""
        unlimited = {"bandwidth": {"size": 0, "refill_time": 0}}
        body = {
            "iface_id": interface.iface_id,
            "rx_rate_limiter": asdict(interface.rx_rate_limiter) if interface.rx_rate_limiter else unlimited,
            "tx_rate_limiter": asdict(interface.tx_rate_limiter) if interface.tx_rate_limiter else unlimited,
        }
        await self._send("PATCH", f"/network-interfaces/{interface.iface_id}", body)

    async def start(self) -> None:
        await self._put("/actions", {"action_type": "InstanceStart"})

    async def pause(self) -> None:
        await self._send("PATCH", "/vm", {"state": "Paused"})

    async def resume(self) -> None:
        await self._send("PATCH", "/vm", {"state": "Resumed"})

    async def create_snapshot(self, state: str, memory: str) -> None:
        """Of a paused machine, whole; the files must not exist."""
        body = {"snapshot_type": "Full", "snapshot_path": state, "mem_file_path": memory}
        await self._put("/snapshot/create", body, SNAPSHOT_S)

    async def load_snapshot(self, state: str, memory: str, *, resume: bool) -> None:
        """Into a process that has no machine yet. Memory is mapped, and read when it is touched."""
        body = {
            "snapshot_path": state,
            "mem_backend": {"backend_type": "File", "backend_path": memory},
            "resume_vm": resume,
        }
        await self._put("/snapshot/load", body, SNAPSHOT_S)

    async def state(self) -> Literal["Not started", "Running", "Paused"]:
        answer = await self._send("GET", "/")
        found: Literal["Not started", "Running", "Paused"] = answer["state"]
        return found

    async def _put(self, path: str, body: dict[str, Any], timeout_s: float = REQUEST_S) -> None:
        await self._send("PUT", path, body, timeout_s)

    async def _send(
        self, method: str, path: str, body: dict[str, Any] | None = None, timeout_s: float = REQUEST_S
    ) -> dict[str, Any]:
        try:
            answer = await self._client.request(method, path, json=_without_none(body), timeout=timeout_s)
        except httpx.HTTPError as error:
            text = f"firecracker does not answer {method} {path}: {error or type(error).__name__}"
            raise NovaError("dependency_unavailable", text) from None
        if answer.is_success:
            found: dict[str, Any] = answer.json() if answer.content else {}
            return found
        raise NovaError("dependency_unavailable", f"firecracker refuses {method} {path}: {_complaint(answer)}")


def _without_none(value: Any) -> Any:
    """Firecracker takes absent for not limited."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return value


def _complaint(answer: httpx.Response) -> str:
    try:
        said = str(answer.json()["fault_message"])
    except (ValueError, KeyError, TypeError):
        said = answer.text
    return said[:_SAID_MOST]
