"""Settings of who may call, how often, and where answers may be sent."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from nova.config.values import HOT, SECRET, Section, network


class StaticKey(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    key: str = Field(min_length=16)
    tier: str = "standard"
    tenant_id: str = "default"
    role: Literal["platform-admin", "admin", "operator", "developer", "invoker", "viewer"] = "admin"


class ApiKeySettings(Section):
    enabled: bool = Field(True, description="false: no key proves anything")
    static_keys: list[StaticKey] = Field(
        default=[],
        description="keys that are not in the database: name, key, tier, tenant_id, role",
        json_schema_extra=SECRET,
    )


class AuthSettings(Section):
    enabled: Literal["auto", "true", "false"] = Field(
        "auto",
        description="auto: a direct loopback caller is the local operator, others need a key; true: all do; false: none does",
    )
    api_keys: ApiKeySettings = ApiKeySettings()


class Tier(Section):
    requests_per_second: float = Field(gt=0)
    burst_size: int = Field(ge=1)


class RateLimitSettings(Section):
    enabled: bool = Field(False, description="limit requests per second", json_schema_extra=HOT)
    default_tier: str = Field(
        "standard", description="for callers whose tier is not one of the tiers", json_schema_extra=HOT
    )
    tiers: dict[str, Tier] = Field(
        default={
            "standard": Tier(requests_per_second=100, burst_size=200),
            "premium": Tier(requests_per_second=1000, burst_size=2000),
        },
        min_length=1,
        description="requests per second, and how many at once after a pause, by tier",
        json_schema_extra=HOT,
    )


class EgressSettings(Section):
    allow: list[Annotated[str, AfterValidator(network)]] = Field(
        default=[], description="private networks that webhooks and triggers may reach all the same"
    )


class SecretsOff(Section):
    enabled: Literal[False] = Field(False, description="not part of this version")
