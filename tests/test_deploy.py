"""The files in deploy/ name options, variables, ports and paths that are there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from r2graph.cli import app as cli
from r2graph.cli.options import LEDGER_VARIABLE
from r2graph.cli.serve import GRACE_S, POOL_BUDGET_VARIABLE
from r2graph.pool import KEY_VARIABLES
from r2graph.serve import create_app
from r2graph.serve.app import MAX_BODY_BYTES
from r2graph.serve.guard import KEY_VARIABLE, check_binding
from tests.fakes import echo, pool_of
from tests.serving import graph_of

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
NGINX = (DEPLOY / "nginx.conf").read_text()
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
KUBERNETES = {
    each["kind"]: each for each in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
}
POD = KUBERNETES["Deployment"]["spec"]["template"]["spec"]
[CONTAINER] = POD["containers"]
SERVICE = COMPOSE["services"]["r2graph"]
RESOLVES = (1, 27, 3)  # nginx, `resolve` in an upstream
VARIABLES = {KEY_VARIABLE, LEDGER_VARIABLE, POOL_BUDGET_VARIABLE, *KEY_VARIABLES.values()}


def instruction(name: str) -> Any:
    """The list that follows the last of such an instruction of the Dockerfile."""
    return json.loads(re.findall(rf"^{name} (\[.*\])$", DOCKERFILE, re.M)[-1])


ENTRYPOINT = instruction("ENTRYPOINT")


@pytest.mark.parametrize(
    "options", [instruction("CMD"), SERVICE["command"], CONTAINER["args"]], ids=str
)
def test_the_images_are_started_with_options_that_the_command_has(options: list[str]) -> None:
    program, command, *own = ENTRYPOINT
    assert program in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    serve = typer.main.get_command(cli).commands[command]  # type: ignore[attr-defined]
    given = serve.make_context("serve", [*own, *options]).params
    assert given["pool"] == ["openai"]
    check_binding(given["host"], "a key")


def test_variables_are_those_that_are_read() -> None:
    pod = [each["name"] for each in CONTAINER["env"]]
    assert set(SERVICE["environment"]) == set(pod) <= VARIABLES
    assert {KEY_VARIABLE, LEDGER_VARIABLE} <= set(pod)


def test_no_secret_is_in_the_files() -> None:
    secret = {KEY_VARIABLE, LEDGER_VARIABLE, "OPENAI_API_KEY"}
    for each in CONTAINER["env"]:
        assert ("secretKeyRef" in each.get("valueFrom", {})) == (each["name"] in secret)
    for name in secret:
        assert "${" in SERVICE["environment"][name]
    assert "${" in COMPOSE["services"]["postgres"]["environment"]["POSTGRES_PASSWORD"]


def test_all_speak_of_one_port() -> None:
    port = ENTRYPOINT[ENTRYPOINT.index("--port") + 1]
    assert re.findall(r"^EXPOSE (\d+)$", DOCKERFILE, re.M) == [port]
    assert re.findall(r"server r2graph:(\d+) resolve;", NGINX) == [port]
    [of_pod], [of_service] = CONTAINER["ports"], KUBERNETES["Service"]["spec"]["ports"]
    assert (str(of_pod["containerPort"]), of_service["targetPort"]) == (port, of_pod["name"])
    assert f"127.0.0.1:{port}/healthz" in DOCKERFILE
    [listens] = re.findall(r"listen (\d+);", NGINX)
    assert COMPOSE["services"]["nginx"]["ports"] == [f"127.0.0.1:8080:{listens}"]


def test_probes_ask_for_a_path_that_is_there() -> None:
    paths = {getattr(route, "path", "") for route in create_app(graph_of(pool_of(echo()))).routes}
    probes = [CONTAINER[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")]
    assert {probe["path"] for probe in probes} == {"/healthz"} <= paths


def test_runs_under_way_have_the_time_that_they_are_promised() -> None:
    _, pause_s = CONTAINER["lifecycle"]["preStop"]["exec"]["command"]
    assert POD["terminationGracePeriodSeconds"] >= int(pause_s) + GRACE_S
    assert int(SERVICE["stop_grace_period"].removesuffix("s")) >= GRACE_S


def test_kubernetes_objects_mean_the_same_pods() -> None:
    spec = KUBERNETES["Deployment"]["spec"]
    labels = spec["template"]["metadata"]["labels"]
    assert spec["selector"]["matchLabels"] == labels
    assert KUBERNETES["Service"]["spec"]["selector"] == labels
    disruption = KUBERNETES["PodDisruptionBudget"]["spec"]
    assert disruption["selector"]["matchLabels"] == labels
    scale = KUBERNETES["HorizontalPodAutoscaler"]["spec"]
    assert scale["scaleTargetRef"]["name"] == KUBERNETES["Deployment"]["metadata"]["name"]
    assert disruption["minAvailable"] < scale["minReplicas"] == spec["replicas"]


def test_nobody_in_a_container_is_root() -> None:
    [user] = re.findall(r"^USER (\d+)$", DOCKERFILE, re.M)
    assert f"--uid {user} " in DOCKERFILE
    assert POD["securityContext"]["runAsUser"] == int(user)


def test_what_the_dockerfile_copies_and_installs_is_there() -> None:
    for paths in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.M):
        assert all((ROOT / path).exists() for path in paths.split())
    [extras] = re.findall(r'"\.\[(.*)\]"', DOCKERFILE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(extras.split(",")) <= set(project["optional-dependencies"])


def test_the_image_is_built_by_the_name_that_kubernetes_pulls() -> None:
    [built] = re.findall(r"docker build .* -t (\S+) ", DOCKERFILE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert CONTAINER["image"] == built == f"r2graph:{project['version']}"


def test_all_that_the_dockerfile_copies_is_sent_to_docker_and_nothing_else() -> None:
    everything, *lines = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if not line.startswith("#")
    ]
    assert everything == "*"
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.M)
    sent = {line[1:] for line in lines if line.startswith("!")}
    assert sent == {path for paths in copied for path in paths.split()}


def version(text: str) -> tuple[int, ...]:
    """The first one in a text."""
    return tuple(map(int, re.findall(r"\d+(?:\.\d+)+", text)[0].split(".")))


def test_the_nginx_of_the_composition_finds_replicas_that_come_later() -> None:
    """`resolve` wants a resolver, a zone, and a version that has it outside of the paid one."""
    assert re.search(r"^    resolver 127\.0\.0\.11 valid=\d+s;", NGINX, re.M)
    [upstream] = re.findall(r"upstream replicas \{.*?\}", NGINX, re.S)
    assert "zone replicas " in upstream
    assert version(COMPOSE["services"]["nginx"]["image"]) > RESOLVES


def test_nginx_takes_its_configuration(tmp_path: Path) -> None:
    assert "client_max_body_size 1m;" in NGINX
    assert MAX_BODY_BYTES == 2**20
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        pytest.skip("nginx is not installed")
    told = subprocess.run([program, "-v"], capture_output=True, text=True).stderr
    conf = NGINX
    if version(told) < RESOLVES:  # all but the word that it does not know
        conf = NGINX.replace("server r2graph:8000 resolve;", "server 127.0.0.1:8000;")
    (tmp_path / "nginx.conf").write_text(conf)
    place = f"pid {tmp_path}/pid; error_log stderr;"
    options = ["-t", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf"), "-g", place]
    done = subprocess.run([program, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
