"""How sure must the reasoner be before it names a kind? python docs/measure_thresholds.py train/bsds train/free --every 8 --exclude not-clean.tsv --out docs/measured/thresholds.jsonl

Each photo damaged under the seven conditions of `rr evaluate`: how many kinds are named that are not there, and how many
are missed, for a range of thresholds, kind by kind. With --restore also what that costs: where a kind is in doubt, its
probability within the range, the photo is restored twice, with the kind named and without, the others as they are now. A
file that is there is continued."""

import argparse
from pathlib import Path

import numpy as np
from kept import Kept

from rr.core import psnr
from rr.data import read_exclusions
from rr.evaluate import CONDITIONS, condition_pair, evaluation_photos
from rr.pipeline import ReasonRestore

SEVEN = ('mixed', 'all kinds', 'fog', 'rain', 'blur', 'noise 25', 'clean')
GRID = (0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)
WEAK = 15  # severity below which a kind need not be seen
CAP = 45  # dB; closer to the original than this no eye can tell


def likely(pipeline, photo) -> dict:
    "The probability of each kind."
    inputs = next(iter(pipeline.reasoner.batches([photo])))
    _, present = pipeline.reasoner.measure(inputs)
    return {k: round(p, 4) for k, p in zip(pipeline.reasoner.kinds, present[0].tolist())}


def both_ways(pipeline, pair, likely: dict) -> dict:
    "For each kind in doubt the PSNR, dB, with it named and without (100: as the original)."
    photo, reasoner, found = pair.degraded.clamp(0, 1), pipeline.reasoner, {}
    before = reasoner.threshold
    for kind in (k for k, p in likely.items() if GRID[0] < p <= GRID[-1]):
        found[kind] = []
        for limit in (0.0, 1.0):
            reasoner.threshold = dict.fromkeys(reasoner.kinds, before) | {kind: limit}
            told = pipeline.told(photo, reasoner.reply([photo])[0].diagnosis)
            out = pipeline.restorer.restore([pair.degraded], [told])[0]
            found[kind].append(round(min(float(psnr(out, pair.clean)), 100.0), 3))
    reasoner.threshold = before
    return found


def report(rows: list[dict]):
    kinds = list(dict.fromkeys(k for r in rows for k in r['likely']))
    print(f'{len(rows)} photos of {len({r["name"] for r in rows})}; at each threshold kinds named that are not there, and missed')
    print('      ' + ''.join(f'{t:>9}' for t in GRID))
    for kind in kinds:
        p, true = np.array([r['likely'][kind] for r in rows]), np.array([r['true'].get(kind, 0) for r in rows])
        counts = [(int(((true == 0) & (p > t)).sum()), int(((true >= WEAK) & (p <= t)).sum())) for t in GRID]
        print(f'{kind:<6}' + ''.join(f'{f"{false}+{missed}":>9}' for false, missed in counts)
              + f'   of {int((true == 0).sum())} and {int((true >= WEAK).sum())}')
        doubtful = [(r['likely'][kind], *np.minimum(r['doubtful'][kind], CAP)) for r in rows if kind in r.get('doubtful', {})]
        if doubtful:
            print('   dB ' + ''.join(f'{np.mean([named if p > t else left for p, named, left in doubtful]):9.2f}' for t in GRID)
                  + f'   of {len(doubtful)} in doubt')


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('folders', type=Path, nargs='+', help='clean photos')
    p.add_argument('--every', type=int, default=1, help='every so many photos')
    p.add_argument('--exclude', type=Path, nargs='+', default=(), help='photos that are not clean, or tables of them, as for `rr degrade`')
    p.add_argument('--restore', action='store_true', help='the PSNR too, of photos with a kind in doubt')
    p.add_argument('--out', type=Path, required=True, help='records, one line a photo and condition')
    a = p.parse_args()
    rows, pipeline, left_out = Kept(a.out), ReasonRestore.from_pretrained(), read_exclusions(*a.exclude)
    known = {(r['condition'], r['name']) for r in rows}
    for source in [s for s in evaluation_photos(a.folders, None) if s.path not in left_out][:: a.every]:
        for condition in SEVEN:
            if (condition, source.name) in known:
                continue
            pair = condition_pair(source, CONDITIONS[condition], 0)
            found = likely(pipeline, pair.degraded.clamp(0, 1))
            rows.add(dict(condition=condition, name=source.name, true={k: s for k, s in pair.diagnosis.severities().items() if s},
                          likely=found, **(dict(doubtful=both_ways(pipeline, pair, found)) if a.restore else {})))
    report(rows)


if __name__ == '__main__':
    main()
