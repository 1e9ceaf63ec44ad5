"""Writes deploy/monitoring/grafana/dashboards/pofl.json: ``python tools/make_dashboard.py [--check]``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Final

TARGET: Final = Path(__file__).resolve().parents[1] / "deploy/monitoring/grafana/dashboards/pofl.json"
SOURCE: Final = {"type": "prometheus", "uid": "prometheus"}
WIDTH, HEIGHT = 8, 7
QUANTILE: Final = "histogram_quantile(0.95, sum by (le, {by}) (rate({name}_bucket[1m])))"

Row = tuple[str, list[tuple[str, str, str, str]]]


def late(name: str, by: str) -> str:
    """The 95th percentile of a histogram of seconds."""
    return QUANTILE.format(name=name, by=by)


ROWS: Final[list[Row]] = [
    ("Chain", [
        ("Height", "pofl_node_height", "{{process}}", "none"),
        ("Blocks a minute", "60 * rate(pofl_node_blocks_total[2m])", "{{process}} {{kind}}", "none"),
        ("Time between blocks", "pofl_node_block_interval_seconds", "{{process}}", "s"),
        ("Start of a height to its block on disk, 95 %", late("pofl_node_finalise_seconds", "process"), "{{process}}", "s"),
        ("Round of the last block", "pofl_node_round", "{{process}}", "none"),
        ("Age of the last block", "time() - pofl_node_block_timestamp_seconds", "{{process}}", "s"),
        ("Validators", "pofl_node_validators", "{{process}}", "none"),
        ("Validates", "pofl_node_is_validator", "{{process}}", "none"),
        ("Unfinished tasks", "pofl_node_tasks", "{{process}}", "none"),
    ]),
    ("Nodes", [
        ("Links", "pofl_node_peers", "{{process}}", "none"),
        ("Waiting transactions", "pofl_node_mempool", "{{process}}", "none"),
        ("Final transactions a second", "rate(pofl_node_transactions_total[1m])", "{{process}}", "none"),
        ("Refused a minute", "60 * rate(pofl_node_transactions_refused_total[2m])", "{{process}} {{reason}}", "none"),
        ("Blocks behind", "pofl_node_blocks_behind", "{{process}}", "none"),
        ("Blocks fetched a second", "rate(pofl_node_blocks_fetched_total[1m])", "{{process}}", "none"),
        ("Gossip dropped", "increase(pofl_node_gossip_dropped_total[5m])", "{{process}} {{kind}}", "none"),
        ("Gossip that no honest node sends", "increase(pofl_node_gossip_rejected_total[5m])", "{{process}}", "none"),
        ("Proven faults of validators", "pofl_node_faults_found_total", "{{process}} {{kind}}", "none"),
    ]),
    ("Verification", [
        ("Audits by finding", "increase(pofl_node_audits_total[10m])", "{{process}} {{finding}}", "none"),
        ("An audit, 95 %", late("pofl_node_audit_seconds", "process"), "{{process}}", "s"),
        ("A stored check, 95 %", late("pofl_node_stored_check_seconds", "process"), "{{process}}", "s"),
        ("Requester's sessions", "increase(pofl_requester_sessions_total[10m])", "{{process}} {{kind}} {{end}}", "none"),
        ("A session, 95 %", late("pofl_requester_session_seconds", "kind"), "{{kind}}", "s"),
        ("Waiting for a place", "pofl_requester_audits_waiting", "{{process}}", "none"),
        ("Open streams at requesters", "pofl_requester_streams", "{{process}}", "none"),
        ("Tasks ended", "pofl_requester_tasks_ended_total", "{{process}} {{phase}}", "none"),
        ("Tasks open", "pofl_requester_tasks_open", "{{process}}", "none"),
        ("Tasks published", "pofl_requester_tasks_published_total", "{{process}}", "none"),
        ("Tasks handed in by platforms", "pofl_platform_tasks_submitted_total", "{{process}}", "none"),
        ("Watchers of the task list", "pofl_platform_watchers", "{{process}}", "none"),
    ]),
    ("Pools and miners", [
        ("Tasks by end", "pofl_pool_tasks_total", "{{process}} {{end}}", "none"),
        ("Practice accuracy", "pofl_pool_practice_accuracy", "{{process}}", "percentunit"),
        ("Claimed accuracy", "pofl_pool_claimed_accuracy", "{{process}}", "percentunit"),
        ("Members online", "pofl_pool_members_online", "{{process}}", "none"),
        ("Rounds a minute", "60 * rate(pofl_pool_rounds_total[1m])", "{{process}}", "none"),
        ("An evaluation, 95 %", late("pofl_pool_evaluation_seconds", "process"), "{{process}}", "s"),
        ("Committed and not claimed", "pofl_pool_commits_total - pofl_pool_claims_total", "{{process}}", "none"),
        ("Rows that miners have", "pofl_miner_own_rows + pofl_miner_bought_rows", "{{process}}", "none"),
        ("Times joined", "pofl_miner_joins_total", "{{process}}", "none"),
    ]),
    ("Market", [
        ("Offers", "pofl_provider_offers_total", "{{process}}", "none"),
        ("Bids signed", "pofl_provider_bids_accepted_total", "{{process}}", "none"),
        ("Chunks not paid yet",
         "pofl_provider_chunks_delivered_total - pofl_provider_chunks_paid_total - pofl_provider_receipts_refused_total",
         "{{process}}", "none"),
        ("Deliveries under way", "pofl_provider_deliveries_running", "{{process}}", "none"),
        ("Rows bought", "pofl_pool_rows_bought_total", "{{process}}", "none"),
        ("Spent on rows", "pofl_pool_rows_spent_total", "{{process}}", "none"),
    ]),
    ("Processes", [
        ("Calls a second", "sum by (process, code) (rate(pofl_rpc_served_total[1m]))", "{{process}} {{code}}", "none"),
        ("A call, 95 %, by method", late("pofl_rpc_seconds", "method"), "{{method}}", "s"),
        ("Calls running", "sum by (process) (pofl_rpc_running)", "{{process}}", "none"),
        ("Processor", "rate(process_cpu_seconds_total{job=\"pofl\"}[1m])", "{{process}}", "percentunit"),
        ("Memory", "process_resident_memory_bytes{job=\"pofl\"}", "{{process}}", "bytes"),
        ("Open files", "process_open_fds{job=\"pofl\"}", "{{process}}", "none"),
        ("Warnings, errors", "increase(pofl_log_lines_total{level=~\"warning|error\"}[5m])", "{{process}} {{level}}", "none"),
        ("Disk left", "pofl_data_free_bytes", "{{process}}", "bytes"),
        ("Certificate: days left", "(pofl_certificate_expiry_timestamp_seconds - time()) / 86400", "{{process}}", "none"),
    ]),
]  # fmt: skip


def panel(number: int, title: str, expression: str, legend: str, unit: str, x: int, y: int) -> dict[str, object]:
    return {
        "id": number, "title": title, "type": "timeseries", "datasource": SOURCE,
        "gridPos": {"h": HEIGHT, "w": WIDTH, "x": x, "y": y},
        "fieldConfig": {"defaults": {"unit": unit, "custom": {"lineWidth": 1, "fillOpacity": 5}}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [{"refId": "A", "datasource": SOURCE, "expr": expression, "legendFormat": legend}],
    }  # fmt: skip


def dashboard() -> str:
    panels: list[dict[str, object]] = []
    number, y = 1, 0
    for title, items in ROWS:
        panels.append(
            {
                "id": number,
                "type": "row",
                "title": title,
                "collapsed": False,
                "gridPos": {"h": 1, "w": 24, "x": 0, "y": y},
                "panels": [],
            }
        )
        number, y = number + 1, y + 1
        for index, (name, expression, legend, unit) in enumerate(items):
            x = WIDTH * (index % (24 // WIDTH))
            panels.append(panel(number, name, expression, legend, unit, x, y + HEIGHT * (index // (24 // WIDTH))))
            number += 1
        y += HEIGHT * -(-len(items) // (24 // WIDTH))
    whole = {
        "uid": "pofl", "title": "PoFL network", "tags": ["pofl"], "editable": False, "schemaVersion": 39, "version": 1,
        "refresh": "5s", "time": {"from": "now-15m", "to": "now"}, "timezone": "browser",
        "templating": {"list": []}, "annotations": {"list": []}, "panels": panels,
    }  # fmt: skip
    return json.dumps(whole, indent=1) + "\n"


def main(arguments: list[str]) -> int:
    if "--check" in arguments:
        return int(TARGET.read_text(encoding="utf-8") != dashboard())
    TARGET.write_text(dashboard(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
