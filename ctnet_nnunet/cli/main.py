"""Entry point of ``ctnet``: registers the commands and turns user errors into one line and exit status 2."""

from __future__ import annotations

import sys

import typer

import ctnet_nnunet
from ctnet_nnunet.cli import benchmark, convert, inspect
from ctnet_nnunet.cli.crossval import crossval
from ctnet_nnunet.cli.demo import demo
from ctnet_nnunet.cli.doctor import doctor
from ctnet_nnunet.cli.env import env
from ctnet_nnunet.cli.evaluate import compare, evaluate
from ctnet_nnunet.cli.export import export
from ctnet_nnunet.cli.lists import ListsAfterOptions
from ctnet_nnunet.cli.plan import plan
from ctnet_nnunet.cli.predict import predict
from ctnet_nnunet.cli.reference import reference
from ctnet_nnunet.cli.status import status
from ctnet_nnunet.cli.synthesize import synthesize
from ctnet_nnunet.cli.transfer import transfer
from ctnet_nnunet.cli.unlabeled import preprocess_unlabeled
from ctnet_nnunet.errors import CTNetError

app = typer.Typer(
    name="ctnet",
    help="Annotation-efficient learning on a stock nnU-Net v2.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(ctnet_nnunet.__version__)
        raise typer.Exit()


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Print the version."),
) -> None:
    pass


app.command("env")(env)
app.command("doctor")(doctor)
app.add_typer(convert.app, name="convert")
app.add_typer(inspect.app, name="inspect")
app.command("plan")(plan)
app.command("transfer")(transfer)
app.add_typer(benchmark.app, name="benchmark")
app.command("preprocess-unlabeled")(preprocess_unlabeled)
app.command("crossval", cls=ListsAfterOptions)(crossval)
app.command("status")(status)
app.command("demo")(demo)
app.command("predict", cls=ListsAfterOptions)(predict)
app.command("export", cls=ListsAfterOptions)(export)
app.command("reference")(reference)
app.command("synthesize")(synthesize)
app.command("evaluate")(evaluate)
app.command("compare")(compare)


def main() -> None:
    """Run ``ctnet``; a :class:`CTNetError` ends in its one line on stderr and its exit status."""
    try:
        app()
    except CTNetError as error:
        print(f"ctnet: error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main()
