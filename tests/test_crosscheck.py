"Our operators against other implementations of the same models: kornia, torchvision, deepinv, ImageNet-C (imgcorr), libjpeg."
import importlib.resources, math, sys, types
import pytest
import torch
from rr.core import bundled_photos, psnr, read_photo, seeded
from rr.degrade import (DEGRADATIONS, MID_GREY, blur_kernel, convolve, disk_kernel, gaussian_kernel, kind_generator, line_kernel, noisy,
                        pseudo_depth)

PHOTO = read_photo(bundled_photos()['coffee']).image[:, 60:220, 100:300]


def moments(kernel):
    "Covariance of a kernel in pixels, x before y."
    k, n = kernel / kernel.sum(), kernel.shape[-1]
    axis = torch.arange(n) - (n - 1) / 2
    ys, xs = torch.meshgrid(torch.arange(kernel.shape[0]) - (kernel.shape[0] - 1) / 2, axis, indexing='ij')
    mx, my = (k * xs).sum(), (k * ys).sum()
    return torch.stack([(k * (xs - mx) ** 2).sum(), (k * (ys - my) ** 2).sum(), (k * (xs - mx) * (ys - my)).sum()])


def imagenet_c():
    "imgcorr asks an old setuptools for the folder of its own frost pictures, which is not needed here."
    if 'pkg_resources' not in sys.modules:
        where = lambda package, name: str(importlib.resources.files(package)/name)
        sys.modules['pkg_resources'] = types.SimpleNamespace(resource_filename=where)
    return pytest.importorskip('imgcorr.corruptions')


@pytest.mark.parametrize('sigma', [.6, 1.5, 3.2])
def test_gaussian_kernel_is_kornias(sigma):
    kornia, ours = pytest.importorskip('kornia'), gaussian_kernel(sigma)
    assert torch.allclose(ours, kornia.filters.get_gaussian_kernel2d(ours.shape, (sigma, sigma))[0], atol=1e-6)


@pytest.mark.parametrize('sigma', [.6, 1.5, 3.2])
def test_gaussian_blur_is_torchvisions(sigma):
    functional = pytest.importorskip('torchvision.transforms.v2.functional')
    size = gaussian_kernel(sigma).shape[-1]
    theirs = functional.gaussian_blur(PHOTO, [size, size], [sigma, sigma])
    assert torch.allclose(convolve(PHOTO, gaussian_kernel(sigma)), theirs, atol=2e-5)


def test_convolution_is_deepinvs():
    deepinv = pytest.importorskip('deepinv')
    kernel = line_kernel(9, 30)
    theirs = deepinv.physics.Blur(kernel[None, None], padding='reflect').A(PHOTO[None])[0]
    assert torch.allclose(convolve(PHOTO, kernel), theirs, atol=1e-4)


@pytest.mark.parametrize('angle', [0, 30, 90, 135])
def test_motion_kernel_points_where_kornias_does(angle):
    kornia, n = pytest.importorskip('kornia'), 21
    theirs = kornia.filters.get_motion_kernel2d(n, float(angle), 0., mode='bilinear')[0]
    ours, wanted = moments(line_kernel(n, angle)), moments(theirs)
    assert torch.allclose(ours, wanted, atol=.06 * n ** 2 / 12)  # of the variance along the line
    if angle in (0, 90): assert torch.allclose(ours[:2], torch.tensor([1., 0.] if angle == 0 else [0., 1.]) * n ** 2 / 12, atol=.6)


@pytest.mark.parametrize('radius', [3, 6, 10])
def test_defocus_disk_is_imagenet_cs(radius):
    theirs = torch.from_numpy(imagenet_c().disk(radius))
    ours = disk_kernel(radius)
    assert moments(ours)[0] == pytest.approx(float(moments(theirs)[0]), rel=.06)
    margin = (theirs.shape[-1] - ours.shape[-1]) // 2
    if margin > 0: theirs = theirs[margin:-margin, margin:-margin]
    if margin < 0: ours = ours[-margin:margin, -margin:margin]
    assert torch.corrcoef(torch.stack([ours.flatten(), theirs.flatten()]))[0, 1] > .93  # its rim is hardly anti-aliased


def test_every_blur_has_the_width_that_it_says():
    for kind in ('gaussian', 'defocus', 'linear', 'curved'):
        spread = moments(blur_kernel(dict(type=kind, sigma=3., angle=25., curvature=60.)))[:2].sum()
        assert spread == pytest.approx(2 * 9, rel=.12), kind


