"""`python -m supervisor`, or `python -P .../supervisor/__main__.py`: the same as the `supervisor` command.

Python puts the working directory first on the path, so that a project's redis/ or queue.py would be imported instead
of the real one. It is removed here; the project becomes importable when its handlers are loaded.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

if __package__ and not sys.flags.safe_path:
    sys.path.pop(0)
elif not __package__ and find_spec("supervisor") is None:  # a checkout that is not installed
    sys.path.append(str(Path(__file__).parents[1]))

from supervisor.cli.main import main

if __name__ == "__main__":
    main()
