"""The one exception a job raises for a failure it understands."""


class JobError(Exception):
    """A failure with a name, a cause in one sentence, and what to do about it.

    Recorded in run.json and printed on the terminal without a traceback; anything else that
    escapes an engine is a defect of ours or of a library and keeps its traceback in logs/.
    """

    def __init__(self, name: str, cause: str, remedy: str = "") -> None:
        super().__init__(f"{name}: {cause}" + (f"  {remedy}" if remedy else ""))
        self.name = name
        self.cause = cause
        self.remedy = remedy
