"""The one exception a job raises for a failure it understands."""

import errno


class JobError(Exception):
    """A failure with a name, a cause in one sentence, and what to do about it.

    Recorded in run.json and printed on the terminal without a traceback; anything else that
    escapes an engine is a defect of ours or of a library and keeps its traceback in logs/.
    """

    def __init__(self, name: str, cause: str, remedy: str = "", *, exit_code: int = 1) -> None:
        super().__init__(f"{name}: {cause}" + (f"  {remedy}" if remedy else ""))
        self.exit_code = exit_code
        self.name = name
        self.cause = cause
        self.remedy = remedy


def of_os_error(error: OSError) -> JobError:
    """A failure of the operating system, as on a full disk, with its name and remedy."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return JobError("disk_full", f"{error}.", "Free some space, or write elsewhere.")
    return JobError("system_error", f"{error}.", "Look at that file or folder, and who may use it.")
