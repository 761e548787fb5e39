"Limits, seeds and transparency at their edges; every kind of file is in test_bad_input.py."

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from rr.core import MAX_PIXELS, PhotoError, read_photo, seeded


@pytest.mark.parametrize('seed', [-(2**63), -5, -1, 0, 7, 2**32 + 7, 2**63, 2**64 - 1])
def test_a_seed_means_what_it_means_to_torch(seed):
    ours, plain = seeded(seed), torch.Generator().manual_seed(seed)
    assert ours.initial_seed() == plain.initial_seed()
    assert torch.equal(torch.rand(5, generator=ours), torch.rand(5, generator=plain))


def test_any_integer_is_a_seed():
    draw = lambda seed: torch.rand(5, generator=seeded(seed)).tolist()
    assert draw(2**64 + 7) == draw(7 - 2**64) == draw(np.int64(7)) == draw(7)
    assert draw(10**18 * 1009) == draw(10**18 * 1009) != draw(10**18 * 1009 + 1)
    with pytest.raises(TypeError):
        seeded(0.5)


def test_max_pixels_counts_and_not_the_limit_of_pillow(tmp_path, small_photo, monkeypatch):
    paths = [tmp_path / name for name in ('a.png', 'a.tif', 'a.jpg') * 4]  # a plain TIFF is checked when it is decoded
    for path in paths[:3]:
        small_photo.save(path)
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)
    with ThreadPoolExecutor(4) as threads:
        photos = list(threads.map(lambda p: read_photo(p, max_pixels=MAX_PIXELS + 1), paths))
    assert {p.size for p in photos} == {(160, 120)} and Image.MAX_IMAGE_PIXELS == 1000
    (tmp_path / 'letter.png').write_text('Dear photo,')
    with pytest.raises(PhotoError, match='not an image'):
        read_photo(tmp_path / 'letter.png', max_pixels=MAX_PIXELS + 1)
    assert Image.MAX_IMAGE_PIXELS == 1000


@pytest.mark.parametrize('orientation', [1, 6])
def test_a_transparent_shade_of_16_bit_grey_is_kept(tmp_path, orientation):
    grey = np.arange(20 * 30, dtype=np.uint16).reshape(20, 30) * 100
    grey[:5, :7] = 65432
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(grey).save(tmp_path / 'a.png', transparency=65432, exif=exif)
    photo = read_photo(tmp_path / 'a.png')
    upright = grey if orientation == 1 else np.rot90(grey, -1)
    assert np.array_equal(photo.alpha[0].numpy(), upright != 65432)
    assert np.array_equal((photo.image[0] * 65535).round().int().numpy(), upright)
