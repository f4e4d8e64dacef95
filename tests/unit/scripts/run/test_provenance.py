"""What a run says of the process that it was."""

import subprocess
import sys

OWN = "from scripts.run.provenance import peak_memory; print(peak_memory()['rss_bytes'])"


def test_the_peak_of_a_process_is_not_that_of_whoever_started_it() -> None:
    small = subprocess.run([sys.executable, "-c", OWN], capture_output=True, text=True, check=True)
    held = f"import subprocess, sys; kept = bytearray(400 << 20); subprocess.run([sys.executable, '-c', {OWN!r}])"
    inside = subprocess.run([sys.executable, "-c", held], capture_output=True, text=True, check=True)
    assert int(inside.stdout) < 2 * int(small.stdout)


def test_the_peak_of_a_process_it_ran_counts() -> None:
    ran = f"import subprocess, sys; subprocess.run([sys.executable, '-c', 'bytearray(400 << 20)'], check=True); {OWN}"
    done = subprocess.run([sys.executable, "-c", ran], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 400 << 20
