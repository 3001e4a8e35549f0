"""Heads of frames as the channel needs them: an Init made from its spec, and the agent's answers checked."""

from nova.agent import frames
from nova.agent.frames import Frame, FrameError
from nova.agent.messages import FunctionRef, InitHead, LoadedHead, WelcomeHead
from nova.execution.backends.base import InitSpec
from nova.execution.channel_control import ControlLost


def init_head(spec: InitSpec, instance_id: str, api_token: str) -> InitHead:
    return InitHead(
        function=FunctionRef(spec.function_id, spec.name, spec.version, spec.tenant, spec.namespace),
        instance_id=instance_id,
        runtime=spec.runtime,
        mode=spec.mode,
        handler=spec.handler,
        entry=spec.entry,
        entry_kind=spec.entry_kind,
        env=spec.env,
        memory_mb=spec.memory_mb,
        timeout_s=spec.timeout_s,
        concurrency=spec.concurrency,
        open_files=spec.open_files,
        layers=spec.layers,
        api_token=api_token,
    )


def welcome_head(answer: Frame) -> WelcomeHead:
    """Raises ControlLost when the agent is not one that this host can work with."""
    try:
        welcome = WelcomeHead.of(answer.head)
    except FrameError as error:
        raise ControlLost(f"the agent's Hello is not valid: {error}") from None
    if welcome.proto != frames.PROTOCOL or "direct" not in welcome.features or welcome.state != "blank":
        raise ControlLost("the agent speaks another protocol")
    if welcome.max_message != frames.MAX_MESSAGE or welcome.fds not in (0, 3):
        raise ControlLost("the agent's limits do not fit")
    return welcome


def loaded_head(answer: Frame) -> LoadedHead:
    """Raises ControlLost when it is none."""
    try:
        return LoadedHead.of(answer.head)
    except FrameError as error:
        raise ControlLost(f"the agent's answer is not valid: {error}") from None
