"""Starts the service after changing one thing in it: `python -m tests.reliability.launcher BUILD [FLAG …]`."""

import sys

from service import __main__ as service
from tests.reliability.builds import BUILDS


def main() -> None:
    """Applies the builds named, separated by commas, and starts; `-` is the service as it is."""
    names = sys.argv.pop(1)
    for name in names.split(","):
        if name != "-":
            BUILDS[name]()
    service.main()


if __name__ == "__main__":
    main()
