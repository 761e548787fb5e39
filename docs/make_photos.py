"""Make the bundled photos again: `python docs/make_photos.py [BUDGIE_BACKGROUNDS_FOLDER]`.

Needs scikit-image and matplotlib (both come with `pip install -e '.[dev]'`) for the photos that they ship; the two
landscapes are made only if the folder of the budgie-backgrounds collection is given. Then makes `rr/assets/damaged.jpg`.
"""

import sys
from pathlib import Path

import matplotlib
import skimage
from PIL import Image

HERE = Path(__file__).parents[1] / 'rr/assets/photos'
SKIMAGE, MATPLOTLIB = Path(skimage.__file__).parent / 'data', Path(matplotlib.get_data_path()) / 'sample_data'
SOURCES = {
    'astronaut': SKIMAGE / 'astronaut.png',
    'camera': SKIMAGE / 'camera.png',
    'cat': SKIMAGE / 'chelsea.png',
    'coffee': SKIMAGE / 'coffee.png',
    'rocket': SKIMAGE / 'rocket.jpg',
    'hopper': MATPLOTLIB / 'grace_hopper.jpg',
}
LANDSCAPES = {'lake': 'lake-sherburne.jpg', 'colosseum': 'roman-colosseum.jpg'}
DAMAGE = dict(photo='colosseum', fog=55, noise=35, seed=1)


def save(source, name, side=640):
    "The photo `source`, at most `side` pixels long, as `name`.jpg without metadata."
    photo = Image.open(source).convert('RGB')
    photo.thumbnail((side, side), Image.Resampling.LANCZOS)
    photo.save(HERE / f'{name}.jpg', quality=92, subsampling=0, optimize=True)


def main():
    for name, source in SOURCES.items():
        save(source, name)
    for name, source in LANDSCAPES.items() if len(sys.argv) > 1 else ():
        save(Path(sys.argv[1]) / source, name)
    from rr.core import read_photo, write_photo
    from rr.degrade import degrade

    clean = read_photo(HERE / f'{DAMAGE["photo"]}.jpg').image
    damaged = degrade(clean, {k: DAMAGE[k] for k in ('fog', 'noise')}, seed=DAMAGE['seed'])
    write_photo(HERE.parent / 'damaged.jpg', damaged.image, overwrite=True)


if __name__ == '__main__':
    main()
