"Pair i of a stream is always pair i; folders, captions, exclusions and depth maps are read as documented."
import json
import numpy as np
import pytest
import torch
from PIL import Image
from rr.core import bundled_photos, read_photo
from rr.data import Recipe, PairStream, clean_photos, crop_resize, evaluation_pairs, load_captions, random_window, read_depth, read_exclusions
from rr.core import seeded

@pytest.fixture
def folder(tmp_path):
    for i, path in enumerate(list(bundled_photos().values())[:3]):
        (tmp_path/'sub').mkdir(exist_ok=True)
        Image.open(path).convert('RGB').resize((300, 260)).save(tmp_path/'sub'/f'{i}.png')
    return tmp_path

def test_streams_repeat_and_do_not_depend_on_order(folder):
    a, b = (PairStream(clean_photos(folder), 64, seed=5) for _ in range(2))
    backwards = [b[i] for i in reversed(range(6))][::-1]
    for x, y in zip([a[i] for i in range(6)], backwards):
        assert torch.equal(x.degraded, y.degraded) and torch.equal(x.clean, y.clean) and x.diagnosis == y.diagnosis

def test_the_diagnosis_tells_what_was_done(folder):
    for i in range(20):
        p = PairStream(clean_photos(folder), 64, Recipe(clean_share=.3), seed=1)[i]
        assert p.diagnosis.is_clean == torch.equal(p.degraded, p.clean)

def test_exclusions_and_captions_are_relative_to_their_files(folder):
    (folder/'bad.tsv').write_text('file\treason\nsub/1.png\tblurred\n')
    (folder/'captions.jsonl').write_text(json.dumps(dict(file='sub/0.png', scene='a room', objects=['cup'])) + '\n')
    photos = clean_photos(folder, read_exclusions(folder/'bad.tsv'))
    assert [p.name for p in photos] == ['0.png', '2.png']
    scenes = load_captions(folder/'captions.jsonl')
    seen = {PairStream(photos, 64, seed=0, scenes=scenes)[i].diagnosis.scene.scene for i in range(12)}
    assert 'a room' in seen

def test_depth_maps_are_found_and_are_not_photos(folder):
    depth = np.tile(np.linspace(1000, 60000, 300).astype(np.uint16), (260, 1))
    Image.fromarray(depth).save(folder/'sub'/'0_depth.png')
    assert len(clean_photos(folder)) == 3
    d = read_depth(folder/'sub'/'0.png')
    assert d.shape == (1, 260, 300) and d.max() == 1 and d[0, 0, 0] == pytest.approx(1000 / 60000, abs=1e-3)
    assert read_depth(folder/'sub'/'1.png') is None

def test_evaluation_pairs_are_the_same_for_everyone(folder):
    a, b = list(evaluation_pairs(folder, seed=0)), list(evaluation_pairs(folder, seed=0))
    assert [p.name for p in a] == ['sub/0.png', 'sub/1.png', 'sub/2.png']
    assert all(torch.equal(x.degraded, y.degraded) for x, y in zip(a, b))
    assert a[0].clean.shape == read_photo(folder/'sub'/'0.png').image.shape

def test_windows_stay_inside():
    for s in range(200):
        h, w = 40 + s, 300 - s
        top, left, side = random_window((h, w), 64, seeded(s))
        assert 0 <= top <= h - side and 0 <= left <= w - side and crop_resize(torch.rand(3, h, w), (top, left, side), 64).shape == (3, 64, 64)

def test_no_photos_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match='no photos found'): clean_photos(tmp_path)
    with pytest.raises(ValueError, match='no photos'): PairStream([])
