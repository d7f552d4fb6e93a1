"""docker-compose.yml and the Dockerfile against the programs: no engine is needed to see that a flag or file is not there."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from rkfleet.cli.main import app
from rkfleet.cli.programs import PROGRAMS

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = (ROOT / "docker/Dockerfile").read_text()
GUIDE = (ROOT / "docs/guides/containers.md").read_text()
VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}")

PROGRAM_PARSERS = {
    "controller": "controller.config:parse_arguments",
    "registry": "controller.registry.config:parse_arguments",
    "gateway": "gateway.config:parse_config",
    "cpu-1": "agent.config:parse_arguments",
    "simulated-boards": "simulation.boards.config:parse_arguments",
}
"""Services that are programs of ours, with what reads their command line."""
COMMANDS = {"join-gateway", "join-cpu-1", "gateway-keys", "cli"}
"""Services that are commands of `rkfleet`."""
FOREIGN = {"prometheus", "grafana"}
OPS_PORT = 7481


def compose() -> dict[str, Any]:
    """Return the file with the defaults of its variables."""
    text = VARIABLE.sub(lambda found: found.group(2), COMPOSE.read_text())
    assert "$" not in re.sub(r"#.*", "", text), "a variable without a default"
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


SERVICES: dict[str, dict[str, Any]] = compose()["services"]


def flags(service: str) -> dict[str, str]:
    """Return the flags of a service by name; all are written --name=value."""
    return dict(word.removeprefix("--").partition("=")[::2] for word in SERVICES[service]["command"] if word.startswith("--"))


def parse(service: str) -> Any:
    """Return what the program's own parser makes of the service's command line."""
    module, _, function = PROGRAM_PARSERS[service].partition(":")
    words = SERVICES[service]["command"]
    if service != "simulated-boards":  # its image's entry point is the module
        program, run, *words = words
        assert run == "run"
        assert PROGRAMS[program][0] in module
    return getattr(importlib.import_module(module), function)(words)


def test_every_service_is_one_that_is_checked_here() -> None:
    """A new service is put into one of the lists."""
    assert set(SERVICES) == {*PROGRAM_PARSERS, *COMMANDS, *FOREIGN}


@pytest.mark.parametrize("service", sorted(PROGRAM_PARSERS))
def test_a_program_reads_its_command_line(service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its own parser; its ops listener is where the health check and Prometheus look, and no secret stands in an argument."""
    (tmp_path / "api-keys").write_text("0123456789abcdef\n")
    command = [word.replace("/shared/gateway/api-keys", str(tmp_path / "api-keys")) for word in SERVICES[service]["command"]]
    monkeypatch.setitem(SERVICES[service], "command", command)
    config = parse(service)
    assert (config.ops_host, config.ops_port) == ("0.0.0.0", OPS_PORT)
    assert not getattr(config, "token", "")
    assert f"http://127.0.0.1:{OPS_PORT}/readyz" in DOCKERFILE


@pytest.mark.parametrize("service", sorted(COMMANDS))
def test_a_command_exists_with_its_flags(service: str) -> None:
    words = SERVICES[service]["command"]
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    context = command.make_context(service, list(words))  # parses, and runs nothing
    assert context.command is command


def test_programs_find_each_other() -> None:
    """A URL names a service and the port that it listens on, and the server's certificate has that name."""
    ports = {"controller": {7443}, "registry": {7445}}
    ours = {*PROGRAM_PARSERS, *COMMANDS}
    urls = [(service, value) for service in ours for value in flags(service).values() if "://" in value]
    assert urls
    for service, url in urls:
        host, port = re.match(r"https://([\w-]+):(\d+)", url).groups()  # type: ignore[union-attr]
        assert int(port) in ports[host], f"{service}: {url}"
    assert parse("controller").advertise_host == "controller"
    assert "registry" in parse("controller").registry_url
    assert parse("controller").api_port == 7443
    assert parse("registry").port == 7445
    assert parse("cpu-1").advertise_host == "cpu-1"
    assert "--name=gateway" in SERVICES["gateway-keys"]["command"]
    assert "--name=localhost" in SERVICES["gateway-keys"]["command"]


def test_prometheus_scrapes_every_program() -> None:
    """Each target is a service's ops listener; simulated boards are asked where they are."""
    config = yaml.safe_load((ROOT / "manifests/prometheus/prometheus.yml").read_text())
    static = [one for job in config["scrape_configs"] for group in job.get("static_configs", ()) for one in group["targets"]]
    asked = [sd["url"] for job in config["scrape_configs"] for sd in job.get("http_sd_configs", ())]
    hosts = {target.partition(":")[0] for target in static} | {re.match(r"http://([\w-]+):7481/discovery$", url)[1] for url in asked}  # type: ignore[index]
    assert hosts == set(PROGRAM_PARSERS)
    assert {target.partition(":")[2] for target in static} == {str(OPS_PORT)}


def test_nothing_is_published_beyond_loopback() -> None:
    """What listens inside is the business of the network of the containers; people reach API, gateway, Prometheus and Grafana."""
    published = {service: ports for service, one in SERVICES.items() if (ports := one.get("ports"))}
    assert published == {
        "controller": ["127.0.0.1:7443:7443"],
        "gateway": ["127.0.0.1:7480:7480"],
        "prometheus": ["127.0.0.1:9090:9090"],
        "grafana": ["127.0.0.1:3000:3000"],
    }
    for ports in published.values():
        assert f"`{ports[0].rpartition(':')[0]}`" in GUIDE


