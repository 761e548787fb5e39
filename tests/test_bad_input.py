"Every kind of file that people have is restored as a viewer would see it, or refused; outputs are whole or absent."

import io
import json
import signal
import struct
import subprocess
import sys
import threading
import zlib
from itertools import zip_longest

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from conftest import ROOT, python, rr_command
from rr.core import PhotoError, atomic_path, bundled_photos, read_photo, to_tensor, write_photo

SIZE = 160, 120
UNDO = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def png_16_bit(rgb):
    "A 16-bit RGB PNG, which Pillow reads but cannot write; `rgb` (H,W,3) uint16."

    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in rgb)
    header = struct.pack('>IIBBBBB', rgb.shape[1], rgb.shape[0], 16, 2, 0, 0, 0)
    return (
        b'\x89PNG\r\n\x1a\n'
        + chunk(b'IHDR', header)
        + chunk(b'IDAT', zlib.compress(rows))
        + chunk(b'IEND', b'')
    )


def with_window(photo):
    "The photo with an ellipse outside of which it is transparent."
    window = Image.new('L', photo.size)
    ImageDraw.Draw(window).ellipse((20, 10, 140, 110), fill=255)
    photo = photo.copy()
    photo.putalpha(window)
    return photo


def turned(photo, orientation, path):
    "Saved so that only its EXIF makes it upright."
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo.transpose(UNDO[orientation]).save(path, exif=exif, quality=95)


def make_good(folder, photo):
    "One file of every kind that must come out right."
    grey, alpha = photo.convert('L'), with_window(photo)
    photo.save(folder / 'plain.png')
    photo.save(folder / 'plain.jpg', quality=95)
    photo.save(folder / 'progressive.jpg', quality=95, progressive=True)
    photo.save(folder / 'plain.webp', lossless=True)
    photo.save(folder / 'plain.bmp')
    photo.save(folder / 'plain.tif')
    photo.convert('CMYK').save(folder / 'cmyk.jpg', quality=95)
    photo.convert('CMYK').save(folder / 'cmyk.tif')
    photo.quantize(256).save(folder / 'palette.png')
    photo.quantize(256).save(folder / 'one_frame.gif')
    photo.convert('1').save(folder / 'bilevel.png')
    grey.save(folder / 'grey.jpg', quality=95)
    Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(folder / 'grey16.png')
    Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(folder / 'grey16.tif')
    (folder / 'rgb16.png').write_bytes(png_16_bit(np.asarray(photo).astype(np.uint16) * 257))
    alpha.save(folder / 'rgba.png')
    alpha.save(folder / 'rgba.webp', lossless=True, exact=True)
    alpha.convert('LA').save(folder / 'grey_alpha.png')
    photo.quantize(255).save(folder / 'palette_transparent.png', transparency=3)
    for k in UNDO:
        turned(photo, k, folder / f'exif{k}.png')
    turned(photo, 6, folder / 'exif6.jpg')
    photo.save(folder / 'wrong_suffix.jpg', format='PNG')
    photo.save(folder / 'ümlaut and spaces.png')


