"What is measured on the photo: the kernel of a blur, kind and level of noise, streaks in what was removed as noise."
import math
from dataclasses import replace

import pytest
import torch

from rr.core import bundled_photos, psnr, read_photo, seeded
from rr.degrade import DEGRADATIONS, blur_kernel, degrade, noisy, severity_of
from rr.diagnosis import Diagnosis, Finding, Scene
from rr.nano import BOLD, STREAKS, grey_shares, kernel_power, line_kernels, mean_power, measure_blur, measure_noise, misfit, noise_floor, noise_table, patch_covariance, patches_of, streak_skewness, wiener
from rr.pipeline import measurement
from rr.restorer import measured, measured_diagnoses, measured_noise

PHOTOS = ('astronaut', 'coffee', 'colosseum', 'hopper', 'lake', 'rocket')
KERNELS = [dict(type='gaussian', sigma=1.2), dict(type='defocus', sigma=2.), dict(type='defocus', sigma=1.), dict(type='linear', sigma=1.8, angle=30),
           dict(type='curved', sigma=1.6, angle=120, curvature=110)]


@pytest.fixture(scope='module')
def photos(): return {n: read_photo(bundled_photos()[n]).image for n in PHOTOS}

def blur(photo, kernel): return DEGRADATIONS['blur'].apply(photo, kernel, seeded(0))


