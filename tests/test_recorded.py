"What long runs found: the recorded results that notebooks show, and the commands behind them."
import sys
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch

from rr.core import asset, bundled_photos, recorded
from rr.data import PairStream, Recipe
from rr.degrade import KINDS
from rr.diagnosis import Diagnosis, Finding

sys.path.insert(0, str(Path(__file__).parents[1]/'docs'))
import compare_records
import mean_weights
import measure_all
import measure_chains
import measure_grid
import measure_learning
import measure_peers
import measure_steps
import measure_views
import record
from kept import Kept


def test_each_record_that_hangs_on_weights_has_a_command(tmp_path):
    jobs = {j.record: j for j in measure_all.JOBS}
    table = (measure_all.MEASURED/'README.md').read_text()
    for name, job in jobs.items():
        words = measure_all.words_of(job, Path('D'), tmp_path, [Path('L')])
        assert (measure_all.MEASURED/f'{name}.jsonl').is_file() and f'| `{name}.jsonl` |' in table
        assert str(tmp_path/f'{name}.jsonl') in ' '.join(words) and '{' not in ' '.join(words)
        assert words[0] in ('-c', '-m') or Path(words[0]).is_file()
        assert ('L' in words) == (name in ('thresholds', 'thresholds_restored'))
    stale = lambda what: {n for n, j in jobs.items() if what in j.hangs_on.split()}
    assert stale('adapter') == {'seven', 'places'} and 'dev_reasoner' not in stale('restorer') and stale('reasoner') == set(jobs) - {'noise_alone'}


def test_measuring_all_goes_on_where_it_was(tmp_path):
    job, tell = measure_all.Job('sizes', 'reasoner', 1, ()), tmp_path/'ran'
    assert not measure_all.measure(job, ['-c', 'raise SystemExit(3)'], tmp_path, None)
    assert (tmp_path/'sizes.part').is_file() and not (tmp_path/'sizes.txt').exists()
    for _ in range(2):
        assert measure_all.measure(job, ['-c', f'open({str(tell)!r}, "a").write("once"); print("so it is")'], tmp_path, None)
    assert tell.read_text() == 'once' and (tmp_path/'sizes.txt').read_text() == 'so it is\n'


def test_rows_of_other_weights_stay_where_they_were():
    row = lambda who, said: dict(reasoner=who, said=said)
    old = [row('before', 1), row('nano', 2), row('nano', 3), row('w8', 4)]
    assert measure_all.merged(old, [row('nano', 5)]) == [row('before', 1), row('nano', 5), row('w8', 4)]
    assert measure_all.merged(old, [row('new', 5)]) == old + [row('new', 5)]
    assert measure_all.merged([dict(name='a')], [dict(name='b')]) == [dict(name='b')]


def test_a_head_learns_from_the_view_that_knows(capsys):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(600, 2, 12, generator=g)
    y = x[:, 0, :4].sigmoid()  # only the first view knows anything
    learn, test = (x[:500], y[:500]), (x[500:], y[500:])
    knows, knows_not = (sum(measure_views.errors(learn, test, [v], 0)) / 4 for v in (0, 1))
    assert knows < .6 * knows_not and measure_views.errors(learn, test, [0], 0) == measure_views.errors(learn, test, [0], 0)
    measure_views.report([dict(views=['busy'], seed=s, error=dict.fromkeys(KINDS, 4. + 2 * s)) for s in range(2)])
    assert '| busy | 5.00 | 5.00 | 5.00 | 5.00 | 5.00 | 1.41 |' in capsys.readouterr().out


@pytest.mark.parametrize('name', list(record.MADE))
def test_the_package_holds_what_the_records_say(name):
    assert (asset('recorded')/f'{name}.json').read_text() == record.content(name), 'run python docs/record.py'
    found = recorded(name)
    assert found['rows'] and found['command'].startswith('python docs/measure_')


def test_an_unknown_name_says_which_there_are():
    with pytest.raises(FileNotFoundError, match='grid'): recorded('nothing')


