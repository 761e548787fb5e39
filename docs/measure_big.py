"""What a photo of 24 megapixels costs: python docs/measure_big.py --out docs/measured/big.json

A bundled photo, stretched to 6000 x 4000, with fog and noise; `rr restore` in a process of its own."""
import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F

from rr.core import atomic_path, bundled_photos, to_tensor
from rr.degrade import degrade
from rr.evaluate import measure_command

HEIGHT, WIDTH = 4000, 6000


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--out', type=Path, required=True)
    a = p.parse_args()
    photo = F.interpolate(to_tensor(bundled_photos()['lake'])[None], (HEIGHT, WIDTH), mode='bicubic')[0].clamp(0, 1)
    found = measure_command(degrade(photo, {'fog': 40, 'noise': 30}, seed=0).image)
    found = dict(height=HEIGHT, width=WIDTH, threads=torch.get_num_threads(), **found)
    with atomic_path(a.out, overwrite=True) as path: path.write_text(json.dumps(found) + '\n')
    print(found)


if __name__ == '__main__':
    main()
