"""The chart, rendered by Helm itself."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

helm = pytest.importorskip("helm_python", reason="helm-python-sdk is not installed")

CHART = str(Path(__file__).parents[2] / "deploy/helm/nova")
PORTS = {"zenith": 9000, "nova": 9001, "aurora": 9002, "corona": 9003, "nebula": 9004, "comet": 9090}


def rendered(values: dict[str, Any] | None = None) -> dict[tuple[str, str], dict[str, Any]]:
    """Every object by kind and name."""
    with helm.Chart.load(CHART) as chart:
        texts = chart.render(values or {}, name="demo", namespace="prod")
    return {(o["kind"], o["metadata"]["name"]): o for o in _objects(texts)}


def _objects(texts: dict[str, str]) -> Iterator[dict[str, Any]]:
    for name, text in texts.items():
        if name.endswith(".yaml"):
            yield from (one for one in yaml.safe_load_all(text) if one)


def container(objects: dict[tuple[str, str], dict[str, Any]], plane: str) -> dict[str, Any]:
    found: dict[str, Any] = objects["Deployment", f"demo-{plane}"]["spec"]["template"]["spec"]["containers"][0]
    return found


def test_helm_finds_nothing_wrong() -> None:
    found = helm.lint(CHART)
    assert found["errors"] == []
    assert [m for m in found["messages"] if "icon is recommended" not in m["error"]] == []


def test_every_plane_is_a_deployment_with_a_service_on_its_port() -> None:
    objects = rendered()
    for plane, port in PORTS.items():
        pod = objects["Deployment", f"demo-{plane}"]["spec"]["template"]
        service = objects["Service", f"demo-{plane}"]["spec"]
        assert container(objects, plane)["ports"] == [{"name": "main", "containerPort": port}]
        assert service["selector"].items() <= pod["metadata"]["labels"].items()
        assert f":{port}" in " ".join(container(objects, plane)["args"])


def test_probes_ask_what_each_plane_answers() -> None:
    objects = rendered()
    assert container(objects, "aurora")["readinessProbe"]["httpGet"]["path"] == "/health"
    for plane in ("zenith", "nova"):
        probes = container(objects, plane)
        asked = [probes[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")]
        assert asked == ["/health/startup", "/health/ready", "/health/live"]
    for plane in ("comet", "corona", "nebula"):
        assert container(objects, plane)["readinessProbe"]["grpc"] == {"port": PORTS[plane]}


def test_values_reach_what_they_are_about() -> None:
    objects = rendered(
        {
            "replicas": {"comet": 5},
            "postgres": {"secretName": "mine", "secretKey": "url"},
            "image": {"registry": "images.test/nova", "tag": "7"},
            "config": {"pool": {"idle_ttl": "5m"}},
            "service": {"type": "LoadBalancer", "port": 8080},
            "ingress": {"enabled": True, "host": "nova.test"},
        }
    )
    assert objects["Deployment", "demo-comet"]["spec"]["replicas"] == 5
    assert container(objects, "comet")["image"] == "images.test/nova/comet-runtime:7"
    for plane in PORTS:
        dsn = next(v for v in container(objects, plane)["env"] if v["name"] == "NOVA_PG_DSN")
        assert dsn["valueFrom"]["secretKeyRef"] == {"name": "mine", "key": "url"}
    assert objects["ConfigMap", "demo-config"]["data"]["nova.json"] == '{"pool":{"idle_ttl":"5m"}}'
    assert objects["Service", "demo-zenith"]["spec"]["type"] == "LoadBalancer"
    backend = objects["Ingress", "demo"]["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]
    assert backend["name"] == "demo-zenith"


def test_only_comet_may_do_more_than_an_ordinary_process() -> None:
    objects = rendered()
    for plane in PORTS:
        security = container(objects, plane)["securityContext"]
        if plane == "comet":
            assert security["capabilities"] == {"add": ["SYS_ADMIN", "NET_ADMIN"]}
        else:
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert security["readOnlyRootFilesystem"]


@pytest.mark.parametrize("values", [{"replica": 3}, {"replicas": {"zenith": 0}}, {"postgres": {"secretName": ""}}])
def test_values_that_mean_nothing_are_refused(values: dict[str, Any]) -> None:
    with helm.Chart.load(CHART) as chart, pytest.raises(helm.HelmError):
        chart.validate_schema(values)
