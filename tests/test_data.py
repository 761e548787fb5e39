"Pair i of a stream is always pair i; folders, captions, exclusions and depth maps are read as documented."
import json, math, os, pickle
from dataclasses import replace
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from rr.core import bundled_photos, read_photo
from rr.data import (BRIGHT, CAMERA_NOISE, STRONGEST, WEAK, Pair, PairStream, Recipe, Replay, as_stored, clean_photos, continued, demosaicked, crop_resize, depth_model, depth_statistics, evaluation_pairs, load_captions, made_ahead, make_pair, random_window,
                     read_depth, read_exclusions, softened, stored_pair, synthesize)
from rr.core import PhotoError, seeded, write_photo
from rr.degrade import degrade, severity_table, strength, use_scale
from rr.diagnosis import Diagnosis

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

def test_small_photos_are_continued_by_their_mirror_images_not_enlarged(folder):
    stream = PairStream(clean_photos(folder), 400, Recipe(clean_share=1.), seed=3, mirrored=True)
    for i in range(4):
        clean = stream[i].clean
        assert clean.shape == (3, 400, 400)
        crease = lambda image: {c for c in range(1, 399) if torch.equal(image[..., c - 1], image[..., c + 1])}  # columns that mirror their neighbours
        assert crease(clean) and crease(clean.mT)
    enlarged = PairStream(clean_photos(folder), 400, Recipe(clean_share=1.), seed=3)[0].clean
    assert enlarged.shape == (3, 400, 400) and not crease(enlarged)
    a, b = (PairStream(clean_photos(folder), 64, seed=5, mirrored=m)[2] for m in (False, True))
    assert torch.equal(a.degraded, b.degraded)  # nothing changes for photos that are large enough

def test_depth_is_continued_as_the_photo_is():
    photo = torch.rand(3, 20, 20, generator=seeded(0))
    clean, depth = continued(photo, photo[:1], 50, seeded(1))
    assert clean.shape == (3, 50, 50) and torch.equal(clean[:1], depth)
    assert set(clean[0].flatten().tolist()) == set(photo[0].flatten().tolist())
    assert continued(photo, None, 50, seeded(1))[1] is None

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

def test_hidden_files_are_not_photos(folder):
    before = clean_photos(folder)
    (folder/'.thumbnails').mkdir()
    for name in ('._0.png', '.rr-0123456789ab.png', '.thumbnails/0.png'): (folder/name).write_bytes(before[0].read_bytes())
    assert clean_photos(folder) == before
    assert [p.name for p in clean_photos(folder/'.thumbnails')] == ['0.png']  # unless it is asked for

def test_a_path_may_lead_through_its_parent(folder, monkeypatch):
    (folder/'lists').mkdir()
    (folder/'lists'/'t.tsv').write_text('file\n../sub/1.png\n')
    (folder/'lists'/'c.jsonl').write_text(json.dumps(dict(file='../sub/0.png', scene='a room')) + '\n')
    monkeypatch.chdir(folder/'lists')
    names = lambda *sources: [p.name for p in clean_photos('../sub', read_exclusions(*sources))]
    for source in ('t.tsv', '../lists/t.tsv', folder/'sub'/'..'/'sub'/'1.png', '../sub/1.png'): assert names(source) == ['0.png', '2.png']
    for captions in ('c.jsonl', folder/'sub'/'..'/'lists'/'c.jsonl'):
        scenes = load_captions(captions)
        assert scenes[clean_photos('../sub')[0]].scene == scenes[clean_photos(folder)[0]].scene == 'a room'
        pair = next(evaluation_pairs('../sub', Recipe(clean_share=1.), scenes=scenes))
        assert pair.name == '0.png' and pair.diagnosis.scene.scene == 'a room'

def test_a_folder_is_left_out_whole_and_a_source_that_is_not_there_is_refused(folder):
    (folder/'test'/'deep').mkdir(parents=True)
    os.link(folder/'sub'/'0.png', folder/'test'/'deep'/'kept.png')
    assert len(clean_photos(folder)) == 4
    assert [p.name for p in clean_photos(folder, read_exclusions(folder/'test'))] == ['0.png', '1.png', '2.png']
    for missing in ('tset', 'sub/9.png', 'bad.tsv'):
        with pytest.raises(FileNotFoundError, match=f'{missing}: not there'): read_exclusions(folder/missing)
    (folder/'other.tsv').write_text('photo\n0.png\n')
    with pytest.raises(ValueError, match='no column `file`'): read_exclusions(folder/'other.tsv')

