"""How far the reasoner's severities follow damage that other people's code makes, and real damage: python docs/measure_transfer.py CLEAN_DIRS --twins fog HAZY CLEAR --twins noise NOISY CLEAN --out docs/measured/transfer.jsonl

With --measured, of noise and blur what is measured on the photo where the reasoner names them, as the restorer is told, instead of what is read.
Needs the extra `dev` (imgcorr, the corruptions of ImageNet-C; kornia; deepinv)."""
import argparse, importlib.resources, json, sys, types, warnings
from pathlib import Path

import numpy as np
import torch

# imgcorr asks an old setuptools for the folder of its own frost pictures, which is not needed here
sys.modules.setdefault('pkg_resources', types.SimpleNamespace(resource_filename=lambda package, name: str(importlib.resources.files(package) / name)))
warnings.filterwarnings('ignore')  # of the packages below, about NumPy

from rr.core import atomic_path
from rr.data import clean_photos
from rr.evaluate import compare_twins, level_table, paired_photos, read_levels
from rr.pipeline import ReasonRestore
from rr.reasoner import Reasoner


def corruption(name):
    "A corruption of ImageNet-C, severities 1 to 5."
    from imgcorr import corruptions
    from PIL import Image
    def damage(photo, level, i):
        np.random.seed(1000 * i + int(level))
        im = Image.fromarray((photo * 255).round().byte().permute(1, 2, 0).numpy())
        return torch.from_numpy(np.asarray(getattr(corruptions, name)(im, severity=int(level))).astype('float32').copy()).permute(2, 0, 1) / 255
    return damage

def haze(photo, level, i):
    "Uniform haze over a ground that recedes upwards (deepinv)."
    from deepinv.physics import Haze
    g, (h, w) = torch.Generator().manual_seed(i), photo.shape[-2:]
    depth = torch.linspace(1, .2, h).view(1, 1, h, 1).expand(1, 1, h, w)
    return Haze(beta=.35 * level).A([photo[None], depth, torch.tensor(.75 + .2 * float(torch.rand((), generator=g)))])[0]

def rain(photo, level, i):
    "Short grey lines, more of them at each level (kornia)."
    from kornia.augmentation import RandomRain
    torch.manual_seed(i)
    return RandomRain(p=1., drop_height=(12, 16), drop_width=(-4, 4), number_of_drops=(150 * level, 150 * level + 1))(photo[None])[0]

def motion(photo, level, i):
    from kornia.filters import motion_blur
    return motion_blur(photo[None], 4 * level + 1, 36. * i, 0., border_type='reflect')[0]

LEVELS, MEASURED = range(1, 6), ('noise', 'blur')
GENERATORS = {
    'Gaussian noise, ImageNet-C': ('noise', LEVELS, corruption('gaussian_noise')), 'shot noise, ImageNet-C': ('noise', LEVELS, corruption('shot_noise')),
    'impulse noise, ImageNet-C': ('noise', LEVELS, corruption('impulse_noise')), 'Gaussian blur, ImageNet-C': ('blur', LEVELS, corruption('gaussian_blur')),
    'defocus, ImageNet-C': ('blur', LEVELS, corruption('defocus_blur')), 'motion blur, kornia': ('blur', LEVELS, motion),
    'fog, ImageNet-C': ('fog', LEVELS, corruption('fog')), 'haze, deepinv': ('fog', LEVELS, haze), 'rain, kornia': ('rain', LEVELS, rain)}

class Told:
    "Speaks as a reasoner whose noise and blur are measured where it names them."
    def __init__(self, pipeline): self.pipeline, self.kinds = pipeline, pipeline.reasoner.kinds

    def severity(self, images):
        rows = []
        for image, reply in zip(images, self.pipeline.reasoner.reply(images)):
            told = self.pipeline.told(image, reply.diagnosis, reply.present)
            rows.append([told.severity(k) if k in MEASURED and k in reply.diagnosis.findings else s for k, s in zip(reply.kinds, reply.severity.tolist())])
        return torch.tensor(rows)

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('photos', type=Path, nargs='+', help='folders of clean photos')
    p.add_argument('--every', type=int, default=3, help='take every so-manyth photo')
    p.add_argument('--twins', nargs=3, action='append', default=[], metavar=('KIND', 'DAMAGED', 'CLEAN'), help='real damage: two folders, and the kind that differs')
    p.add_argument('--reasoner', default='nano')
    p.add_argument('--measured', action='store_true', help='as the restorer is told; noise and blur only')
    p.add_argument('--out', type=Path, required=True)
    a = p.parse_args()
    reasoner = Told(ReasonRestore.from_pretrained(a.reasoner)) if a.measured else Reasoner.from_pretrained(a.reasoner)
    photos = [path for folder in a.photos for path in clean_photos(folder)][::a.every]
    levels = read_levels(reasoner, photos, {name: g for name, g in GENERATORS.items() if not a.measured or g[0] in MEASURED})
    twins = [row for kind, damaged, clean in a.twins for row in compare_twins(reasoner, paired_photos(damaged, clean), kind)]
    with atomic_path(a.out) as path: path.write_text(''.join(json.dumps(r) + '\n' for r in levels + twins))
    print(level_table(levels))
    for kind, damaged, _ in a.twins:
        rows = [r for r in twins if r['kind'] == kind]
        right = sum(r['damaged'] > r['clean'] for r in rows)
        print(f'{damaged}: more {kind} than in the clean twin in {right} of {len(rows)} ({right / len(rows):.0%})')

if __name__ == '__main__': main()
