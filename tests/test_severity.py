"The severity scale is measured with metrics whose protocol is stated, and curves answer what they are asked."
import numpy as np
import pytest
import torch

from rr.core import bundled_photos, psnr, seeded, to_tensor
from rr.degrade import (DEGRADATIONS, Degradation, Parameter, along_ramp, degrade, interpolate, ramp_position, register, severity_of,
                        severity_table, strength, use_scale)
from rr.severity import (FUSED, METRICS, FusedLoss, SeverityCurve, Table, calibrate, center_crop, damage_along_ramp, equivalent_severity,
                         interaction, monotonicity, place_kind, plot_interaction, quality, ramp_losses, residual, rising,
                         severity_curve, strictly_rising, unevenness)


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
    assert len(curve.rows) == 2 * len(DEGRADATIONS) * 3 * 2
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


def test_numbers_with_their_interval_stay_on_a_line_and_words_may_break():
    html = Table([{'measure': 'error where present', 'fog': '8.1 [5.2, 11.2]'}])._repr_html_()
    assert '<td style="text-align:right;white-space:nowrap">8.1 [5.2, 11.2]</td>' in html
    assert '<td style="text-align:left">error where present</td>' in html


def test_plot_has_a_panel_a_metric(curve):
    from matplotlib import pyplot as plt
    from rr.severity import plot_curves
    figure = plot_curves(curve)
    assert len(figure.axes) == 2 and len(figure.axes[0].lines) == len(DEGRADATIONS)
    plt.close(figure)


STATIONS = (.1, .3, .6, 1.)


def ramps(**tops):
    "Losses of kinds that rise evenly to `top`: (photos, metrics, stations), two photos, two metrics of very different size."
    shape = np.array(STATIONS)[None, None] * np.array([1, 50])[None, :, None] * np.array([.9, 1.1])[:, None, None]
    return {kind: top * shape for kind, top in tops.items()}


def test_calibration_by_hand():
    "A kind that costs twice as much gets half of the ramp; the weakest reaches 94% of the top at the end of its own."
    table = calibrate(ramps(fog=1., noise=2.), 'hand', ('gmsd', 'nlpd'), STATIONS)
    at = lambda kind, s: interpolate(s, table['severity'], table['kinds'][kind])
    for s in (20, 50, 80): assert at('fog', s) == pytest.approx(2 * at('noise', s), rel=.06)
    assert at('fog', 100) == pytest.approx(1, abs=.02) and at('fog', 80) < 1 and table['provenance'] == 'hand'


def test_fused_loss_is_a_mean_rank():
    losses = ramps(fog=1., noise=2.)
    fuse = FusedLoss.from_ramps(losses, ('gmsd', 'nlpd'), STATIONS)
    assert fuse(np.zeros((2, 5))).max() == 0 and fuse(np.full((2, 5), 1e6)).min() > .98
    scaled = FusedLoss.from_ramps({k: v * np.array([7, .1])[None, :, None] for k, v in losses.items()}, ('gmsd', 'nlpd'), STATIONS)
    assert np.allclose(fuse(losses['fog']), scaled(losses['fog'] * np.array([7, .1])[None, :, None]))  # the unit of a metric does not matter
    short = FusedLoss.from_table(dict(fused=fuse.quantiles()))
    assert np.abs(short(losses['noise']) - fuse(losses['noise'])).max() < .02


def test_a_kind_is_placed_where_its_own_losses_put_it(monkeypatch):
    "Losses that calibrated a table give its rows again, at the weak end too, though the table keeps only quantiles."
    rng, stations = np.random.default_rng(0), np.array([.02, .05, .1, .2, .4, .7, 1.])
    bend = lambda power: np.array([[unit * (.8 + .4 * rng.random()) * stations ** power for unit in (1, 50)] for _ in range(12)])
    losses, metrics = dict(fog=bend(.6), noise=bend(.8), rain=bend(1.)), ('gmsd', 'nlpd')
    table = calibrate(losses, 'hand', metrics, stations)
    monkeypatch.setattr('rr.severity.ramp_losses', lambda photos, kinds, *rest: {k: losses[k] for k in kinds})
    for kind, row in table['kinds'].items():
        assert place_kind(kind, [], table, stations=stations)['kinds'][kind] == pytest.approx(row, abs=.003, rel=.03)
    full, short = FusedLoss.from_ramps(losses, metrics, stations), FusedLoss.from_table(table)
    for loss in losses.values():
        assert np.abs(short(loss) - full(loss)).max() < .006
        assert np.abs(short.each(loss).mean(0) - short(loss)).max() < 1e-9


