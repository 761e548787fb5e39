"The whole loop: stock Qwen classes built small and random, the nano weights, files in and out, errors in one line."
import json, re, subprocess, sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from rr.core import PhotoError, bundled_photos, damaged_photo, psnr, read_photo, seeded, to_pil
from rr.data import softened
from rr.degrade import KINDS
from rr.diagnosis import Diagnosis, Finding
from rr.pipeline import ReasonRestore, Restoration, as_photo, measurement
from rr.reasoner import Reasoner, ReasonerError
from rr.restorer import NanoRestorer, QwenRestorer, tiny_qwen_pipeline
from rr.nano import NanoRestorerNet
from tiny_qwen import tiny_model, tiny_processor

FOG = Diagnosis({'fog': Finding(60, {'extinction': 1.5, 'airlight': 0.9, 'warmth': 0.})})


def picture(height=48, width=64, seed=0):
    image = torch.rand(1, 3, 8, 8, generator=seeded(seed))
    return torch.nn.functional.interpolate(image, (height, width), mode='bicubic').clamp(0, 1)[0]


@pytest.fixture(scope='module')
def qwen():
    "Both Qwen parts, small and random, behind the same pipeline."
    restorer = QwenRestorer(tiny_qwen_pipeline(), pixels=64 * 64)
    restorer.default_steps = 2
    return ReasonRestore(Reasoner(tiny_model(), tiny_processor()), restorer, max_new_tokens=8)


@pytest.fixture(scope='module')
def mixed(qwen):
    "A Qwen reasoner with an untrained nano restorer, which changes nothing: it returns the photo as it is."
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ReasonRestore(qwen.reasoner, NanoRestorer(NanoRestorerNet(), device='cpu'), max_new_tokens=8)


# Stock Qwen classes

def test_qwen_end_to_end(qwen):
    result = qwen(picture(), edit=FOG)
    assert isinstance(result, Restoration) and not result.untouched and result.edited
    assert result.restored.image.shape == (3, 48, 64) and 0 <= result.restored.image.min() <= result.restored.image.max() <= 1
    assert result.severity_before.shape == result.severity_after.shape == (len(KINDS),)
    assert (result.severity_before >= 0).all() and (result.severity_before <= 100).all()
    assert result.before == FOG and result.steps == 2 and result.reply.text.startswith('1. Identify: ')
    assert set(result.seconds) == {'diagnose', 'restore', 'diagnose again'} and min(result.seconds.values()) > 0


def test_diagnosis_of_the_reasoner_reaches_the_restorer(qwen):
    "A random reasoner still writes a legal opening; what it wrote is what the restorer is told."
    result = qwen(picture())
    assert result.before == result.reply.diagnosis and not result.edited


