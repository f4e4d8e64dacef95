"""`mor mcp` as an agent meets it: the official SDK's client, over standard input and output."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client

from tests.runs import recorded

pytestmark = pytest.mark.integration

MOR = str(Path(sys.executable).with_name("mor"))
READING = {
    *("recipes", "recipe", "plan", "dry_run", "ps", "status", "logs", "inspect", "explain", "executors"),
    *("artifacts", "lineage"),
}


def talk(home: Path, work: Path, calls: list[tuple[str, dict[str, Any]]], *words: str) -> tuple[set[str], list[Any]]:
    """The names of the tools, and the documents that calls were answered with."""

    async def session() -> tuple[set[str], list[Any]]:
        env = {**os.environ, "NEMORUN_HOME": str(home), "HF_HUB_OFFLINE": "1"}
        server = StdioServerParameters(command=MOR, args=["mcp", *words], env=env, cwd=str(work))
        async with stdio_client(server) as (read, write), ClientSession(read, write) as client:
            await client.initialize()
            tools = {tool.name: tool for tool in (await client.list_tools()).tools}
            assert all(tool.description for tool in tools.values())
            answers = [await client.call_tool(name, values) for name, values in calls]
            return set(tools), [json.loads(answer.content[0].text) for answer in answers]  # type: ignore[union-attr]

    return asyncio.run(asyncio.wait_for(session(), 300))


def test_an_agent_reads_and_plans(home: Path, work: Path) -> None:
    recorded(home, "probe_1126-0805-47f9a1")
    tiny = ["args.hf_model_id=tiny:qwen3"]
    names, answers = talk(
        home,
        work,
        [
            ("recipes", {}),
            ("recipe", {"name": "quantize_fp8"}),
            ("plan", {"recipe": "quantize_fp8", "values": tiny}),
            ("plan", {"recipe": "quantize_fp8", "values": [*tiny, "args.calib_sze=3"]}),
            ("dry_run", {"recipe": "quantize_fp8", "values": [*tiny, "--detach"]}),
            ("ps", {"ended": True}),
            ("status", {"run": "latest"}),
            ("logs", {"run": "47f9a1"}),
            ("status", {"run": "nothing"}),
            ("inspect", {"path": "."}),
            ("explain", {"name": "told_to_fail"}),
            ("executors", {}),
            ("artifacts", {}),
            ("lineage", {"artifact": "latest"}),
        ],
    )
    assert names == READING
    catalogue, recipe, plan, refused, dry, runs, status, logs, unknown, inspected, explained, profiles, left, tree = (
        answers
    )
    assert {"quantize_fp8", "prune"} <= {row["name"] for row in catalogue["data"]["recipes"]}
    assert any(row["key"] == "args.calib_size" for row in recipe["data"]["values"])
    assert plan["data"]["recipe"] == "quantize_fp8" and plan["outcome"] == "done"
    assert refused["exit_status"] == 2 and "args.calib_sze" in json.dumps(refused)
    assert dry["exit_status"] == 2 and dry["problems"][0]["key"] == "--detach", "an option is no value"
    assert [row["id"] for row in runs["data"]["runs"]] == ["probe_1126-0805-47f9a1"]
    assert status["data"]["error"]["name"] == "told_to_fail" and logs["data"]["text"] == "a line\n"
    assert unknown["problems"][0]["name"] == "unknown_run" and unknown["exit_status"] == 2
    assert inspected["exit_status"] == 2 and explained["data"]["remedy"] and profiles["data"]["profiles"]
    assert left["data"] == {"artifacts": []} and tree["problems"][0]["name"] == "unknown_artifact"
    assert [path.name for path in (home / "runs").iterdir()] == ["probe_1126-0805-47f9a1"], "nothing was begun"


def test_an_agent_that_may_submits(home: Path, work: Path) -> None:
    names, (begun,) = talk(home, work, [("submit", {"recipe": "probe", "values": ["executor=local"]})], "--submit")
    assert names == READING | {"submit"}
    _, (status,) = talk(home, work, [("status", {"run": begun["data"]["runs"][0]["id"]})])
    assert status["data"]["recipe"] == "probe"
