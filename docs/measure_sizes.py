"""Does the reasoner read the same severity from a large photo as from a small one? python docs/measure_sizes.py Kodak24 McMaster --out docs/measured/sizes.jsonl

The same photos with the same one to four kinds of damage, of the same severity in pixels, in several sizes: the middle of the photo, or the photo continued by its mirror images.
What differs is what the reasoner sees of it: two windows of 160 pixels and the whole, scaled down to 96. With --reasoner FOLDER other weights than those that ship; records
that are there already are kept."""

import argparse, json
from pathlib import Path

import numpy as np
import torch

from rr.core import read_photo, seeded
from rr.data import Recipe, clean_photos, make_pair
from rr.degrade import PAPER_KINDS, reflect_pad
from rr.reasoner import Reasoner
from rr.severity import Table

SIZES = (224, 320, 500, 1000)
RECIPE = Recipe(PAPER_KINDS, max_kinds=4)


def of_size(photo: torch.Tensor, size: int) -> torch.Tensor:
    "The middle of a photo (3, H, W), continued by its mirror images where it is too small: (3, size, size)."
    missing = max(0, size - min(photo.shape[-2:]))
    photo = reflect_pad(photo, (missing + 1) // 2)
    top, left = ((n - size) // 2 for n in photo.shape[-2:])
    return photo[:, top : top + size, left : left + size]


def summary(rows: list[dict]) -> list[dict]:
    "By reasoner and size: mean absolute error of the expected severity, and its mean error where a kind is present."
    made = []
    for label, size in dict.fromkeys((r['reasoner'], r['size']) for r in rows):
        found = [r for r in rows if (r['reasoner'], r['size']) == (label, size)]
        error = np.array([r['said'] for r in found]) - np.array([r['true'] for r in found])
        there = np.array([r['true'] for r in found]) > 0
        each = lambda values: {k: round(float(v), 1) for k, v in zip(PAPER_KINDS, values)}
        bias = [column[mask].mean() for column, mask in zip(error.T, there.T)]
        made.append(dict(reasoner=label, size=size, error=each(np.abs(error).mean(0)), bias=each(bias)))
    return made


def report(rows: list[dict]):
    found = summary(rows)
    for label in dict.fromkeys(r['reasoner'] for r in found):
        table = Table(caption=f'{label}: mean absolute error of the severity, points; mean error where present')
        for r in (r for r in found if r['reasoner'] == label):
            cells = {k: f'{r["error"][k]:.1f}; {r["bias"][k]:+.1f}' for k in PAPER_KINDS}
            table.append({'side, pixels': r['size']} | cells | {'all': f'{np.mean(list(r["error"].values())):.1f}'})
        print(table, '\n')


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('photos', type=Path, nargs='+', help='folders of clean photos')
    p.add_argument('--sizes', type=int, nargs='+', default=SIZES, help='sides of the square photos, pixels')
    p.add_argument('--reasoner', default='nano')
    p.add_argument('--label', help='what the records call it; default: its name')
    p.add_argument('--out', type=Path, required=True)
    p.add_argument('--threads', type=int)
    a = p.parse_args()
    if a.threads:
        torch.set_num_threads(a.threads)
    label = a.label or a.reasoner
    rows = [json.loads(line) for line in a.out.read_text().splitlines()] if a.out.exists() else []
    known = {(r['reasoner'], r['size'], r['name']) for r in rows}
    reasoner = Reasoner.from_pretrained(a.reasoner)
    columns = [list(reasoner.kinds).index(k) for k in PAPER_KINDS]
    photos = [path for folder in a.photos for path in clean_photos(folder)]
    for i, path in enumerate(photos):
        photo, severities = read_photo(path).image, RECIPE.draw(seeded(i))
        for size in a.sizes:
            if (label, size, path.name) in known:
                continue
            pair = make_pair(of_size(photo, size), severities, i)
            said = reasoner.severity([pair.degraded])[0][columns]
            true = [severities.get(k, 0) for k in PAPER_KINDS]
            rows.append(
                dict(reasoner=label, size=size, name=path.name, true=true, said=[round(float(s), 2) for s in said])
            )
            with open(a.out, 'a') as file:
                file.write(json.dumps(rows[-1]) + '\n')
    report(rows)


if __name__ == '__main__':
    main()