def test_same_seed_same_photo(qwen):
    first, again, other = (qwen(picture(), seed=s, edit=FOG).restored.image for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_edit_by_a_function(mixed):
    result = mixed(picture(), edit=lambda d: Diagnosis().with_severity('noise', 33))
    assert result.before.severities() == {'fog': 0, 'rain': 0, 'blur': 0, 'noise': 33} and result.edited


# The weights that ship

@pytest.fixture(scope='module')
def nano(): return ReasonRestore.from_pretrained(device='cpu')


def test_nano_makes_the_bundled_photo_better(nano):
    result, truth = nano(damaged_photo()), read_photo(bundled_photos()['colosseum']).image
    assert {'fog', 'noise'} <= set(result.before.present)
    assert psnr(result.restored.image, truth) > psnr(result.photo.image, truth) + 4
    assert result.severity_after.sum() < 0.6 * result.severity_before.sum() and result.reward > 0.2
    assert torch.equal(nano(damaged_photo()).restored.image, result.restored.image)


def test_the_kernel_of_a_blur_is_measured_before_restoring(nano):
    from rr.degrade import degrade
    clean = read_photo(bundled_photos()['colosseum']).image
    blurred = degrade(clean, {'blur': 60}, seed=4)
    result, true = nano(blurred.image), blurred.parameters['blur']['sigma']
    stated, told = (d.findings['blur'].parameters['sigma'] for d in (result.reply.diagnosis, result.before))
    assert abs(told - true) < .06 * true and 'measured' in result.measured and str(stated) in result.measured
    assert 'measured on the photo' in result.trace_html()
    plain = nano(blurred.image, edit=result.reply.diagnosis)
    assert plain.measured == '' and plain.before == result.reply.diagnosis, 'what a user states is not overruled'
    assert psnr(result.restored.image, clean) > psnr(plain.restored.image, clean) + .5
    unmeasured = ReasonRestore(nano.reasoner, nano.restorer, measure=False)(blurred.image)
    assert unmeasured.before == unmeasured.reply.diagnosis and unmeasured.measured == ''
    seen = []
    nano(blurred.image, edit=lambda d: seen.append(d) or d)
    assert seen == [result.before]


def test_what_noise_looks_like_is_looked_at_again_without_it(nano):
    from rr.degrade import degrade
    clean, noise = read_photo(bundled_photos()['coffee']).image, Finding(60, {'type': 'gaussian', 'sigma': 25.})
    alarm = Diagnosis({'rain': Finding(30), 'noise': noise})
    noisy, rainy = (degrade(clean, severities, seed=3).image for severities in (dict(noise=60), dict(rain=90, noise=60)))
    once, told = nano.second_look(noisy, alarm), nano.second_look(rainy, alarm)
    assert once.findings == {'noise': noise} and told == alarm, 'streaks in what was removed prove the rain; its severity stays'
    assert measurement(alarm, once) == 'rain: no streaks in what was taken away as noise (severity 30 before)' and measurement(alarm, told) == ''
    hazy = replace(alarm, findings={'fog': Finding(30), 'noise': noise})
    foggy = degrade(clean, dict(fog=60, noise=60), seed=3).image
    once, told = nano.second_look(noisy, hazy), nano.second_look(foggy, hazy)
    assert once.findings == {'noise': noise} and told.severity('fog') > 33, 'fog is read anew'
    assert measurement(hazy, once) == 'fog: not seen again once the noise was gone (severity 30 before)'
    assert measurement(hazy, told).startswith(f'fog: severity {told.severity("fog")} once the noise was gone')
    assert nano.second_look(foggy, hazy, nano.reasoner.presence([foggy])[0]) == told
    assert nano.second_look(foggy, hazy, torch.zeros(len(KINDS))).present == ('noise',), 'the first look counts as well'
    for unchanged in (Diagnosis(), Diagnosis({'noise': noise}), Diagnosis({'rain': Finding(30)})):
        assert nano.second_look(noisy, unchanged) is unchanged
    blind = ReasonRestore(nano.reasoner, NanoRestorer(nano.restorer.net, device='cpu'))
    assert blind.second_look(noisy, alarm) is alarm, 'without a network for noise alone there is no second look'


def test_nano_parts_share_one_language_model(nano):
    assert nano.restorer.reader.model is nano.reasoner.model.model.language_model


def test_a_megapixel_stays_under_three_gigabytes():
    code = """
import resource, torch
from rr.pipeline import ReasonRestore
from rr.core import damaged_photo, read_photo
photo = torch.nn.functional.interpolate(read_photo(damaged_photo()).image[None], (864, 1184))[0]
assert not ReasonRestore.from_pretrained(device='cpu')(photo).untouched
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2)
"""
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    assert float(out.split()[-1]) < 3


# What comes back

def test_clean_photo_is_untouched(mixed):
    image = picture()
    result = mixed(image, edit=Diagnosis())
    assert result.untouched and torch.equal(result.restored.image, image) and result.reward == 0
    assert result.after.is_clean and 'left as it is' in result.summary()
    assert torch.equal(result.severity_before, result.severity_after)


def test_noise_that_is_not_ruled_out_is_half_taken_away(nano):
    clean = read_photo(bundled_photos()['cat']).image
    noise = softened(3 / 255 * torch.randn(clean.shape, generator=seeded(3)), .8)
    photo, bitwise = (clean + noise).clamp(0, 1), ReasonRestore(nano.reasoner, nano.restorer, in_doubt=1)
    result = nano(photo)
    likely = dict(zip(result.reply.kinds, result.reply.present.tolist()))['noise']
    assert result.before.is_clean and nano.in_doubt < likely < nano.reasoner.threshold, likely
    assert not result.untouched and psnr(result.restored.image, clean) > psnr(photo, clean) + .2
    assert 'noise: none named, but not ruled out' in result.measured and result.measured in result.summary()
    assert torch.allclose(result.restored.image, (photo + nano.restorer.denoise(photo)) / 2)
    assert nano(photo, edit=Diagnosis()).untouched, 'what a user states is obeyed'
    assert bitwise(photo).untouched and bitwise.quieted(photo, Diagnosis()) is photo, 'switched off'
    assert nano.quieted(photo, FOG) is photo, 'what is named comes first'
    assert nano.quieted(photo, Diagnosis(), torch.zeros(len(nano.reasoner.kinds))) is photo


def test_a_second_reply_that_cannot_be_read_loses_nothing(nano):
    class Mumbling:
        "Reads the first photo that it is shown, and no other."
        kinds, threshold, said = nano.reasoner.kinds, nano.reasoner.threshold, []
        def reply(self, images, *args):
            self.said.append(len(images))
            reply = nano.reasoner.reply(images, *args)[0]
            return [replace(reply, diagnosis=Diagnosis(), error='no stage 2') if len(self.said) > 1 else reply]
    result = ReasonRestore(Mumbling(), nano.restorer)(read_photo(damaged_photo()).image[:, :160, :160], edit=FOG)
    assert not result.untouched and result.unread == 'no stage 2' and result.after.is_clean
    assert 'second diagnosis not readable (no stage 2)' in result.summary() and 0 <= result.reward <= 1


def test_kinds_that_the_restorer_never_met_are_named_and_left(nano):
    photo = read_photo(damaged_photo()).image[:, :160, :160]
    snow = Finding(40, {'density': 3.})
    alone = nano(photo, edit=Diagnosis({'snow': snow}))
    assert alone.untouched and 'snow 40, none of which this restorer repairs' in alone.summary()
    both, fog = (nano(photo, edit=Diagnosis(FOG.findings | more)) for more in ({'snow': snow}, {}))
    assert not both.untouched and torch.equal(both.restored.image, fog.restored.image)


def test_reward_is_the_guarded_drop(qwen):
    from rr.rl import severity_reward, structure
    r = qwen(picture(), edit=FOG)
    guard = structure(r.photo.image[None], r.restored.image[None])
    assert r.reward == pytest.approx(severity_reward(r.severity_before[None], r.severity_after[None], guard)[0].item())


def test_alpha_is_kept(mixed, tmp_path):
    alpha = torch.zeros(1, 48, 64)
    alpha[:, 10:20] = 1
    path = tmp_path / 'cut out.png'
    to_pil(picture(), alpha).save(path)
    result = mixed(path, edit=FOG)
    saved = result.save(tmp_path / 'out')
    assert Image.open(saved.restored).mode == 'RGBA'
    assert torch.equal(read_photo(saved.restored).alpha, alpha)


@pytest.mark.parametrize('kind', ['path', 'str', 'pil', 'array', 'tensor', 'photo'])
def test_any_kind_of_photo(mixed, tmp_path, kind):
    pil = to_pil(picture())
    path = tmp_path / 'photo.png'
    pil.save(path)
    given = dict(path=path, str=str(path), pil=pil, array=np.asarray(pil), tensor=as_photo(pil).image, photo=as_photo(pil))
    result = mixed(given[kind], edit=FOG)
    assert torch.equal(result.photo.image, as_photo(pil).image) and result.restored.image.shape == (3, 48, 64)


def test_lists_and_batches_give_lists(mixed):
    assert [r.restored.image.shape[1:] for r in mixed([picture(), picture(32, 40)], edit=FOG)] == [(48, 64), (32, 40)]
    assert len(mixed(torch.stack([picture(), picture(seed=1)]), edit=FOG)) == 2


# What can be wrong

def test_only_what_can_be_wrong_is_heard(nano):
    asked = ReasonRestore(nano.reasoner, nano.restorer, only=('noise', 'rain'))
    result, free = asked(damaged_photo()), nano(damaged_photo())
    assert free.before.present == ('fog', 'noise') and result.before.present == ('noise',) and 'fog' in result.reply.diagnosis.findings
    assert f'fog: ruled out by you (severity {result.reply.diagnosis.severity("fog")} before)' in result.measured
    told_so = nano(damaged_photo(), edit=result.before)
    assert torch.equal(result.restored.image, told_so.restored.image) and not told_so.measured
    assert set(result.after.present) <= {'noise', 'rain'}


def test_nothing_that_can_be_wrong_leaves_the_photo(nano):
    result = ReasonRestore(nano.reasoner, nano.restorer, only=(), in_doubt=.001)(damaged_photo())
    assert result.untouched and result.before.is_clean


def test_a_kind_that_is_none_cannot_be_asked_for(nano):
    for only in (('mist',), 'noise'):
        with pytest.raises(ValueError, match='is none of fog, rain'): ReasonRestore(nano.reasoner, nano.restorer, only=only)


def test_what_a_look_at_parts_adds_must_be_possible_too(nano):
    both = Diagnosis({'fog': Finding(40, region='left half'), 'noise': Finding(30, {'type': 'gaussian', 'sigma': 12.})})
    asked = ReasonRestore(nano.reasoner, nano.restorer, locate=lambda reasoner, image, diagnosis: both, only=('fog',))
    assert asked.told(picture(), Diagnosis()).regions == {'fog': 'left half'}


def test_noise_that_leaves_the_range_is_measured_whole(nano):
    photo = read_photo(bundled_photos()['lake']).image
    noisy = photo + torch.randn(photo.shape, generator=seeded(3)) * 50 / 255
    told = nano.told(noisy, Diagnosis({'fog': Finding(20), 'rain': Finding(20), 'noise': Finding(90, {'type': 'camera', 'sigma': 46.})}))
    assert told.present == ('noise',) and told.findings['noise'].parameters['type'] == 'gaussian'
    assert told.findings['noise'].parameters['sigma'] == pytest.approx(50, rel=.03)


# Files and records

def test_save_writes_both_or_refuses(mixed, tmp_path):
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / 'a.png')
    result = mixed(tmp_path / 'a.png', edit=FOG)
    saved = result.save(tmp_path)
    assert [p.name for p in saved] == ['a.restored.png', 'a.trace.html']
    page = saved.trace.read_text()
    assert 'data:image/' in page and not re.search(r'(src|href)=["\']https?:', page)
    saved.restored.unlink()
    with pytest.raises(PhotoError, match='a.trace.html: exists already'): result.save(tmp_path)
    assert not saved.restored.exists()
    result.save(tmp_path, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['a.png', 'a.restored.png', 'a.trace.html']


def test_record_for_json(mixed, tmp_path):
    result = mixed(picture(), edit=FOG)
    record = json.loads(json.dumps(result.to_dict(result.save(tmp_path, 'x'))))
    assert set(record) == {'input', 'restored', 'trace', 'before', 'regions', 'after', 'seconds', 'reward'}
    assert record['before'] == {'fog': 60, 'rain': 0, 'blur': 0, 'noise': 0} and set(record['after']) == set(KINDS)
    assert record['restored'].endswith('x.restored.png') and record['trace'].endswith('x.trace.html')
    assert result.to_dict()['restored'] is None


def test_it_shows_itself_and_escapes_what_the_model_wrote(mixed):
    result, evil = mixed(picture(), edit=FOG), '<script>alert(1)</script>'
    result.photo.name, result.restored.name = evil, evil
    result.reply.text, result.reply.tokens = evil + result.reply.text, (evil, *result.reply.tokens)
    result.reply.probabilities = (0.5, *result.reply.probabilities)
    for html in (result._repr_html_(), result.trace_html()):
        assert evil not in html and '&lt;script&gt;' in html and 'data:image/' in html


# Errors

def test_unreadable_reply_is_an_error_and_not_a_clean_photo(mixed, monkeypatch):
    reply = mixed.reasoner.reply([picture()], 8)[0]
    reply.error, reply.diagnosis = 'no JSON and no stages', Diagnosis()
    monkeypatch.setattr(mixed.reasoner, 'reply', lambda *a: [reply])
    with pytest.raises(ReasonerError, match='no diagnosis in what the reasoner wrote'): mixed(picture())


def test_missing_parts_say_so_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    with pytest.raises(ReasonerError) as error: ReasonRestore.from_pretrained(reasoner='Qwen/Qwen3-VL-4B-Instruct')
    assert 'Qwen/Qwen3-VL-4B-Instruct' in str(error.value) and '\n' not in str(error.value)
    with pytest.raises(ReasonerError) as error: ReasonRestore.from_pretrained(reasoner=str(tmp_path / 'none'))
    assert 'no such folder' in str(error.value)


def test_options_without_a_qwen_part_are_refused():
    with pytest.raises(ValueError, match='quantize'): ReasonRestore.from_pretrained(quantize='4bit')


def test_bad_photos_pass_the_reason_on(mixed, tmp_path):
    (tmp_path / 'empty.jpg').touch()
    with pytest.raises(PhotoError, match='empty.jpg'): mixed(tmp_path / 'empty.jpg')
    with pytest.raises(ValueError, match='expected'): mixed(torch.zeros(2, 48, 64))
