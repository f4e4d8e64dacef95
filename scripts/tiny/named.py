"""A model by its name: a folder, a built-in model, or one of the hub."""

from pathlib import Path

from scripts.run.record import Record


def local_model(name: str, record: Record) -> str:
    """`name` as a library can open it: a built-in model becomes its folder, trained now if it is not there."""
    if name.startswith("tiny:"):
        from scripts.tiny.model import default_cache_root, ensure_tiny_model

        with record.phase("built-in model"):
            root = default_cache_root()
            return str(ensure_tiny_model(name, root, advance=lambda done, of: record.progress(done, of, "steps")))
    folder = Path(name).expanduser()
    return str(folder.absolute()) if folder.exists() else name
