"Every kind, every severity, every size: the result is a photo, and the same one each time."
import pytest
import torch
from hypothesis import given, settings, strategies as st
from rr.core import seeded
from rr.degrade import (DEGRADATIONS, Degradation, Parameter, Region, along_ramp, blur_kernel, convolve, degrade, kind_generator, noise_level, noisy, random_region,
                        region_name, register, severity_of, severity_table, strength)

sizes = st.tuples(st.sampled_from((1, 3)), st.integers(8, 48), st.integers(8, 48))

@settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from(tuple(DEGRADATIONS)), severity=st.integers(0, 100), size=sizes, seed=st.integers(0, 999))
def test_result_is_a_photo(kind, severity, size, seed):
    image = torch.rand(*size, generator=seeded(seed))
    out = degrade(image, {kind: severity}, seed).image
    assert out.shape == image.shape and out.isfinite().all() and out.min() >= 0 and out.max() <= 1
    if severity == 0: assert torch.equal(out, image)
    assert torch.equal(out, degrade(image, {kind: severity}, seed).image)

@pytest.mark.parametrize('kind', DEGRADATIONS)
def test_more_severity_is_more_damage(kind):
    g = seeded(0)
    image = torch.nn.functional.interpolate(torch.rand(1, 3, 24, 24, generator=g), (160, 160), mode='bicubic')[0].clamp(0, 1)
    loss = [sum((degrade(image, {kind: s}, seed).image - image).square().mean() for seed in range(6)) for s in (10, 30, 50, 70, 90)]
    assert all(a < b for a, b in zip(loss, loss[1:])), loss

@pytest.mark.parametrize('kind', DEGRADATIONS)
def test_parameters_are_recorded_as_applied(kind):
    image = torch.rand(3, 32, 32, generator=seeded(0))
    damaged = degrade(image, {kind: 55}, seed=7)
    again = degrade(image, {kind: 12}, seed=7, parameters=damaged.parameters)
    assert set(damaged.parameters[kind]) <= {p.name for p in DEGRADATIONS[kind].parameters}
    for p in DEGRADATIONS[kind].parameters:
        if p.name in damaged.parameters[kind]: assert p.round(damaged.parameters[kind][p.name]) == damaged.parameters[kind][p.name]
    assert again.parameters[kind] == damaged.parameters[kind]

@given(severity=st.floats(0, 100))
def test_scale_inverts(severity):
    for kind, d in DEGRADATIONS.items():
        for name in d.ramp: assert severity_of(kind, name, strength(kind, severity)[name]) == pytest.approx(severity, abs=1e-6)

def test_the_table_is_a_scale():
    table = severity_table()
    assert set(table['kinds']) == set(DEGRADATIONS) and table['severity'][0] == 0 and table['severity'][-1] == 100
    for positions in table['kinds'].values():
        assert len(positions) == len(table['severity']) and positions[0] == 0 and positions[-1] <= 1
        assert all(a < b for a, b in zip(positions, positions[1:]))

def test_order_is_physical_whatever_the_dict_says():
    image = torch.rand(3, 40, 40, generator=seeded(0))
    a, b = degrade(image, dict(noise=40, blur=60), 3), degrade(image, dict(blur=60, noise=40), 3)
    assert torch.equal(a.image, b.image) and list(a.severities) == ['blur', 'noise']

def test_changing_one_kind_leaves_the_others_alone():
    image = torch.rand(3, 40, 40, generator=seeded(0))
    a, b = degrade(image, dict(rain=50, noise=20), 3), degrade(image, dict(rain=50, noise=90), 3)
    assert a.parameters['rain'] == b.parameters['rain']

def test_convolution_keeps_flat_areas():
    for kind in ('gaussian', 'defocus', 'linear', 'curved'):
        kernel = blur_kernel(dict(type=kind, sigma=3., angle=40, curvature=70))
        assert torch.allclose(convolve(torch.full((3, 9, 50), .3), kernel), torch.tensor(.3), atol=1e-4)

def test_bad_requests_are_refused():
    image = torch.rand(3, 16, 16)
    with pytest.raises(ValueError, match='unknown kind'): degrade(image, dict(smog=10))
    with pytest.raises(ValueError, match='expected 0 to 100'): degrade(image, dict(fog=-1))
    with pytest.raises(ValueError, match='unknown blur type'): degrade(image, dict(blur=50), parameters=dict(blur=dict(type='square')))

@settings(max_examples=40, deadline=None)
@given(kind=st.sampled_from(tuple(DEGRADATIONS)), size=sizes, seed=st.integers(0, 999))
def test_a_region_confines_any_kind(kind, size, seed):
    image, generator = torch.rand(*size, generator=seeded(seed)), seeded(seed)
    region = random_region(*size[1:], generator, torch.rand(1, *size[1:], generator=generator))
    everywhere, here = degrade(image, {kind: 80}, seed), degrade(image, {kind: 80}, seed, regions={kind: region})
    inside, outside = region.mask.expand_as(image) == 1, region.mask.expand_as(image) == 0
    assert torch.equal(here.image[outside], image[outside])
    assert torch.allclose(here.image[inside], everywhere.image[inside], atol=1e-6)
    assert here.regions == {kind: region} and region.name and here.parameters == everywhere.parameters