def test_depth_maps_are_found_and_are_not_photos(folder):
    depth = np.tile(np.linspace(1000, 60000, 300).astype(np.uint16), (260, 1))
    Image.fromarray(depth).save(folder/'sub'/'0_depth.png')
    assert len(clean_photos(folder)) == 3
    d = read_depth(folder/'sub'/'0.png')
    assert d.shape == (1, 260, 300) and d.max() == 1 and d[0, 0, 0] == pytest.approx(1000 / 60000, abs=1e-3)
    assert read_depth(folder/'sub'/'1.png') is None

@pytest.mark.parametrize('size', [(600, 520), (150, 130), (100, 87), (299, 260)])
def test_a_depth_map_of_another_size_is_scaled_to_the_photo(folder, size):
    steps = np.zeros(size[::-1], np.uint8); steps[:, size[0] // 2:] = 250
    Image.fromarray(steps).save(folder/'sub'/'0_depth.png')
    path, seen = folder/'sub'/'0.png', PairStream([folder/'sub'/'0.png'], 64, Recipe(('fog',), region_share=1.))
    for depth in (read_depth(path), read_depth(path, (260, 300)), seen.read(path)[1]):
        assert depth.shape == (1, 260, 300) and depth[0, :, :145].max() < .05 and depth[0, :, 155:].min() > .95
    assert seen[0].degraded.shape == (3, 64, 64)
    assert next(evaluation_pairs(folder, Recipe(('fog',), region_share=1.))).degraded.shape == (3, 260, 300)

def test_a_depth_map_of_another_shape_is_named(folder):
    Image.new('L', (200, 260), 90).save(folder/'sub'/'0_depth.png')
    for ask in (lambda: PairStream(clean_photos(folder)[:1], 64)[0], lambda: next(evaluation_pairs(folder)), lambda: read_depth(folder/'sub'/'0.png')):
        with pytest.raises(PhotoError, match='0_depth.png.*200x260.*300x260'): ask()

def test_fog_by_measured_depth_is_compared_with_fog_by_other_depth(folder, capsys):
    from rr.data import compare_fog, main
    from rr.degrade import pseudo_depth
    with pytest.raises(FileNotFoundError, match='depth map'): main([str(folder), '--depth'])
    clean = read_photo(folder/'sub'/'0.png').image
    write_photo(folder/'sub'/'0_depth.png', pseudo_depth(clean, seeded(3)).expand(3, -1, -1))
    main([str(folder), '--depth'])
    assert '| measured |' in (printed := capsys.readouterr().out) and '| severity 80 |' in printed
    row = lambda s: [float(x) for x in compare_fog(clean_photos(folder), (s,))[-1].split('|')[2:-1]]
    mild, strong = row(20), row(80)
    assert all(a > b for a, b in zip(mild, strong)) and strong[2] > strong[0]  # wrong depth is wrong, but not as wrong as fog

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


def test_a_depth_model_of_transformers_is_a_hook(tmp_path):
    "The stock class, small and random: shape, range and direction are what `degrade` expects; the pixels follow the model."
    from transformers import GLPNConfig, GLPNForDepthEstimation, GLPNImageProcessor
    torch.manual_seed(0)
    config = GLPNConfig(depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16], num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=8)
    GLPNForDepthEstimation(config).save_pretrained(tmp_path)
    GLPNImageProcessor().save_pretrained(tmp_path)
    path = bundled_photos()['lake']
    photo = read_photo(path).image[:, :100, :140]
    depth, inverse = depth_model(tmp_path, inverse=False)(photo), depth_model(tmp_path)(photo)
    for d in (depth, inverse): assert d.shape == (1, 100, 140) and d.max() == pytest.approx(1) and d.min() > 0
    assert torch.corrcoef(torch.stack([depth.flatten(), inverse.flatten()]))[0, 1] < -.9  # what is far for one is near for the other
    recipe = Recipe(('fog',), 1, 1)
    streams = [PairStream([path], 64, recipe, depth_of=f) for f in (None, depth_model(tmp_path), lambda x: torch.full_like(x[:1], .5))]
    made = [s[3] for s in streams]
    assert made[0].diagnosis == made[1].diagnosis == made[2].diagnosis and torch.equal(made[0].clean, made[1].clean)
    assert not torch.equal(made[0].degraded, made[1].degraded) and not torch.equal(made[1].degraded, made[2].degraded)
    with pytest.raises(OSError): depth_model(tmp_path/'nothing')


