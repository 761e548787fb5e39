"""Does the reasoner still see the damage once the photo is a file? python docs/measure_stored.py Kodak24 McMaster --out docs/measured/stored.jsonl

The same damaged photos in several forms: as they were made, as JPEG files with full and with half resolution of colour, without colour, with noise that a camera's
demosaicking has smoothed; and undamaged ones, stored alike. With --reasoner FOLDER other weights than those that ship; records that are there already are kept."""

import argparse
from pathlib import Path

import numpy as np
import torch
from kept import Kept

from rr.core import luma
from rr.data import EVALUATION, PairStream, clean_photos, demosaicked
from rr.degrade import DEGRADATIONS, PAPER_KINDS, degrade
from rr.reasoner import WHOLE, Reasoner, corner_looks
from rr.severity import Table

SIZE, PRESENT = 320, 15


def jpeg(quality: float, chroma: str):
    return lambda image, quiet: DEGRADATIONS['jpeg'].apply(image, dict(quality=quality, chroma=chroma), None)


def camera(image, quiet):
    return jpeg(95, 'half')((quiet + demosaicked(image - quiet)).clamp(0, 1), None)


FORMS = {
    'as made': lambda image, quiet: image,
    'JPEG 95, full colour': jpeg(95, 'full'),
    'JPEG 95, half colour': jpeg(95, 'half'),
    'JPEG 80, half colour': jpeg(80, 'half'),
    'grey': lambda image, quiet: luma(image).expand(3, -1, -1),
    'demosaicked noise, JPEG 95, half colour': camera,
}  # (image, the same without its noise) -> image


def summary(rows: list[dict]) -> list[dict]:
    "By reasoner and form: mean absolute error of the expected severity, recall of what is there, false alarms on clean photos."
    made = []
    for label, form in dict.fromkeys((r['reasoner'], r['form']) for r in rows):
        found = [r for r in rows if (r['reasoner'], r['form']) == (label, form)]
        damaged = [r for r in found if any(r['true'])]
        said, true = (np.array([r[k] for r in damaged]) for k in ('said', 'true'))
        alarms = np.mean([max(r['said']) >= PRESENT for r in found if not any(r['true'])])
        each = lambda values: {k: round(float(v), 2) for k, v in zip(PAPER_KINDS, values)}
        seen = [(said[:, i] >= PRESENT)[true[:, i] >= PRESENT].mean() for i in range(len(PAPER_KINDS))]
        made.append(
            dict(
                reasoner=label,
                form=form,
                error=each(np.abs(said - true).mean(0)),
                recall=each(seen),
                alarms=round(float(alarms), 3),
            )
        )
    return made


def report(found: list[dict], column: str, about: str, cells):
    "A table for each reasoner, with a row for each value of `column` and what `cells` makes of a summary."
    for label in dict.fromkeys(r['reasoner'] for r in found):
        rows = [{column: r[column]} | cells(r) for r in found if r['reasoner'] == label]
        print(Table(rows, caption=f'{label}: {about}'), '\n')


def cells(row: dict) -> dict:
    each = {k: f'{row["error"][k]:.1f}, {row["recall"][k]:.2f}' for k in PAPER_KINDS}
    return each | {'clean called damaged': f'{row["alarms"]:.0%}'}


def arguments(about: str) -> argparse.ArgumentParser:
    "What a command takes that asks a reasoner for severities."
    p = argparse.ArgumentParser(description=about.splitlines()[0])
    p.add_argument('photos', type=Path, nargs='+', help='folders of clean photos')
    p.add_argument('--reasoner', default='nano')
    p.add_argument('--label', help='what the records call it; default: its name')
    p.add_argument('--out', type=Path, required=True)
    p.add_argument('--threads', type=int)
    p.add_argument('--looks', type=float, nargs='?', const=2 / 3, metavar='SHARE', help='look at the corners and the middle, two thirds of either side or this share; default: once, at the whole')
    return p


def reader(a: argparse.Namespace):  # image -> severities of `PAPER_KINDS`
    "The reasoner that was asked for, as a function."
    if a.threads:
        torch.set_num_threads(a.threads)
    reasoner = Reasoner.from_pretrained(a.reasoner, looks=corner_looks(a.looks) if a.looks else WHOLE)
    columns = [list(reasoner.kinds).index(k) for k in PAPER_KINDS]
    return lambda image: [round(float(s), 2) for s in reasoner.severity([image])[0][columns]]


def main():
    a = arguments(__doc__).parse_args()
    label, rows, read = a.label or a.reasoner, Kept(a.out), reader(a)
    known = {(r['reasoner'], r['form'], r['name'], any(r['true'])) for r in rows}
    photos = [path for folder in a.photos for path in clean_photos(folder)]
    for i, path in enumerate(photos):
        pair = PairStream([path], SIZE, EVALUATION, seed=5)[i]
        severities = {k: s for k, s in pair.diagnosis.severities().items() if s}
        quiet = degrade(pair.clean, {k: s for k, s in severities.items() if k != 'noise'}, pair.seed).image
        for image, calm, true in (
            (pair.degraded, quiet, [severities.get(k, 0) for k in PAPER_KINDS]),
            (pair.clean, pair.clean, [0] * len(PAPER_KINDS)),
        ):
            for form, store in FORMS.items():
                if (label, form, path.name, any(true)) in known:
                    continue
                said = read(store(image.clamp(0, 1), calm))
                rows.add(dict(reasoner=label, form=form, name=path.name, true=true, said=said))
    report(summary(rows), 'form', f'mean absolute error of the severity, points; recall at {PRESENT} points', cells)


if __name__ == '__main__':
    main()
