"""The hook into NeMo-Run's own `nemo` command: adds our commands to `nemo experiment`.

NeMo-Run imports the entry points of group `nemo_run.cli` before it builds its command groups.
Ours is named `experiment`, and importing this module wraps `nemo_run.cli.experiment.create`, so
that the group it returns has our commands beside its own; and it registers every recipe as a factory.
"""

import gc
from typing import TYPE_CHECKING

from nemo_run.cli import experiment as _experiment

from recipes.catalogue import RECIPES

if TYPE_CHECKING:
    import typer

_create = _experiment.create


def _create_with_ours() -> "typer.Typer":
    gc.freeze()  # one look of the collector through all that NeMo-Run imports costs as much as the checks of a job
    from recipes.cli.commands import register

    app: typer.Typer = _create()
    register(app)
    return app


_experiment.create = _create_with_ours
RECIPES.register()
