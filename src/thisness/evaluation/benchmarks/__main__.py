"""`python -m thisness.evaluation.benchmarks DREAMBENCH CUSTOMCONCEPT101 ds.json`: write the manifest of the DS set."""

import sys

from ...errors import ThisnessError
from .ds import COUNT, POSES, write_manifest

if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: python -m thisness.evaluation.benchmarks DREAMBENCH CUSTOMCONCEPT101 ds.json")
    try:
        print(f"{write_manifest(*sys.argv[1:])}: {COUNT} pictures, {len(POSES)} sentences")
    except ThisnessError as problem:
        print(f"thisness: {problem}", file=sys.stderr)
        sys.exit(problem.exit_code)
