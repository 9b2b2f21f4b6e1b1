"""How long the commands take that compute nothing, and `import sgenas`.

    python benchmarks/import_time.py [--repeats 5]

Each is a process of its own; an untimed one goes first and brings the files into memory. Aims: `--version` under
0.3 s, `--help` under 1 s.
"""

from record import add_result, flags, python, time_in_turn

COMMANDS = {
    "python -c pass": ("-c", "pass"),
    "import sgenas": ("-c", "import sgenas"),
    "import torch": ("-c", "import torch"),
    "sgenas --version": ("-m", "sgenas", "--version"),
    "sgenas --help": ("-m", "sgenas", "--help"),
    "sgenas search --help": ("-m", "sgenas", "search", "--help"),
    "sgenas completion bash": ("-m", "sgenas", "completion", "bash"),
}


def main() -> None:
    given = flags(__doc__, repeats=5)
    sides = {name: lambda command=command: python(*command) for name, command in COMMANDS.items()}
    seconds = time_in_turn(sides, repeats=given.repeats)
    print(f"{'':24}{'seconds':>8}{'min':>8}{'max':>8}")
    for name, times in seconds.items():
        print(f"{name:24}{times['median']:8.3f}{times['min']:8.3f}{times['max']:8.3f}")
    add_result("import_time", {"repeats": given.repeats, "seconds": seconds})


if __name__ == "__main__":
    main()