def test_records_are_kept_as_they_come(tmp_path):
    rows = Kept(tmp_path/'rows.jsonl')
    assert rows == []
    rows.add(dict(name='a'), dict(name='b'))
    rows.add(dict(name='c'))
    assert rows == Kept(tmp_path/'rows.jsonl') == [dict(name=n) for n in 'abc']
    with open(rows.path, 'a') as file: file.write('{"name": "d')  # killed while it wrote
    rows = Kept(rows.path)
    rows.add(dict(name='e'))
    assert rows == Kept(rows.path) == [dict(name=n) for n in 'abce']


# The grid: trained with and told in the test

@pytest.fixture(scope='module')
def small(tmp_path_factory):
    "Four pairs that serve for learning and testing, whose predicted diagnosis is that of the next one."
    pairs = [PairStream(list(bundled_photos().values()), measure_grid.SIZE, Recipe(min_kinds=1), seed=3)[i] for i in range(4)]
    pool = measure_grid.Pool(tmp_path_factory.mktemp('grid')/'pool.pt', lambda: (pairs, ['mixed'] * 4), lambda photos: [p.diagnosis for p in pairs[1:] + pairs[:1]])
    return pool, lambda diagnoses: (torch.zeros(len(diagnoses), 7, 256), None)


def test_without_a_diagnosis_a_network_acts_and_with_an_empty_one_it_rests(small, monkeypatch):
    pool, read = small
    monkeypatch.setattr(measure_grid, 'PAIRS', 2)
    photo, gains = pool.damaged[:1].float(), {}
    for name in ('none', 'predicted'):
        arm = measure_grid.ARMS[name]
        net, loss = measure_grid.learn(arm, pool, read, seed=0, updates=3, rate=1e-3)
        told = measure_grid.Told(arm, measure_grid.tests_of(arm, pool)['none'], read)
        gains[name] = (measure_grid.restored(net, photo, *told([0]), arm) - photo.clamp(0, 1)).abs().max()
        assert np.isfinite(loss)
    assert gains['none'] > 1e-4 and gains['predicted'] < 1e-6


def test_networks_of_a_seed_begin_alike_and_are_told_what_their_arm_says(small):
    pool, read = small
    nets = []
    for name, arm in measure_grid.ARMS.items():
        torch.manual_seed(5)
        nets.append(measure_grid.new_net(arm).state_dict())
        tests = measure_grid.tests_of(arm, pool)
        told = measure_grid.Told(arm, tests.get('predicted', tests['none']), read)
        numbers, text, mask = told([0, 2])
        assert bool(numbers.any()) == arm.numbers and (text is None) == (arm.text is None)
        if arm.source: assert tests['true'] != tests['predicted'] and sorted(d.to_json() for d in tests['wrong']) == sorted(d.to_json() for d in tests['predicted'])
    assert all(torch.equal(a, nets[0][k]) for n in nets for k, a in n.items())


def test_differences_are_paired_by_photo():
    rows = [dict(trained=t, told=k, seed=s, condition='mixed', gains={f'{i}': [10. * i + s + (t == 'predicted')] for i in range(6)})
            for t, k in (('predicted', 'predicted'), ('none', 'none')) for s in (0, 1)]
    found, = measure_grid.differences(rows)
    assert (found['gain'], found['low'], found['high']) == (1, 1, 1), 'photos differ by tens, networks by one'


# Steps, chains, peers

def test_the_distance_of_two_populations_is_that_of_their_normal_distributions():
    from scipy.linalg import sqrtm
    x = np.random.default_rng(0).normal(size=(4000, 24)) @ np.random.default_rng(1).normal(size=(24, 24)) * .3
    y = 1.4 * x + .2
    c, d = np.cov(x.T, bias=True), np.cov(y.T, bias=True)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(c + d - 2 * sqrtm(c @ d).real)
    a, b = (np.array([measure_steps.moments(p) for p in np.split(z, 4)]) for z in (x, y))
    assert measure_steps.frechet(a, b) == pytest.approx(expected, rel=1e-3)
    assert measure_steps.frechet(a, a) == pytest.approx(0, abs=1e-4)


