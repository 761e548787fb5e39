"The evaluation: numbers that were computed by hand, baselines that work, records that survive, tables that show."
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rr.core import PhotoError, asset, bundled_photos, psnr, read_photo, seeded, to_tensor, write_photo
from rr.data import EVALUATION, Pair, evaluation_pairs
from rr.degrade import KINDS, degrade, severity_table, use_scale
from rr.diagnosis import Diagnosis, Finding
from rr.evaluate import (CLASSICAL, CONDITIONS, STATISTICS, Evaluation, RecordLog, Results, bootstrap, compare_twins, condition_pair,
                         dehaze, doubt_table, evaluate, evaluate_pairs, evaluation_photos, f1_score, fingerprint, fit_baselines,
                         fit_estimator, installed, level_table, measure_command, noise_sigma, noisy_photos, paired_photos,
                         presence_counts, rank_correlation, rank_of, ranks, read_levels, reasoner_table, restorer_table, row_median, severity_error, speed_record,
                         speed_table, ssim, with_interval, through_network)
from rr.nano import NanoRestorerNet
from rr.pipeline import ReasonRestore
from rr.places import with_places
from rr.reasoner import SHORT_PROMPT, WHOLE, Reply, corner_looks, read_reply
from rr.restorer import NanoRestorer, Restorer
from rr.severity import center_crop

NAMES = ('astronaut', 'coffee', 'lake')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "Three bundled photos at 96 pixels."
    folder = tmp_path_factory.mktemp('clean')
    for name in NAMES: write_photo(folder / f'{name}.png', center_crop(to_tensor(bundled_photos()[name]), 96))
    return folder


class Fixed(Restorer):
    "A reasoner and a restorer whose answers are known: always fog 40, and half of the contrast."
    def __init__(self, text=None):
        self.asked, self.model, self.make_views = 0, torch.nn.Linear(2, 2), None
        self.policy, self.default_steps, self.device = SimpleNamespace(module=torch.nn.Linear(2, 2)), 1, 'cpu'
        self.text = Diagnosis({'fog': Finding(40)}).to_cot() if text is None else text

    def reply(self, images):
        self.asked += len(images)
        distribution = torch.zeros(len(KINDS), 101)
        distribution[:, 0] = 1
        distribution[0, [0, 30, 50]] = torch.tensor([0., .5, .5])
        return [Reply(self.text, (), (), 0., **read_reply(self.text), distribution=distribution) for _ in images]

    def presence(self, images): return torch.zeros(len(images), len(KINDS))

    def _restore(self, image, diagnosis, steps, seed, on_step): return image * .5 + .25

    def restore(self, images, diagnoses, steps=None, seed=0):
        return [i if d.is_clean else self._restore(i, d, 1, 0, None) for i, d in zip(images, diagnoses)]


@pytest.fixture
def pipeline():
    part = Fixed()
    return ReasonRestore(part, part)


def test_psnr_and_ssim_are_those_of_scikit_image():
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity
    a = to_tensor(bundled_photos()['cat'])[:, :200, :240]
    b = degrade(a, {'rain': 50, 'noise': 30}, seed=1).image
    x, y = (t.permute(1, 2, 0).double().numpy() for t in (a, b))
    theirs = structural_similarity(x, y, channel_axis=-1, data_range=1, gaussian_weights=True, sigma=1.5,
                                   use_sample_covariance=False)
    assert abs(ssim(a, b) - theirs) < 1e-4 and ssim(a, a) == pytest.approx(1)
    assert abs(psnr(a, b) - peak_signal_noise_ratio(x, y, data_range=1)) < 1e-3
    with pytest.raises(ValueError, match='the same'): ssim(a, b[:, 1:])


def test_severity_error_by_hand():
    truth, guess = np.array([0, 0, 60, 80]), np.array([10, 0, 50, 85])
    assert severity_error(truth, guess) == 6.25
    assert severity_error(truth, guess, present_only=True) == 7.5
    assert math.isnan(severity_error(truth[:2], guess[:2], present_only=True))


