"The command `rr`: what it prints, where, and with which exit code."

import json
import os
import re
import shutil
import sys

import pytest
import torch

from conftest import python, rr_command
from rr.cli import DEGRADATION_OPTIONS, RECIPE_NAMES, SECTIONS, build_parser, for_each, printable, result_stems
from rr.core import bundled_photos, damaged_photo, psnr, read_photo, to_tensor

CAT = bundled_photos()['cat']


@pytest.fixture(scope='module')
def photos(tmp_path_factory, small_photo):
    "Two small photos of one name in two folders, and one that is no photo."
    folder = tmp_path_factory.mktemp('photos')
    for day in ('monday', 'tuesday'):
        (folder / day).mkdir()
        small_photo.save(folder / day / 'IMG_1.png')
    (folder / 'letter.jpg').write_text('Dear photo,')
    return folder


def test_options_cover_the_kinds_and_sections_that_exist():
    from rr.data import RECIPES
    from rr.degrade import DEGRADATIONS
    from rr.evaluate import SECTIONS as known

    assert tuple(DEGRADATION_OPTIONS) == tuple(DEGRADATIONS) and tuple(SECTIONS) == tuple(known)
    assert tuple(RECIPE_NAMES) == tuple(RECIPES)


@pytest.mark.parametrize('command', [[], ['restore'], ['diagnose'], ['degrade'], ['synthesize'], ['evaluate']])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as done:
        build_parser().parse_args([*command, '--help'])
    assert done.value.code == 0 and 'usage: rr' in capsys.readouterr().out


def test_version():
    import rr

    done = rr_command('--version')
    assert done.stdout == f'rr {rr.__version__}\n' and done.returncode == 0


