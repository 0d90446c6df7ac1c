"""`python -m tests.model [--histories N] [--seed S]`: play random histories, and show the rate and what broke."""

import argparse
import json
import time

from tests.model.histories import broken, failures, shortened


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.model", description=__doc__)
    parser.add_argument("--histories", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0, help="of the first; the others follow")
    parser.add_argument("--most", type=int, default=1, help="stop after so many that broke a rule")
    given = parser.parse_args()
    began_s, bad = time.monotonic(), 0
    for history, what in failures(given.seed, given.histories):
        bad += 1
        short = shortened(**history)
        print(f"seed {history['seed']}: {what}\n{json.dumps({'why': broken(**short), **short})}")
        if bad >= given.most:
            return 1
    took_s = time.monotonic() - began_s
    rate = given.histories / took_s * 60
    print(f"{given.histories} histories in {took_s:.1f} s: {rate:,.0f} a minute, {bad} broke a rule")
    return int(bad > 0)


if __name__ == "__main__":
    raise SystemExit(main())
