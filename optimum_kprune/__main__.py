"""`python -m optimum_kprune` is `optimum-cli kprune` as a module, which launchers can start in several processes."""

from argparse import ArgumentParser

from optimum.commands.register.register_kprune import KPruneCommand, interruptible

parser = ArgumentParser(prog="python -m optimum_kprune", description=KPruneCommand.COMMAND.help)
KPruneCommand.parse_args(parser)
arguments = parser.parse_args()
with interruptible():
    # Imported inside: the libraries take seconds to import, in which Ctrl-C may come too.
    from .cli import run

    run(arguments)
