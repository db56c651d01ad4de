"""`python -m optimum_kprune ...` does what `optimum-cli kprune ...` does; launchers start it in several processes."""

from argparse import ArgumentParser

from optimum.commands.register.register_kprune import KPruneCommand, interruptible

parser = ArgumentParser(prog="python -m optimum_kprune", description=KPruneCommand.COMMAND.help)
KPruneCommand.parse_args(parser)
arguments = parser.parse_args()
with interruptible():
    from .cli import run

    run(arguments)
