"""A NeMo-Run packager that delivers an archive made before.

It imports NeMo-Run, so import it inside functions only. The job's node builds it again from its
serialized form, by module and name.
"""

import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

import nemo_run as run


@dataclass(kw_only=True)
class ArchivePackager(run.Packager):  # type: ignore[misc]  # NeMo-Run is not typed
    """Hands `archive` (a .tar.gz) to whichever executor asks for the code."""

    archive: str

    def package(self, path: Path, job_dir: str, name: str) -> str:
        """The archive as `job_dir`/`name`.tar.gz; a link to it where the file system allows, else a copy."""
        target = Path(job_dir) / f"{name}.tar.gz"
        beside = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        try:
            try:
                beside.hardlink_to(self.archive)
            except OSError:
                shutil.copyfile(self.archive, beside)
            beside.replace(target)
        finally:
            beside.unlink(missing_ok=True)
        return str(target)