def test_the_layout_of_reside_is_understood(tmp_path):
    "Hazy halves and depth maps are no clean photos; a depth map in the sibling folder `depth` belongs to its photo."

    for name in ('OTS/clear/0001.jpg', 'OTS/hazy/0001_0.8_0.2.jpg', 'other/a.png', 'other/a_depth.png', 'OTS/depth/0001.png'):
        (tmp_path/name).parent.mkdir(parents=True, exist_ok=True)
        picture = Image.linear_gradient('L').resize((48, 40))
        (picture if 'depth' in name else picture.convert('RGB')).save(tmp_path/name)
    found = clean_photos(tmp_path)
    assert [p.relative_to(tmp_path).as_posix() for p in found] == ['OTS/clear/0001.jpg', 'other/a.png']
    for p in found: assert read_depth(p).shape == (1, 40, 48) and read_depth(p)[0, -1].mean() > read_depth(p)[0, 0].mean()


def test_regions_are_drawn_as_often_as_asked():
    path, recipe = bundled_photos()['cat'], Recipe(region_share=.5, min_kinds=3, max_kinds=3)
    findings = [f for i in range(40) for f in PairStream([path], 48, recipe)[i].diagnosis.findings.values()]
    assert .35 < sum(bool(f.region) for f in findings) / len(findings) < .65
    assert not any(f.region for i in range(5) for f in PairStream([path], 48)[i].diagnosis.findings.values())
    made = list(evaluation_pairs(path.parent, Recipe(region_share=1.), limit=2))
    assert all(f.region for p in made for f in p.diagnosis.findings.values())


def test_statistics_of_depth_by_hand():
    ramp = torch.linspace(1, 0.01, 50).view(1, 50, 1).expand(1, 50, 40)
    found = depth_statistics(ramp)
    assert found['row_correlation'] == pytest.approx(-1, abs=1e-4) and found['median'] == pytest.approx(.505, abs=.01)
    step = torch.ones(1, 50, 40); step[:, :25] = .3
    assert depth_statistics(step)['steep_share'] == pytest.approx(1)

def test_replay_draws_from_what_was_made_last():
    made = iter([(torch.full((2, 3), float(i)), torch.tensor([i, i])) for i in range(100)])
    replay = Replay(made, replays=3, kept=8)
    seen = []
    for step in range(30):
        values, numbers = replay.draw(1, seeded(step))
        assert values.dtype == torch.float32 and values[0, 0] == numbers[0]
        seen.append(int(numbers))
        assert replay.count // 2 - 4 <= seen[-1] < replay.count // 2, 'only the last eight examples are there'
    assert replay.count == 2 * (4 + 9) and len(set(seen)) > 6
    plain = Replay(iter([(torch.tensor([.1]),), (torch.tensor([.2]),)]))
    assert plain.draw(1, seeded(0))[0] == .1 and plain.draw(1, seeded(0))[0] == .2  # as they come, not halved

def test_tones_change_the_clean_side_and_nothing_is_called_damage(folder):
    photos = clean_photos(folder)
    plain, toned = (PairStream(photos, 64, Recipe(clean_share=1., tone_share=share), seed=2) for share in (0., 1.))
    for i in range(6):
        pair = toned[i]
        assert torch.equal(pair.degraded, pair.clean) and pair.diagnosis.is_clean
        assert not torch.equal(pair.clean, plain[i].clean) and 0 <= pair.clean.min() and pair.clean.max() <= 1

def test_stored_pairs_are_the_same_pairs_as_a_file_holds_them(folder):
    photos, greys = clean_photos(folder), 0
    plain, stored = (PairStream(photos, 64, Recipe(clean_share=.2, stored_share=share), seed=3) for share in (0., 1.))
    for i in range(24):
        a, b = plain[i], stored[i]
        assert a.diagnosis == b.diagnosis and a.seed == b.seed and a.name == b.name
        assert torch.equal(b.degraded, stored[i].degraded), 'the same each time'
        levels = b.degraded * 255
        assert (levels - levels.round()).abs().max() < 1e-3, 'eight bits, as in a file'
        assert not torch.equal(a.degraded, b.degraded)
        if torch.equal(a.clean, b.clean): continue
        greys += 1
        for x in (b.clean, b.degraded): assert (x[0] - x[1]).abs().max() < .02
    assert 0 < greys < 8

