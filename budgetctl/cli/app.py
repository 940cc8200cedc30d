"""The ``budgetctl`` command: subcommands, ``--version``, and how errors leave it.

Exit status: 0 done, 1 failed while running, 2 bad input, 130 interrupted. An error is one line on stderr.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import budgetctl
from budgetctl.cli import bench
from budgetctl.cli.collect import collect
from budgetctl.cli.demo import demo
from budgetctl.cli.eval import evaluate
from budgetctl.cli.explain import explain
from budgetctl.cli.fit import calibrate, fit
from budgetctl.cli.generate import generate
from budgetctl.cli.info import info
from budgetctl.cli.refit import refit
from budgetctl.cli.report import report
from budgetctl.cli.serve import serve
from budgetctl.cli.simulate import simulate
from budgetctl.cli.tune import tune
from budgetctl.errors import BudgetctlError


class OneLineErrors(TyperGroup):
    """A command group that reports every error in one line and exits with the status that it calls for."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command line and leave with its exit status."""
        given = list(sys.argv[1:] if args is None else args)
        debug = "--debug" in given[:1]
        try:
            outcome = super().main(
                given, prog_name, complete_var, standalone_mode=False, windows_expand_args=False, **extra
            )
        except typer.Abort:
            outcome = 130
        except Exception as error:
            if debug:
                traceback.print_exc()
            outcome = _report(error, debug)
        sys.exit(outcome if isinstance(outcome, int) else 0)


def _report(error: Exception, debug: bool) -> int:
    """Write one line about ``error`` to stderr; returns the exit status."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, BudgetctlError):
        _complain(text)
        return 2
    if hasattr(error, "format_message"):  # a wrong command line, as typer puts it
        where = getattr(getattr(error, "ctx", None), "command_path", "budgetctl")
        _complain(f"{' '.join(error.format_message().split()).rstrip('.')}; see `{where} --help`")
        return int(getattr(error, "exit_code", 2))
    hint = "" if debug else "; `budgetctl --debug ...` shows the traceback"
    _complain(f"failed while running: {type(error).__name__}: {text}{hint}")
    return 1


def _complain(text: str) -> None:
    typer.echo(f"budgetctl: {text}", err=True)


app = typer.Typer(
    cls=OneLineErrors,
    help="Thoughts that end by themselves inside a token budget.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
)
for command in (
    generate,
    explain,
    demo,
    info,
    report,
    serve,
    simulate,
    collect,
    fit,
    calibrate,
    refit,
    tune,
):
    app.command()(command)
app.command("eval")(evaluate)
app.add_typer(bench.app, name="bench")


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"budgetctl {budgetctl.__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", is_eager=True, callback=_show_version)
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks (give it before the command).")
    ] = False,
) -> None:
    """Thoughts that end by themselves inside a token budget."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """Entry point of the ``budgetctl`` script."""
    app(prog_name="budgetctl")