@pytest.mark.parametrize('kind', DEGRADATIONS)
@pytest.mark.parametrize('position', [0., .01, .5, 1.])
def test_every_position_of_a_ramp_gives_a_photo(kind, position):
    "The ramp is what a calibration walks along, to its very ends."
    for size in ((1, 8, 8), (3, 8, 61), (3, 33, 8)):
        image, generator = torch.rand(*size, generator=seeded(1)), kind_generator(kind, 1)
        params = DEGRADATIONS[kind].sample(50, generator) | along_ramp(kind, position)
        out = DEGRADATIONS[kind].apply(image, params, generator)
        assert out.shape == image.shape and out.isfinite().all()

def test_registering_keeps_the_physical_order():
    order = list(DEGRADATIONS)
    assert order == ['fog', 'rain', 'snow', 'blur', 'low-light', 'noise', 'jpeg']
    new = type('Dust', (Degradation,), dict(name='dust', parameters=(Parameter('amount'),), ramp=dict(amount=(0., 1.)),
               apply=lambda self, image, params, generator, depth=None: image * (1 - params['amount'])))()
    try:
        register(new, before='blur'); register(new, before='blur')
        assert list(DEGRADATIONS) == order[:3] + ['dust'] + order[3:]
        assert degrade(torch.ones(3, 8, 8), dict(dust=25)).image.mean() == pytest.approx(.75)
        assert severity_of('dust', 'amount', .25) == pytest.approx(25)
        with pytest.raises(ValueError, match="'hail' is not registered"): register(new, before='hail')
    finally: del DEGRADATIONS['dust']
    assert list(DEGRADATIONS) == order

@pytest.mark.parametrize('fields, message', [(dict(name=''), 'needs a name'), (dict(name='x', parameters=(Parameter('region'),)), 'region'),
                                             (dict(name='x', ramp=dict(amount=(0, 1))), 'amount')])
def test_a_kind_that_cannot_work_is_refused(fields, message):
    with pytest.raises(ValueError, match=message): register(type('X', (Degradation,), fields)())
    assert '' not in DEGRADATIONS and 'x' not in DEGRADATIONS

def test_bad_regions_are_refused():
    image = torch.rand(3, 16, 16)
    with pytest.raises(ValueError, match='not applied'): degrade(image, dict(fog=9), regions=dict(noise=Region('x', torch.ones(1, 16, 16))))
    with pytest.raises(ValueError, match='expected'): degrade(image, dict(fog=9), regions=dict(fog=Region('x', torch.ones(16, 16))))
    assert region_name(torch.ones(1, 8, 8)) == 'whole photo'

def test_a_kind_that_uses_depth_gets_one():
    class Dusk(Degradation):
        name, parameters, ramp, uses_depth = 'dusk', (Parameter('loss'),), dict(loss=(0., 1.)), True
        def apply(self, image, params, generator, depth=None): return image * (1 - params['loss'] * depth)
    image = torch.rand(3, 24, 32, generator=seeded(0))
    try:
        register(Dusk(), before='blur')
        alone, given = degrade(image, dict(dusk=50), 3).image, degrade(image, dict(dusk=50), 3, depth=torch.ones(1, 24, 32)).image
        assert torch.allclose(given, image / 2) and (alone >= given - 1e-6).all() and not torch.allclose(alone, given)
    finally: del DEGRADATIONS['dusk']

def test_the_level_of_noise_is_what_is_measured_on_flat_grey():
    for kind in ('gaussian', 'poisson', 'camera'):
        for grey in (.15, .5, .85):
            params, flat = dict(type=kind, sigma=9., read_share=.3), torch.full((1, 200, 200), grey)
            measured = 255 * noisy(flat, params, seeded(0)).std().item()
            assert noise_level(flat, params).mean().item() == pytest.approx(measured, rel=.03), (kind, grey)
    for function in (lambda p: noise_level(flat, p), lambda p: noisy(flat, p, seeded(0))):
        with pytest.raises(ValueError, match="unknown noise type 'salt'"): function(dict(type='salt', sigma=9.))

@pytest.mark.parametrize('kind', ('gaussian', 'poisson', 'camera'))
def test_the_level_of_noise_keeps_its_precision_under_autocast(kind):
    image, params = torch.rand(3, 32, 32, generator=seeded(0)), dict(type=kind, sigma=9., read_share=.3)
    with torch.autocast('cpu', torch.bfloat16): low = noise_level(image, params)
    assert low.dtype == torch.float32 and torch.equal(low, noise_level(image, params))
