"""Does the reasoner still see the damage once the photo is a file? python docs/measure_stored.py Kodak24 McMaster --out docs/measured/stored.jsonl

The same damaged photos in several forms: as they were made, as JPEG files with full and with half resolution of colour, without colour, with noise that a camera's
demosaicking has smoothed; and undamaged ones, stored alike. With --reasoner FOLDER other weights than those that ship; records that are there already are kept."""

import argparse, json
from pathlib import Path

import numpy as np
import torch

from rr.core import luma
from rr.data import EVALUATION, PairStream, clean_photos, demosaicked
from rr.degrade import DEGRADATIONS, PAPER_KINDS, degrade
from rr.reasoner import Reasoner
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


def report(rows: list[dict]):
    found = summary(rows)
    for label in dict.fromkeys(r['reasoner'] for r in found):
        table = Table(
            caption=f'{label}: mean absolute error of the severity, points, and recall at {PRESENT} points'
        )
        for r in (r for r in found if r['reasoner'] == label):
            cells = {k: f'{r["error"][k]:.1f}, {r["recall"][k]:.2f}' for k in PAPER_KINDS}
            table.append({'form': r['form']} | cells | {'clean called damaged': f'{r["alarms"]:.0%}'})
        print(table, '\n')


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('photos', type=Path, nargs='+', help='folders of clean photos')
    p.add_argument('--reasoner', default='nano')
    p.add_argument('--label', help='what the records call it; default: its name')
    p.add_argument('--out', type=Path, required=True)
    p.add_argument('--threads', type=int)
    a = p.parse_args()
    if a.threads:
        torch.set_num_threads(a.threads)
    label = a.label or a.reasoner
    rows = [json.loads(line) for line in a.out.read_text().splitlines()] if a.out.exists() else []
    known = {(r['reasoner'], r['form'], r['name'], any(r['true'])) for r in rows}
    reasoner = Reasoner.from_pretrained(a.reasoner)
    columns = [list(reasoner.kinds).index(k) for k in PAPER_KINDS]
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
                said = reasoner.severity([store(image.clamp(0, 1), calm)])[0][columns]
                rows.append(
                    dict(
                        reasoner=label, form=form, name=path.name, true=true, said=[round(float(s), 2) for s in said]
                    )
                )
                with open(a.out, 'a') as file:
                    file.write(json.dumps(rows[-1]) + '\n')
    report(rows)


if __name__ == '__main__':
    main()
