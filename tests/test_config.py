"""Settings: precedence, refusal by name, units."""

from pathlib import Path

import pytest

from nova.config import get
from nova.config_sources import ConfigError, apply_table, load


def test_flag_beats_environment_beats_table_beats_file_beats_default(tmp_path: Path) -> None:
    """DB9: the documented precedence, for one key through every source."""
    file = tmp_path / "nova.yaml"
    file.write_text("pool:\n  idle_ttl: 10s\n")
    assert load(environ={}).settings.pool.idle_ttl == 60
    loaded = load(environ={}, file=file)
    assert loaded.settings.pool.idle_ttl == 10
    assert apply_table(loaded, {"pool.idle_ttl": 20}) == ["pool.idle_ttl"]
    assert (loaded.settings.pool.idle_ttl, loaded.source("pool.idle_ttl")) == (20, "db")
    loaded = load(environ={"NOVA_IDLE_TTL": "30s"}, file=file)
    assert apply_table(loaded, {"pool.idle_ttl": 20}) == []
    assert (loaded.settings.pool.idle_ttl, loaded.source("pool.idle_ttl")) == (30, "env")
    loaded = load(flags={"pool.idle_ttl": "40s"}, environ={"NOVA_IDLE_TTL": "30s"}, file=file)
    assert (loaded.settings.pool.idle_ttl, loaded.source("pool.idle_ttl")) == (40, "flag")


def test_json_and_yaml_files_set_the_same_value(tmp_path: Path) -> None:
    yaml, json = tmp_path / "a.yaml", tmp_path / "a.json"
    yaml.write_text("rate_limit:\n  tiers:\n    gold: {requests_per_second: 5, burst_size: 9}\n")
    json.write_text('{"rate_limit": {"tiers": {"gold": {"requests_per_second": 5, "burst_size": 9}}}}')
    assert load(environ={}, file=yaml).settings == load(environ={}, file=json).settings


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            {"environ": {"NOVA_POOL_IDEL_TTL": "1s"}},
            "NOVA_POOL_IDEL_TTL: no such setting; did you mean NOVA_POOL_IDLE_TTL",
        ),
        ({"flags": {"pool.idle": 1}}, "pool.idle: no such setting"),
        ({"environ": {"NOVA_IDLE_TTL": "soon"}}, "pool.idle_ttl: .*a duration.*NOVA_IDLE_TTL"),
        ({"flags": {"secrets.enabled": True}}, "secrets.enabled"),
    ],
)
def test_what_does_not_exist_or_fit_is_refused_by_name(source: dict[str, dict[str, object]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(**{"environ": {}, **source})  # type: ignore[arg-type]


def test_an_unknown_key_in_a_file_names_file_and_neighbour(tmp_path: Path) -> None:
    file = tmp_path / "nova.yaml"
    file.write_text("daemon:\n  http_adr: ':9000'\n")
    with pytest.raises(
        ConfigError, match=r"daemon.http_adr: no such setting; did you mean daemon.http_addr\? \(from .*nova.yaml"
    ):
        load(environ={}, file=file)


def test_a_removed_table_row_gives_the_default_back() -> None:
    loaded = load(environ={})
    apply_table(loaded, {"pool.max_queue_depth": 5})
    assert apply_table(loaded, {}) == ["pool.max_queue_depth"]
    assert get(loaded.settings, "pool.max_queue_depth") == 1000
    assert loaded.source("pool.max_queue_depth") == "default"


def test_a_removed_table_row_gives_back_what_the_file_said(tmp_path: Path) -> None:
    file = tmp_path / "nova.yaml"
    file.write_text("pool: {idle_ttl: 10s}\n")
    loaded = load(environ={}, file=file)
    apply_table(loaded, {"pool.idle_ttl": 20})
    apply_table(loaded, {"pool.idle_ttl": 25})
    assert apply_table(loaded, {}) == ["pool.idle_ttl"]
    assert (loaded.settings.pool.idle_ttl, loaded.source("pool.idle_ttl")) == (10, "file")


def test_secrets_are_never_shown() -> None:
    loaded = load(flags={"postgres.dsn": "host=x password=hunter2"}, environ={})
    assert loaded.shown("postgres.dsn") == "***"


def test_lists_come_by_comma_and_maps_as_json() -> None:
    loaded = load(
        environ={"NOVA_HTTP_CORS_ORIGINS": "https://a, https://b", "NOVA_POOL_RUNTIME_POOL_RUNTIMES": '{"python": 7}'}
    )
    assert loaded.settings.http.cors_origins == ["https://a", "https://b"]
    assert loaded.settings.pool.runtime_pool.runtimes == {"python": 7}


def test_an_empty_variable_is_an_empty_text(tmp_path: Path) -> None:
    loaded = load(environ={"NOVA_PG_DSN": "", "NOVA_DATA_DIR": str(tmp_path)})
    assert loaded.settings.postgres.dsn == ""
