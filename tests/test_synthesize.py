"Data sets on disk: the same bytes whatever happens on the way."
import json, os, random, signal, subprocess, sys, time
import pytest
import torch
from rr.core import asset
from rr.diagnosis import Scene
from rr.data import EVALUATION, RECIPES, PairFolder, PairStream, clean_photos, synthesize, whole_lines

PHOTOS = asset('photos')


@pytest.fixture(scope='module')
def photos(): return clean_photos(PHOTOS)


def contents(folder): return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


def test_bytes_do_not_depend_on_the_workers(photos, tmp_path):
    for workers in (0, 1, 3): assert synthesize(photos, tmp_path/str(workers), 7, size=64, workers=workers) == 7
    one, two, three = (contents(tmp_path/name) for name in '013')
    assert one == two == three
    assert len(one) == 2 * 7 + 2  # pictures, metadata.jsonl, synthesis.json


def test_going_on_gives_the_same_as_going_through(photos, tmp_path):
    synthesize(photos, tmp_path/'through', 6, size=64)
    assert synthesize(photos, tmp_path/'parts', 2, size=64) == 2
    assert synthesize(photos, tmp_path/'parts', 6, size=64) == 4
    assert synthesize(photos, tmp_path/'parts', 6, size=64) == 0
    assert synthesize(photos, tmp_path/'parts', 3, size=64) == 0  # nothing is taken away
    assert contents(tmp_path/'through') == contents(tmp_path/'parts')


def test_a_half_written_line_is_made_again(photos, tmp_path):
    synthesize(photos, tmp_path, 4, size=64)
    before, path = contents(tmp_path), tmp_path/'metadata.jsonl'
    os.truncate(path, path.stat().st_size - 25)
    assert whole_lines(path) == 3 and path.read_bytes().endswith(b'\n')
    assert synthesize(photos, tmp_path, 4, size=64) == 1
    assert contents(tmp_path) == before