def make_bad(folder, photo):
    "One file of every kind that must be refused: {name: what the message says}."
    jpeg, png = (io.BytesIO() for _ in range(2))
    photo.save(jpeg, 'JPEG'), photo.save(png, 'PNG')
    jpeg, png = jpeg.getvalue(), png.getvalue()
    for name, content in {
        'truncated.jpg': jpeg[: len(jpeg) // 2],
        'truncated.png': png[: len(png) // 2],
        'header_only.png': png[:40],
        'zero.jpg': b'',
        'text.jpg': b'Dear photo,\nI am a letter.\n',
        'page.png': b'<html><body>404</body></html>',
    }.items():
        (folder / name).write_bytes(content)
    Image.new('RGB', (1, 1)).save(folder / 'dot.png')
    photo.save(folder / 'animated.gif', save_all=True, append_images=[photo.rotate(90)])
    photo.save(folder / 'animated.png', save_all=True, append_images=[photo.rotate(90)])
    photo.save(folder / 'animated.webp', save_all=True, append_images=[photo.rotate(90)])
    photo.save(folder / 'pages.tif', save_all=True, append_images=[photo.rotate(90)])
    Image.new('1', (9000, 9000)).save(folder / 'bomb.png')
    Image.new('1', (20000, 20000)).save(folder / 'big_bomb.png')
    (folder / 'folder.png').mkdir()
    Image.fromarray(np.full((120, 160), 300_000, np.int32)).save(folder / 'int32.tif')
    return {
        'truncated.jpg': 'cut off',
        'truncated.png': 'cut off',
        'header_only.png': '',
        'zero.jpg': 'empty',
        'text.jpg': 'not an image',
        'page.png': 'not an image',
        'dot.png': '1x1',
        'animated.gif': '2 frames',
        'animated.png': '2 frames',
        'animated.webp': '2 frames',
        'pages.tif': '2 frames',
        'bomb.png': 'megapixels',
        'big_bomb.png': 'megapixels',
        'folder.png': 'folder',
        'missing.jpg': 'no such file',
        'int32.tif': 'white',
    }


@pytest.fixture(scope='module')
def good(tmp_path_factory, small_photo):
    folder = tmp_path_factory.mktemp('good')
    make_good(folder, small_photo)
    return sorted(folder.iterdir())


@pytest.fixture(scope='module')
def bad(tmp_path_factory, small_photo):
    folder = tmp_path_factory.mktemp('bad')
    return {folder / name: says for name, says in make_bad(folder, small_photo).items()}


def expected_difference(name):
    "Mean distance from the original that is allowed, in levels of 255: what is lossy is so in the file."
    if 'bilevel' in name:
        return 140
    if 'palette' in name or name.endswith('.gif'):
        return 12
    return 3 if name.endswith('.jpg') and not name.startswith('wrong') else 0.51


def test_every_good_file_reads_as_a_viewer_shows_it(good, small_photo):
    colour, grey = to_tensor(small_photo), to_tensor(small_photo.convert('L'))
    for path in good:
        photo = read_photo(path)
        assert photo.size == SIZE, path.name
        assert photo.image.dtype == torch.float32 and 0 <= photo.image.min() and photo.image.max() <= 1
        like = grey if 'grey' in path.name else colour
        assert (photo.image - like).abs().mean() * 255 <= expected_difference(path.name), path.name


def test_transparency_is_kept_apart(good, small_photo):
    window = torch.from_numpy(np.array(with_window(small_photo).getchannel('A'))).float()[None] / 255
    for path in good:
        alpha = read_photo(path).alpha
        if path.name in ('rgba.png', 'rgba.webp', 'grey_alpha.png'):
            assert torch.equal(alpha, window), path.name
        elif path.name == 'palette_transparent.png':
            assert alpha.shape == (1, 120, 160) and 0 < (alpha == 0).sum() < 19200
        else:
            assert alpha is None, path.name


def test_every_bad_file_is_refused_in_one_line_with_its_name_and_reason(bad):
    for path, says in bad.items():
        with pytest.raises(PhotoError) as caught:
            read_photo(path)
        message = str(caught.value)
        assert '\n' not in message and path.name in message and says in message, message


def test_a_bomb_is_refused_before_it_is_decoded(bad):
    path = next(p for p in bad if p.name == 'bomb.png')
    code = (
        'import resource, sys; from rr.core import read_photo, PhotoError\n'
        'before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n'
        'try: read_photo(sys.argv[1])\nexcept PhotoError: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)'
    )
    done = python('-c', code, path)
    assert int(done.stdout) < 50_000, 'kilobytes more than before; decoded it takes 972 000'


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bytes_never_escape_as_another_error(good, tmp_path, data):
    "Cut or overwrite any file at any place: a photo with valid pixels or a `PhotoError`, nothing else."
    content = bytearray(data.draw(st.sampled_from(good)).read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + 4] = data.draw(st.binary(max_size=8))
        if not content:
            break
    path = tmp_path / 'damaged.bin'
    path.write_bytes(
        bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    )
    try:
        photo = read_photo(path, max_pixels=1_000_000)
    except PhotoError as error:
        assert '\n' not in str(error)
    else:
        assert photo.image.isfinite().all() and photo.image.min() >= 0 and photo.image.max() <= 1


# One of each that takes another way through reading; the rest of the way is the same for all.
RESTORED = {
    'plain.jpg',
    'cmyk.jpg',
    'bilevel.png',
    'grey16.png',
    'rgb16.png',
    'rgba.png',
    'grey_alpha.png',
    'palette_transparent.png',
    'exif6.jpg',
    'exif3.png',
    'wrong_suffix.jpg',
    'ümlaut and spaces.png',
}


@pytest.fixture(scope='module')
def batch(good, bad, small_photo, tmp_path_factory):
    "One `rr restore` over all of them, bad ones in between, and a photo of 20000x100 pixels."
    folder = tmp_path_factory.mktemp('batch')
    wide = small_photo.resize((20000, 100))
    wide.save(folder / 'wide.png')
    picked = [p for p in good if p.name in RESTORED]
    order = [p for pair in zip_longest(bad, picked) for p in pair if p]
    done = rr_command('restore', *order, folder / 'wide.png', '--out', folder / 'out', '--json', timeout=1800)
    records = [json.loads(line) for line in done.stdout.splitlines()]
    return done, records, picked + [folder / 'wide.png'], folder / 'out'


def test_a_batch_with_bad_files_does_all_the_good_ones(batch, bad):
    done, records, good, _ = batch
    assert done.returncode == 1, done.stderr
    assert {r['input'] for r in records} == {str(p) for p in good}
    complaints = [line for line in done.stderr.splitlines() if line.startswith('rr: ')]
    assert len(complaints) == len(bad) and 'Traceback' not in done.stderr
    for path, says in bad.items():
        assert [line for line in complaints if path.name in line and says in line], path.name


def test_restored_photos_have_the_size_and_orientation_that_a_viewer_sees(batch):
    _, records, _, _ = batch
    for record in records:
        before, after = read_photo(record['input']), read_photo(record['restored'])
        assert after.size == before.size, record['input']
        assert not Image.open(record['restored']).getexif().get(0x0112)
        a, b = (
            torch.nn.functional.avg_pool2d(x.mean(0)[None], 20).flatten() for x in (before.image, after.image)
        )
        if 'bilevel' not in record['input']:
            assert torch.corrcoef(torch.stack([a, b]))[0, 1] > 0.7, record['input']


def test_restored_photos_keep_their_transparency(batch):
    _, records, _, _ = batch
    for record in records:
        before, after = read_photo(record['input']).alpha, read_photo(record['restored']).alpha
        assert (before is None) == (after is None) and (before is None or torch.equal(before, after)), record[
            'input'
        ]


def test_nothing_else_is_left_in_the_folder(batch):
    _, records, _, out = batch
    assert {str(p) for p in out.iterdir()} == {r[k] for r in records for k in ('restored', 'trace')}


def test_an_existing_file_is_overwritten_only_on_request(tmp_path):
    cat, out = bundled_photos()['cat'], tmp_path / 'a.png'
    out.write_text('mine')
    refused = rr_command('degrade', cat, '--noise', 20, '--out', out)
    assert refused.returncode == 1 and 'exists' in refused.stderr and refused.stderr.count('\n') == 1
    assert out.read_text() == 'mine'
    assert rr_command('degrade', cat, '--noise', 20, '--out', out, '--overwrite').returncode == 0
    assert read_photo(out).size == read_photo(cat).size


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
from rr.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_full_disk_leaves_nothing_and_says_so_in_one_line(tmp_path):
    done = python(
        '-c', LIMITED, 'degrade', bundled_photos()['cat'], '--noise', 20, '--out', tmp_path / 'a.png'
    )
    assert done.returncode == 1 and 'cannot be written' in done.stderr and done.stderr.count('\n') == 1, (
        done.stderr
    )
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_keeps_the_old_file(tmp_path):
    out = tmp_path / 'a.png'
    out.write_text('mine')
    done = python(
        '-c', LIMITED, 'degrade', bundled_photos()['cat'], '--noise', 20, '--out', out, '--overwrite'
    )
    assert done.returncode == 1 and out.read_text() == 'mine' and list(tmp_path.iterdir()) == [out]


def test_an_unwritable_place_is_named(tmp_path):
    (tmp_path / 'file').write_text('')
    for out in (
        tmp_path / 'nowhere/a.png',
        tmp_path / 'file/a.png',
        tmp_path / ('a' * 300 + '.png'),
        tmp_path / 'a.xyz',
    ):
        with pytest.raises(PhotoError, match='cannot'):
            write_photo(out, torch.rand(3, 16, 16))
    assert [p.name for p in tmp_path.iterdir()] == ['file']


WRITE_MANY = """
import sys, torch
from rr.core import write_photo
image = torch.rand(3, 700, 700)
print('ready', flush=True)
for i in range(1000): write_photo(f'{sys.argv[1]}/{i}.png', image)
"""


@pytest.mark.parametrize('seconds', [0.05, 0.33, 0.71])
def test_a_killed_process_leaves_whole_files_only(tmp_path, seconds):
    process = subprocess.Popen(
        [sys.executable, '-c', WRITE_MANY, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == 'ready\n'
    threading.Event().wait(seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for path in tmp_path.glob('[!.]*'):
        assert read_photo(path).size == (700, 700)
    assert len(list(tmp_path.glob('.rr-*'))) <= 1


def test_of_many_writers_without_overwrite_exactly_one_wins(tmp_path):
    outcomes, images = [], [torch.full((3, 64, 64), k / 8) for k in range(8)]
    start = threading.Barrier(len(images))

    def write(k):
        start.wait()
        try:
            outcomes.append((k, write_photo(tmp_path / 'a.png', images[k])))
        except PhotoError as error:
            outcomes.append((k, error))

    threads = [threading.Thread(target=write, args=(k,)) for k in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    winners = [k for k, outcome in outcomes if not isinstance(outcome, PhotoError)]
    assert len(winners) == 1 and len(outcomes) == 8
    assert torch.allclose(read_photo(tmp_path / 'a.png').image, images[winners[0]], atol=1 / 255)
    assert [p.name for p in tmp_path.iterdir()] == ['a.png']


def test_new_files_have_the_usual_permissions(tmp_path):
    (tmp_path / 'usual').write_text('')
    write_photo(tmp_path / 'a.png', torch.rand(3, 16, 16))
    assert (tmp_path / 'a.png').stat().st_mode == (tmp_path / 'usual').stat().st_mode


def test_atomic_path_leaves_nothing_when_interrupted(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / 'a.bin') as temporary:
        temporary.write_bytes(b'half')
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
