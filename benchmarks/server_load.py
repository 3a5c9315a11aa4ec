"""Many clients at once: errors by status, throughput with and without shared passes, memory.

    python benchmarks/server_load.py [--clients 64] [--seconds 20]

Serves pico-python on loopback in a process of its own, twice: analyses that wait together share a
pass (group 16), and one at a time (group 1). Each client sends the next request when it has the
answer; one in eight has an edit, one in sixteen a mistake, which must be 422 and no more. A 429
is waited out as Retry-After says. Then the same with a queue of 8, where most must be 429. Memory
is the server's resident set after a warm-up of a quarter of the time and at the end.
"""

import argparse
import asyncio
import collections
import json
import multiprocessing
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PROMPTS = (
    "def add(self, other):\n    return self",
    "import os\nimport ",
    "for i in range(10):\n    print(",
    "class Reader:\n    def __init__(self, path):\n        self.path =",
)
FINE, MISTAKE, BUSY = 200, 422, 429


def serve(bound: socket.socket, workspace: str, group: int, queue: int) -> None:
    """A server in this process."""
    import gossamer
    from gossamer.server.app import create_app
    from gossamer.server.app import serve as run
    from gossamer.server.config import ServerConfig

    model, saes = gossamer.load_model("pico-python"), gossamer.load_saes("pico-python")
    config = ServerConfig(group=group, queue=queue, linger=0.002 if group > 1 else 0.0)
    run(create_app(model, saes, workspace, config), config, bound)


def body(client: int, turn: int) -> tuple[bytes, int]:
    """The next request of a client, and the status that it must get."""
    asked: dict[str, Any] = {"prompt": PROMPTS[(client + turn) % len(PROMPTS)]}
    asked["choice"] = {"top": 10}
    if (client + turn) % 8 == 0:
        asked["edits"] = [{"kind": "ablate", "at": "blocks.1.attn.hook_z/2@1"}]
    if (client + 3 * turn) % 16 == 1:
        asked["target"] = " golf club"
        return json.dumps(asked).encode(), MISTAKE
    return json.dumps(asked).encode(), FINE


async def ask(streams: Any, content: bytes) -> tuple[int, float]:
    """Status of one request, and for how many seconds to stay away."""
    reader, writer = streams
    head = "POST /analyze HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    await writer.drain()
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines[1:] if line)
    await reader.readexactly(int(headers["content-length"]))
    return int(lines[0].split()[1]), float(headers.get("retry-after", 0))


async def client(number: int, port: int, end: float, seen: list[tuple[str, float]]) -> None:
    """Ask until the time is over."""
    streams = await asyncio.open_connection("127.0.0.1", port)
    turn = 0
    while time.perf_counter() < end:
        content, wanted = body(number, turn)
        started = time.perf_counter()
        try:
            status, wait = await ask(streams, content)
        except (OSError, asyncio.IncompleteReadError) as problem:
            seen.append((type(problem).__name__, 0.0))
            streams = await asyncio.open_connection("127.0.0.1", port)
            continue
        known = status in (wanted, BUSY)
        seen.append(
            (str(status) if known else f"{status} unexpected", time.perf_counter() - started)
        )
        if status == BUSY:
            await asyncio.sleep(min(wait, max(0.0, end - time.perf_counter())))
        else:
            turn += 1
    streams[1].close()


def resident(process: int) -> float:
    """Megabytes."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:"))


async def load(port: int, process: int, clients: int, seconds: float) -> dict[str, Any]:
    """All clients at once."""
    seen: list[tuple[str, float]] = []
    started = time.perf_counter()
    every = [asyncio.create_task(client(i, port, started + seconds, seen)) for i in range(clients)]
    memory = []
    for _ in range(4):
        await asyncio.sleep(seconds / 4)
        memory.append(round(resident(process)))
    await asyncio.gather(*every)
    spent = time.perf_counter() - started
    times = sorted(took for status, took in seen if status == str(FINE))
    return {
        "statuses": dict(collections.Counter(status for status, _ in seen)),
        "analyses_per_second": round(len(times) / spent, 1),
        "median_ms": round(1000 * times[len(times) // 2]) if times else None,
        "p99_ms": round(1000 * times[int(0.99 * len(times))]) if times else None,
        "resident_mb": memory,
    }


def measured(group: int, queue: int, clients: int, seconds: float) -> dict[str, Any]:
    """One server, loaded."""
    bound = socket.create_server(("127.0.0.1", 0))
    port = bound.getsockname()[1]
    with tempfile.TemporaryDirectory() as workspace:
        given = (bound, workspace, group, queue)
        process = multiprocessing.get_context("fork").Process(target=serve, args=given)
        process.start()
        bound.close()
        try:
            asyncio.run(load(port, process.pid or 0, 4, 3.0))  # loads the model, warms up
            return asyncio.run(load(port, process.pid or 0, clients, seconds))
        finally:
            process.terminate()
            process.join(20)


def main() -> None:
    """Print the figures; fail for any error but 429, and for memory that grows."""
    options = argparse.ArgumentParser()
    options.add_argument("--clients", type=int, default=64)
    options.add_argument("--seconds", type=float, default=20.0)
    chosen = options.parse_args()
    wrong = []
    for name, group, queue in (("shared", 16, 64), ("single", 1, 64), ("short queue", 16, 8)):
        found = measured(group, queue, chosen.clients, chosen.seconds)
        sys.stdout.write(f"{name:12} {json.dumps(found)}\n")
        sys.stdout.flush()
        wrong += set(found["statuses"]) - {str(FINE), str(MISTAKE), str(BUSY)}
        if found["resident_mb"][-1] > 1.1 * found["resident_mb"][0]:
            wrong.append(f"memory grew: {found['resident_mb']}")
    if wrong:
        sys.exit(f"wrong: {wrong}")


if __name__ == "__main__":
    main()
