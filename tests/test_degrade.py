"Every kind, every severity, every size: the result is a photo, and the same one each time."
import pytest
import torch
from hypothesis import given, settings, strategies as st
from rr.core import seeded
from rr.degrade import DEGRADATIONS, KINDS, blur_kernel, convolve, degrade, severity_of, severity_table, strength

sizes = st.tuples(st.sampled_from((1, 3)), st.integers(8, 48), st.integers(8, 48))

@settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from(KINDS), severity=st.integers(0, 100), size=sizes, seed=st.integers(0, 999))
def test_result_is_a_photo(kind, severity, size, seed):
    image = torch.rand(*size, generator=seeded(seed))
    out = degrade(image, {kind: severity}, seed).image
    assert out.shape == image.shape and out.isfinite().all() and out.min() >= 0 and out.max() <= 1
    if severity == 0: assert torch.equal(out, image)
    assert torch.equal(out, degrade(image, {kind: severity}, seed).image)

@pytest.mark.parametrize('kind', KINDS)
def test_more_severity_is_more_damage(kind):
    g = seeded(0)
    image = torch.nn.functional.interpolate(torch.rand(1, 3, 24, 24, generator=g), (160, 160), mode='bicubic')[0].clamp(0, 1)
    loss = [sum((degrade(image, {kind: s}, seed).image - image).square().mean() for seed in range(6)) for s in (10, 30, 50, 70, 90)]
    assert all(a < b for a, b in zip(loss, loss[1:])), loss

@pytest.mark.parametrize('kind', KINDS)
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
    for kind, rows in severity_table()['kinds'].items():
        for name, ys in rows.items():
            if ys[0] == 0: assert severity_of(kind, name, strength(kind, severity)[name]) == pytest.approx(severity, abs=1e-6)

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
