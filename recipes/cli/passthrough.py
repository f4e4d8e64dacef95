"""The words after `--`: arguments for an upstream script."""

from typing import TYPE_CHECKING, Any

from typer.core import TyperCommand

if TYPE_CHECKING:
    import typer

_PASSTHROUGH = "recipes.passthrough"


class RecipeCommand(TyperCommand):
    """Keeps the words after `--` apart: they are arguments for an upstream script, not overrides."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        cut = args.index("--") if "--" in args else len(args)
        ctx.meta[_PASSTHROUGH] = args[cut + 1 :]
        parsed: list[str] = super().parse_args(ctx, args[:cut])
        return parsed


def passed_through(ctx: "typer.Context") -> list[str]:
    """The words after `--`."""
    words: list[str] = ctx.meta[_PASSTHROUGH]
    return words
