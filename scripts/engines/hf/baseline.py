"""What was measured of a model before it was quantized, kept on the node: the formats of a sweep measure it once.

An entry is a folder of the cache, named by a digest over all that the figures depend on: what it was measured of
otherwise has another name. `baseline.json` says that, which run measured it, and what the model continued prompts with;
`states.safetensors` holds its last hidden states on each sample, from which reference logits are computed again to the
last bit (see evaluate.py; a hundredth of the logits); `losses.json`, once something was scored against them, the
log-likelihood of each sample. Nothing in it is executed, and what is not as it was written is measured anew.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from scripts import processor
from scripts.engines.hf.packing import Tokens
from scripts.run import schema
from scripts.run.content import content_of
from scripts.run.files import is_folder, locked, read_limited, staged, write_json
from scripts.run.problems import JobError
from scripts.run.provenance import packages
from scripts.run.record import Record, now
from scripts.tiny.model import default_cache_root

if TYPE_CHECKING:
    import torch

#: States of more than this are not kept (64k tokens of 4096 channels in 16 bits), nor of more than this share of the
#: disk that is free; then the model is run again. All entries together are kept below the other limit, those that were
#: used last.
STATES_BYTES, STORE_BYTES, DISK_SHARE = 512 << 20, 4 << 30, 0.05
#: So long a job waits for another that measures the same; then it does so itself.
WAIT_SECONDS = 600.0
_FACTS, _STATES, _LOSSES = "baseline.json", "states.safetensors", "losses.json"
_HEADER_BYTES = 1 << 20
_SCHEMA = {"of": dict, "run": str, "at": schema.timestamp, "texts": [str], "states": (str, None), "digest": str}
#: Modules of a model that brings its own code, from its folder or elsewhere.
_REMOTE = "transformers_modules."

#: `partly`: the continuations alone were reused.
How = Literal["measured", "reused", "partly"]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Continuations of the prompts, and the last hidden states [tokens, hidden size] of each sample; None: not kept."""

    texts: list[str]
    states: "list[torch.Tensor] | None"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Where what was measured under certain circumstances is kept."""

    of: dict[str, str]

    @property
    def folder(self) -> Path:
        key = hashlib.sha256(json.dumps(self.of, sort_keys=True).encode()).hexdigest()
        return default_cache_root().with_name("baselines") / key[:32]


def depends_on(
    model: Any, samples: Sequence[Tokens], prompts: Sequence[str], device: "torch.device", /, **facts: str
) -> Entry:
    """What the figures follow from, as digests and words: `facts`, text as tokens, packages, code, what computes."""
    here = [*sorted(Path(__file__).parent.glob("*.py")), Path(str(processor.__file__))]
    loaded = [(name, module.__file__) for name, module in sys.modules.items() if name.startswith(_REMOTE)]
    code = [*here, *(Path(file) for _, file in sorted(loaded) if file)]
    digests = {
        "samples": repr([tuple(sample) for sample in samples]),
        "prompts": repr(list(prompts)),
        "packages": repr(packages()),
        "code": repr([content_of(file).digest for file in code]),
    }
    found = {name: hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest() for name, text in digests.items()}
    attention = str(model.config._attn_implementation)
    return Entry(of={**facts, **found, "attention": attention, "device": processor.computes_on(device)})


def obtain(
    record: Record, entry: Entry, shapes: Sequence[tuple[int, int]], measure: Callable[[list[str] | None], Measured]
) -> Measured:
    """What an earlier run has measured, else what `measure` finds, which is kept for later ones; run.json says which.

    `shapes` are those of the states. `measure` gets the continuations where those alone were kept. Of several jobs the
    first measures, and the others wait. Where the cache cannot be used the log says so.
    """
    found = _look(entry, shapes)
    if found is None:
        with _turn(record, entry.folder) as mine:
            found = _look(entry, shapes, record.line) if mine else None
            if found is None:
                return _measured(record, entry, measure(None), keep=mine)
    facts, measured = found
    how: How = "reused"
    if shapes and not measured.states:
        how, measured = "partly", measure(measured.texts)
    told = "" if how == "reused" else "; its states are too large to be kept, and were measured again"
    record.line(f"baseline: as {facts['run']} measured it ({facts['digest'][:19]}){told}")
    record.update(baseline={"how": how, "run": facts["run"], "digest": facts["digest"]})
    return measured


def _look(
    entry: Entry, shapes: Sequence[tuple[int, int]], say: Callable[[str], None] = lambda text: None
) -> tuple[dict[str, Any], Measured] | None:
    """The entry, if it is there, whole, and of these circumstances."""
    from safetensors import SafetensorError

    if not is_folder(str(entry.folder)):
        return None
    try:
        facts = schema.read(entry.folder / _FACTS, _SCHEMA)
        if facts["of"] != entry.of or facts["digest"] != _digest(facts["texts"], facts["states"]):
            raise ValueError("it is not as it was written")
        states = None if facts["states"] is None else _states_in(entry.folder, facts["states"], shapes)
    except (OSError, ValueError, SafetensorError) as error:
        say(f"baseline: {entry.folder} is damaged, and measured anew: {error}")
        return None
    with suppress(OSError):  # those that were not used for long are removed first
        os.utime(entry.folder)
    return facts, Measured(texts=facts["texts"], states=states)


def _states_in(folder: Path, digest: str, shapes: Sequence[tuple[int, int]]) -> "list[torch.Tensor]":
    """Raises OSError, ValueError or SafetensorError."""
    from safetensors.torch import load

    content = read_limited(folder / _STATES, STATES_BYTES + _HEADER_BYTES)
    if f"sha256:{hashlib.sha256(content).hexdigest()}" != digest:
        raise ValueError(f"{_STATES} is not as it was written")
    found = load(content)
    if {name: tuple(value.shape) for name, value in found.items()} != dict(zip(_names(shapes), shapes, strict=True)):
        raise ValueError(f"{_STATES} is of other samples")
    return [found[name] for name in _names(shapes)]


def _names(samples: Sequence[Any]) -> list[str]:
    return [f"{number:06}" for number in range(len(samples))]


def _digest(texts: list[str], states: str | None) -> str:
    """Of all that an entry tells: it is the same whoever measured it."""
    return f"sha256:{hashlib.sha256(json.dumps([texts, states]).encode()).hexdigest()}"


@contextmanager
def _turn(record: Record, folder: Path) -> Iterator[bool]:
    """One job at a time; the kernel drops the lock of one that dies. False: it is nobody's turn, as the log says."""
    lock, mine = folder.with_name(f".{folder.name}.lock"), True
    with ExitStack() as held:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            try:
                held.enter_context(locked(lock, seconds=0))
            except TimeoutError:
                with record.phase("wait for the baseline"):
                    held.enter_context(locked(lock, seconds=WAIT_SECONDS))
        except OSError as error:  # read-only, no locks there, or whoever measures it takes too long
            record.line(f"baseline: not shared with other runs: {error}")
            mine = False
        yield mine


