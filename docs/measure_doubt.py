"""Weak noise as cameras leave it: is it named, is it in doubt, and what does it bring to take it away? python docs/measure_doubt.py Kodak24 McMaster --out docs/measured/doubt.jsonl

Clean photos, and the same with noise of a camera in a file: demosaicked, smoothed, JPEG 95 with half the resolution of colour. For each the reasoner's probability of noise,
and the PSNR as it comes in, as the pipeline gives it back that takes half of what is in doubt away, and as the network for noise alone leaves it, told no level. Records that are there already are kept."""

from pathlib import Path

import numpy as np
import torch
from kept import Kept, photo_arguments

from rr.core import psnr, read_photo, seeded
from rr.data import clean_photos, demosaicked, softened
from rr.degrade import DEGRADATIONS, noisy
from rr.pipeline import IN_DOUBT, ReasonRestore
from rr.severity import Table, center_crop

SIDE, LEVELS, SOFT = 384, (0, 2, 3, 5, 8), 0.6  # pixels, 8-bit levels (0: no noise, no file), pixels
DOUBTS = (0.02, 0.05, 0.1, 0.2)  # to count


def in_file(clean: torch.Tensor, level: float, seed: int) -> torch.Tensor:
    "The photo with a camera's noise of so many levels, as a file holds it."
    if not level:
        return clean
    noise = noisy(clean, dict(type='camera', sigma=level, read_share=0.35), seeded(seed)).clamp(0, 1) - clean
    noise = softened(demosaicked(noise), SOFT)
    noise = noise * level / 255 / noise.std()
    return DEGRADATIONS['jpeg'].apply((clean + noise).clamp(0, 1), dict(quality=95, chroma='half'), None)


def record(pipeline, clean: torch.Tensor, level: float, seed: int) -> dict:
    photo = in_file(clean, level, seed)
    result, alone = pipeline(photo), pipeline.restorer.denoise(photo)
    score = lambda image: round(min(float(psnr(image, clean)), 100.0), 3)  # 100: the same
    likely = dict(zip(result.reply.kinds, result.reply.present.tolist()))['noise']
    return dict(
        likely=round(likely, 4),
        named='noise' in result.before.findings,
        others=[k for k in result.before.present if k != 'noise'],
        damaged=score(photo),
        pipeline=score(result.restored.image),
        alone=score(alone),
    )


def report(rows: list[dict]):
    "How often noise is named or in doubt; what the pipeline brings to all photos; then to those where noise is in doubt and nothing named."
    mean = lambda found, key: float(np.mean([r[key] for r in found]))
    seen, every = Table(caption='Noise of a camera, in a file'), Table(caption='What the pipeline does to all of them; PSNR of those that it changes')
    acted = Table(caption=f'Above {IN_DOUBT}, nothing named: half is taken away')
    for level in LEVELS:
        found = [r for r in rows if r['level'] == level]
        doubt = {f'above {d}': sum(r['likely'] > d for r in found) for d in DOUBTS}
        seen.append(dict(level=level, photos=len(found), named=sum(r['named'] for r in found)) | doubt)
        moved = [r for r in found if r['pipeline'] != r['damaged']]
        every.append(dict(level=level, photos=len(found), gain=f'{mean(found, "pipeline") - mean(found, "damaged"):+.2f}' if level else '',
            better=sum(r['pipeline'] > r['damaged'] for r in found), worse=sum(r['pipeline'] < r['damaged'] for r in found),
            changed=len(moved), PSNR=f'{mean(moved, "pipeline"):.2f}', lowest=f'{min(r["pipeline"] for r in moved):.1f}'))
        found = [r for r in found if r['likely'] > IN_DOUBT and not r['named'] and not r['others']]
        acted.append(dict(level=level, photos=len(found)) | {k: f'{mean(found, k):.2f}' for k in ('damaged', 'pipeline', 'alone')} | dict(
            gain=f'{mean(found, "pipeline") - mean(found, "damaged"):+.2f}' if level else '',
            better=sum(r['pipeline'] > r['damaged'] for r in found), lowest=f'{min(r["pipeline"] for r in found):.1f}', highest=f'{max(r["pipeline"] for r in found):.1f}'))
    print(seen, every, acted, sep='\n\n')


def main():
    a = photo_arguments(__doc__).parse_args()
    if a.threads:
        torch.set_num_threads(a.threads)
    rows, pipeline = Kept(a.out), ReasonRestore.from_pretrained()
    known = {(r['name'], r['level']) for r in rows}
    for i, path in enumerate([path for folder in a.photos for path in clean_photos(folder)][:: a.every]):
        clean = center_crop(read_photo(path).image, SIDE)
        for level in LEVELS:
            if (path.name, level) not in known:
                rows.add(dict(name=path.name, level=level) | record(pipeline, clean, level, i))
    report(rows)


if __name__ == '__main__':
    main()