def test_a_recipe_can_say_how_many_kinds_and_how_weak():
    draws = lambda recipe: [recipe.draw(seeded(i)) for i in range(600)]
    counted = [len(d) for d in draws(Recipe(counts=(3., 0., 1.)))]
    assert set(counted) == {1, 3} and .68 < counted.count(1) / 600 < .82
    assert {len(d) for d in draws(Recipe(('fog', 'rain'), counts=(0., 1., 1.)))} == {2}, 'never more kinds than there are'
    levels = [s for d in draws(Recipe(severity=(60, 100), weak_share=.25)) for s in d.values()]
    weak = [s for s in levels if s <= WEAK[1]]
    assert min(weak) == WEAK[0] and .2 < len(weak) / len(levels) < .3 and min(s for s in levels if s > WEAK[1]) >= 60

def test_some_of_the_pairs_are_stored(folder):
    photos = clean_photos(folder)
    plain, half = (PairStream(photos, 64, Recipe(stored_share=share), seed=3) for share in (0., .5))
    assert 8 <= sum(torch.equal(plain[i].degraded, half[i].degraded) for i in range(32)) <= 24

def test_a_photo_as_a_camera_wrote_it_is_soft_with_weak_noise_and_nothing_else(folder):
    photos = clean_photos(folder)
    recipe = Recipe(camera_share=1., clean_share=.2, strong_share=1.)
    plain, camera = (PairStream(photos, 64, replace(recipe, camera_share=share), seed=3) for share in (0., 1.))
    pairs = [camera[i] for i in range(40)]
    assert {p.diagnosis.present for p in pairs} == {(), ('noise',)} and 8 <= sum(p.diagnosis.is_clean for p in pairs) <= 24
    levels = [p.diagnosis.severity('noise') for p in pairs if not p.diagnosis.is_clean]
    assert CAMERA_NOISE[0] <= min(levels) and max(levels) <= CAMERA_NOISE[1], 'strong_share does not apply'
    assert torch.equal(pairs[3].degraded, camera[3].degraded), 'the same each time'
    fine = lambda stream: sum(float((s.clean - F.avg_pool2d(s.clean, 3, 1, 1))[:, 1:-1, 1:-1].std()) for s in map(stream.__getitem__, range(40)))
    assert fine(camera) < .95 * fine(plain)
    assert Recipe(('fog',), camera_share=1.).draw_camera(seeded(1)) == {}, 'no kind that the recipe lacks'

def test_demosaicked_noise_keeps_its_strength_and_is_alike_in_neighbours():
    noise = torch.randn(3, 128, 128, generator=seeded(0))
    camera = demosaicked(noise)
    assert float(camera.std()) == pytest.approx(float(noise.std()), rel=1e-4)
    kept = camera[0, ::2, ::2] / noise[0, ::2, ::2]  # where the sensor is red, red is what it was
    assert kept.std() < 1e-3 * kept.mean()
    alike = lambda x: torch.corrcoef(torch.stack([x[:, 1:-2].flatten(), x[:, 2:-1].flatten()]))[0, 1]
    assert alike(camera[0]) > .4 and abs(alike(noise[0])) < .05
    across, down = alike, lambda x: alike(x.T)
    for sigma in (.7, 1.):
        smooth = softened(noise, sigma)
        assert float(smooth.std()) == pytest.approx(float(noise.std()), rel=1e-4)
        for alike_along in (across, down):  # of two pixels of white noise behind a Gaussian
            assert float(alike_along(smooth[1])) == pytest.approx(math.exp(-1 / (4 * sigma ** 2)), abs=.05)


def test_noise_beyond_the_scale_counts_as_a_hundred():
    recipe = Recipe(('noise',), max_kinds=1, strong_share=1.)
    stream = PairStream(list(bundled_photos().values()), 96, recipe, seed=3)
    end, sigmas = strength('noise', 100)['sigma'], []
    for i in range(12):
        found = stream[i].diagnosis.findings['noise']
        sigmas.append(found.parameters['sigma'])
        assert found.severity == 100
    assert end <= min(sigmas) < max(sigmas) <= STRONGEST * end + .1 and len(set(sigmas)) > 8
    rain = PairStream(stream.photos, 96, replace(recipe, kinds=('rain',)), seed=3)
    assert torch.equal(rain[0].degraded, PairStream(stream.photos, 96, Recipe(('rain',), max_kinds=1), seed=3)[0].degraded)

