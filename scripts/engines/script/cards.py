"""Model cards of the Megatron-LM family: the flags that describe a model, by its name."""

import functools
from collections.abc import Mapping
from typing import Any

from configs import CONFIGS
from scripts.run.problems import JobError, nearest

#: A card may say that the model brings code of its own; whether it is run is for args.trust_remote_code to say.
REMOTE_CODE = "trust-remote-code"
_FILE = CONFIGS / "models" / "megatron_lm.yaml"


@functools.cache
def cards() -> Mapping[str, Mapping[str, Any]]:
    """Every card: flag -> value; true is a switch."""
    import yaml

    found: dict[str, Mapping[str, Any]] = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    return found


def card_words(name: str) -> tuple[str, ...]:
    """The card's flags as words. Raises JobError `unknown_model_card` with the nearest one."""
    if name not in cards():
        raise JobError("unknown_model_card", f"there is no model card {name}.", nearest(name, cards()))
    words: list[str] = []
    for flag, value in cards()[name].items():
        if flag == REMOTE_CODE:
            continue
        words += [f"--{flag}"] if value is True else [f"--{flag}", str(value)]
    return tuple(words)
