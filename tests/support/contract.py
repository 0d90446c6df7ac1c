"""Checks a running service against its own OpenAPI description, with Schemathesis: `make contract SEEDS=3`.

Each seed has thousands of requests, valid and invalid ones, on all routes but the endless tails and those of a pool.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.http.service import Service, example
from tests.support.servers import default_flavour, start_server

ROOT = Path(__file__).parents[2]
_TOOL = ROOT / ".venv" / "contract" / "bin" / "st"
_HOOKS = "tests.support.contract_hooks"
#: The shipped router, a body limit that lets batches with too many items through, and time limits for a busy machine.
_CONFIG = '[api]\nmax_body_bytes = 67108864\nproduce_timeout_ms = 10000\nrouters = ["handlers.http:router"]'
#: For Schemathesis: all checks, but what was cancelled can be explained all the same. Options would override this.
_SETTINGS = """
[checks]
enabled = true
[[operations]]
include-path-regex = "/explain$"
[operations.checks]
use_after_free.enabled = false
"""
#: Each run of at least EXAMPLES examples has bodies of all these types.
EXAMPLES = 100
_MEDIA_TYPES = {
    "application/json", "application/x-ndjson", "application/cloudevents+json", "application/cloudevents-batch+json",
}  # fmt: skip
#: Streams without an end, and the operations of a pool, which is not there.
_LEFT_OUT = "/tail$|/v1/board$|/v1/events$|/v1/pool:"


def main() -> int:
    """Run all seeds; return 1 when one of them has found something."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=1, help="how many (default: 1)")
    parser.add_argument("--first-seed", type=int, default=1, help="the number of the first one (default: 1)")
    parser.add_argument("--examples", type=int, default=EXAMPLES, help=f"for each route (default: {EXAMPLES})")
    options = parser.parse_args()
    failed = False
    with (
        tempfile.TemporaryDirectory() as folder,
        start_server(default_flavour()) as server,
        Service(Path(folder), server.url, **{**example(), "config": _CONFIG}) as service,
    ):
        (Path(folder) / "schemathesis.toml").write_text(_SETTINGS)
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            command = [
                str(_TOOL), "run", f"{service.base_url}/openapi.json", "--mode", "all",
                "--exclude-path-regex", _LEFT_OUT, "--max-examples", str(options.examples), "--seed", str(seed),
                "--generation-database", "none", "--no-color",
            ]  # fmt: skip
            bodies = Path(folder) / f"bodies-{seed}.json"
            environment = {
                **os.environ, "SCHEMATHESIS_HOOKS": _HOOKS, "PYTHONPATH": str(ROOT), "CONTRACT_BODIES": str(bodies),
            }  # fmt: skip
            failed |= subprocess.run(command, env=environment, cwd=folder, check=False).returncode != 0
            failed |= not sent_all_types(seed, bodies, of_all=options.examples >= EXAMPLES)
    return int(failed)


def sent_all_types(seed: int, bodies: Path, *, of_all: bool) -> bool:
    """Print how many bodies of each media type were sent; return whether that is enough. `of_all` demands each type."""
    if not bodies.exists():
        print(f"seed {seed}: Schemathesis ended before it wrote what it had sent", file=sys.stderr)
        return False
    sent = json.loads(bodies.read_text())
    print(f"seed {seed}, bodies:", ", ".join(f"{number} {kind}" for kind, number in sorted(sent.items())))
    lacking = _MEDIA_TYPES - sent.keys() if of_all else set()
    if lacking:
        print(f"seed {seed}: no body of type {', '.join(sorted(lacking))} was sent", file=sys.stderr)
    return not lacking


if __name__ == "__main__":
    sys.exit(main())