@pytest.mark.parametrize('sigma', [5., 25., 50.])
def test_gaussian_noise_has_deepinvs_statistics(sigma):
    deepinv, flat = pytest.importorskip('deepinv'), torch.full((1, 3, 256, 256), .5)
    theirs = deepinv.physics.GaussianNoise(sigma / 255, rng=torch.Generator().manual_seed(0))(flat) - flat
    ours = noisy(flat[0], dict(type='gaussian', sigma=sigma), seeded(0)) - flat[0]
    assert ours.std() == pytest.approx(float(theirs.std()), rel=.01) and abs(ours.mean()) < .01 * sigma / 25


@pytest.mark.parametrize('level', [.1, .5, .9])
def test_poisson_noise_has_deepinvs_statistics(level):
    deepinv, sigma = pytest.importorskip('deepinv'), 20.
    flat, gain = torch.full((1, 3, 256, 256), level), (sigma / 255) ** 2 / MID_GREY
    theirs = deepinv.physics.PoissonNoise(gain=gain, rng=torch.Generator().manual_seed(0))(flat)
    ours = noisy(flat[0], dict(type='poisson', sigma=sigma), seeded(0))
    assert ours.std() == pytest.approx(float(theirs.std()), rel=.02) and ours.mean() == pytest.approx(float(theirs.mean()), abs=.002)


def test_shot_noise_has_imagenet_cs_statistics():
    import numpy as np
    from PIL import Image
    module, level = imagenet_c(), 120
    np.random.seed(0)
    theirs = np.asarray(module.shot_noise(Image.new('RGB', (256, 256), (level,) * 3), severity=1)) / 255
    sigma = 255 * math.sqrt(MID_GREY / 60)  # its severity 1 is 60 photons at white
    ours = noisy(torch.full((3, 256, 256), level / 255), dict(type='poisson', sigma=sigma), seeded(0)).clamp(0, 1)
    assert ours.std() == pytest.approx(float(theirs.std()), rel=.03)


def test_fog_is_deepinvs_haze():
    deepinv = pytest.importorskip('deepinv')
    depth, params = pseudo_depth(PHOTO, seeded(0)), dict(extinction=1.3, airlight=.85, warmth=0.)
    theirs = deepinv.physics.Haze(beta=1.3).A([PHOTO[None], depth[None], torch.tensor(.85)])[0]
    assert torch.allclose(DEGRADATIONS['fog'].apply(PHOTO, params, seeded(0), depth), theirs, atol=1e-6)


@pytest.mark.parametrize('quality', [3, 10, 40, 90])
def test_jpeg_is_torchvisions(quality):
    v2 = pytest.importorskip('torchvision.transforms.v2.functional')
    pixels = (PHOTO * 255).round().byte()
    theirs = v2.jpeg(pixels, quality).float() / 255
    ours = DEGRADATIONS['jpeg'].apply(pixels.float() / 255, dict(quality=quality, chroma='half'), seeded(0))
    assert psnr(ours, theirs) > 35  # two builds of libjpeg; upsampling of colour differs in the last bits


def test_jpeg_is_imagenet_cs():
    import numpy as np
    from PIL import Image
    pixels = (PHOTO * 255).round().byte()
    theirs = np.asarray(imagenet_c().jpeg_compression(Image.fromarray(pixels.permute(1, 2, 0).numpy()), severity=3))  # quality 15
    ours = DEGRADATIONS['jpeg'].apply(pixels.float() / 255, dict(quality=15, chroma='half'), seeded(0))
    assert psnr(ours, torch.from_numpy(theirs.copy()).permute(2, 0, 1) / 255) > 45


def test_sensor_noise_adds_up_as_in_the_camera_model():
    "Read and shot noise in linear light against the variance r^2 + gL, as deepinv's PoissonGaussianNoise draws it."
    deepinv = pytest.importorskip('deepinv')
    linear, white, stops, read = .4, 2000., 1., 4.
    electrons = torch.full((1, 1, 256, 256), linear * 2 ** -stops)
    theirs = deepinv.physics.PoissonGaussianNoise(gain=1 / white, sigma=read / white, rng=torch.Generator().manual_seed(0))(electrons)
    from rr.degrade import to_linear, to_srgb
    srgb = to_srgb(torch.full((1, 256, 256), linear))
    ours = to_linear(DEGRADATIONS['low-light'].apply(srgb, dict(stops=stops, electrons=white / 1000, read_noise=read), kind_generator('low-light', 0)))
    assert ours.mean() == pytest.approx(float(theirs.mean()), rel=.01) and ours.std() == pytest.approx(float(theirs.std()), rel=.03)
