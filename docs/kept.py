"Records of the commands in this folder, one line each, written as they come: a command that was stopped goes on where it was."

import json
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
