"""Are photos read or restored better than before? python docs/compare_records.py docs/measured/dev_restorer.jsonl OTHER.jsonl...

The first record against the others (several are read as one), photo by photo where both have the same one, damaged alike: mean errors of the severity
or mean gains in PSNR, their difference with a 95% interval by drawing photos, and what became of clean photos. The records are those of
`rr evaluate --sections reasoner restorer`; what is not in both is left out."""

import argparse
from pathlib import Path

import numpy as np
from kept import Kept

from rr.evaluate import with_interval
from rr.severity import Table


def by_photo(rows: list[dict], without: list[str] = (), section: str = 'restorer') -> dict:
    "(condition, photo) -> record of that section; not of photos whose name holds a part in `without`."
    kept = [r for r in rows if r['section'] == section and not any(w in r['name'] for w in without)]
    return {(r['condition'], r['name']): r for r in kept}


def gains(rows: list[dict], method: str) -> np.ndarray:
    "dB over the damaged photo."
    return np.array([r['psnr'][method] - r['psnr']['input'] for r in rows])


def errors(rows: list[dict], method: str) -> np.ndarray:
    "Points between the severity that is there and the one that is read, mean over kinds."
    return np.array([np.mean([abs(r[method][k] - r['true'][k]) for k in r['true']]) for r in rows])


WHAT = {'restorer': ('gain in PSNR, dB', gains, ('predicted', 'true')), 'reasoner': ('error of the severity, points', errors, ('written', 'expected'))}


def compared(old: dict, new: dict, section: str = 'restorer') -> Table:
    "One line for each condition and method; of the records of `by_photo`."
    caption, values, methods = WHAT[section]
    table = Table(caption=caption)
    both = [k for k in old if k in new]
    if strange := [k for k in both if old[k]['seed'] != new[k]['seed'] or old[k]['photo'] != new[k]['photo']]:
        raise ValueError(f'not the same damage in both records: {", ".join(strange[0])}')
    for condition in dict.fromkeys(c for c, _ in both if c != 'clean'):
        keys = [k for k in both if k[0] == condition]
        for method in methods:
            a, b = (values([rows[k] for k in keys], method) for rows in (old, new))
            means = dict(before=round(a.mean(), 2), after=round(b.mean(), 2))
            table.append(dict(condition=condition, method=method, photos=len(keys)) | means | dict(difference=with_interval(b - a, np.mean, 2)))
    return table


def clean(rows: dict) -> dict:
    "How many clean photos come back as they are, and the PSNR of the three that suffer most."
    found = [r['psnr']['predicted'] for (c, _), r in rows.items() if c == 'clean']
    changed = sorted(v for v in found if v is not None)
    return dict(photos=len(found), untouched=len(found) - len(changed), lowest=', '.join(f'{v:.1f}' for v in changed[:3]))


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('before', type=Path)
    p.add_argument('after', type=Path, nargs='+')
    p.add_argument('--without', nargs='+', default=(), metavar='PART', help='leave out photos whose name holds one of these')
    a = p.parse_args()
    rows = Kept(a.before), [r for path in a.after for r in Kept(path)]
    for section in WHAT:
        old, new = (by_photo(r, a.without, section) for r in rows)
        if old and new:
            print(compared(old, new, section))
        if old and new and section == 'restorer':
            print(Table([dict(which='before') | clean(old), dict(which='after') | clean(new)], caption='clean photos, dB'))



if __name__ == '__main__':
    main()
