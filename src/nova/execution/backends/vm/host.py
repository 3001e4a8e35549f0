"""What backends of machines do with this host in the same way."""

import asyncio
import contextlib
from collections.abc import Iterable, Iterator
from typing import Final

import structlog
from tenacity import AsyncRetrying, retry_if_result, stop_after_delay, wait_fixed

from nova.domain.function import Limits
from nova.errors import NovaError, as_refusal
from nova.execution.backends.sandbox.cgroups import Group
from nova.execution.backends.vm import shape
from nova.execution.images import Images

log = structlog.get_logger(__name__)

_GROUP_S: Final = 2.0
_BACKGROUND: Final = 0.5
"""Less would let a row of boots hold up the template that ends them."""


@contextlib.contextmanager
def host_errors() -> Iterator[None]:
    """The host's troubles in the platform's words."""
    try:
        yield
    except OSError as error:
        text = f"no machine could be made: {error}"
        raise as_refusal(error) or NovaError("dependency_unavailable", text) from error


def limit(group: Group, limits: Limits, vmm_mb: int, *, background: bool = False) -> None:
    """``vmm_mb``: what the process may have beside the guest's memory. ``background``: instances get more of the processor when
    they want it too. Raises OSError."""
    memory = shape.memory_mb(limits) + vmm_mb
    share = limits.cpu_share * _BACKGROUND if background else limits.cpu_share
    group.limit(memory << 20, limits.cpu_ceiling, share, shape.threads(limits))


async def destroy(group: Group) -> None:
    """The kernel lets go of a group a moment after its last process."""

    async def destroyed() -> bool:
        return await asyncio.to_thread(group.destroy)

    retrying = AsyncRetrying(
        retry=retry_if_result(lambda gone: not gone),
        wait=wait_fixed(0.01),
        stop=stop_after_delay(_GROUP_S),
        retry_error_callback=lambda _: False,
    )
    gone: bool = await retrying(destroyed)
    if not gone:
        log.warning("a control group is still held by the kernel")


def with_image(images: Images, runtimes: Iterable[str]) -> list[str]:
    """Those of ``runtimes`` that machines can be made of. Blocking."""
    found = []
    for runtime in runtimes:
        with contextlib.suppress(NovaError):
            if images.find(runtime, "ext4") is not None:
                found.append(runtime)
    return found
