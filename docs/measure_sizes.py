"""Does the reasoner read the same severity from a large photo as from a small one? python docs/measure_sizes.py Kodak24 McMaster --out docs/measured/sizes.jsonl

The same photos with the same one to four kinds of damage, of the same severity in pixels, in several sizes: the middle of the photo, or the photo continued by its mirror images.
What differs is what the reasoner sees of it: two windows of 160 pixels and the whole, scaled down to 96. With --reasoner FOLDER other weights than those that ship; records
that are there already are kept."""

import numpy as np
import torch
from kept import Kept
from measure_stored import arguments, reader, report

from rr.core import read_photo, seeded
from rr.data import Recipe, clean_photos, make_pair
from rr.degrade import PAPER_KINDS, reflect_pad

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


def cells(row: dict) -> dict:
    each = {k: f'{row["error"][k]:.1f}; {row["bias"][k]:+.1f}' for k in PAPER_KINDS}
    return each | {'together': f'{np.mean(list(row["error"].values())):.1f}'}


def main():
    p = arguments(__doc__)
    p.add_argument('--sizes', type=int, nargs='+', default=SIZES, help='sides of the square photos, pixels')
    a = p.parse_args()
    label, rows, read = a.label or a.reasoner, Kept(a.out), reader(a)
    known = {(r['reasoner'], r['size'], r['name']) for r in rows}
    photos = [path for folder in a.photos for path in clean_photos(folder)]
    for i, path in enumerate(photos):
        photo, severities = read_photo(path).image, RECIPE.draw(seeded(i))
        true = [severities.get(k, 0) for k in PAPER_KINDS]
        for size in a.sizes:
            if (label, size, path.name) in known:
                continue
            said = read(make_pair(of_size(photo, size), severities, i).degraded)
            rows.add(dict(reasoner=label, size=size, name=path.name, true=true, said=said))
    report(summary(rows), 'size', 'mean absolute error of the severity, points; mean error where present', cells)


if __name__ == '__main__':
    main()