def test_every_volume_is_declared_documented_and_of_the_image() -> None:
    """A path that the image does not have would be root's; a volume that the guide does not tell may be deleted by mistake."""
    declared, used = set(compose()["volumes"]), set()
    directories = set(re.search(r"install --directory .*", DOCKERFILE)[0].split()) & set(re.findall(r"/[\w/-]+", DOCKERFILE))  # type: ignore[index]
    for service, one in SERVICES.items():
        for mount in one.get("volumes", ()):
            source, target, *_ = mount.split(":")
            if source.startswith("."):
                assert (ROOT / source).exists(), f"{service}: {source}"
            else:
                used.add(source)
                assert service in FOREIGN or target in directories, f"{service}: {target}"
    assert used == declared
    assert [name for name in declared if f"`{name}`" not in GUIDE] == []


def test_a_path_of_a_flag_is_on_a_volume_that_the_service_has() -> None:
    """And only who makes a file may write it."""
    writers: dict[str, set[str]] = {}
    for service in {*PROGRAM_PARSERS, *COMMANDS}:
        mounts = {mount.split(":")[1]: mount.split(":") for mount in SERVICES[service].get("volumes", ())}
        words = [*flags(service).values(), *(word for word in SERVICES[service]["command"] if word.startswith("/"))]
        for path in (word for word in words if word.startswith("/")):
            assert any(path == mount or path.startswith(f"{mount}/") for mount in mounts), f"{service}: {path}"
        for source, _, *mode in mounts.values():
            if mode != ["ro"]:
                writers.setdefault(source, set()).add(service)
    assert {volume for volume, services in writers.items() if len(services) > 1} == set()


def test_only_who_needs_it_sees_a_secret() -> None:
    """Authorities stay with the controller, and the admin's kubeconfig with who makes boards and tokens."""

    def seeing(volume: str) -> set[str]:
        return {name for name, one in SERVICES.items() if any(mount.startswith(f"{volume}:") for mount in one.get("volumes", ()))}

    assert seeing("controller") == {"controller"}
    assert seeing("access") == {"controller", "join-gateway", "join-cpu-1", "simulated-boards", "cli"}
    assert seeing("registry-files") == {"controller", "registry"}
    assert seeing("join-gateway") == {"join-gateway", "gateway"}
    assert seeing("join-cpu-1") == {"join-cpu-1", "cpu-1"}
    assert seeing("gateway-keys") == {"gateway-keys", "gateway"}


def test_programs_run_with_the_least_that_a_container_can_have() -> None:
    for service in {*PROGRAM_PARSERS, *COMMANDS}:
        one = SERVICES[service]
        assert (one["read_only"], one["cap_drop"], one["security_opt"]) == (True, ["ALL"], ["no-new-privileges:true"]), service
    assert DOCKERFILE.rpartition("\nUSER ")[2].splitlines()[0] == "10001:10001"


def test_the_order_of_starting_is_the_order_of_needing() -> None:
    """Who waits for a service waits for its health, or for its end if it ends."""
    for service, one in SERVICES.items():
        needed = one.get("depends_on", {})
        for other, how in needed.items() if isinstance(needed, dict) else ():
            ends = SERVICES[other]["restart"] == "no"
            assert how == {"condition": "service_completed_successfully" if ends else "service_healthy"}, f"{service} on {other}"


def test_every_variable_is_in_the_guide() -> None:
    """The default, too, so that nobody has to read the file to know what happens without it."""
    names = dict(VARIABLE.findall(COMPOSE.read_text()))
    assert names
    for name, default in names.items():
        assert f"`{name}`" in GUIDE, name
        assert f"`{default}`" in GUIDE if default else True, name


def test_every_image_is_a_target_of_the_dockerfile() -> None:
    """Each service that builds names a stage; each stage takes a lock that exists, and the board's carries no controller."""
    stages = set(re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.MULTILINE))
    built = {one["image"]: one["build"]["target"] for one in SERVICES.values() if "build" in one}
    assert set(built.values()) <= stages
    assert {one["image"] for name, one in SERVICES.items() if name not in FOREIGN} == set(built)
    for lock in re.findall(r"requirements/[\w.]+\.txt", DOCKERFILE):
        assert "--hash=sha256:" in (ROOT / lock).read_text()
    board = (ROOT / "requirements/cpu.txt").read_text()
    assert "\nxllamacpp==" in board
    assert not re.search(r"^(sqlalchemy|starlette|kubernetes|numpy)==", board, re.MULTILINE)


def test_the_dockerfile_copies_what_is_there_and_sent() -> None:
    """What .dockerignore leaves out cannot be copied."""
    sent = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE):
        for source in sources.split():
            assert (ROOT / source).exists(), source
            assert source in sent or f"{source.rpartition('/')[0]}/*.txt" in sent, source
    assert "ARG BASE=" in DOCKERFILE
    assert "# syntax=" not in DOCKERFILE  # it would fetch an image from a registry that a machine may not have