def test_presence_by_hand():
    truth =     np.array([[40, 0], [20, 0], [15, 99], [10, 0], [0, 14], [0, 0]])
    predicted = np.array([[35, 0], [10, 20], [30, 0], [50, 0], [20, 90], [5, 14.9]])
    counts = presence_counts(truth, predicted)
    assert counts.tolist() == [[2, 0], [1, 1], [1, 1]]
    assert f1_score(counts[:, 0]) == pytest.approx(4 / 6) and f1_score(counts[:, 1]) == 0
    assert f1_score(counts.sum(1)) == 4 / 8
    assert math.isnan(f1_score(presence_counts([0, 5], [3, 80])))


def test_presence_agrees_with_sklearn_style_counting():
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 101, 500) * rng.integers(0, 2, 500), rng.integers(0, 101, 500)
    keep = (truth == 0) | (truth >= 15)
    there, seen = truth[keep] >= 15, predicted[keep] >= 15
    precision, recall = there[seen].mean(), seen[there].mean()
    assert f1_score(presence_counts(truth, predicted)) == pytest.approx(2 * precision * recall / (precision + recall))


def test_bootstrap_matches_the_formula_and_covers():
    rng, inside = np.random.default_rng(0), 0
    for seed in range(100):
        sample = rng.normal(5, 2, 40)
        low, high = bootstrap(sample, np.mean, repeats=300, seed=seed)
        inside += low <= 5 <= high
    half = 1.96 * sample.std(ddof=1) / 40 ** .5
    assert abs((high - low) / (2 * half) - 1) < .2
    assert 85 <= inside <= 100
    assert bootstrap(sample, np.mean) == bootstrap(sample, np.mean)


def test_interval_as_text():
    assert with_interval(np.array([2., 2.]), np.mean) == '2.0 [2.0, 2.0]'
    assert with_interval(np.array([]), np.mean) == ''


@pytest.mark.parametrize('sigma', [10, 25, 50])
def test_sigma_is_estimated_within_15_percent(sigma):
    for i, path in enumerate(bundled_photos().values()):
        clean = to_tensor(path)
        noisy = clean + sigma / 255 * torch.randn(clean.shape, generator=seeded(i))
        assert abs(noise_sigma(noisy) / sigma - 1) < .15, path.stem


def test_estimator_is_monotone_and_finds_its_direction():
    x = np.linspace(0, 1, 50)
    falling = fit_estimator('fog', x, 100 - 90 * x)
    assert (np.diff(falling.severities) <= 1e-9).all() and falling.severities[0] > 90
    noisy = fit_estimator('fog', x, 50 * x + np.random.default_rng(0).normal(0, 5, 50))
    assert (np.diff(noisy.severities) >= -1e-9).all()


@pytest.fixture(scope='module')
def baselines():
    return fit_baselines([bundled_photos()[n] for n in ('astronaut', 'coffee', 'cat', 'hopper', 'rocket')], draws=6)


def test_classical_noise_and_fog_beat_the_mean_on_other_photos(baselines):
    errors = {kind: [] for kind in ('fog', 'noise')}
    for i, name in enumerate(('lake', 'colosseum', 'camera')):
        clean = center_crop(to_tensor(bundled_photos()[name]), 256)
        for j in range(6):
            severities = EVALUATION.draw(seeded(100 * i + j))
            guess = baselines.classical(degrade(clean, severities, 100 * i + j).image)
            for kind in errors:
                truth = severities.get(kind, 0)
                errors[kind].append((abs(guess[kind] - truth), abs(baselines.mean[kind] - truth)))
    for kind, pairs in errors.items():
        classical, mean = np.mean(pairs, 0)
        assert classical < .8 * mean, (kind, classical, mean)


