"""What is the network for noise alone worth, and how much should it weigh? python docs/measure_noise_alone.py Kodak24 McMaster --every 3 --out docs/measured/noise_alone.jsonl

Squares of clean photos with noise of each kind and level, as a file holds it (clipped), and Gaussian noise as benchmarks have it (not clipped). PSNR of the flow, of the network for
noise alone, of their mean, and of the weighted mean that the restorer gives. Both are told kind and level; `one level` is the network for noise alone without the kind, and so with
one level for the whole photo. Records that are there already are kept."""

from pathlib import Path

import numpy as np
import torch
from kept import Kept, photo_arguments

from rr.core import psnr, read_photo, seeded
from rr.data import clean_photos
from rr.degrade import DEGRADATIONS, noisy, severity_of
from rr.diagnosis import Diagnosis, Finding
from rr.restorer import NanoRestorer, denoiser_share
from rr.severity import Table

SIDE, SIGMAS = 320, (5, 10, 15, 25, 50)
NOISES = {
    'gaussian, not clipped': dict(type='gaussian'),
    'gaussian': dict(type='gaussian'),
    'poisson': dict(type='poisson'),
    'camera': dict(type='camera', read_share=0.35),
}
METHODS = ('damaged', 'flow', 'one level', 'noise alone', 'mean', 'weighted')


def measured(restorer, flow, clean: torch.Tensor, noise: str, sigma: float, seed: int) -> dict:
    "PSNR of every method, and the weight of the network for noise alone."
    params = NOISES[noise] | dict(sigma=sigma)
    damaged = (
        noisy(clean, params, seeded(seed))
        if 'not clipped' in noise
        else DEGRADATIONS['noise'].apply(clean, params, seeded(seed))
    )
    severity = max(1, round(severity_of('noise', 'sigma', sigma)))
    told, level = (Diagnosis({'noise': Finding(severity, p)}) for p in (params, {}))
    one, other = flow.restore([damaged], [told])[0], restorer.denoise(damaged, told)
    share = denoiser_share(damaged, told.findings['noise'])
    images = (
        damaged, one, restorer.denoise(damaged, level), other, (one + other) / 2,
        torch.lerp(one, other, share),  # as `_restore` does
    )
    scores = {name: round(float(psnr(image, clean)), 3) for name, image in zip(METHODS, images)}
    return scores | dict(share=round(share, 3))


def main():
    a = photo_arguments(__doc__).parse_args()
    if a.threads:
        torch.set_num_threads(a.threads)
    rows = Kept(a.out)
    known = {(r['name'], r['noise'], r['sigma']) for r in rows}
    restorer, flow = NanoRestorer.from_pretrained('nano'), NanoRestorer.from_pretrained('nano', denoise=False)
    photos = [path for folder in a.photos for path in clean_photos(folder)][:: a.every]
    for i, path in enumerate(photos):
        clean = read_photo(path).image[:, :SIDE, :SIDE]
        for noise in NOISES:
            for sigma in SIGMAS:
                if (path.name, noise, sigma) in known:
                    continue
                found = measured(restorer, flow, clean, noise, sigma, i)
                rows.add(dict(name=path.name, noise=noise, sigma=sigma) | found)
    table = Table(caption=f'PSNR in dB, {len(photos)} photos')
    for noise, sigma in dict.fromkeys((r['noise'], r['sigma']) for r in rows):
        found = [r for r in rows if (r['noise'], r['sigma']) == (noise, sigma)]
        mean = {m: f'{np.mean([r[m] for r in found]):.2f}' for m in METHODS + ('share',)}
        table.append(dict(noise=noise, sigma=sigma) | mean)
    print(table)


if __name__ == '__main__':
    main()
