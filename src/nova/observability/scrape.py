"""One Prometheus answer for many processes: each is asked, its samples get the name of its node, families become one.

Every process counts for itself and none knows the others' numbers; adding up is the reader's business. A process that does not
answer in time is left out, and the series ``scrape_up`` says so.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

log = structlog.get_logger(__name__)
TIMEOUT_S = 2.0
MAX_BYTES = 32 << 20
"""An answer that is longer is not read: 2000 functions make about 6 MiB."""


@dataclass(frozen=True, slots=True)
class Source:
    """One process: ``labels`` are put on each of its samples (``node`` at least), ``read`` gives its classic text format."""

    labels: Mapping[str, str]
    read: Callable[[], Awaitable[str]]


Sources = Callable[[], Awaitable[Sequence[Source]]]
"""The processes that are there now."""


class Scraper:
    """``namespace`` is the prefix of the series that it adds itself."""

    def __init__(self, sources: Sources, *, namespace: str, timeout_s: float = TIMEOUT_S) -> None:
        self._sources = sources
        self._up = f"{namespace}_scrape_up"
        self._timeout_s = timeout_s

    async def scrape(self, accept: str) -> tuple[bytes, str]:
        """The text and its content type: OpenMetrics where ``accept`` asks for it, else the classic format."""
        sources = await self._sources()
        answers = await asyncio.gather(*(self._read(source) for source in sources))
        encode, content_type = choose_encoder(accept)

        def merged() -> bytes:
            registry = CollectorRegistry(auto_describe=False)
            registry.register(_Families(list(self._families(sources, answers))))
            return encode(registry)

        # parsing megabytes takes a while, and other requests do not wait for it
        return await asyncio.to_thread(merged), content_type

    async def _read(self, source: Source) -> str | None:
        try:
            async with asyncio.timeout(self._timeout_s):
                text = await source.read()
        except Exception as error:
            log.warning("a process did not tell its metrics", error=repr(error), **source.labels)
            return None
        return text if len(text) <= MAX_BYTES else None

    def _families(self, sources: Sequence[Source], answers: Sequence[str | None]) -> Iterator[Metric]:
        labels = sorted({name for source in sources for name in source.labels})
        up = GaugeMetricFamily(self._up, "Did this process tell its series in time", labels=labels)
        parsed: list[tuple[Mapping[str, str], list[Metric]]] = []
        for source, answer in zip(sources, answers, strict=True):
            families = _parsed(answer)
            up.add_metric([source.labels.get(name, "") for name in labels], 0 if families is None else 1)
            if families is not None:
                parsed.append((source.labels, families))
        yield from _merge(parsed)
        yield up


class _Families(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _parsed(text: str | None) -> list[Metric] | None:
    """None for what is no exposition."""
    if text is None:
        return None
    try:
        return list(text_string_to_metric_families(text))
    except (ValueError, KeyError, IndexError) as error:
        log.warning("a process told something that is no exposition", error=str(error))
        return None


def _merge(answers: Iterable[tuple[Mapping[str, str], list[Metric]]]) -> Iterator[Metric]:
    """One family for each name; whose type differs from what was there first is left out."""
    merged: dict[str, Metric] = {}
    for labels, families in answers:
        for family in families:
            whole = merged.get(family.name)
            if whole is None:
                whole = merged[family.name] = Metric(family.name, family.documentation, family.type)
            if whole.type == family.type:
                whole.samples += [_labelled(sample, labels) for sample in family.samples]
            else:
                log.warning("one series has two types", series=family.name)
    yield from merged.values()


def _labelled(sample: Sample, labels: Mapping[str, str]) -> Sample:
    return Sample(sample.name, {**sample.labels, **labels}, sample.value, sample.timestamp, sample.exemplar)