def test_conditions_damage_as_they_say(folder):
    source = evaluation_photos(folder)[1]
    pairs = {name: condition_pair(source, c) for name, c in CONDITIONS.items()}
    for kind in ('fog', 'rain', 'blur'): assert pairs[kind].diagnosis.present == (kind,)
    assert torch.equal(pairs['clean'].degraded, pairs['clean'].clean) and pairs['clean'].diagnosis.is_clean
    noise = pairs['noise 25'].degraded - pairs['noise 25'].clean
    middle = (pairs['noise 25'].clean - .5).abs() < .1
    assert abs(float(noise[middle].std()) * 255 - 25) < 1.5
    assert pairs['noise 25'].diagnosis.findings['noise'].parameters == {'type': 'gaussian', 'sigma': 25.}


def test_mixed_pairs_are_those_of_the_data_module(folder):
    ours = [condition_pair(s, CONDITIONS['mixed'], seed=3) for s in evaluation_photos(folder)]
    for a, b in zip(ours, evaluation_pairs(folder, EVALUATION, seed=3), strict=True):
        assert a.name == b.name and a.diagnosis == b.diagnosis and torch.equal(a.degraded, b.degraded)


def test_photos_of_two_folders_are_told_apart(folder, tmp_path):
    other = tmp_path / 'more'
    shutil.copytree(folder, other)
    names = [s.name for s in evaluation_photos([folder, other], limit=2)]
    assert len(set(names)) == 4 and names[-1] == 'more/coffee.png'


def test_classical_restorers_help_where_they_should():
    pytest.importorskip('skimage')
    clean = to_tensor(bundled_photos()['coffee'])[:, :256, :256]
    noisy = degrade(clean, {'noise': 50}, seed=0).image
    for name in installed(('total variation', 'non-local means')):
        assert psnr(CLASSICAL[name](noisy), clean) > psnr(noisy, clean) + 3
    depth = torch.linspace(.3, 1, 256).view(1, 1, 256).expand(1, 256, 256)
    foggy = degrade(clean, {'fog': 60}, seed=0, depth=depth).image
    assert psnr(dehaze(foggy), clean) > psnr(foggy, clean) + 2


def test_row_median_removes_a_thin_vertical_streak():
    image = torch.full((3, 40, 40), .3)
    wet = image.clone()
    wet[:, :, 18:21] = .9
    assert torch.equal(row_median(wet), image)


def test_records_are_written_whole_and_a_torn_line_is_cut_off(tmp_path):
    path = tmp_path / 'log.jsonl'
    log = RecordLog(path)
    for name in 'ab': log.add(dict(section='s', condition='c', name=name, settings='x', value=1))
    with open(path, 'a') as file: file.write('{"section": "s", "cond')
    log = RecordLog(path)
    assert log.get('s', 'c', 'b', 'x')['value'] == 1 and len(log.records) == 2
    log.add(dict(section='s', condition='c', name='d', settings='x'))
    assert [json.loads(line)['name'] for line in path.read_text().splitlines()] == ['a', 'b', 'd']


def test_a_foreign_file_is_refused_and_left_alone(tmp_path):
    path = tmp_path / 'notes.jsonl'
    path.write_text('{"mine": 1}\n')
    with pytest.raises(ValueError, match='line 1'): RecordLog(path)
    assert path.read_text() == '{"mine": 1}\n'


def test_fingerprint_changes_with_the_weights():
    net = torch.nn.Linear(3, 3)
    before = fingerprint(net)
    assert before == fingerprint(net)
    with torch.no_grad(): net.weight[1, 1] += .1
    assert fingerprint(net) != before


