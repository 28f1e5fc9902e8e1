"""The command `endoreward`, and `python -m endoreward`: the command line of `jobs`, once it is known to be ours."""

import sys

from endoreward.origin import refuse_foreign


def main() -> int:
    try:
        refuse_foreign()
    except ImportError as error:
        print(f"endoreward: {error}", file=sys.stderr)
        return 2
    from jobs.__main__ import main as command

    return command()


if __name__ == "__main__":
    sys.exit(main())
