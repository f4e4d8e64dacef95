"""`python -m recipes.experiment ID...`: looks after detached runs, one after another, until the last has ended."""

import sys

from recipes.experiment.runs import Run
from recipes.experiment.store import RunFolder
from recipes.experiment.supervisor import carry_out

if __name__ == "__main__":
    if not sys.stdin.read():
        sys.exit("Whoever submitted was killed before the runs were handed over: they are lost, and can be resumed.")
    carry_out([Run.read(RunFolder.of(run_id)) for run_id in sys.argv[1:]])