def test_every_chain_is_tried_in_every_order():
    methods = {'fog': lambda x: x * .5, 'noise': lambda x: x + .1, 'blur': lambda x: x}
    photo, clean = torch.full((3, 8, 8), .4), torch.full((3, 8, 8), .26)
    gains = measure_chains.chains(photo, clean, ('fog', 'noise', 'blur'), methods)
    assert set(gains) == {' > '.join(c) for n in (1, 2, 3) for c in permutations(methods, n)} and len(gains) == 15
    assert gains['noise > fog'] > gains['fog > noise'] > gains['fog'] > gains['blur'] == 0  # .25, .3, .2 and .4 where .26 is right


def test_chains_are_chosen_in_their_own_favour():
    rows = [dict(family='classical', name=str(i), kinds=['fog', 'noise'], chains={'fog': 1. + i, 'noise': 2. - i}, predicted=3.) for i in (0, 1, 2)]
    fixed, free = measure_chains.summary(rows)
    assert fixed['gain'] == 2 and free['gain'] == pytest.approx(7 / 3, abs=.01) and fixed['ahead'] == 1


def test_peers_are_averaged_by_benchmark():
    rows = [dict(benchmark='B', photo='a', input=20., psnr={'m': 30.}, seconds={'m': 2.}), dict(benchmark='B', photo='b', input=22., psnr={'m': 31.}, seconds={'m': 4.}),
            dict(benchmark='C', photo='a', input=10., psnr={'n': 11.}, seconds={'n': 1.})]
    table = {(r['benchmark'], r['method']): (r['photos'], r['PSNR'], r['seconds']) for r in measure_peers.summary(rows)}
    assert table == {('B', 'as it is'): (2, 21, 0), ('B', 'm'): (2, 30.5, 3), ('C', 'as it is'): (1, 10, 0), ('C', 'n'): (1, 11, 1)}


# The learning curves

def test_towers_of_one_seed_differ_in_what_is_compared_and_go_on_where_they_stopped(tmp_path, monkeypatch, capsys):
    for name, value in dict(PHOTOS=(1, None), SCALES=(.25,), EVERY=1, BATCH=2, PAIRS=2, SIZES=(64,)).items(): monkeypatch.setattr(measure_learning, name, value)
    folder = str(bundled_photos()['coffee'].parent)
    run = lambda updates: measure_learning.main([folder, folder, '--seeds', '0', '--updates', str(updates), '--work', str(tmp_path/'work'), '--out', str(tmp_path/'rows.jsonl')])
    run(2)
    mean, *rows = Kept(tmp_path/'rows.jsonl')
    assert mean['arm'] == 'always the mean' and mean['photos'] == 0
    everything = max(r['photos'] for r in rows)
    assert [(r['arm'], r['photos'], r['step']) for r in rows] == [(arm, n, step) for step in (1, 2) for arm, n in (('1 photos', 1), (f'{everything} photos', everything), ('0.25 x channels', everything))]
    assert rows[2]['parameters'] < rows[1]['parameters'] == rows[0]['parameters'] and rows[0]['loss'] != rows[1]['loss']
    lines = (tmp_path/'rows.jsonl').read_text().splitlines()
    (tmp_path/'rows.jsonl').write_text('\n'.join(lines[:5]) + '\n')
    run(2)  # the towers are done: nothing is learnt again, and nothing made up
    assert (tmp_path/'rows.jsonl').read_text().splitlines() == lines[:5]
    assert 'points' in capsys.readouterr().out
    run(3)
    assert [r['step'] for r in Kept(tmp_path/'rows.jsonl')][5:] == [3, 3, 3]


