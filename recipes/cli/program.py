"""`modelopt-recipes`, or `mor`: the commands of `nemo experiment` without NeMo-Run, which is imported to submit.

Importing NeMo-Run takes seconds; what only reads answers before.
"""

import gc

import typer

from recipes.cli.commands import register

_DOC = """NeMo-Run experiment recipes for NVIDIA Model Optimizer. `nemo experiment` has the same commands.

Example: mor run quantize_fp8 executor=slurm args.hf_model_id=Qwen/Qwen3-8B executor.nodes=2 --detach
"""


def program() -> typer.Typer:
    """The commands, as NeMo-Run's `experiment` group has them."""
    app = typer.Typer(
        help=_DOC,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    register(app)
    return app


def main() -> None:
    """What the console scripts call."""
    gc.freeze()  # what is imported stays
    program()()


if __name__ == "__main__":
    main()
