"""Some architectures of transformers, tiny, through the engine, as configs/models/architectures.yaml has them.

Which ones differs from run to run: SEED=N repeats a choice.
"""

import os
import random
import subprocess
import sys

import pytest

from scripts.checkpoints.causal import architectures

pytestmark = pytest.mark.integration

SEED = int(os.environ.get("SEED", str(random.SystemRandom().randrange(10**6))))
COUNT = int(os.environ.get("ARCHITECTURES", "6"))


def test_a_sample_comes_out_as_the_table_says() -> None:
    table = {(kind, fmt): said for kind, of in architectures()["tried"].items() for fmt, said in of.items()}
    sample = random.Random(SEED).sample(sorted(table), COUNT)
    pairs = ",".join(f"{kind}:{fmt}" for kind, fmt in sample)
    words = [sys.executable, "-m", "tests.architectures", "--print", "--only", pairs]
    done = subprocess.run(words, capture_output=True, text=True, timeout=1200, check=True)
    lines = [line.split(" ", 2) for line in done.stdout.splitlines() if line.count(" ") > 1]
    found = {(kind, fmt): said for kind, fmt, said in lines if (kind, fmt) in table}
    assert list(found) == sample, done.stdout + done.stderr
    for pair, said in found.items():
        assert said.partition(":")[0] == table[pair].partition(":")[0], f"SEED={SEED} {pair}: {said}"