@pytest.mark.parametrize(
    'arguments',
    [
        [],
        ['improve'],
        ['restore', CAT],
        ['restore', '--out', 'x'],
        ['degrade', CAT, '--out', 'x.png'],
        ['degrade', CAT, '--fog', '101', '--out', 'x.png'],
        ['degrade', CAT, '--fog', '-1', '--out', 'x.png'],
        ['degrade', CAT, '--fog', 'nan', '--out', 'x.png'],
        ['restore', CAT, '--out', 'x', '--steps', '0'],
        ['restore', CAT, '--out', 'x', '--seed', '1.5'],
        ['evaluate', 'no/such/folder'],
    ],
)
def test_wrong_usage_exits_with_2_and_writes_nothing(arguments, tmp_path):
    done = rr_command(*arguments, cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == '' and 'Traceback' not in done.stderr
    assert not any(p.is_file() for p in tmp_path.rglob('*'))


def test_degrade_as_json(tmp_path):
    done = rr_command(
        'degrade', CAT, '--fog', 40, '--noise', 20, '--seed', 7, '--out', tmp_path / 'a.png', '--json'
    )
    record = json.loads(done.stdout)
    assert done.returncode == 0 and done.stdout.count('\n') == 1
    assert record['severity'] == {'fog': 40, 'rain': 0, 'blur': 0, 'noise': 20} and record['seed'] == 7
    assert record['parameters'].keys() == {'fog', 'noise'}
    from rr.degrade import degrade

    same = degrade(read_photo(CAT).image, {'fog': 40, 'noise': 20}, seed=7)
    assert same.parameters == record['parameters']
    assert (read_photo(record['degraded']).image - same.image).abs().max() <= 0.51 / 255


@pytest.fixture(scope='module')
def restored(photos, tmp_path_factory):
    "`rr restore --json` on a damaged photo, two of the same name, and one that is no photo."
    out = tmp_path_factory.mktemp('restored')
    inputs = [
        damaged_photo(),
        photos / 'monday/IMG_1.png',
        photos / 'letter.jpg',
        photos / 'tuesday/IMG_1.png',
    ]
    return rr_command('restore', *inputs, '--out', out, '--json', timeout=1200), inputs, out


def test_restore_hears_only_what_can_be_wrong(tmp_path, capsys):
    from rr.cli import main

    command = ['restore', str(damaged_photo()), '--out', str(tmp_path), '--json', '--only']
    assert main([*command, 'noise', 'blur']) == 0
    before = json.loads(capsys.readouterr().out)['before']
    assert before['noise'] > 15 and before['fog'] == 0
    with pytest.raises(SystemExit, match='2'): main([*command, 'mist'])
    assert "invalid choice: 'mist'" in capsys.readouterr().err


def test_restore_keeps_what_is_clean_where_that_is_asked_for(tmp_path, capsys):
    from rr.cli import main

    coffee = bundled_photos()['coffee']  # the probability of noise: about .3
    for name, option, same in (('kept', ['--keep-clean'], True), ('quieted', [], False)):
        assert main(['restore', str(coffee), '--out', str(tmp_path / name), *option]) == 0
        restored = read_photo(tmp_path / name / 'coffee.restored.png').image
        said = capsys.readouterr().out
        assert ('left as it is' in said) == torch.equal(restored, read_photo(coffee).image) == same, said
        assert psnr(restored, read_photo(coffee).image) > 42


def test_restore_as_json_has_the_promised_fields(restored):
    done, inputs, _ = restored
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [r['input'] for r in records] == [str(p) for p in inputs if p.name != 'letter.jpg']
    for r in records:
        assert list(r) == ['input', 'restored', 'trace', 'before', 'regions', 'after', 'seconds']
        for severities in (r['before'], r['after']):
            assert list(severities) == ['fog', 'rain', 'blur', 'noise'] and all(
                0 <= s <= 100 for s in severities.values()
            )
        assert 0 < r['seconds'] < 600


def test_restore_goes_on_after_a_bad_file_and_says_so(restored):
    done, _, _ = restored
    assert done.returncode == 1
    assert re.fullmatch(r'rr: .*letter\.jpg: not an image in a known format\n', done.stderr), done.stderr


def test_results_of_one_name_do_not_collide(restored):
    _, _, out = restored
    assert {p.name for p in out.iterdir()} == {
        f'{stem}.{kind}'
        for stem in ('damaged', 'IMG_1', 'IMG_1-2')
        for kind in ('restored.png', 'trace.html')
    }


def test_the_trace_is_one_page_that_needs_nothing_else(restored):
    _, _, out = restored
    page = (out / 'damaged.trace.html').read_text(encoding='utf-8')
    assert page.lstrip().lower().startswith('<!doctype html') and 'data:image/' in page
    assert not re.search(r'(src|href)\s*=\s*["\']?(https?:)?//', page)


def test_the_damaged_photo_is_restored_to_something_closer_to_the_clean_one(restored):
    from rr.core import psnr

    _, _, out = restored
    clean = read_photo(bundled_photos()['colosseum']).image
    before, after = (
        psnr(read_photo(p).image, clean) for p in (damaged_photo(), out / 'damaged.restored.png')
    )
    assert after > before + 1


def test_restore_twice_refuses_and_keeps_then_overwrites(restored):
    _, inputs, out = restored
    path = out / 'damaged.restored.png'
    stamp = path.stat().st_mtime_ns
    refused = rr_command('restore', inputs[0], '--out', out, timeout=1200)
    assert refused.returncode == 1 and 'exists' in refused.stderr and path.stat().st_mtime_ns == stamp
    content = path.read_bytes()
    again = rr_command('restore', inputs[0], '--out', out, '--overwrite', timeout=1200)
    assert again.returncode == 0 and path.stat().st_mtime_ns != stamp
    assert path.read_bytes() == content, 'the same photo with the same seed'


def test_diagnose_as_json_and_as_text(photos):
    done = rr_command('diagnose', damaged_photo(), photos / 'letter.jpg', '--json', timeout=1200)
    record = json.loads(done.stdout)
    assert done.returncode == 1 and list(record) == ['input', 'severity', 'present', 'regions', 'parameters', 'cot']
    assert record['present'] == [k for k, s in record['severity'].items() if s] == list(record['parameters'])
    from rr.diagnosis import parse_cot

    assert parse_cot(record['cot']).diagnosis.severities() == record['severity']
    text = rr_command('diagnose', damaged_photo(), timeout=1200)
    assert text.returncode == 0 and '1. Identify' in text.stdout and 'fog' in text.stdout
    from rr.degrade import DEGRADATIONS

    seven = rr_command('diagnose', damaged_photo(), '--reasoner', 'nano-seven', '--json', timeout=1200)
    assert list(json.loads(seven.stdout)['severity']) == list(DEGRADATIONS) and 'Loading' not in seven.stderr


def test_evaluate_prints_a_table_and_keeps_its_records(tmp_path, photos):
    shutil.copy(photos / 'monday/IMG_1.png', tmp_path / 'a.png')
    (tmp_path / 'out').mkdir()
    options = [tmp_path, '--limit', 2, '--sections', 'reasoner', '--out', tmp_path / 'out/records.jsonl']
    done = rr_command('evaluate', *options, timeout=1200)
    assert done.returncode == 0 and 'fog' in done.stdout and '|' in done.stdout, done.stderr
    lines = (tmp_path / 'out/records.jsonl').read_text().splitlines()
    assert {json.loads(line)['condition'] for line in lines} == {'mixed', 'all kinds', 'clean'}
    shutil.copy(photos / 'letter.jpg', tmp_path / 'b.jpg')
    as_json = rr_command('evaluate', *options, '--json', timeout=1200)
    assert as_json.stdout.splitlines() == lines, 'known records are not made again'
    assert as_json.returncode == 1 and re.fullmatch(r'rr: .*b\.jpg: not an image in a known format\n', as_json.stderr), as_json.stderr


def test_after_reinforcement_learning(tmp_path, photos, restored):
    done = rr_command('restore', damaged_photo(), '--rl', '--out', tmp_path)
    assert done.returncode == 0, done.stderr
    plain, tuned = (to_tensor(folder / 'damaged.restored.png') for folder in (restored[2], tmp_path))
    assert plain.shape == tuned.shape and psnr(plain, tuned) > 25 and not torch.equal(plain, tuned), 'a small change, and one'
    twice = rr_command('restore', photos / 'monday/IMG_1.png', '--rl', '--restorer', 'nano', '--out', tmp_path)
    assert twice.returncode == 2 and 'not allowed with' in twice.stderr


def test_a_model_that_is_not_there_is_one_line_and_exit_code_2(tmp_path):
    done = rr_command(
        'diagnose', CAT, '--reasoner', 'Qwen/Qwen3-VL-4B-Instruct', HF_HUB_OFFLINE='1', HF_HOME=tmp_path
    )
    assert done.returncode == 2 and done.stdout == ''
    lines = [line for line in done.stderr.splitlines() if line.startswith('rr: ')]
    assert len(lines) == 1 and 'Qwen3-VL-4B' in lines[0] and 'Traceback' not in done.stderr


def test_result_stems_are_apart_whatever_the_names():
    from hypothesis import given
    from hypothesis import strategies as st

    @given(st.lists(st.sampled_from(['a', 'A', 'a-2', 'a-2-2', 'b/a', 'c/a-2', 'a.png', 'a.jpg'])))
    def check(names):
        stems = result_stems(names)
        assert len({s.casefold() for s in stems}) == len(names)
        assert all(s.casefold().startswith('a') for s in stems)

    check()


def test_an_unexpected_error_of_one_photo_does_not_stop_the_others(capsys):
    def work(path):
        if path == 'b':
            raise RuntimeError('first line\nsecond line')
        return {'input': path}, path

    assert for_each(['a', 'b', 'c'], work, as_json=False) == 1
    out, err = capsys.readouterr()
    assert out == 'a\nc\n' and err == 'rr: b: RuntimeError: first line second line\n'


def test_model_text_cannot_steer_the_terminal():
    assert printable('fog\x1b[2J 042\nrain') == 'fog?[2J 042\nrain'


@pytest.mark.skipif(sys.platform != 'linux', reason='file names are bytes on Linux only')
def test_names_that_standard_output_cannot_hold(tmp_path, small_photo):
    names = [os.fsdecode(b'bad\xff.png'), '猫😀é.png']
    for name in names:
        small_photo.save(tmp_path / name)
    done = rr_command('restore', *names, 'no\udcff.png', '--out', 'out', '--json', cwd=tmp_path, timeout=1200, PYTHONIOENCODING='cp1252')
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and 'no such file' in done.stderr, done.stderr
    assert [json.loads(line)['input'] for line in done.stdout.splitlines()] == names
    assert {p.name for p in (tmp_path / 'out').iterdir()} == {f'{n[:-4]}.{e}' for n in names for e in ('restored.png', 'trace.html')}
    text = rr_command('degrade', names[0], '--fog', 9, '--out', 'a.png', cwd=tmp_path, PYTHONIOENCODING='utf-8:strict')
    assert text.returncode == 0 and text.stdout == 'bad\\udcff.png: fog 9 -> a.png\n', text.stderr


@pytest.mark.parametrize('photo', [CAT, 'no.jpg'])
def test_a_reader_that_leaves_early_gets_no_traceback(tmp_path, photo):
    unread = 'import os, sys; read, write = os.pipe(); os.close(read); os.dup2(write, {}); from rr.cli import main; sys.exit(main(sys.argv[1:]))'
    stream = 2 if photo == 'no.jpg' else 1
    done = python('-c', unread.format(stream), 'degrade', photo, '--fog', 9, '--out', tmp_path / 'a.png')
    assert done.returncode == 141 and done.stdout == '' == done.stderr, done.stderr


def test_seed_decides_and_clean_pixels_stay_when_untouched(tmp_path):
    outs = [tmp_path / f'{k}.png' for k in 'abc']
    for out, seed in zip(outs, (1, 1, 2)):
        rr_command('degrade', CAT, '--noise', 30, '--seed', seed, '--out', out)
    a, b, c = (read_photo(p).image for p in outs)
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_a_seed_may_be_large(tmp_path, capsys):
    from rr.cli import main

    assert main(['degrade', str(CAT), '--noise', '30', '--seed', '1000000000000000000', '--out', str(tmp_path / 'a.png')]) == 0
    assert capsys.readouterr().err == ''


def test_no_option_prints_a_traceback_for_a_missing_file():
    for command in (['degrade', 'no.jpg', '--fog', '3', '--out', 'x.png'], ['diagnose', 'no.jpg']):
        done = rr_command(*command)
        assert done.returncode == 1 and done.stderr == 'rr: no.jpg: no such file\n', done.stderr


def test_debug_shows_the_traceback():
    done = rr_command('diagnose', 'no.jpg', RR_DEBUG='1')
    assert done.returncode == 1 and 'Traceback' in done.stderr


def test_module_does_not_start_by_itself_when_imported():
    assert python('-c', 'import rr.cli').stdout == ''


def test_synthesize_goes_on_and_refuses_other_settings(tmp_path, capsys):
    from rr.cli import main

    command = ['synthesize', str(CAT.parent), str(tmp_path / 'pairs'), '--size', '64']
    assert main([*command, '--n', '2']) == 0 and capsys.readouterr().out.endswith('pairs: 2 pairs made\n')
    assert main([*command, '--n', '3']) == 0 and capsys.readouterr().out.endswith('pairs: 1 pairs made\n')
    assert main([*command, '--n', '3', '--seed', '1']) == 2 and 'other settings (seed)' in capsys.readouterr().err
    assert main(['synthesize', str(tmp_path / 'nothing'), str(tmp_path / 'x')]) == 2
    assert capsys.readouterr().err == f'rr: {tmp_path}/nothing: no photos found (looked for .bmp, .jpeg, .jpg, .png, .tif, .tiff, .webp)\n'


def test_degrade_knows_the_kinds_beyond_the_paper(tmp_path, capsys):
    from rr.cli import main

    assert main(['degrade', str(CAT), '--low-light', '40', '--jpeg', '70', '--out', str(tmp_path / 'dark.png'), '--json']) == 0
    record = json.loads(capsys.readouterr().out)
    assert {k: s for k, s in record['severity'].items() if s} == {'low-light': 40, 'jpeg': 70}
    assert set(record['parameters']) == {'low-light', 'jpeg'} and record['parameters']['jpeg']['quality'] < 10
    assert read_photo(tmp_path / 'dark.png').image.mean() < .7 * read_photo(CAT).image.mean()


def test_calibrate_writes_a_table_that_can_be_used(tmp_path, capsys):
    from rr.cli import main
    from rr.degrade import DEGRADATIONS, strength, use_scale

    (tmp_path / 'photos').mkdir()
    (tmp_path / 'more' / 'photos').mkdir(parents=True)
    for folder in ('photos', 'more/photos'): shutil.copy(CAT, tmp_path / folder)  # two folders of one name are two
    command = ['calibrate', str(tmp_path / 'photos'), str(tmp_path / 'more' / 'photos'), '--n', '1', '--note', 'one cat', '--out', str(tmp_path / 'scale.json')]
    assert main(command) == 0 and 'fog, rain, snow, blur, low-light, noise, jpeg on one scale' in capsys.readouterr().out
    table = json.loads((tmp_path / 'scale.json').read_text())
    assert set(table['kinds']) == set(DEGRADATIONS) and table['provenance'].startswith('rr calibrate photos photos --n 1 --seed 0: 2 photos') and table['provenance'].endswith('one cat')
    shipped = strength('noise', 50)
    try:
        use_scale(tmp_path / 'scale.json')
        assert strength('noise', 50) != shipped and strength('noise', 100)['sigma'] > 20
    finally: use_scale(None)
    assert strength('noise', 50) == shipped
    assert main(command) == 2 and 'not overwritten' in capsys.readouterr().err
    assert main(['calibrate', str(tmp_path / 'nothing')]) == 2 and 'no photos found' in capsys.readouterr().err


def test_calibrate_refuses_photos_that_are_too_small(photos, capsys):
    from rr.cli import main

    assert main(['calibrate', str(photos / 'monday')]) == 2 and '192 pixels' in capsys.readouterr().err


def test_calibrate_tries_to_write_before_it_measures(tmp_path, capsys, monkeypatch):
    import rr.severity
    from rr.cli import Unusable, main

    measured = []
    def measure(*_, **__):
        measured.append((tmp_path / 'missing/dir').is_dir())
        raise Unusable('measured')
    monkeypatch.setattr(rr.severity, 'ramp_losses', measure)
    command = ['calibrate', str(CAT.parent), '--n', '1', '--overwrite', '--out']
    (tmp_path / 'file').write_text('mine')
    for out in ('file/t.json', '.'):
        assert main([*command, str(tmp_path / out)]) == 2 and str(tmp_path) in capsys.readouterr().err
    assert not measured
    assert main([*command, str(tmp_path / 'missing/dir/t.json')]) == 2 and measured == [True]
    assert not list((tmp_path / 'missing/dir').iterdir())