def test_known_answers_give_the_known_table(folder, pipeline):
    results = evaluate(folder, pipeline, sections=('reasoner', 'restorer'), conditions=('fog', 'clean'), progress=False,
                       train=[folder / f'{n}.png' for n in NAMES])
    rows = results.select('reasoner', 'mixed')
    truth = [r['true']['fog'] for r in rows]
    table = {(r['measure'], r['method']): r for r in reasoner_table(rows)}
    main, said = (table['MAE, all photos', m] for m in ('reasoner, expected value (main)', 'reasoner, as written'))
    assert main['fog'].split()[0] == said['fog'].split()[0] == f'{np.mean([abs(40 - t) for t in truth]):.1f}'
    assert all(r['expected']['fog'] == 40 and r['written'] == dict(fog=40, rain=0, blur=0, noise=0) for r in rows)
    fog = results.select('restorer', 'fog')
    pair = condition_pair(evaluation_photos(folder)[0], CONDITIONS['fog'])
    assert fog[0]['psnr']['predicted'] == pytest.approx(float(psnr(pair.degraded * .5 + .25, pair.clean)), abs=1e-3)
    row = next(r for r in restorer_table(fog) if r['method'] == 'restorer, predicted diagnosis')
    gain = np.mean([r['psnr']['predicted'] - r['psnr']['input'] for r in fog])
    assert row['photos'] == 3 and row['gain, dB'].startswith(f'{gain:.2f} [')
    clean = results.select('restorer', 'clean')[0]['psnr']
    assert clean['input'] is None and clean['network'] == pytest.approx(clean['predicted'])


def test_made_to_act_the_network_is_asked_though_nothing_is_wrong(monkeypatch):
    restorer, image, asked = NanoRestorer(NanoRestorerNet(), device='cpu'), torch.rand(3, 32, 32), []
    monkeypatch.setattr(restorer, '_flow', lambda photo, *_: asked.append(photo) or photo)
    through_network(restorer, image, Diagnosis())
    assert len(asked) == 1
    assert torch.equal(restorer.restore([image], [Diagnosis()])[0], image) and len(asked) == 1


def test_photo_called_clean_is_counted_as_untouched(folder):
    part = Fixed(Diagnosis().to_cot())
    results = evaluate(folder, ReasonRestore(part, part), sections=('restorer',),
                       conditions=('clean',), progress=False)
    table = restorer_table(results.records)
    assert [r['untouched'] for r in table] == ['100%', '0%'] and table[0]['PSNR out'] is None


def test_reply_without_diagnosis_is_counted_as_invalid(folder):
    part = Fixed('It is raining, I believe.')
    results = evaluate(folder, ReasonRestore(part, part), sections=('reasoner',), limit=1,
                       progress=False, train=[folder / 'lake.png'])
    assert not any(r['valid'] or r['exact'] for r in results.records)
    assert '0%' in results.table()


def test_resumes_without_asking_again_and_notices_new_weights(folder, pipeline, tmp_path):
    options = dict(sections=('restorer',), conditions=('fog', 'rain'), out=tmp_path / 'log.jsonl', progress=False)
    evaluate(folder, pipeline, limit=2, **options)
    assert pipeline.reasoner.asked == 4
    whole = evaluate(folder, pipeline, **options)
    assert pipeline.reasoner.asked == 6 and len(whole.records) == 6
    assert Results.load(tmp_path / 'log.jsonl').table() == whole.table()
    with torch.no_grad(): pipeline.restorer.policy.module.weight.add_(1)
    evaluate(folder, pipeline, **options)
    assert pipeline.reasoner.asked == 12
    pipeline.measure = False
    evaluate(folder, pipeline, **options)
    assert pipeline.reasoner.asked == 18, 'other diagnoses, other records'


@pytest.fixture
def changed(folder, tmp_path):
    "The same names, and another astronaut."
    shutil.copytree(folder, tmp_path / 'clean')
    write_photo(tmp_path / 'clean/astronaut.png', to_tensor(folder / 'astronaut.png').flip(-1), overwrite=True)
    return tmp_path / 'clean'


def without_times(results): return [{k: v for k, v in r.items() if k != 'seconds'} for r in results.records]


