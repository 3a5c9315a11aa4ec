"""Ask a real server whatever its own OpenAPI page allows, and much that it does not.

    python benchmarks/server_fuzz.py [--examples 100] [--seed 1]

Starts `gossamer serve` on a free port and runs schemathesis against /openapi.json: its examples and
random bodies, valid and not; but for the events of jobs, which do not end while a job runs. A graph
lies in the workspace under the id of the examples. Prints how many requests were answered with
which status, and fails when any of them is 5xx, or an answer is not what the page says it is.
"""

import argparse
import collections
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)


GRAPH = "g-0123456789abcdef"
"""The id of a graph in the examples of /openapi.json."""


def plant_graph(workspace: Path) -> None:
    """Keep a small graph in a new workspace, under the id that the examples have."""
    import gossamer
    from gossamer.attribution.attribute import attribute
    from gossamer.server.graphs import Graphs
    from gossamer.server.store import Store

    model, saes = gossamer.load_model("pico-python"), gossamer.load_saes("pico-python")
    graph = attribute(model, saes, "def add(self, other):")
    assert isinstance(graph, gossamer.Graph)
    store = Store(workspace)
    Graphs(store).add(graph, GRAPH, {"title": "example", "request": {}})
    store.close()


def main() -> None:
    """Run it and print the figures."""
    options = argparse.ArgumentParser()
    options.add_argument("--examples", type=int, default=100)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--seconds", type=int, default=3600)
    options.add_argument("--phases", default="examples,fuzzing")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "events.ndjson"
        command = [sys.executable, "-m", "gossamer", "serve", "--port", "0"]
        command += ["--workspace", f"{directory}/workspace"]
        plant_graph(Path(directory) / "workspace")
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            match = re.search(r"http://\S+", server.stdout.readline())
            assert match is not None
            started = time.perf_counter()
            done = subprocess.run(
                [
                    str(Path(sys.executable).parent / "schemathesis"),
                    "run",
                    f"{match[0]}/openapi.json",
                    *("--checks", ",".join(CHECKS), "--phases", chosen.phases),
                    *("--max-examples", str(chosen.examples), "--seed", str(chosen.seed)),
                    *("--report", "ndjson", "--report-ndjson-path", str(log)),
                    *("--request-timeout", "120", "--continue-on-failure", "--warnings", "off"),
                    *("--suppress-health-check", "all"),
                    *("--exclude-path", "/jobs/{job_id}/events"),  # a stream without an end
                ],
                cwd=directory,
                capture_output=True,
                text=True,
                timeout=chosen.seconds,
            )
            seconds = time.perf_counter() - started
            alive = server.poll() is None
        finally:
            server.terminate()
            server.wait(30)
        statuses = collections.Counter(
            int(code) for code in re.findall(r'"status_code": ?(\d+)', log.read_text())
        )
    statuses = dict(sorted(statuses.items()))
    worst = sum(count for status, count in statuses.items() if status >= 500)
    found = {"requests": sum(statuses.values()), "statuses": statuses, "server_errors": worst}
    found |= {"seconds": round(seconds), "alive": alive}
    sys.stdout.write(f"{done.stdout[-6000:]}\n{json.dumps(found)}\n")
    if worst or done.returncode or not alive:
        sys.exit(1)


if __name__ == "__main__":
    main()
