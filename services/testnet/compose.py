"""The compose file of a testnet: one container a process, each with a volume of its own and nothing of anybody else."""

from __future__ import annotations

from typing import Final

from services.testnet.layout import Shape, process_names
from services.testnet.places import ADMIN_PORT, PORT

__all__ = [
    "CPUS", "HEALTH", "INIT", "MEMORY", "MONITORING", "PIDS", "PUBLISHED", "TASKS", "TRAINS", "before", "compose_file",
    "init_command",
]  # fmt: skip

TASKS: Final = 900
"""The requester can pay for so many, at the default reward; at half a minute each, seven hours."""
USER: Final = 10001
"""Of the image."""
INIT: Final = "init"
MEMORY: Final = {
    INIT: "1g", "node": "768m", "pool": "1g", "miner": "1500m", "provider": "512m", "platform": "384m", "requester": "1g",
}  # fmt: skip
CPUS: Final = 1.0
PIDS: Final = {"": 256, INIT: 64}
"""Most processes and threads, of a process's container and of `init`."""
TRAINS: Final = ("pool", "miner")
PUBLISHED: Final = {"node0": 7100, "platform0": 7101, "requester0": 7102}
"""Ports on the host of the processes that users talk to."""

HEALTH: Final = {"interval": 1, "timeout": 30, "retries": 3, "start_period": 120}
"""Seconds, and how many failures in a row make a process unhealthy."""

HEAD: Final = """\
# A whole network on one machine: {shape}.
# Written by `pofl testnet compose-file`; docs/deploy.md says how to use it, and how to make another shape.
#
#   docker compose build
#   docker compose up --wait                  # healthy, and mining
#   docker compose run --rm cli chain tip     # any command of pofl
#   docker compose --profile monitoring up -d # and Prometheus, and Grafana at http://127.0.0.1:7103
#   docker compose --profile monitoring down -v   # leaves nothing
#
# `init` makes certificates, keys, genesis and data once, and puts into each process's volume what that process needs. Later
# starts find them there. No process sees another one's keys. Only node0, platform and requester are published, to this machine;
# to others nothing is, unless TESTNET_BIND says so.

x-process: &process
  restart: unless-stopped
  init: true
  read_only: true
  tmpfs: [/tmp]
  cap_drop: [ALL]
  security_opt: ["no-new-privileges:true"]
  stop_grace_period: 20s
  pids_limit: 256
  environment:
    # A collector of traces that containers reach; none where empty (docs/operations.md).
    OTEL_EXPORTER_OTLP_ENDPOINT: ${{OTEL_EXPORTER_OTLP_ENDPOINT:-}}
  healthcheck: &health
    # grpc.health.v1 at the process's own port on loopback. A check waits until the process is ready for the first time; later
    # ones rest before they ask: the interval is not what it seems (docs/adr/0150).
    test: [CMD, python, -I, -m, services.runtime.probe, --patient, "127.0.0.1:{admin}"]
    interval: {interval}s
    timeout: {timeout}s
    retries: {retries}
    start_period: {start_period}s
  logging:
    driver: json-file
    options: {{max-size: 10m, max-file: "3"}}

x-roles: &roles
  <<: *process
  image: ${{TESTNET_IMAGE:-pofl:0.1.0}}
  pull_policy: never

x-train: &train
  <<: *process
  image: ${{TESTNET_TRAIN_IMAGE:-pofl-train:0.1.0}}
  pull_policy: never

services:
  # Runs once, and ends. Root with two capabilities, without a network: it gives each volume to the user of the images.
  init:
    image: ${{TESTNET_TRAIN_IMAGE:-pofl-train:0.1.0}}
    build:
      context: .
      target: train
      args:
        TORCH_INDEX: ${{TORCH_INDEX:-}}
    command:
{command}
    user: "0:0"
    network_mode: none
    read_only: true
    tmpfs: [/tmp, /pofl]  # the image wants a volume there, and one without a name would be left behind
    cap_drop: [ALL]
    cap_add: [CHOWN, DAC_OVERRIDE]
    security_opt: ["no-new-privileges:true"]
    restart: "no"
    mem_limit: 1g
    cpus: 1.0
    pids_limit: 64
    healthcheck: {{disable: true}}
    volumes:
{mounts}

  # `docker compose run --rm cli chain tip`: the command line, with a user's certificate.
  cli:
    image: ${{TESTNET_IMAGE:-pofl:0.1.0}}
    pull_policy: never
    profiles: [tools]
    command: [chain, tip]
    environment: {{POFL_NET: /pofl}}
    read_only: true
    tmpfs: [/tmp]
    cap_drop: [ALL]
    security_opt: ["no-new-privileges:true"]
    restart: "no"
    mem_limit: 512m
    cpus: 1.0
    pids_limit: 64
    healthcheck: {{disable: true}}
    volumes: ["user:/pofl:ro"]

  # Metrics of all processes: docs/operations.md. Neither holds a secret; nobody can log in, everybody here can look.
  prometheus:
    image: ${{PROMETHEUS_IMAGE:-prom/prometheus:v3.5.0}}
    profiles: [monitoring]
    command:
      - "--config.file=/etc/prometheus/prometheus.yml"
      - "--storage.tsdb.path=/prometheus"
      - "--storage.tsdb.retention.time=15d"
    init: true
    read_only: true
    tmpfs: [/tmp]
    cap_drop: [ALL]
    security_opt: ["no-new-privileges:true"]
    restart: unless-stopped
    mem_limit: 512m
    cpus: 1.0
    pids_limit: 256
    ports: ["${{MONITORING_BIND:-127.0.0.1}}:7104:9090"]
    volumes:
      - ./deploy/monitoring/prometheus.yml:/etc/prometheus/prometheus.yml:ro
      - ./deploy/monitoring/alerts.yml:/etc/prometheus/alerts.yml:ro
      - ./deploy/monitoring/targets:/etc/prometheus/targets:ro
      - prometheus:/prometheus

  grafana:
    image: ${{GRAFANA_IMAGE:-grafana/grafana:12.1.0}}
    profiles: [monitoring]
    environment:
      GF_AUTH_ANONYMOUS_ENABLED: "true"
      GF_AUTH_ANONYMOUS_ORG_ROLE: Viewer
      GF_AUTH_BASIC_ENABLED: "false"
      GF_AUTH_DISABLE_LOGIN_FORM: "true"
      GF_ANALYTICS_REPORTING_ENABLED: "false"
      GF_ANALYTICS_CHECK_FOR_UPDATES: "false"
    init: true
    read_only: true
    tmpfs: [/tmp]
    cap_drop: [ALL]
    security_opt: ["no-new-privileges:true"]
    restart: unless-stopped
    mem_limit: 512m
    cpus: 1.0
    pids_limit: 256
    ports: ["${{MONITORING_BIND:-127.0.0.1}}:7103:3000"]
    volumes:
      - ./deploy/monitoring/grafana:/etc/grafana/provisioning:ro
      - grafana:/var/lib/grafana
    depends_on: [prometheus]
"""
MONITORING: Final = ("prometheus", "grafana")
"""Volumes that collect, and hold nothing of any process."""


