"""The commands of `sgenas`. A new one gets its function in a module and a name here."""

from sgenas.cli.commands import completion, doctor, lookup, plan, rank, run, show, table1, train
from sgenas.cli.parsing import Command

COMMANDS: dict[str, Command] = {
    command.name: command
    for command in (
        *(run.search, plan.plan, run.resume, show.show, show.report),
        *(train.train, train.evaluate, train.export),
        table1.table1,
        *(lookup.size, lookup.latency, lookup.query, rank.rank, lookup.data, doctor.doctor, completion.completion),
    )
}
"""Name -> command, in the order of `sgenas --help`."""