def test_rising_is_the_nearest_rising_curve():
    rng = np.random.default_rng(0)
    for _ in range(20):
        y = rng.normal(size=12).cumsum()
        fit = rising(y)
        assert (np.diff(fit) >= 0).all() and fit.mean() == pytest.approx(y.mean())
        assert all(((fit - y) ** 2).sum() <= ((other - y) ** 2).sum() + 1e-9 for other in (np.maximum.accumulate(y), np.sort(y)))
    assert strictly_rising([0., .4, .4, 1., 1.]) == [0., .4, .401, .999, 1.]


def test_the_shipped_table_was_measured():
    table = severity_table()
    assert 'rr calibrate' in table['provenance'] and tuple(table['fused']) == FUSED
    assert all(np.all(np.diff(q) >= 0) for q in table['fused'].values()) and .5 < table['top'] < 1
    assert {k: strength(k, 100)[next(iter(d.ramp))] for k, d in DEGRADATIONS.items()}['noise'] >= 45


def test_ramp_damage_changes_strength_only(photo):
    made = damage_along_ramp(photo, 'rain', (.2, .5, .9), seed=3)
    assert made.shape == (3, *photo.shape)
    assert torch.equal(made, damage_along_ramp(photo, 'rain', (.2, .5, .9), seed=3))
    clean = photo.expand_as(made)
    assert (quality(made, clean).diff() < 0).all()


def test_the_table_makes_kinds_more_equal_than_their_ramps():
    "The target itself is measured on many held-out photos (docs/measured/scale.txt); three photos show that the table is the right one."
    photos, table = [to_tensor(bundled_photos()[name]) for name in ('coffee', 'astronaut', 'cat')], severity_table()
    even = table | dict(kinds={k: [s / 100 for s in table['severity']] for k in table['kinds']})
    calibrated, plain = (residual(photos, severities=(25, 60), table=t) for t in (table, even))
    gap = lambda found: np.mean([row['gap'] for row in found.gap()])
    assert gap(calibrated) < .6 * gap(plain), (gap(calibrated), gap(plain))
    assert all(row[m] for row in calibrated.monotone() for m in FUSED)
    assert {row['kind'] for row in calibrated.spread()} == set(DEGRADATIONS)


def test_a_new_kind_comes_onto_the_scale(photo):
    class Dim(Degradation):
        name, parameters, ramp = 'dim', (Parameter('loss'),), dict(loss=(0., 1.))
        def apply(self, image, params, generator, depth=None): return image * (1 - params['loss'])
    register(Dim(), before='noise')
    try:
        assert ramp_position('dim', 50) == .5  # not calibrated: evenly along its ramp
        table = place_kind('dim', [photo], stations=STATIONS)
        assert 'dim' not in severity_table()['kinds']
        use_scale(table)
        assert ramp_position('dim', 50) != .5 and severity_of('dim', 'loss', strength('dim', 40)['loss']) == pytest.approx(40)
        left = residual([photo], ['dim', 'fog'], (20, 50, 80), seed=0)
        assert all(abs(row['loss'] - row['severity'] / 100) < .25 for row in left.gap())
    finally:
        use_scale(None)
        del DEGRADATIONS['dim']
    with pytest.raises(ValueError, match="needs 'severity'"): use_scale(dict(kinds={}))


def test_interaction_of_two_kinds(photo):
    from matplotlib import pyplot as plt
    loss = interaction([photo], 'fog', 'noise', (0, 50, 100), 'gmsd')
    assert loss.shape == (3, 3) and loss[0, 0] == pytest.approx(0, abs=1e-6)
    assert loss[0, 1] == pytest.approx(float(quality(degrade(photo, dict(noise=50)).image, photo, 'gmsd')), abs=1e-5)
    figure = plot_interaction(loss, 'fog', 'noise', (0, 50, 100), 'gmsd')
    assert figure.axes[0].get_xlabel() == 'noise' and figure.axes[0].get_ylabel() == 'fog'
    plt.close(figure)


def test_every_metric_gets_worse_along_every_ramp(photo):
    for kind, loss in ramp_losses([photo], metrics=('gmsd', 'nlpd'), stations=(.1, .4, .7, .95)).items():
        assert (np.diff(loss[0]) > 0).all(), kind
        assert set(along_ramp(kind, .5)) == set(DEGRADATIONS[kind].ramp)

def test_residuals_of_two_groups_are_one_of_all_photos():
    photos = [center_crop(to_tensor(bundled_photos()[n]), 192) for n in ('coffee', 'lake')]
    few = dict(kinds=('noise', 'jpeg'), severities=(30, 70))
    apart, together = [residual([p], seed=1000 + i, **few) for i, p in enumerate(photos)], residual(photos, **few)
    row, same = (apart[0] + apart[1]).gap()[1], together.gap()[1]
    assert row == same and row['severity'] == 70 and row['gap'] == pytest.approx(row['its_loss'] - row['loss'])
    differences = (together.fused[row['hardest']] - together.fused[row['mildest']])[:, 1] / together.top
    assert row['error'] == pytest.approx(differences.std() / 2 ** .5)
