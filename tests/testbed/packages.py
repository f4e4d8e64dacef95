"""Python packages that a test's job needs and the development environment must not have: there they change what
ModelOpt imports. Each set is installed once on a machine, into a folder for PYTHONPATH."""

import fcntl
import hashlib
import subprocess
import sys
from pathlib import Path

from scripts.run.files import staged
from scripts.tiny.model import default_cache_root
from tests.testbed import cannot_run

#: What its own module for tokenizing imports of it needs torch and numpy, and nothing else.
MEGATRON_CORE = ("megatron-core==0.16.1",)
#: What `-m lm_eval` imports for the tasks that ship, besides what the hf engine needs.
LM_EVAL = (
    "lm_eval==0.4.13",
    "sacrebleu==2.6.0",
    "portalocker==4.4.2",
    "colorama==0.4.6",
    "lxml==6.1.3",
    "pytablewriter==1.2.1",
    "dataproperty==1.1.1",
    "typepy==2.0.0",
    "mbstrdecoder==1.1.5",
    "tabledata==1.3.5",
    "tcolorpy==0.1.7",
    "pathvalidate==3.3.1",
    "chardet==7.7.0",
)


def installed(requirements: tuple[str, ...]) -> Path:
    """A folder with these packages and not what they depend on. Skips the test where they cannot be had."""
    key = hashlib.sha256(repr((requirements, sys.version_info[:2])).encode()).hexdigest()[:16]
    root = default_cache_root().parent / "tests"
    root.mkdir(parents=True, exist_ok=True)
    folder = root / f"{requirements[0].partition('=')[0]}-{key}"
    with (root / f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            with staged(folder) as beside:
                words = ["install", "--quiet", "--no-deps", "--target", str(beside), *requirements]
                done = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True)
                if done.returncode:
                    cannot_run(f"{requirements[0]} cannot be installed: {done.stderr.strip()[-500:]}")
    return folder
