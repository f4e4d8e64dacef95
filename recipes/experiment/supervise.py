"""`python -m recipes.experiment.supervise ID...`: looks after detached runs, one after another.

A module that nothing imports: Python warns about running one that its package has imported already.
"""

import sys
from collections.abc import Sequence

from recipes.experiment.launching import carry_out
from recipes.experiment.store import RunFolder


def main(run_ids: Sequence[str]) -> None:
    """Look after the runs until the last one has ended."""
    sys.stdin.read()
    carry_out([RunFolder.of(run_id) for run_id in run_ids])


if __name__ == "__main__":
    main(sys.argv[1:])
