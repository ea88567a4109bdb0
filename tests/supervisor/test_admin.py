"""The admin API: what it answers, and that its description is true."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

from core.metrics import SUPERVISOR_METRICS, WORKER_METRICS
from crossfade.fleet import SAMPLES_WITHIN
from tests.support.crossfade_process import PATIENCE, RunningCrossfade, running_crossfade

Config = dict[str, Any]


async def test_every_metric_is_described_and_counted(tmp_path: Path, config: Config) -> None:
    labels = {"flag": "all", "side": "legacy", "reason": "route", "code": "2xx"}
    async with running_crossfade(tmp_path, config) as cf:
        began = time.monotonic()
        for _ in range(7):
            await cf.get()
        measured = await cf.measured("crossfade_requests_total", 7, **labels)
        lasted = time.monotonic() - began
        for metric in (*WORKER_METRICS, *SUPERVISOR_METRICS):
            name = metric.name.removesuffix("_total")
            assert (
                f"# TYPE {metric.name} {metric.kind}" in measured.text or f"# TYPE {name} " in measured.text
            )
        assert measured.total("crossfade_request_seconds_count", flag="all", side="legacy") == 7
        assert measured.total("crossfade_request_seconds_bucket", flag="all", side="legacy", le="+Inf") == 7
        assert 0 < measured.total("crossfade_request_seconds_sum") < 7 * lasted
        assert measured.total("crossfade_workers", state="ready") == 2
        assert measured.total("crossfade_worker_memory_bytes", worker="0") > 1_000_000
        assert measured.total("crossfade_worker_cpu_seconds_total") > 0


async def test_a_scrape_is_fresh(tmp_path: Path, config: Config) -> None:
    """Not as old as what the workers push by themselves each second."""
    async with running_crossfade(tmp_path, config) as cf:
        await cf.admin("/healthz")
        for number in range(1, 6):
            await cf.get()
            assert await requests_by_one_scrape(cf) == number


async def requests_by_one_scrape(cf: RunningCrossfade) -> float:
    """All requests so far. Only a scrape that somebody was late for does not count, and is made again."""
    async with asyncio.timeout(PATIENCE):
        while True:
            began = time.monotonic()
            measured = await cf.metrics()
            if time.monotonic() - began < SAMPLES_WITHIN:
                return measured.total("crossfade_requests_total")


async def test_a_stopped_worker_costs_a_scrape_half_a_second_and_no_number(
    tmp_path: Path, config: Config
) -> None:
    async with running_crossfade(tmp_path, config) as cf:
        for _ in range(20):
            await cf.get()
        before = await cf.measured("crossfade_requests_total", 20)
        first, _ = await cf.worker_pids()
        os.kill(first, signal.SIGSTOP)
        try:
            after = await cf.metrics()
        finally:
            os.kill(first, signal.SIGCONT)
        assert after.fallen_below(before) == []
        assert after.total("crossfade_requests_total") == 20


async def test_the_api_is_described_as_it_is(tmp_path: Path, config: Config) -> None:
    async with running_crossfade(tmp_path, config) as cf:
        document = json.loads((await cf.admin("/api/v1/openapi.json")).body)
        assert document["openapi"].startswith("3.")
        for path, operations in document["paths"].items():
            expected = 405
            if "get" in operations:
                expected = 401 if "security" in operations["get"] else 200
            assert (await cf.admin(re.sub(r"{\w+}", "some", path))).status == expected, path
        status = json.loads((await cf.admin("/api/v1/proxy")).body)
        described = document["components"]["schemas"]
        assert set(status) == set(described["ProxyStatus"]["properties"])
        assert set(status["workers"][0]) == set(described["WorkerStatus"]["properties"])
        assert (await cf.admin("/api/v1/nothing")).status == 404


async def test_the_status_page_needs_nothing_from_elsewhere(tmp_path: Path, config: Config) -> None:
    async with running_crossfade(tmp_path, config) as cf:
        page = await cf.admin("/")
        assert "text/html" in page.head
        text = page.body.decode()
        assert f"127.0.0.1:{cf.port}" in text
        for pid in await cf.worker_pids():
            assert f"<td>{pid}" in text
        assert "<script" not in text
        assert "src=" not in text
        assert "http://" not in text
