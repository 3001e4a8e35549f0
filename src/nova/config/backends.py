"""Settings of what functions run in: sandbox, containers, microVMs, WebAssembly, and their images."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from nova.config.values import Seconds, Section


class SandboxSettings(Section):
    subnet: str = Field("172.31.0.0/16", description="private addresses for instances that may use the network")
    cgroup_root: str = Field(
        "", description="cgroup to work under; empty: the one delegated to the daemon, else the top"
    )
    uid_base: int = Field(200_000, ge=65_536, description="first host uid that instances get as root")


class DockerSettings(Section):
    host: str = Field(
        "unix:///var/run/docker.sock",
        pattern=r"^(unix:///.+)?$",
        description="where the Docker engine of this host listens; empty: Docker is not used",
    )
    image_prefix: str = Field(
        "nova-runtime-", pattern=r"^[a-z0-9]([a-z0-9._/-]*[a-z0-9._/-])?$", description="begins the names of images"
    )
    templates: int = Field(1, ge=0, le=16, description="containers that stand ready for each runtime that is in use")
    channel: Literal["socket", "tcp"] = Field(
        "socket",
        description="how agents are reached; tcp: a port on 127.0.0.1, where containers cannot share a socket with the host;"
        " no templates and no egress then",
    )
    network: str = Field(
        "nova-net",
        pattern=r"^[a-z][a-z0-9-]{0,14}$",
        description="with channel tcp: the engine's network, made if missing",
    )
    port_range_min: int = Field(10_000, ge=1024, le=65_535, description="with channel tcp: the first port")
    port_range_max: int = Field(20_000, ge=1024, le=65_535, description="with channel tcp: the last port")

    @model_validator(mode="after")
    def _some_ports(self) -> Self:
        if self.port_range_max < self.port_range_min:
            raise ValueError("port_range_max is below port_range_min")
        return self


class FirecrackerSettings(Section):
    firecracker_bin: Path = Field(Path("/opt/nova/bin/firecracker"), description="the program")
    jailer_bin: Path = Field(Path("/opt/nova/bin/jailer"), description="its jailer, of the same version")
    kernel_path: Path = Field(
        Path("/opt/nova/kernel/vmlinux"), description="the kernel that machines boot, uncompressed"
    )
    snapshot_dir: Path = Field(Path("/opt/nova/snapshots"), description="where functions are kept that stay loaded")
    socket_dir: Path = Field(
        Path("/tmp/nova/sockets"),
        description="the jails of machines with their sockets; short, and best on the file system of the images",
    )
    log_dir: Path = Field(Path("/tmp/nova/logs"), description="what machines said that did not come up")
    bridge_name: str = Field(
        "novabr0", pattern=r"^[a-z][a-z0-9]{0,8}$", description="the bridge of this host that machines are behind"
    )
    subnet: str = Field("172.30.0.0/24", description="addresses of machines on it, the first is the bridge's own")
    boot_timeout: Seconds = Field(10.0, gt=0, le=120, description="how long a machine has until its agent answers")
    code_drive_size_mb: int = Field(
        16, ge=4, le=512, description="size of a code drive in MB; it grows with the code up to 512"
    )
    vsock_port: int = Field(9999, ge=1, le=65_535, description="where the agent listens inside")
    templates: bool = Field(True, description="keep machines that were booted for nobody; cold starts go on from them")
    drive_mbps: int = Field(
        0, ge=0, le=1_000_000, description="what a machine may read of each of its drives, MB a second; 0: no limit"
    )
    drive_ops: int = Field(0, ge=0, le=10_000_000, description="the same in operations a second; 0: no limit")
    uid: int = Field(400_000, ge=65_536, description="first of 1000 host users, one for each machine")
    gid: int = Field(400_000, ge=65_536, description="host group of all machines")


class QemuSettings(Section):
    bin: str = Field("qemu-system-x86_64", min_length=1, description="the program, by name or path")
    accel: Literal["auto", "kvm", "tcg"] = Field(
        "auto",
        description="kvm: this processor's virtualisation; tcg: emulation; auto: kvm if a guest has run with it here",
    )
    boot_timeout: Seconds = Field(60.0, gt=0, le=600, description="how long a machine has until its agent answers")
    bridge_name: str = Field(
        "novabr0",
        pattern=r"^[a-z][a-z0-9]{0,8}$",
        description="the bridge of this host that machines are behind; Firecracker's may be behind the same",
    )
    subnet: str = Field("172.30.0.0/24", description="addresses of machines on it, the first is the bridge's own")
    templates: bool = Field(True, description="keep machines that were booted for nobody; cold starts go on from them")
    uid: int = Field(402_000, ge=65_536, description="first of 1000 host users, one for each machine, if nova is root")
    gid: int = Field(402_000, ge=65_536, description="host group of all machines")


class WasmSettings(Section):
    fuel: int = Field(
        0,
        ge=0,
        lt=1 << 63,
        description="what a call of a WebAssembly module may use up, about one an instruction; 0: no limit",
    )


class ImageSettings(Section):
    dir: str = Field(
        "", description="images of runtimes and the kernel of machines; empty: images in the data directory"
    )
