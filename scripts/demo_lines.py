"""What `make demo` kills in the middle of its writing: numbered lines into two files, one by position and one by O_APPEND."""

from __future__ import annotations

import sys
import time
from pathlib import Path


def main(folder: Path) -> None:
    with (folder / "positioned.txt").open("w") as positioned, (folder / "appended.txt").open("a") as appended:
        number = 0
        while True:
            for file in (positioned, appended):
                file.write(f"line {number}\n")
                file.flush()
            number += 1
            time.sleep(0.002)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