def _measured(record: Record, entry: Entry, found: Measured, *, keep: bool) -> Measured:
    """Keep what was measured, if that is possible, and say so."""
    digest, run = None, str(record.values.get("id") or record.dir.name)
    try:
        if keep:
            small = _is_small(entry, found)
            digest = _write(entry, found if small else replace(found, states=None), run)
            told = "" if small else ", but for its states, which are too large"
            record.line(f"baseline: measured, and kept for other runs ({digest[:19]}){told}")
    except (OSError, JobError) as error:
        record.line(f"baseline: not kept for other runs: {error}")
    record.update(baseline={"how": "measured", "run": run, "digest": digest})
    return found


def _bytes(found: Measured) -> int:
    return sum(each.nbytes for each in found.states or ())


def _is_small(entry: Entry, found: Measured) -> bool:
    return _bytes(found) <= min(STATES_BYTES, DISK_SHARE * shutil.disk_usage(entry.folder.parent).free)


def _write(entry: Entry, found: Measured, run: str) -> str:
    """Its digest. Raises OSError, or JobError where it cannot be in its place."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    shutil.rmtree(entry.folder, ignore_errors=True)  # a damaged one
    _make_room(entry.folder.parent, _bytes(found))
    with staged(entry.folder) as partial:
        states = None
        if found.states is not None:
            try:
                save_file(dict(zip(_names(found.states), found.states, strict=True)), partial / _STATES)
            except SafetensorError as error:  # a full disk
                raise OSError(str(error)) from error
            states = f"sha256:{_sha256(partial / _STATES)}"
        digest = _digest(found.texts, states)
        facts = {"of": entry.of, "run": run, "at": now(), "texts": found.texts, "states": states, "digest": digest}
        write_json(partial / _FACTS, facts)
    return digest


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _make_room(root: Path, size: int) -> None:
    """Remove the entries that were not used for longest, until `size` more are below the limit; leftovers count."""
    folders = [path for path in root.iterdir() if path.is_dir() and not path.is_symlink()]
    held = {path: sum(file.lstat().st_size for file in path.iterdir()) for path in folders}
    for path in sorted(folders, key=lambda folder: folder.stat().st_mtime):
        if sum(held.values()) + size <= STORE_BYTES:
            return
        shutil.rmtree(path, ignore_errors=True)
        path.with_name(f".{path.name}.lock").unlink(missing_ok=True)  # whoever waits for it measures beside another
        del held[path]


def keep_losses(record: Record, entry: Entry, sums: "torch.Tensor") -> None:
    """The loss of each sample, of which `sums` [samples, 5] are (see evaluate.py), beside what it was computed from.

    Where an earlier run had computed other ones of the same states, the entry is of no use.
    """
    losses: dict[str, Any] = {"tokens": sums[:, 0].tolist(), "losses": sums[:, 1].tolist()}
    file = entry.folder / _LOSSES
    try:
        if schema.read(file) != losses:
            record.line("baseline: what was kept gives other losses than it gave; it is removed, to be measured anew")
            shutil.rmtree(entry.folder, ignore_errors=True)
    except (OSError, ValueError):
        with suppress(OSError):
            if is_folder(str(entry.folder)):
                write_json(file, losses)
