"""Settings of the planes without a person waiting: queue, schedules, workflows, triggers, and how long it is all kept."""

from pathlib import Path

from pydantic import Field

from nova.config.values import HOT, Seconds, Section


class QueueSettings(Section):
    lease: Seconds = Field(30.0, description="work of a process that fell silent is taken over after this")
    batch: int = Field(32, ge=1, le=1000, description="rows claimed together, at most")
    workers: int = Field(
        32, ge=1, le=4096, description="async calls that one process runs at once", json_schema_extra=HOT
    )


class SchedulesSettings(Section):
    lookahead: Seconds = Field(1.0, description="how far ahead due schedules are read")


class WorkflowSettings(Section):
    workers: int = Field(
        64, ge=1, le=10_000, description="runs that one process advances at the same time", json_schema_extra=HOT
    )
    max_depth: int = Field(
        16, ge=1, le=1000, description="workflows that start one another, one below the other", json_schema_extra=HOT
    )


class EventSettings(Section):
    max_hops: int = Field(
        16,
        ge=1,
        le=1000,
        description="deliveries that lead to one another: topics and functions in a circle end there",
        json_schema_extra=HOT,
    )


class TriggerSettings(Section):
    fs_roots: list[Path] = Field(
        default=[], description="directories of this machine that filesystem triggers may watch; empty: none"
    )


class RetentionSettings(Section):
    async_days: int = Field(
        7, ge=1, le=3650, description="finished async calls are kept so long", json_schema_extra=HOT
    )
    dlq_days: int = Field(30, ge=1, le=3650, description="dead letters are kept so long", json_schema_extra=HOT)
    deliveries_days: int = Field(
        7,
        ge=1,
        le=3650,
        description="what was delivered or published from an outbox is kept so long",
        json_schema_extra=HOT,
    )
    schedule_runs_days: int = Field(
        30, ge=1, le=3650, description="the history of schedules is kept so long", json_schema_extra=HOT
    )
    runs_days: int = Field(
        30, ge=1, le=3650, description="finished runs of workflows are kept so long", json_schema_extra=HOT
    )
    builds_days: int = Field(30, ge=1, le=3650, description="finished builds are kept so long", json_schema_extra=HOT)
    audit_days: int = Field(365, ge=1, le=3650, description="audit rows are kept so long", json_schema_extra=HOT)
    metrics_minute_days: int = Field(
        7, ge=1, le=400, description="time series by the minute are kept so long", json_schema_extra=HOT
    )
    metrics_hour_days: int = Field(
        400, ge=1, le=3650, description="time series by the hour are kept so long", json_schema_extra=HOT
    )
    traces_hours: int = Field(24, ge=1, le=720, description="spans are kept so long", json_schema_extra=HOT)
