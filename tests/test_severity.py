"The severity scale is measured with metrics whose protocol is stated, and curves answer what they are asked."
import numpy as np
import pytest
import torch

from rr.core import bundled_photos, psnr, seeded, to_tensor
from rr.degrade import KINDS, degrade
from rr.severity import (METRICS, SeverityCurve, Table, center_crop, equivalent_severity, monotonicity, quality,
                         severity_curve, unevenness)


@pytest.fixture(scope='module')
def photo():
    return center_crop(to_tensor(bundled_photos()['astronaut']), 176)


@pytest.fixture(scope='module')
def curve():
    photos = {name: bundled_photos()[name] for name in ('astronaut', 'coffee')}
    return severity_curve(photos, severities=(20, 50, 90), metrics=('psnr', 'gmsd'), size=128)


def test_psnr_is_that_of_the_core(photo):
    damaged = degrade(photo, {'noise': 60}, seed=1).image
    assert abs(quality(damaged, photo) - psnr(damaged, photo)) < 1e-3


def test_luma_psnr_by_hand(photo):
    damaged = (photo + .05 * torch.randn(photo.shape, generator=seeded(0))).clamp(0, 1)
    weights = torch.tensor([.299, .587, .114]).view(3, 1, 1)
    error = ((damaged - photo) * weights).sum(0).square().mean()
    assert abs(quality(damaged, photo, 'psnry') + 10 * error.log10()) < .1


@pytest.mark.parametrize('name', ['psnr', 'ssim', 'ms_ssim', 'fsim', 'vsi', 'gmsd', 'nlpd', 'vif'])
def test_every_metric_points_the_way_it_says(name, photo):
    mild, hard = (quality(degrade(photo, {'noise': s}, seed=0).image, photo, name) for s in (20, 80))
    assert (mild > hard) == METRICS[name].higher_is_better


def test_a_batch_equals_its_photos(photo):
    damaged = torch.stack([degrade(photo, {'fog': s}, seed=0).image for s in (30, 60)])
    batch = quality(damaged, photo.expand_as(damaged), 'gmsd')
    assert torch.allclose(batch, torch.stack([quality(d, photo, 'gmsd') for d in damaged]), atol=1e-5)


def test_unknown_metric_and_unequal_shapes_are_named(photo):
    with pytest.raises(KeyError, match='lpips.*psnr'): quality(photo, photo, 'lpips')
    with pytest.raises(ValueError, match='same shape'): quality(photo, photo[:, :-1])


def test_crop_keeps_small_photos_whole():
    assert center_crop(torch.zeros(3, 40, 300), 64).shape == (3, 40, 64)
    marked = torch.zeros(3, 101, 101)
    marked[:, 50, 50] = 1
    assert center_crop(marked, 3)[0, 1, 1] == 1


def test_curve_holds_one_value_per_photo_kind_severity_and_metric(curve):
    assert len(curve.rows) == 2 * len(KINDS) * 3 * 2
    values = curve.values('fog', 'psnr')
    photo = center_crop(to_tensor(bundled_photos()['coffee']), 128)
    expected = psnr(degrade(photo, {'fog': 50}, seed=1).image, photo)
    assert values.shape == (2, 3) and abs(values[1, 1] - expected) < 1e-3


def test_curve_is_the_same_again_and_changes_with_the_seed(curve):
    photos = [bundled_photos()[name] for name in ('astronaut', 'coffee')]
    again = severity_curve(photos, 'noise', severities=(20, 50, 90), metrics=('psnr',), size=128)
    other = severity_curve(photos, 'noise', severities=(20, 50, 90), metrics=('psnr',), size=128, seed=7)
    assert np.array_equal(again.values('noise', 'psnr'), curve.values('noise', 'psnr'))
    assert not np.array_equal(again.values('noise', 'psnr'), other.values('noise', 'psnr'))


def made(values):
    "A curve with given values: {kind: (photos, severities)} under PSNR."
    return SeverityCurve([dict(photo=str(i), kind=kind, severity=float(10 * (j + 1)), metric='psnr', value=float(v))
                          for kind, rows in values.items() for i, row in enumerate(rows) for j, v in enumerate(row)])


def test_summary_by_hand():
    row = made({'fog': [[30, 20], [20, 10]]}).summary()[0]
    assert (row['mean'], row['quartile_1'], row['quartile_3']) == (25, 22.5, 27.5)
    assert row['sd'] == pytest.approx(50 ** .5)


def test_monotonicity_by_hand():
    row, = monotonicity(made({'fog': [[30, 20, 25], [30, 20, 10]]}))
    assert row['worsening_steps'] == .75 and row['spearman'] == pytest.approx((.5 + 1) / 2)
    assert row['mean_is_ordered'] and not monotonicity(made({'fog': [[10, 20, 30]]}))[0]['mean_is_ordered']


def test_unevenness_and_exchange_by_hand():
    curve = made({'fog': [[20, 10]], 'noise': [[30, 20]]})
    row = unevenness(curve)[0]
    assert (row['mildest'], row['hardest'], row['gap'], row['share_of_scale']) == ('noise', 'fog', '10.000', 1)
    assert equivalent_severity(curve, 'fog', 10, 'noise') == 20
    assert equivalent_severity(curve, 'noise', 15, 'noise') == 15
    assert equivalent_severity(curve, 'fog', 20, 'noise') == 20


def test_today_noise_is_ordered_on_real_photos(curve):
    assert all(row['mean_is_ordered'] for row in monotonicity(curve) if row['metric'] == 'psnr')


def test_table_shows_text_and_escapes_html():
    table = Table([{'a': 1.234, 'b': '<x>|'}, {'a': None, 'c': 2}], caption='T & U')
    assert str(table).splitlines()[-1] == '|  |  | 2 |' and '1.23 | <x>\\| |' in str(table)
    assert '&lt;x&gt;' in table._repr_html_() and 'T &amp; U' in table._repr_html_()


def test_plot_has_a_panel_a_metric(curve):
    from matplotlib import pyplot as plt
    from rr.severity import plot_curves
    figure = plot_curves(curve)
    assert len(figure.axes) == 2 and len(figure.axes[0].lines) == len(KINDS)
    plt.close(figure)