def test_a_photo_of_the_same_name_is_another_photo(folder, changed, pipeline, tmp_path):
    options = dict(conditions=('mixed', 'clean'), limit=1, progress=False, train=[folder / 'lake.png'])
    both = dict(options, sections=('reasoner', 'restorer'), out=tmp_path / 'log.jsonl')
    evaluate(folder, pipeline, **both)
    asked = pipeline.reasoner.asked
    results = evaluate(changed, pipeline, **both)
    assert pipeline.reasoner.asked == asked + 3, 'under three conditions'
    fresh = evaluate(changed, pipeline, sections=('restorer',), **options)
    assert without_times(results)[3:] == without_times(fresh)
    assert Results.load(tmp_path / 'log.jsonl').select('restorer', 'clean')[-1]['photo'] == results.select('restorer', 'clean')[-1]['photo']


def test_a_photo_that_has_moved_is_damaged_anew(changed, pipeline, tmp_path):
    options = dict(sections=('restorer',), conditions=('fog',), progress=False)
    evaluate(changed, pipeline, out=tmp_path / 'log.jsonl', **options)
    shutil.copy(changed / 'lake.png', changed / 'b.png')
    results = evaluate(changed, pipeline, out=tmp_path / 'log.jsonl', **options)
    assert without_times(results) == without_times(evaluate(changed, pipeline, **options))
    loaded = Results.load(tmp_path / 'log.jsonl')
    assert sorted(r['photo'] for r in loaded.records) == sorted(r['photo'] for r in results.records)


def test_a_depth_map_makes_another_photo(changed, pipeline, tmp_path):
    options = dict(sections=('restorer',), conditions=('fog',), out=tmp_path / 'log.jsonl', progress=False)
    before = evaluate(changed, pipeline, **options)
    write_photo(changed / 'lake_depth.png', torch.rand(3, 96, 96, generator=seeded(0)))
    after = evaluate(changed, pipeline, **options)
    assert [a['psnr'] == b['psnr'] for a, b in zip(before.records, after.records)] == [True, True, False]


def test_a_pair_of_the_same_name_is_another_pair(folder, pipeline, tmp_path):
    options = dict(pipeline=pipeline, out=tmp_path / 'log.jsonl', progress=False)
    first = evaluate_pairs(noisy_photos(folder), 'noise', **options)
    again = evaluate_pairs(noisy_photos(folder), 'noise', **options)
    other = evaluate_pairs(noisy_photos(folder, seed=9), 'noise', **options)
    assert again.records == first.records and pipeline.reasoner.asked == 6
    assert all(a['psnr']['input'] != b['psnr']['input'] for a, b in zip(first.records, other.records))


def test_pairs_from_sub_folders_keep_their_names_apart(folder, tmp_path):
    for sub in 'ab': shutil.copytree(folder, tmp_path / 'x' / sub)
    assert len({p.name for p in noisy_photos(tmp_path / 'x')}) == len({p.name for p in paired_photos(tmp_path / 'x', folder)}) == 6


SHOWN = tuple((torch.full((3, 64, 64), v), 'none') for v in (0., .5))


@pytest.mark.parametrize('part, name, before, after', [
    ('reasoner', 'prompt', SHORT_PROMPT, replace(SHORT_PROMPT, question='What is wrong?')),
    ('reasoner', 'prompt', replace(SHORT_PROMPT, examples=SHOWN[:1]), replace(SHORT_PROMPT, examples=SHOWN[1:])),
    ('reasoner', 'processor', *(SimpleNamespace(image_processor=SimpleNamespace(size=dict(longest_edge=n))) for n in (2**20, 2**18))),
    ('reasoner', 'threshold', .5, .7), ('reasoner', 'looks', WHOLE, corner_looks()), ('restorer', 'tile', 1024, 512), ('restorer', 'overlap', 128, 64),
    ('policy', 'true_cfg_scale', 4., 1.), ('policy', 'negative_prompt', ' ', None),
    ('policy', 'latents', SimpleNamespace(pixels=2**20), SimpleNamespace(pixels=2**18)),
    ('pipeline', 'max_new_tokens', 512, 256), ('pipeline', 'in_doubt', .05, .1),
    ('pipeline', 'only', ('noise',), None), ('pipeline', 'locate', None, with_places)])
