"""`modelopt-recipes`, or `mor`: the commands of `nemo experiment` without NeMo-Run, which is imported to submit.

Importing NeMo-Run takes seconds; what only reads answers before.
"""

import gc
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from recipes.cli.commands import register

_DOC = """NeMo-Run experiment recipes for NVIDIA Model Optimizer. `nemo experiment` has the same commands.

Example: mor run quantize_fp8 executor=slurm args.hf_model_id=Qwen/Qwen3-8B executor.nodes=2 --detach
"""
#: What a report of a bug is to name.
_VERSIONS = ("modelopt-recipes", "nemo-run", "nvidia-modelopt", "megatron-bridge", "torch", "transformers")


def program() -> typer.Typer:
    """The commands, as NeMo-Run's `experiment` group has them."""
    app = typer.Typer(
        help=_DOC,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    register(app)
    return app


def _tell_versions(asked: bool) -> None:
    if not asked:
        return
    for name in _VERSIONS:
        try:
            typer.echo(f"{name:16}  {version(name)}")
        except PackageNotFoundError:
            typer.echo(f"{name:16}  not installed")
    raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Say which versions are here.", is_eager=True, callback=_tell_versions)
    ] = False,
) -> None: ...


def main() -> None:
    """What the console scripts call."""
    gc.freeze()  # what is imported stays
    program()()


if __name__ == "__main__":
    main()
