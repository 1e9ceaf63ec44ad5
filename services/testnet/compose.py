"""The compose file of a testnet: one container a process, each with a volume of its own and nothing of anybody else."""

from __future__ import annotations

from typing import Final

from services.testnet.layout import Shape, process_names
from services.testnet.places import ADMIN_PORT, PORT

__all__ = ["MONITORING", "TASKS", "compose_file"]

TASKS: Final = 900
"""The requester can pay for so many, at the default reward; at half a minute each, seven hours."""
USER: Final = 10001
"""Of the image."""
MEMORY: Final = {"node": "768m", "pool": "1g", "miner": "1500m", "provider": "512m", "platform": "384m", "requester": "1g"}
TRAINS: Final = ("pool", "miner")
PUBLISHED: Final = {"node0": 7100, "platform0": 7101, "requester0": 7102}
"""Ports on the host of the processes that users talk to."""

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
# starts find them there. No process sees another one's keys. From this machine only node0, platform and requester can be
# called; from others nothing, unless TESTNET_BIND says so.

x-process: &process
  restart: unless-stopped
  init: true
  read_only: true
  tmpfs: [/tmp]
  cap_drop: [ALL]
  security_opt: ["no-new-privileges:true"]
  stop_grace_period: 20s
  pids_limit: 256
  healthcheck: &health
    # grpc.health.v1 at the process's own port on loopback
    test: [CMD, python, -I, -m, services.runtime.probe, "127.0.0.1:{admin}"]
    interval: 10s
    timeout: 30s
    retries: 3
    start_period: 120s
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
    tmpfs: [/tmp]
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
    flags = {"nodes": shape.nodes, "pools": shape.pools, "miners": shape.miners, "tasks": shape.tasks or TASKS}
    command = ["testnet", "init", "--compose", "--once", "--out", "/bundles", "--owner", str(USER)]
    for flag, value in (*flags.items(), ("reward", shape.reward)):
        command += [f"--{flag}", str(value)]
    head = HEAD.format(
        shape=f"{shape.nodes} nodes, {shape.pools} pools of {shape.miners} miners, a provider, a platform, a requester",
        admin=ADMIN_PORT,
        command="\n".join(f'      - "{word}"' for word in command),
        mounts="\n".join(f"      - {name}:/bundles/{name}" for name in volumes),
    )
    services = [_service(name, role, pool, shape) for name, role, pool in names]
    return head + "\n" + "\n".join(services) + "\nvolumes:\n" + "".join(f"  {name}:\n" for name in (*volumes, *MONITORING))


def _service(name: str, role: str, pool: str, shape: Shape) -> str:
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
    lines += [f"      {other}: {{condition: {condition}}}" for other, condition in _before(role, pool, shape)]
    return "\n".join(lines) + "\n"


def _before(role: str, pool: str, shape: Shape) -> list[tuple[str, str]]:
    """What has to be there first. The requester publishes at once: a task that nobody can enter yet would be void."""
    nodes = [f"node{i}" for i in range(shape.nodes)]
    needed = ["init"]
    if role == "miner":
        needed.append(pool)
    elif role == "requester":
        names = process_names(shape)
        needed += [name for name, other, _ in names if other in ("miner", "provider", "platform")]
    elif role != "node":
        needed += nodes
    return [(n, "service_completed_successfully" if n == "init" else "service_healthy") for n in needed]