def test_what_decides_a_record_is_in_its_settings(pipeline, part, name, before, after):
    place = dict(pipeline=pipeline, reasoner=pipeline.reasoner, restorer=pipeline.restorer, policy=pipeline.restorer.policy)[part]
    run, found = Evaluation(pipeline), []
    for value in (before, before, after):
        setattr(place, name, value)
        found.append([run.settings(section, CONDITIONS['mixed']) for section in ('reasoner', 'restorer')])
    assert found[0] == found[1] and found[0][1] != found[2][1]
    assert (found[0][0] != found[2][0]) == (part == 'reasoner'), 'a reply does not depend on the restorer'


def test_another_severity_scale_makes_other_records(pipeline):
    run = Evaluation(pipeline)
    before = run.settings('restorer', CONDITIONS['fog'])
    try:
        use_scale(severity_table() | {'note': 'measured anew'})
        assert run.settings('restorer', CONDITIONS['fog']) != before
    finally: use_scale(None)
    assert run.settings('restorer', CONDITIONS['fog']) == before


def test_of_several_runs_in_a_file_the_last_is_loaded(folder, pipeline, tmp_path):
    options = dict(sections=('restorer',), out=tmp_path / 'log.jsonl', progress=False)
    evaluate(folder, pipeline, conditions=('fog', 'rain'), **options)
    with torch.no_grad(): pipeline.restorer.policy.module.weight.add_(1)
    last = evaluate(folder, pipeline, conditions=('fog',), **options)
    loaded = Results.load(tmp_path / 'log.jsonl')
    assert loaded.select('restorer', 'fog') == last.records and len(loaded.select('restorer', 'rain')) == 3


def test_records_that_do_not_say_which_photo_are_loaded_and_made_anew(folder, pipeline, tmp_path):
    options = dict(sections=('restorer',), conditions=('fog',), progress=False)
    results, path = evaluate(folder, pipeline, **options), tmp_path / 'old.jsonl'
    path.write_text(''.join(json.dumps({k: v for k, v in r.items() if k != 'photo'}) + '\n' for r in results.records))
    assert Results.load(path).table() == results.table()
    asked = pipeline.reasoner.asked
    evaluate(folder, pipeline, out=path, **options)
    assert pipeline.reasoner.asked == asked + 3 and Results.load(path).table() == results.table()


@pytest.mark.parametrize('name', ['dev_restorer', 'benchmarks', 'trained_on'])
def test_measured_records_are_loaded_whole(name):
    path = Path(__file__).parents[1] / f'docs/measured/{name}.jsonl'
    assert Results.load(path).records == [json.loads(line) for line in path.read_text().splitlines()]


def test_a_bad_photo_is_left_out_and_named(changed, pipeline, tmp_path):
    options = dict(sections=('restorer',), conditions=('fog', 'clean'), progress=False)
    whole = evaluate(changed, pipeline, **options)
    (changed / 'coffee.png').write_bytes(b'no photo')
    results = evaluate(changed, pipeline, **options)
    assert list(results.failed) == ['coffee.png'] and 'coffee.png: not an image' in results.failed['coffee.png']
    assert without_times(results) == [r for r in without_times(whole) if r['name'] != 'coffee.png']
    assert results.settings['photos'] == 2 and not whole.failed
    assert 'Left out' in results.table() and 'Left out' not in whole.table()
    for name in ('astronaut', 'lake'): (changed / f'{name}.png').write_bytes(b'no photo')
    with pytest.raises(PhotoError, match='none of 3 photos can be used; the first: .*astronaut.png: not an image'): evaluate(changed, pipeline, **options)


