"""Fidelity against sharpness.

    python docs/measure_steps.py Kodak24 --features mobilenet_v2.pth --out docs/measured/steps.jsonl

The shipped restorer in 1, 2, 4 and 8 steps, told what the reasoner says. Distortion is PSNR against the clean photo.
Perception, after Blau and Michaeli (2018), is how far the restored photos are from clean photos as a population: the
Frechet distance between features of all their small parts. The features are those of MobileNetV2 after its second
stage (24 numbers for each 4 x 4 pixels, which see 19 x 19); the file holds its ImageNet weights as torchvision names
them."""

import argparse
from pathlib import Path

import numpy as np
import torch
from kept import Kept

from rr.core import psnr
from rr.evaluate import CONDITIONS, bootstrap, condition_pair, evaluation_photos
from rr.pipeline import ReasonRestore
from rr.severity import Table

STEPS = (1, 2, 4, 8)


def load_features(path: Path):
    "Function of a (3, H, W) photo in [0, 1] -> (n, 24) features of its parts, float64."
    from torchvision.models import mobilenet_v2

    net = mobilenet_v2()
    net.load_state_dict(torch.load(path, weights_only=True))
    body = net.features[:4].eval().requires_grad_(False)
    mean, std = (
        torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1),
        torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1),
    )
    return lambda photo: body(((photo - mean) / std)[None])[0].flatten(1).T.double().numpy()


UPPER = np.triu_indices(24)


def moments(x) -> list[float]:  # (n, 24) -> 24 means and 300 means of products
    return [float(f'{v:.7g}') for v in (*x.mean(0), *(x.T @ x / len(x))[UPPER])]


def frechet(a, b) -> float:  # (photos, 324) moments each, of photos of one size
    "Squared Frechet distance of two normal distributions (Heusel et al. 2017, equation 6)."

    def normal(rows):
        mean, products = np.split(rows.mean(0), [24])
        square = np.zeros((24, 24))
        square[UPPER] = products
        return mean, square + np.triu(square, 1).T - np.outer(mean, mean)

    (m, c), (k, d) = normal(a), normal(b)
    root = np.linalg.eigvals(c @ d).real.clip(0) ** 0.5
    return float(((m - k) ** 2).sum() + np.trace(c + d) - 2 * root.sum())


def summary(rows: list[dict]) -> list[dict]:
    "PSNR and distance for each number of steps, and their change against one step, with 95% intervals over photos."
    moments_of = lambda steps: np.array([r['moments'] for r in rows if r['steps'] == steps])
    scores_of = lambda steps: np.array([r['psnr'] for r in rows if r['steps'] == steps])
    clean, made = moments_of('clean'), []

    def estimate(statistic, every=np.arange(len(clean))):
        return [
            round(float(v), 4) for v in (statistic(every), *bootstrap(every, statistic))
        ]  # value, low, high

    for steps in ('as it is', *STEPS):
        there, scores, one, least = moments_of(steps), scores_of(steps), moments_of(1), scores_of(1)
        row = dict(
            steps=steps,
            photos=len(there),
            psnr=estimate(lambda i: scores[i].mean()),
            frechet=estimate(lambda i: frechet(there[i], clean[i])),
        )
        if steps in STEPS[1:]:
            row |= dict(
                psnr_change=estimate(lambda i: (scores - least)[i].mean()),
                frechet_change=estimate(lambda i: frechet(there[i], clean[i]) - frechet(one[i], clean[i])),
            )
        made.append(row)
    return made


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument(
        'photos', type=Path, nargs='*', help='folders of clean photos; none: print the table of the records'
    )
    p.add_argument('--features', type=Path, help='weights of MobileNetV2')
    p.add_argument('--condition', default='mixed', choices=list(CONDITIONS))
    p.add_argument(
        '--out',
        type=Path,
        required=True,
        help='records, one line a photo and number of steps; goes on where it stopped',
    )
    a = p.parse_args()
    rows = Kept(a.out)
    known = {(r['photo'], r['steps']) for r in rows}
    if a.photos:
        pipeline, features = ReasonRestore.from_pretrained(), load_features(a.features)
        for source in evaluation_photos(a.photos):
            if (source.name, STEPS[-1]) in known:
                continue
            pair = condition_pair(source, CONDITIONS[a.condition])
            photo = pair.degraded.clamp(0, 1)
            told = pipeline.told(photo, pipeline.reasoner.reply([photo])[0].diagnosis)
            made = {'clean': pair.clean, 'as it is': photo} | {
                n: pipeline.restorer.restore([photo], [told], steps=n)[0] for n in STEPS
            }
            new = [
                dict(
                    photo=source.name,
                    steps=n,
                    psnr=None if n == 'clean' else round(float(psnr(x, pair.clean)), 3),
                    moments=moments(features(x)),
                )
                for n, x in made.items()
            ]
            rows.add(*new)
    text = lambda values, n: '{:.{n}f} [{:.{n}f}, {:.{n}f}]'.format(*values, n=n)
    print(
        Table(
            [
                {
                    'steps': r['steps'],
                    'photos': r['photos'],
                    'PSNR, dB': text(r['psnr'], 2),
                    'Frechet distance': text(r['frechet'], 3),
                }
                for r in summary(rows)
            ]
        )
    )


if __name__ == '__main__':
    main()
