"""What this Python can carry out by itself, and what would let it do the rest."""

from dataclasses import dataclass
from importlib import util
from typing import Literal

from scripts.args.meaning import ScriptArgs
from scripts.args.serve import ServeArgs
from scripts.engines.script.locate import installed
from scripts.run.problems import install
from scripts.serving.servers import SERVERS

#: What the hf engine imports; the extra `hf`.
HF_PACKAGES = ("torch", "transformers", "modelopt", "datasets", "safetensors", "jinja2", "matplotlib")
#: What the bridge engine imports. Megatron-Core, which has the same top package, may be here alone.
BRIDGE = "megatron.bridge"
_MAKE_BRIDGE = "make bridge, in a checkout, with Python 3.12"
_CONTAINER = "a NeMo container, or script.path=CHECKOUT: NVIDIA's script is all that does it"


def is_installed(module: str) -> bool:
    """Whether a module can be imported; the packages that it is in are."""
    try:
        return util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def missing_tool(kind: type[ScriptArgs]) -> str:
    """How to have the tool that such arguments are for; empty where it is installed, or there is none."""
    return "" if kind.TOOL is None or is_installed(kind.TOOL[0]) else install(kind.TOOL[1])


@dataclass(frozen=True, kw_only=True)
class Here:
    """What carries out such arguments in this Python, and what else would."""

    by: tuple[str, ...]  # engines; `tool` is another program, such as a server
    needs: str  # empty where nothing is missing


def here(kind: type[ScriptArgs]) -> Here:
    """What can be done here with arguments of that class, by the packages that are installed: nothing is imported."""
    by: list[str] = []
    needs: list[str] = []
    if kind.HF_ENGINE and not kind.SCRIPTS:
        lacking = [] if all(map(is_installed, HF_PACKAGES)) else [install("hf")]
        lacking += [missing] if (missing := missing_tool(kind)) else []
        return Here(by=() if lacking else ("hf",), needs="; ".join(lacking))
    if kind.HF_ENGINE:
        there = all(map(is_installed, HF_PACKAGES))
        by += ["hf"] if there else []
        needs += [] if there else [install("hf")]
    if kind.BRIDGE:
        there = is_installed(BRIDGE)
        by += ["bridge"] if there else []
        needs += [] if there else [f"{'by Megatron-Bridge too: ' if by else ''}{_MAKE_BRIDGE}"]
    if kind is ServeArgs:
        there = any(server.is_here for server in SERVERS.values())
        return Here(by=("tool",) if there else (), needs="" if there else f"one of {', '.join(SERVERS)}, installed")
    if kind.TOOL is not None:
        missing = missing_tool(kind)
        return Here(by=() if missing else ("tool",), needs=missing)
    if not kind.SCRIPTS:  # ours, of the standard library
        return Here(by=("tool",), needs="")
    if installed(kind.SCRIPTS):
        by.append("script")
    return Here(by=tuple(by), needs="; ".join(needs) if needs or by else _CONTAINER)


def engine_here(kind: type[ScriptArgs]) -> Literal["bridge", "hf"] | None:
    """The engine of ours that does what such arguments ask for: Megatron's where that is installed; None: none does."""
    if kind.BRIDGE and is_installed(BRIDGE):
        return "bridge"
    return "hf" if kind.HF_ENGINE else None