@pytest.mark.parametrize('workers', [0, 2])
def test_a_kill_in_the_middle_loses_nothing(photos, tmp_path, workers):
    n, out = 40, tmp_path/'killed'
    command = [sys.executable, '-m', 'rr.cli', 'synthesize', str(PHOTOS), str(out), '--n', str(n), '--size', '96', '--workers', str(workers)]
    process = subprocess.Popen(command, start_new_session=True, env=os.environ | {'OMP_NUM_THREADS': '1'})
    deadline = time.monotonic() + 90
    while whole_lines_of(out/'metadata.jsonl') < 4 and time.monotonic() < deadline: time.sleep(.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = whole_lines_of(out/'metadata.jsonl')
    assert 4 <= done < n
    assert synthesize(photos, out, n, size=96) == n - done
    synthesize(photos, tmp_path/'whole', n, size=96)
    assert contents(out) == contents(tmp_path/'whole')


def test_ten_kills_in_a_row_lose_nothing(photos, tmp_path):
    "Killed ten times at random moments, wherever that is, and continued each time: the same bytes as in one go."
    n, out, rng = 400, tmp_path/'killed', random.Random(0)
    code = 'import sys; from rr.data import *; from rr.core import asset; synthesize(clean_photos(asset("photos")), sys.argv[1], int(sys.argv[2]), RECIPES["regions"], size=64)'
    for _ in range(10):
        before = whole_lines_of(out/'metadata.jsonl')
        process = subprocess.Popen([sys.executable, '-c', code, str(out), str(n)], start_new_session=True, env=os.environ | {'OMP_NUM_THREADS': '1'})
        deadline = time.monotonic() + 60
        while whole_lines_of(out/'metadata.jsonl') <= before and time.monotonic() < deadline: time.sleep(.002)
        time.sleep(rng.uniform(0, .3))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert before < whole_lines_of(out/'metadata.jsonl') < n
    left = n - whole_lines_of(out/'metadata.jsonl')
    assert synthesize(photos, out, n, RECIPES['regions'], size=64) == left
    synthesize(photos, tmp_path/'whole', n, RECIPES['regions'], size=64)
    assert contents(out) == contents(tmp_path/'whole')


def whole_lines_of(path): return path.read_bytes().count(b'\n') if path.exists() else 0  # changes nothing, unlike `whole_lines`


def test_other_settings_are_refused(photos, tmp_path):
    synthesize(photos, tmp_path, 1, size=64)
    with pytest.raises(ValueError, match=r'other settings \(seed, size\)'): synthesize(photos, tmp_path, 2, size=32, seed=1)
    with pytest.raises(ValueError, match='fingerprint'): synthesize(photos[1:], tmp_path, 2, size=64)
    with pytest.raises(ValueError, match='fingerprint'): synthesize(photos, tmp_path, 2, size=64, scenes={photos[0]: Scene('indoor')})
    assert len(PairFolder(tmp_path)) == 1


def test_a_foreign_folder_is_left_alone(photos, tmp_path):
    (tmp_path/'metadata.jsonl').write_text('{"file_name": "cat.jpg"}\n')
    with pytest.raises(ValueError, match='holds another data set'): synthesize(photos, tmp_path, 1, size=64)
    assert (tmp_path/'metadata.jsonl').read_text() == '{"file_name": "cat.jpg"}\n'


@pytest.mark.parametrize('name', ['clean', 'damaged'])
def test_photos_of_ones_own_are_not_overwritten(photos, tmp_path, name):
    (tmp_path/name).mkdir()
    for file in ('000000.png', '.rr-mine.png'): (tmp_path/name/file).write_bytes(photos[0].read_bytes())
    before = contents(tmp_path)
    with pytest.raises(ValueError, match='holds another data set'): synthesize(clean_photos(tmp_path), tmp_path, 2, size=64)
    assert contents(tmp_path) == before and [p.name for p in tmp_path.iterdir()] == [name]


def test_what_a_kill_left_is_cleared(photos, tmp_path):
    synthesize(photos, tmp_path, 1, size=64)
    (tmp_path/'clean'/'.rr-0123.png').write_bytes(b'half')
    with pytest.raises(ValueError, match='other settings'): synthesize(photos, tmp_path, 2, size=32)
    assert (tmp_path/'clean'/'.rr-0123.png').exists()
    assert synthesize(photos, tmp_path, 2, size=64) == 1 and not (tmp_path/'clean'/'.rr-0123.png').exists()


def test_pairs_come_back(photos, tmp_path):
    synthesize(photos, tmp_path, 3, size=64, seed=5)
    folder, stream = PairFolder(tmp_path), PairStream(photos, 64, EVALUATION, 5)
    assert len(folder) == 3
    for i in range(3):
        back, made = folder[i], stream[i]
        assert back.diagnosis == made.diagnosis and (back.name, back.seed) == (made.name, made.seed)
        assert (back.clean - made.clean).abs().max() < .6 / 255


def test_a_broken_photo_is_named(photos, tmp_path):
    (tmp_path/'in').mkdir()
    (tmp_path/'in'/'broken.jpg').write_bytes(photos[0].read_bytes()[:500])
    with pytest.raises(ValueError, match='broken.jpg'): synthesize(clean_photos(tmp_path/'in'), tmp_path/'out', 1, size=64)


def test_datasets_reads_it(photos, tmp_path):
    datasets = pytest.importorskip('datasets')
    synthesize(photos, tmp_path/'pairs', 4, size=64)
    rows = datasets.load_dataset('imagefolder', data_dir=str(tmp_path/'pairs'), cache_dir=str(tmp_path/'cache'))['train']
    records = [json.loads(line) for line in (tmp_path/'pairs'/'metadata.jsonl').read_text().splitlines()]
    assert [r['cot'] for r in rows] == [r['cot'] for r in records]
    assert [r['parameters'] for r in rows] == [r['parameters'] for r in records]
    assert rows[0]['image'].size == rows[0]['clean'].size == (64, 64)


def test_a_data_set_of_all_kinds_and_regions_is_read(photos, tmp_path):
    datasets, recipe = pytest.importorskip('datasets'), RECIPES['regions']
    synthesize(photos, tmp_path/'pairs', 12, recipe, size=64)
    rows = datasets.load_dataset('imagefolder', data_dir=str(tmp_path/'pairs'), cache_dir=str(tmp_path/'cache'))['train']
    folder, stream = PairFolder(tmp_path/'pairs'), PairStream(photos, 64, recipe)
    assert all(folder[i].diagnosis == stream[i].diagnosis for i in range(12))
    found = [(k, p['region']) for r in rows for k, p in r['parameters'].items() if p['region']]
    assert found and set(rows[0]['severity']) == set(recipe.kinds)
    assert found == [(k, f.region) for i in range(12) for k, f in stream[i].diagnosis.findings.items() if f.region]


def test_the_cache_of_photos_is_bounded(photos):
    stream = PairStream(photos, 64, cache_bytes=1)
    for i in range(4): stream[i]
    assert len(stream.cache) == 1
    assert torch.equal(stream[1].degraded, PairStream(photos, 64)[1].degraded)