def test_bright_fog_is_white_at_most_and_stays_so_in_a_file():
    photos = list(bundled_photos().values())
    recipe = Recipe(('fog', 'noise'), min_kinds=2, max_kinds=2, bright_share=1., stored_share=1.)
    stream = PairStream(photos, 96, recipe, seed=3)
    found = [stream[i].diagnosis.findings['fog'].parameters for i in range(12)]
    airlights = [f['airlight'] for f in found]
    assert BRIGHT[0] <= min(airlights) < max(airlights) <= BRIGHT[1] and len(set(airlights)) > 5
    assert all(f['airlight'] * (1 + abs(f['warmth'])) <= 1.01 for f in found)  # both are rounded
    plain = PairStream(photos, 96, replace(recipe, bright_share=0.), seed=3)
    assert all(plain[i].diagnosis.severity('fog') == stream[i].diagnosis.severity('fog') for i in range(6))
    severities, parameters = {'fog': 80, 'noise': 5}, {'fog': {'airlight': 1., 'warmth': 0.}}
    clean = read_photo(photos[0]).image[:, :96, :96]
    pair = make_pair(clean, severities, 4, parameters=parameters)
    stored = stored_pair(pair, severities, None, {}, seeded(1), mosaic_share=1., parameters=parameters)
    g = seeded(1)
    torch.rand((), generator=g)  # whether to demosaic
    fog_alone = degrade(clean, {'fog': 80}, 4, parameters=parameters).image
    assert torch.equal(stored.degraded, as_stored(pair, g, fog_alone).degraded), 'the noise is what stands beside fog as bright as told'

def test_noise_is_as_strong_without_colour():
    grey = torch.full((3, 128, 128), .5)
    noisy = degrade(grey, {'noise': 50}, 1, parameters={'noise': {'type': 'gaussian'}})
    pair, strength_left = Pair(noisy.image, grey, Diagnosis.from_degraded(noisy), '', 1), []
    for s in range(60):
        stored = as_stored(pair, seeded(s)).degraded
        if torch.equal(stored[0], stored[1]): strength_left.append(float((stored - grey).std() / (noisy.image - grey).std()))
    assert len(strength_left) > 1 and min(strength_left) > .9

def test_workers_that_are_not_forked_use_the_same_scale(folder, tmp_path, monkeypatch):
    "A forked worker that forgets the scale stands for one that is spawned, which takes a quarter of a minute to import torch."
    def spawned(*args, loader=torch.utils.data.DataLoader, worker_init_fn=None, **options):
        start = pickle.loads(pickle.dumps(worker_init_fn)) or (lambda worker: None)
        return loader(*args, **options, multiprocessing_context='fork', worker_init_fn=lambda worker: (use_scale(None), start(worker)))
    monkeypatch.setattr(torch.utils.data, 'DataLoader', spawned)
    photos, recipe, table = clean_photos(folder), Recipe(('noise',), max_kinds=1, severity=(50, 50)), severity_table()
    stream = PairStream(photos, 64, recipe)
    try:
        use_scale(table | dict(kinds=table['kinds'] | dict(noise=[p / 4 for p in table['kinds']['noise']])))
        sigma = stream[0].diagnosis.findings['noise'].parameters['sigma']
        made = made_ahead(stream.__getitem__, workers=1, end=1)
        assert next(made).diagnosis.findings['noise'].parameters['sigma'] == sigma
        synthesize(photos, tmp_path/'pairs', 1, recipe, size=64, workers=1)
    finally: use_scale(None)
    record = json.loads((tmp_path/'pairs'/'metadata.jsonl').read_text())
    assert record['parameters']['noise']['sigma'] == sigma < stream[0].diagnosis.findings['noise'].parameters['sigma'] / 2

def test_a_kind_that_a_worker_does_not_know_is_named():
    from rr.data import _start_worker
    with pytest.raises(ValueError, match='dim: not registered.*workers=0'): _start_worker(0, severity_table(), ('noise', 'dim'))