def test_restorer_uses_what_the_reasoner_section_wrote(folder, pipeline):
    evaluate(folder, pipeline, sections=('reasoner', 'restorer'), conditions=('mixed', 'clean'), progress=False,
             train=[folder / 'lake.png'])
    assert pipeline.reasoner.asked == 9


def test_unknown_names_are_refused(folder, pipeline):
    with pytest.raises(ValueError, match="section.*'speeed'"): evaluate(folder, pipeline, sections=('speeed',))
    with pytest.raises(ValueError, match="condition.*'hail'"): evaluate(folder, pipeline, conditions=('hail',))


def test_results_save_and_show(folder, pipeline, tmp_path):
    results = evaluate(folder, pipeline, sections=('restorer',), conditions=('fog',), progress=False)
    results.save(tmp_path / 'r.jsonl')
    assert Results.load(tmp_path / 'r.jsonl').records == results.records
    assert '<table>' in results._repr_html_() and '| fog | restorer, predicted diagnosis | 3 |' in str(results)
    gains = [r['psnr']['predicted'] - r['psnr']['input'] for r in results.worst('fog', 3)]
    assert gains == sorted(gains)


def test_speed_is_that_of_one_megapixel(pipeline):
    shapes = []
    pipeline.reasoner.reply = lambda images, reply=pipeline.reasoner.reply: shapes.append(images[0].shape) or reply(images)
    record = speed_record(pipeline, repeats=1, command=False)
    assert shapes == [(3, 1000, 1000)] and 'command' not in record
    table = speed_table([record | dict(command=12.5, memory=1.25)])
    assert [(r['what'], r['unit']) for r in table][-1] == ('its peak memory', 'GB') and '12.50' in str(table)


def test_paired_folders(folder, tmp_path):
    damaged = tmp_path / 'hazy'
    damaged.mkdir()
    for k in (1, 2): write_photo(damaged / f'lake_{k}.png', to_tensor(folder / 'lake.png') * .5)
    pairs = list(paired_photos(damaged, folder))
    assert [p.name for p in pairs] == ['lake_1.png', 'lake_2.png']
    assert torch.equal(pairs[0].clean, to_tensor(folder / 'lake.png'))
    write_photo(damaged / 'nobody.png', torch.zeros(3, 32, 32))
    with pytest.raises(FileNotFoundError, match='nobody'): list(paired_photos(damaged, folder))


def test_benchmark_noise_is_not_clipped(folder, pipeline):
    pairs = list(noisy_photos(folder, 25.))
    assert min(float(p.degraded.min()) for p in pairs) < 0
    results = evaluate_pairs(pairs, 'sigma 25', pipeline, progress=False)
    assert all(r['psnr']['input'] == pytest.approx(20.17, abs=.15) for r in results.records)
    with pytest.raises(ValueError, match='no pairs'): evaluate_pairs([], 'nothing', pipeline, progress=False)


shipped = pytest.mark.skipif(not asset('nano-restorer').exists(), reason='no weights are shipped yet')


@shipped
def test_shipped_pipeline_is_measured(folder, tmp_path):
    results = evaluate(folder, limit=1, seed=1, conditions=('noise 25',), sections=('reasoner', 'restorer'),
                       progress=False, train=[folder / 'lake.png'], out=tmp_path / 'r.jsonl')
    assert len(results.tables()) == 5 and results.select('reasoner', 'mixed')[0]['valid']


@shipped
def test_command_is_timed_in_its_own_process():
    used = measure_command(read_photo(bundled_photos()['coffee']).image[:, :128, :128])
    assert used.get('error') is None and .2 < used['memory'] < 3 and used['command'] > 1