def test_the_mean_is_what_a_tower_has_to_beat():
    class Case:
        def __init__(self, **severities): self.diagnosis = Diagnosis({k: Finding(s) for k, s in severities.items()})
    assert measure_learning.always_the_mean([Case(fog=40), Case(fog=20, rain=10), Case(), Case()]) == dict(fog=15., rain=3.75, blur=0., noise=0.)


def test_seeds_are_summed_up_by_mean_and_range():
    rows = [dict(arm='a', photos=4, parameters=9, step=5, seed=s, error=dict(fog=4. + s, rain=2., blur=2., noise=0.)) for s in (0, 2)]
    assert measure_learning.means(rows) == [dict(arm='a', photos=4, parameters=9, step=5, fog=5., rain=2., blur=2., noise=0., together=2.25, lowest=2., highest=2.5)]


def test_the_mean_of_weights_keeps_type_and_files(tmp_path, monkeypatch):
    from safetensors.torch import load_file, save_file
    for name, value in (('a', 1.), ('b', 2.), ('c', 4.5)):
        (tmp_path/name).mkdir()
        (tmp_path/name/'config.json').write_text(name)
        save_file({'w': torch.full((2, 3), value, dtype=torch.half)}, tmp_path/name/'model.safetensors')
    mean = lambda *words: (monkeypatch.setattr(sys, 'argv', ['mean_weights', *map(str, words)]), mean_weights.main())
    mean(*(tmp_path/n for n in 'abc'), '--out', tmp_path/'out')
    w = load_file(tmp_path/'out/model.safetensors')['w']
    assert w.dtype == torch.half and w.tolist() == [[2.5] * 3] * 2
    assert (tmp_path/'out/config.json').read_text() == 'c'
    save_file({'v': torch.zeros(2, 3)}, tmp_path/'b/model.safetensors')
    with pytest.raises(ValueError, match='different networks'): mean(tmp_path/'a', tmp_path/'b', '--out', tmp_path/'not')
    assert not (tmp_path/'not').exists()


def test_restored_photos_are_compared_with_themselves():
    def row(condition, name, gain, photo='a', without=20., section='restorer'):
        out = None if gain is None else without + gain
        return dict(section=section, condition=condition, name=name, seed=1, photo=photo, psnr=dict(input=without, predicted=out, true=without + 9))
    old = [row('fog', f'{n}.png', 1.) for n in range(4)] + [row('rain', '0.png', 5.), row('clean', '0.png', None), row('clean', '1.png', 23.)]
    new = [row('fog', f'{n}.png', 1. + n) for n in range(1, 4)] + [row('clean', '0.png', 1.), row('fog', '0.png', 0., section='speed')]
    rows = compare_records.compared(*map(compare_records.by_photo, (old, new)))
    assert [(r['condition'], r['method'], r['photos'], r['before'], r['after']) for r in rows] == [('fog', 'predicted', 3, 1., 3.), ('fog', 'true', 3, 9., 9.)]
    assert rows[0]['difference'].startswith('2.00 [1.') and rows[1]['difference'] == '0.00 [0.00, 0.00]'
    assert compare_records.clean(compare_records.by_photo(old)) == dict(photos=2, untouched=1, lowest='43.0')
    assert compare_records.clean(compare_records.by_photo(old, ['1.png'])) == dict(photos=1, untouched=1, lowest='')
    said = lambda fog: [dict(section='reasoner', condition='fog', name='0.png', seed=1, photo='a', true=dict(fog=50., rain=0.), written=dict(fog=fog, rain=4.), expected=dict(fog=50., rain=0.))]
    read = compare_records.compared(*(compare_records.by_photo(said(fog), (), 'reasoner') for fog in (40., 52.)), 'reasoner')
    assert [(r['method'], r['before'], r['after']) for r in read] == [('written', 7., 3.), ('expected', 0., 0.)]
    other = compare_records.by_photo([row('fog', '1.png', 1., photo='b')])
    with pytest.raises(ValueError, match='not the same damage'): compare_records.compared(compare_records.by_photo(old), other)