def compose_file(shape: Shape) -> str:
    """The text, for compose v2 and docker-compose 1.29. Raises ConfigError for a shape that is none."""
    shape.check()
    names = process_names(shape)
    volumes = ["operator", "user", *(name for name, _, _ in names)]
    head = HEAD.format(
        shape=f"{shape.nodes} nodes, {shape.pools} pools of {shape.miners} miners, a provider, a platform, a requester",
        admin=ADMIN_PORT,
        **HEALTH,
        command="\n".join(f'      - "{word}"' for word in init_command(shape)),
        mounts="\n".join(f"      - {name}:/bundles/{name}" for name in volumes),
    )
    services = [_service(name, role, shape) for name, role, _ in names]
    return head + "\n" + "\n".join(services) + "\nvolumes:\n" + "".join(f"  {name}:\n" for name in (*volumes, *MONITORING))


def init_command(shape: Shape) -> list[str]:
    """Words of the command that fills the volumes."""
    flags = {"nodes": shape.nodes, "pools": shape.pools, "miners": shape.miners, "tasks": shape.tasks or TASKS}
    command = ["testnet", "init", "--compose", "--once", "--out", "/bundles", "--owner", str(USER)]
    for flag, value in (*flags.items(), ("reward", shape.reward)):
        command += [f"--{flag}", str(value)]
    return command


def _service(name: str, role: str, shape: Shape) -> str:
    lines = [
        f"  {name}:",
        f"    <<: *{'train' if role in TRAINS else 'roles'}",
        f"    command: [run, {role}, --config, /pofl/{name}/config.toml]",
        f"    mem_limit: {MEMORY[role]}",
        "    cpus: 1.0",
        f'    volumes: ["{name}:/pofl"]',
    ]
    if name == "node0":  # builds the image that the others use too
        lines += ["    build:", "      context: .", "      target: roles"]
    if name in PUBLISHED:
        lines.append(f'    ports: ["${{TESTNET_BIND:-127.0.0.1}}:{PUBLISHED[name]}:{PORT}"]')
    lines.append("    depends_on:")
    lines += [f"      {other}: {{condition: {condition}}}" for other, condition in before(role, shape)]
    return "\n".join(lines) + "\n"


def before(role: str, shape: Shape) -> list[tuple[str, str]]:
    """What has to be there first, and in which state. Nodes make blocks; then comes who trains, sells or selects.

    The requester publishes at once: a task that nobody can enter yet would be void.
    """
    needed = {INIT: "service_completed_successfully"}
    others = [(name, other) for name, other, _ in process_names(shape) if other != role]
    if role == "requester":
        needed |= {name: "service_healthy" for name, other in others if other != "node"}
    elif role != "node":
        needed |= {name: "service_healthy" for name, other in others if other == "node"}
    return list(needed.items())