def test_a_relative_folder_gives_the_same_photos(monkeypatch):
    from rr.core import asset
    from rr.evaluate import evaluation_photos

    monkeypatch.chdir(asset('photos').parent)
    assert evaluation_photos('photos') == evaluation_photos(asset('photos'))
    assert [s.name for s in evaluation_photos(['photos', asset('photos')], 1)] == ['photos/astronaut.jpg'] * 2


def test_rank_of_a_right_distribution_is_uniform():
    g = torch.Generator().manual_seed(0)
    p = torch.rand(2000, 101, generator=g) ** 8
    p = p / p.sum(1, keepdim=True)
    drawn = p.multinomial(1, generator=g)[:, 0]
    ranks = rank_of(p, drawn.tolist())
    assert ranks.mean() == pytest.approx(.5, abs=.02)
    assert (abs(2 * ranks - 1) <= .8).float().mean() == pytest.approx(.8, abs=.03)
    sure = torch.zeros(1, 101); sure[0, 7] = 1
    assert [float(rank_of(sure, [t])) for t in (3, 7, 20)] == [0, .5, 1]


def test_rank_correlation_is_scipys():
    from scipy.stats import rankdata, spearmanr
    g = np.random.default_rng(0)
    a, b = g.integers(0, 9, 50), g.integers(0, 9, 50)
    assert rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert ranks(a).tolist() == rankdata(a).tolist() and ranks(b).tolist() == rankdata(b).tolist()
    assert math.isnan(rank_correlation([1, 1, 1], [1, 2, 3]))


def test_doubt_is_counted_where_the_kind_is_present():
    absent = dict.fromkeys(KINDS, 0.)
    def record(true, expected, spread, rank):
        of_fog = lambda value: absent | dict(fog=float(value))
        return dict(condition='all kinds', true=of_fog(true), expected=of_fog(expected), spread=of_fog(spread), rank=of_fog(rank))
    rows = [record(50, 50, 1, .5), record(50, 60, 4, .2), record(50, 80, 9, .999), record(0, 70, 9, 0)]
    fog, together = doubt_table(rows)
    assert fog['photos'] == together['photos'] == 3 and fog['error'] == pytest.approx(40 / 3)
    assert fog['doubt and error'] == '1.00' and fog['inside the middle 80%'] == '67%'


@pytest.mark.parametrize('kind', STATISTICS)
def test_classical_statistic_moves_with_its_kind(kind):
    photos = [center_crop(to_tensor(p), 200) for p in bundled_photos().values()]
    values = [float(np.mean([STATISTICS[kind](degrade(p, {kind: s} if s else {}, seed=0).image) for p in photos])) for s in (0, 60, 95)]
    assert values == sorted(values) or values == sorted(values, reverse=True)
    assert abs(values[2] - values[0]) > 1e-3


class Judge:
    "Reads the first pixel as the severity of noise."
    def severity(self, images):
        found = torch.zeros(len(images), len(KINDS))
        found[:, KINDS.index('noise')] = torch.stack([i[0, 0, 0] for i in images]) * 100
        return found


def test_levels_and_twins_by_hand():
    photos = [torch.full((3, 16, 16), v) for v in (.1, .2)]
    rising = lambda photo, level, i: photo + .1 * level
    falling = lambda photo, level, i: photo - .01 * level
    rows = read_levels(Judge(), photos, {'up': ('noise', (1, 2, 3), rising), 'down': ('noise', (1, 2), falling)}, progress=False)
    assert len(rows) == 10 and rows[0]['expected']['noise'] == pytest.approx(20, abs=.01)
    up, down = level_table(rows)
    assert float(up['rank correlation'].split()[0]) > .8 and float(down['rank correlation'].split()[0]) < 0
    assert up['mean severity, level by level'] == '25, 35, 45'
    twins = [Pair(photos[1], photos[0], None, 'a', 0), Pair(photos[0], photos[1], None, 'b', 0)]
    assert [r['damaged'] > r['clean'] for r in compare_twins(Judge(), twins, 'noise', progress=False)] == [True, False]
