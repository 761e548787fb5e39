"What the commands in this folder share: their records, one line each, written as they come (a command that was stopped goes on where it was), and common arguments."

import argparse, json
from pathlib import Path

from rr.data import whole_lines


class Kept(list):
    "The records in a file of JSON lines, and those that are added; a line that was cut off by a kill is dropped."

    def __init__(self, path: Path):
        self.path = path
        super().__init__(map(json.loads, path.read_text().splitlines()) if whole_lines(path) else ())

    def add(self, *records: dict):
        "Append to the file and to the list."
        with open(self.path, 'a') as file:
            file.write(''.join(json.dumps(r) + '\n' for r in records))
        self.extend(records)


def photo_arguments(about: str) -> argparse.ArgumentParser:
    "What a command takes that goes through folders of clean photos."
    p = argparse.ArgumentParser(description=about.splitlines()[0])
    p.add_argument('photos', type=Path, nargs='+', help='folders of clean photos')
    p.add_argument('--every', type=int, default=1, help='take every n-th photo')
    p.add_argument('--out', type=Path, required=True, help='records, one line each; goes on where it stopped')
    p.add_argument('--threads', type=int)
    return p
