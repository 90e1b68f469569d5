"""Writes docs/works-with.md: `python -m works_with` in the folder `tests`; with titles of sections, only these."""

import sys

from works_with.page import write

if __name__ == "__main__":
    write(sys.argv[1:])
