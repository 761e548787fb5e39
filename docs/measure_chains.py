"""The restorer against chains of single-purpose methods.

    python docs/measure_chains.py Kodak24 --families classical --out docs/measured/chains.jsonl
    python docs/measure_chains.py Kodak24 --families MAXIM --maxim FOLDER --limit 5 --out docs/measured/chains.jsonl

Photos with two and three of the paper's kinds. A chain may use a method for each kind that is really there, or leave
some out, in any order; it is the truth that says which kinds there are. Beside the best order for each set of kinds
stands the best one for each photo, which only those can choose who have the clean photo. The restorer is told what the
reasoner says. FOLDER has the MAXIM packages of docs/maxim.py."""

import argparse
from collections import defaultdict
from itertools import permutations
from pathlib import Path

import numpy as np
from kept import Kept

from rr.core import psnr
from rr.data import PairStream, Recipe, clean_photos
from rr.degrade import PAPER_KINDS
from rr.evaluate import CLASSICAL, bootstrap
from rr.pipeline import ReasonRestore
from rr.severity import Table

RECIPE = Recipe(PAPER_KINDS, min_kinds=2, max_kinds=3)
SINGLE = {
    kind: CLASSICAL[name]
    for kind, name in dict(fog='dark channel', rain='row median', blur='unsharp mask', noise='bm3d').items()
}
orders = lambda kinds: [c for n in range(1, len(kinds) + 1) for c in permutations(kinds, n)]


def chains(photo, clean, kinds, methods) -> dict[str, float]:
    "Gain in dB of every chain; a chain that goes on from a shorter one begins with its result."
    made, gains = {(): photo}, {}
    for chain in orders(kinds):
        made[chain] = methods[chain[-1]](made[chain[:-1]])
        gains[' > '.join(chain)] = round(float(psnr(made[chain], clean) - psnr(photo, clean)), 3)
    return gains


def summary(rows: list[dict]) -> list[dict]:
    "Gains in dB of one family of methods and of the restorer, and how far it is ahead."
    by_kinds = defaultdict(list)
    for r in rows:
        by_kinds[tuple(r['kinds'])].append(r)
    fixed, free = {}, {r['name']: max(r['chains'].values()) for r in rows}
    for same in by_kinds.values():
        best = max(same[0]['chains'], key=lambda c: np.mean([r['chains'][c] for r in same]))
        fixed |= {r['name']: r['chains'][best] for r in same}
    nano = {r['name']: r['predicted'] for r in rows}

    def line(order, gains):
        ahead = np.array([nano[n] - gains[n] for n in gains])
        numbers = dict(
            zip(
                ('gain', 'nano', 'ahead', 'low', 'high'),
                (
                    np.mean(list(gains.values())),
                    np.mean(list(nano.values())),
                    ahead.mean(),
                    *bootstrap(ahead, np.mean),
                ),
            )
        )
        return dict(methods=rows[0]['family'], order=order, photos=len(rows), wins=int((ahead > 0).sum())) | {
            k: round(float(v), 2) for k, v in numbers.items()
        }

    return [line('best for these kinds', fixed), line('best for this photo', free)]


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('photos', type=Path, nargs='+', help='folders of clean photos')
    p.add_argument('--size', type=int, default=256, help='side of the square that is cut from each photo')
    p.add_argument(
        '--maxim',
        type=Path,
        help='folder of the unpacked packages denoising, deraining, dehazing-indoor, deblurring',
    )
    p.add_argument('--families', nargs='+', default=['classical', 'MAXIM'], choices=['classical', 'MAXIM'])
    p.add_argument('--limit', type=int, help='only the first so many photos')
    p.add_argument(
        '--out',
        type=Path,
        required=True,
        help='records, one line a photo and family; goes on where it stopped',
    )
    a = p.parse_args()
    rows = Kept(a.out)
    known, pipeline = {(r['family'], r['name']) for r in rows}, ReasonRestore.from_pretrained()
    families = {'classical': SINGLE} if 'classical' in a.families else {}
    if a.maxim and 'MAXIM' in a.families:
        from maxim import TASKS, Maxim

        families['MAXIM'] = {kind: Maxim(a.maxim / task) for kind, task in TASKS.items()}
    photos = [f for folder in a.photos for f in clean_photos(folder)]
    for family, methods in families.items():
        for i, path in enumerate(photos[: a.limit]):
            if (family, path.name) in known:
                continue
            pair = PairStream([path], a.size, RECIPE, seed=i)[0]
            photo, kinds = pair.degraded.clamp(0, 1), pair.diagnosis.present
            told = pipeline.told(photo, pipeline.reasoner.reply([photo])[0].diagnosis)
            result = pipeline.restorer.restore([photo], [told])[0]
            gains = chains(photo, pair.clean, kinds, methods)
            rows.add(
                dict(
                    family=family,
                    name=path.name,
                    kinds=kinds,
                    severities=pair.diagnosis.severities(),
                    chains=gains,
                    predicted=round(float(psnr(result, pair.clean) - psnr(photo, pair.clean)), 3),
                )
            )
    print(
        Table(
            row
            for family in dict.fromkeys(r['family'] for r in rows)
            for row in summary([r for r in rows if r['family'] == family])
        )
    )


if __name__ == '__main__':
    main()
