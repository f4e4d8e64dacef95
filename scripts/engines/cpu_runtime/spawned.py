"""The main module of a process that one with the CPU runtime spawned: torch.cuda is replaced there too.

It is run by its path: nothing of this project need be on the process's own.
"""

import sys
from pathlib import Path

if __name__ == "__mp_main__":
    root = str(Path(__file__).resolve().parents[3])
    sys.path.append(root)
    try:
        from scripts.engines.cpu_runtime import devices
    finally:
        sys.path.remove(root)
    devices.install()