@pytest.mark.parametrize('kernel', KERNELS, ids=lambda k: f"{k['type']} {k['sigma']}")
def test_the_width_is_found_from_a_wrong_one(photos, kernel):
    errors = [abs(math.log(measure_blur(blur(p, kernel), dict(type='gaussian', sigma=.65 * kernel['sigma']))['sigma'] / kernel['sigma'])) for p in photos.values()]
    assert sorted(errors)[len(errors) // 2] < .06, errors
    assert sum(e > abs(math.log(.65)) for e in errors) <= 1, 'hardly ever worse than what was stated'


def test_a_measured_kernel_repairs_what_a_wrong_one_does_not(photos):
    gains = {'stated': [], 'measured': []}
    for i, p in enumerate(photos.values()):
        blurred = degrade(p, {'blur': 25 + 8 * i}, seed=i)
        stated = dict(type='gaussian', sigma=.65 * blurred.parameters['blur']['sigma'])
        for name, k in (('stated', stated), ('measured', measure_blur(blurred.image, stated) or stated)):
            gains[name].append(float(psnr(wiener(blurred.image, blur_kernel(k), BOLD), p) - psnr(blurred.image, p)))
    mean = {k: sum(v) / len(v) for k, v in gains.items()}
    assert mean['measured'] > mean['stated'] + 1, gains


def test_eight_bits_do_not_disturb_it(photos):
    kernel = dict(type='defocus', sigma=2.)
    blurred = (blur(photos['colosseum'], kernel) * 255).round() / 255
    assert measure_blur(blurred, dict(type='gaussian', sigma=1.4))['sigma'] == pytest.approx(2, rel=.06)


def test_it_says_nothing_where_nothing_can_be_known(photos):
    told = dict(type='gaussian', sigma=1.)
    noisy = degrade(photos['lake'], {'blur': 40, 'noise': 80}, seed=1).image
    for image in (noisy, torch.full((3, 200, 200), .5), torch.rand(3, 64, 64), torch.rand(3, 1, 1), torch.rand(3, 500, 90)): assert measure_blur(image, told) is None


def test_spectra_and_responses_are_those_of_their_definition():
    wave = .5 + .2 * torch.sin(2 * math.pi * 10 / 64 * torch.arange(256.)).expand(3, 192, 256)
    power = mean_power(wave)
    assert power.shape == (64, 33) and divmod(int(power.argmax()), 33) == (0, 10)
    assert kernel_power('gaussian', 1., 0, 0)[0, 16] == pytest.approx(math.exp(-(2 * math.pi * .25) ** 2), rel=.05)
    assert kernel_power('defocus', 5., 0, 0).shape == (64, 33) and kernel_power('linear', 2., 0, 0)[0, 0] == pytest.approx(1, abs=1e-4)
    assert mean_power(torch.rand(3, 2000, 1500)).shape == (64, 33)


def test_a_power_law_behind_the_right_kernel_leaves_nothing():
    f = torch.hypot(torch.fft.fftfreq(64)[:, None], torch.fft.rfftfreq(64)).flatten()
    f = f[(f > .04) & (f < .45)]
    response = torch.stack([-(w * f) ** 2 for w in (1., 4., 6.)])
    found = misfit(3 - 2.4 * f.log() + response[1], f.log(), response)
    assert found.argmin() == 1 and found[1] < 1e-4 and found[0] > .05


# What a restorer is told

def test_photos_by_the_dozen_are_measured_one_by_one(photos):
    class Stated:
        def diagnose(self, images): return [Diagnosis({'blur': Finding(30, {'type': 'gaussian', 'sigma': 1.3})}), Diagnosis({'noise': Finding(20)})]
    images = [blur(photos['colosseum'], dict(type='defocus', sigma=2.)), photos['lake']]
    told = measured_diagnoses(Stated(), images)
    assert told == [measured(i, d) for i, d in zip(images, Stated().diagnose(images))] and told[0] != Stated().diagnose(images)[0]


def test_only_the_blur_changes_and_its_severity_follows_the_scale(photos):
    kernel, scene = dict(type='defocus', sigma=2.), Scene('outdoor')
    stated = Diagnosis({'blur': Finding(30, {'type': 'gaussian', 'sigma': 1.3}), 'rain': Finding(12)}, scene)
    told = measured(blur(photos['colosseum'], kernel), stated)
    found = told.findings['blur']
    assert found.parameters['type'] == 'defocus' and found.parameters['sigma'] == pytest.approx(2, rel=.06)
    assert abs(found.severity - severity_of('blur', 'sigma', found.parameters['sigma'])) < 1.5  # sigma is written with two decimals
    assert told.findings['rain'] == stated.findings['rain'] and told.scene == scene
    assert Diagnosis.from_dict(told.to_dict()) == told
    words = measurement(stated, told)
    assert 'defocus' in words and '1.3' in words and measurement(stated, stated) == ''


def test_what_is_not_blurred_all_over_is_left_as_it_was(photos):
    photo = blur(photos['colosseum'], KERNELS[0])
    for stated in (Diagnosis(), Diagnosis({'noise': Finding(20)}), Diagnosis({'blur': Finding(30, {'sigma': 1.}, region='lower left')})): assert measured(photo, stated) is stated
    unwritten = measured(photo, Diagnosis({'blur': Finding(20)}))  # parameters that were not stated come from the severity
    assert unwritten.findings['blur'].parameters['sigma'] == pytest.approx(1.2, rel=.1)


def test_a_wide_blur_is_not_measured_as_a_narrow_one(photos):
    photo = blur(photos['colosseum'], dict(type='gaussian', sigma=1.2))
    stated = lambda sigma: Diagnosis({'blur': Finding(50, {'type': 'gaussian', 'sigma': sigma})})
    assert measured(photo, stated(1.9)).findings['blur'].parameters['sigma'] == pytest.approx(1.2, rel=.1)
    wide = stated(2.5)
    assert measured(photo, wide) is wide


def test_a_spectrum_may_say_that_there_is_no_blur(photos):
    stated = Diagnosis({'blur': Finding(30, {'type': 'gaussian', 'sigma': 1.})})
    sharp = [measured(p, stated) for p in photos.values()]
    assert sum(d.is_clean for d in sharp) >= 5, sharp
    soft = [measured(degrade(p, {'blur': 35}, seed=i).image, stated) for i, p in enumerate(photos.values())]
    assert all(d.present == ('blur',) for d in soft), soft
    noisy = degrade(photos['lake'], {'noise': 10}, seed=1).image  # covers the detail that would prove it
    beside = replace(stated, findings=stated.findings | {'noise': Finding(10)})
    assert measured(noisy, beside).present == ('blur', 'noise')
    told = dict(type='gaussian', sigma=1.)
    assert measure_blur(photos['lake'], told, proof=.2) == {} and measure_blur(photos['lake'], told)['sigma'] > 0
    words = measurement(stated, measured(photos['lake'], stated))
    assert words == "blur: the photo's spectrum shows none (severity 30 before)"


# The level of noise, and what was mistaken for it

def test_noise_floor_finds_noise_beside_a_signal_of_few_dimensions():
    noise, signal = torch.randn(192, 30_000, generator=seeded(0)) * .05, torch.randn(192, 40, generator=seeded(1)) @ torch.randn(40, 30_000, generator=seeded(2))
    assert noise_floor(patch_covariance(noise)) == pytest.approx(.05, rel=.02) and noise_floor(patch_covariance(noise + signal)) == pytest.approx(.05, rel=.03)
    assert noise_floor(patch_covariance(torch.zeros(192, 5000))) == 0
    assert torch.allclose(patch_covariance(noise), torch.cov(noise, correction=0).double(), atol=1e-7)
    count = lambda *size: patches_of(torch.rand(3, *size)).shape
    assert count(64, 64) == (192, 57 ** 2) and count(4000, 3000)[0] == 192 and 40_000 < count(4000, 3000)[1] < 90_000


@pytest.mark.parametrize('kind', ['gaussian', 'poisson', 'camera'])
def test_kind_and_level_of_noise_are_measured(photos, kind):
    errors = []
    for i, name in enumerate(('coffee', 'colosseum', 'lake')):
        for severity in (20, 45, 70):
            noisy = degrade(photos[name], {'noise': severity}, seed=i, parameters={'noise': {'type': kind, 'read_share': .2 + .1 * i}})
            found, true = measure_noise(noisy.image), noisy.parameters['noise']['sigma']
            errors.append((found['type'] == kind, abs(math.log(found['sigma'] / true))))
    assert sum(right for right, _ in errors) >= 8, errors
    assert sum(e for _, e in errors) / len(errors) < .05, errors


@pytest.mark.parametrize('kind', ['gaussian', 'poisson'])
def test_noise_that_is_clipped_at_black_and_white_is_measured_at_its_full_strength(photos, kind):
    for i, name in enumerate(('coffee', 'colosseum', 'lake')):
        made = noisy(photos[name], {'type': kind, 'sigma': 50.}, seeded(i))
        in_file, whole = measure_noise((made.clamp(0, 1) * 255).round() / 255), measure_noise(made)
        assert in_file['type'] == kind and abs(math.log(in_file['sigma'] / 50)) < .07, (name, in_file)
        assert whole['type'] == kind and abs(math.log(whole['sigma'] / 50)) < .03, (name, whole)


def test_clipping_makes_black_brighter_and_white_darker():
    mean, variance = noise_table({'type': 'gaussian', 'sigma': 40.})
    half = 40 / 255 / math.sqrt(2 * math.pi)  # mean of the upper half of a normal distribution
    assert float(mean[0]) == pytest.approx(half, rel=.15) and float(mean[-1]) == pytest.approx(1 - half, rel=.02)
    assert float(mean[128]) == pytest.approx(128 / 255, abs=.02) and variance[0] < variance[128] / 2
    free, _ = noise_table({'type': 'gaussian', 'sigma': 40.}, clipped=False)
    torch.testing.assert_close(free, torch.linspace(0, 1, 256), atol=.03, rtol=0)


def test_every_grey_level_is_counted_once_in_its_degree():
    image, degree = torch.rand(3, 20, 30, generator=seeded(1)), torch.arange(30).remainder(3).expand(20, 30)
    shares = grey_shares(image, degree, 4)
    assert shares.shape == (4, 3, 256) and not shares[3].any()
    torch.testing.assert_close(shares[:3].sum(2), torch.ones(3, 3))
    mean = (shares[1, 2] * torch.linspace(0, 1, 256)).sum()
    torch.testing.assert_close(mean, image[2][degree == 1].mean(), atol=2e-3, rtol=0)


def test_where_noise_cannot_be_measured_nothing_is_said(photos):
    for image in (torch.full((3, 200, 200), .5), torch.rand(3, 1, 1), torch.rand(3, 64, 400), torch.zeros(3, 300, 300)): assert measure_noise(image) is None
    assert measure_noise(torch.rand(3, 130, 130, generator=seeded(0)))['sigma'] > 50  # nothing but noise
    stored = degrade(photos['lake'], {'noise': 45, 'jpeg': 20}, seed=1).image
    stated = Diagnosis({'noise': Finding(45, {'type': 'gaussian', 'sigma': 17.9})})
    assert measured_noise(stored, stated) is stated, 'compressed noise is not white, and what is measured far too low'


def test_what_a_restorer_is_told_of_noise_is_what_was_measured(photos):
    noisy = degrade(photos['lake'], {'noise': 45}, seed=1, parameters={'noise': {'type': 'poisson'}})
    stated = Diagnosis({'rain': Finding(9), 'noise': Finding(38, {'type': 'gaussian', 'sigma': 15.})}, Scene('outdoor'))
    told = measured_noise(noisy.image, stated)
    found = told.findings['noise']
    assert found.parameters['type'] == 'poisson' and abs(found.severity - 45) <= 3 and told.findings['rain'] == stated.findings['rain'] and told.scene == stated.scene
    assert measured(noisy.image, stated) == told and Diagnosis.from_dict(told.to_dict()) == told
    words = measurement(stated, told)
    assert words.startswith('noise: poisson') and 'patches' in words and words.endswith('the reasoner had gaussian, 15.0 levels, severity 38')
    nothing = Diagnosis({'noise': Finding(1, {'type': 'gaussian', 'sigma': 0.})})
    assert measured_noise(noisy.image, nothing) is nothing, 'far from what is stated'
    in_part = Diagnosis({'noise': Finding(38, region='lower left')})
    assert measured_noise(noisy.image, in_part) is in_part


def test_streaks_show_in_what_was_removed_and_noise_of_any_kind_has_none(photos):
    removed = lambda photo, **damage: degrade(photo, damage, seed=2).image - photo
    for photo in (photos['coffee'], photos['lake']):
        assert streak_skewness(removed(photo, noise=60, rain=40)) > 2 * STREAKS
        for kind in ('gaussian', 'poisson', 'camera'):
            noisy = degrade(photo, {'noise': 60}, seed=2, parameters={'noise': {'type': kind}}).image
            assert streak_skewness(noisy - photo) < STREAKS
    assert streak_skewness(torch.rand(3, 100, 400)) is None and streak_skewness(torch.zeros(3, 200, 200)) == 0
    kernels = line_kernels()
    assert kernels.shape == (12, 1, 9, 9) and torch.allclose(kernels.square().sum((1, 2, 3)), torch.ones(12)) and kernels[0, 0, :, 4].gt(0).all()
