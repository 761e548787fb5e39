"""Write what long runs found into the package, for readers without the hours: python docs/record.py [NAME...]

Each of rr/assets/recorded/NAME.json has the command that measured it and the rows that `rr.core.recorded(NAME)` gives a
notebook; they are computed from the records in docs/measured."""

import json, sys
from pathlib import Path

import measure_chains, measure_grid, measure_learning, measure_peers, measure_places, measure_seven, measure_steps, measure_stored

MEASURED, RECORDED = Path(__file__).parent / 'measured', Path(__file__).parents[1] / 'rr/assets/recorded'


def read(name: str) -> list[dict]:
    return [json.loads(line) for line in (MEASURED / f'{name}.jsonl').read_text().splitlines()]


def chains() -> dict:
    rows = read('chains')
    return dict(
        rows=[
            r
            for f in dict.fromkeys(r['family'] for r in rows)
            for r in measure_chains.summary([r for r in rows if r['family'] == f])
        ]
    )


def seven() -> dict:
    rows = read('seven')
    return dict(
        rows=[dict(condition=c) | r for c in ('seven', 'paper') for r in measure_seven.errors(rows, c)],
        presence=measure_seven.presence(rows),
        places=measure_seven.places(rows),
        clean=measure_seven.alarms(rows),
    )


MADE = dict(
    grid=(
        'python docs/measure_grid.py PHOTOS Kodak24 McMaster --exclude LEFT_OUT --captions captions.jsonl --work FOLDER --updates 600 --seeds 0 1 2 --threads 1 --out docs/measured/grid.jsonl',
        lambda: dict(
            rows=measure_grid.means(read('grid')), differences=measure_grid.differences(read('grid'))
        ),
    ),
    steps=(
        'python docs/measure_steps.py Kodak24 --features mobilenet_v2.pth --out docs/measured/steps.jsonl',
        lambda: dict(rows=measure_steps.summary(read('steps'))),
    ),
    chains=(
        'python docs/measure_chains.py Kodak24 --families classical --out docs/measured/chains.jsonl; the same with --families MAXIM --maxim FOLDER --limit 5',
        chains,
    ),
    peers=(
        'python docs/measure_peers.py --noise CBSD68 --every 32 --out docs/measured/peers.jsonl; the same with --pairs SOTS hazy clear dehazing-indoor '
        '--pairs Rain100H rain clean deraining --maxim FOLDER --every 16',
        lambda: dict(rows=measure_peers.summary(read('peers'))),
    ),
    stored=(
        'python docs/measure_stored.py Kodak24 McMaster --out docs/measured/stored.jsonl; before and after, with earlier weights, '
        'the same with --reasoner FOLDER --label before and --label after',
        lambda: dict(rows=measure_stored.summary(read('stored'))),
    ),
    seven=(
        'python docs/measure_seven.py Kodak24 McMaster --out docs/measured/seven.jsonl; step 3, which did not ship, '
        'the same with --reasoners "FOLDER=nano-seven, step 3"',
        seven,
    ),
    places=(
        'python docs/measure_places.py Kodak24 McMaster --out docs/measured/places.jsonl',
        lambda: dict(
            rows=measure_places.seen(read('places')),
            named=measure_places.named(read('places')),
            psnr=measure_places.gains(read('places')),
        ),
    ),
    learning=(
        'python docs/measure_learning.py PHOTOS Kodak24 McMaster --exclude LEFT_OUT --work FOLDER --out docs/measured/learning.jsonl',
        lambda: dict(rows=measure_learning.means(read('learning'))),
    ),
)


def content(name: str) -> str:
    "What rr/assets/recorded/NAME.json is to hold."
    command, make = MADE[name]
    found = {key: ',\n'.join(map(json.dumps, rows)) for key, rows in make().items()}
    return (
        '{"command": '
        + json.dumps(command)
        + ''.join(f',\n"{key}": [\n{rows}]' for key, rows in found.items())
        + '}\n'
    )


def main():
    RECORDED.mkdir(exist_ok=True)
    for name in sys.argv[1:] or MADE:
        (RECORDED / f'{name}.json').write_text(content(name))


if __name__ == '__main__':
    main()
