"Turning the knobs of the explorers changes what they show, and they show what the library computes."
from types import SimpleNamespace
import ipywidgets as widgets
import pytest, torch
from rr.core import Photo, bundled_photos, psnr, read_photo, to_tensor
from rr.degrade import DEGRADATIONS, KINDS, Degradation, degrade, register
from rr.diagnosis import Diagnosis
from rr.reasoner import Reply
from rr.widgets import SeverityExplorer, TraceViewer, png_bytes, shrink

photo = read_photo(bundled_photos()['coffee']).image[:, :120, :160]
truth = Diagnosis.from_degraded(degrade(photo, {'fog': 40, 'rain': 20}, 1))

def reply(text=None, sure=.5):
    text = truth.to_cot() if text is None else text
    tokens = tuple(text)
    return Reply(text, tokens, (sure,) * len(tokens), .1, truth, ('stray comma',))

@pytest.fixture(scope='module')
def explorer(): return SeverityExplorer(photo, seed=3, longest=96)

@pytest.mark.parametrize('kind', KINDS)
def test_each_slider_changes_the_picture_to_what_degrade_gives(explorer, kind):
    for slider in explorer.sliders.values(): slider.value = 0
    assert explorer.picture.value == png_bytes(explorer.clean) == explorer.original.value
    seen = [explorer.picture.value]
    for severity in (30, 80):
        explorer.sliders[kind].value = severity
        made = degrade(explorer.clean, {kind: severity}, 3)
        assert explorer.picture.value == png_bytes(made.image) and explorer.picture.value not in seen
        assert f'{kind} {severity} of 100' in explorer.report.value
        assert f'PSNR {psnr(made.image, explorer.clean).item():.1f} dB' in explorer.report.value
        assert explorer.degraded.parameters == made.parameters
        seen.append(explorer.picture.value)

def test_the_seed_decides_the_draws(explorer):
    explorer.sliders['noise'].value = 50
    before = explorer.picture.value
    explorer.seed.value = 4
    assert explorer.picture.value != before
    explorer.seed.value = 3
    assert explorer.picture.value == before

def test_settings_are_computed_once(explorer):
    for value in (21, 22, 21, 22, 21): explorer.sliders['blur'].value = value
    misses = explorer._cached.cache_info().misses
    for value in (22, 21, 22): explorer.sliders['blur'].value = value
    assert explorer._cached.cache_info().misses == misses

def test_sliders_wait_until_they_are_let_go(explorer):
    assert not any(slider.continuous_update for slider in explorer.sliders.values())

def test_explorer_takes_any_photo_and_a_beginning():
    path = bundled_photos()['cat']
    made = SeverityExplorer(path, {'fog': 60}, seed=5, longest=64)
    clean = shrink(to_tensor(path), 64)
    assert max(clean.shape) == 64 and made.sliders['fog'].value == 60
    assert made.picture.value == png_bytes(degrade(clean, {'fog': 60}, 5).image)
    assert isinstance(made, widgets.Widget)

def test_a_registered_kind_gets_a_slider():
    class Dim(Degradation):
        name = 'dim'
        def draw(self, severity, generator): return {}
        def apply(self, image, params, generator, depth=None): return image * .5
    register(Dim())
    try:
        made = SeverityExplorer(photo, longest=48)
        made.sliders['dim'].value = 10
        assert made.picture.value == png_bytes(made.clean * .5)
    finally: del DEGRADATIONS['dim']

def test_small_photos_are_not_enlarged(): assert torch.equal(shrink(photo, 500), photo)

def test_stages_unfold():
    viewer = TraceViewer(truth, stages=0)
    for stages in range(6):
        viewer.unfolded.value = stages
        assert viewer.page.value.count('<details open') == stages
    assert 'fog 40 of 100' in viewer.bars.value and viewer.confidence.disabled

def test_confidence_follows_the_check_box():
    viewer = TraceViewer(reply())
    assert 'probability 0.50' in viewer.page.value and 'repaired: stray comma' in viewer.page.value
    viewer.confidence.value = False
    assert 'probability' not in viewer.page.value and 'repaired: stray comma' in viewer.page.value
    assert 'fog 40 of 100' in viewer.bars.value

def test_restoration_shows_both_photos_and_both_severities():
    after = Diagnosis()
    trace = SimpleNamespace(photo=Photo(photo), restored=Photo(photo.flip(-1)), reply=reply(), before=truth, after=after,
                            severity_before=torch.tensor([40., 20, 0, 0]), severity_after=torch.tensor([5., 0, 0, 0]))
    viewer = TraceViewer(trace, longest=80)
    shown = [picture.value for picture in viewer.children[-1].children]
    assert shown == [png_bytes(shrink(photo, 80)), png_bytes(shrink(photo.flip(-1), 80))]
    assert 'fog before 40 of 100' in viewer.bars.value and 'fog after 5 of 100' in viewer.bars.value

def test_hostile_text_is_escaped():
    attack = '1. Identify: fog.\n<script>alert(1)</script>'
    for trace in (attack, reply(attack)):
        viewer = TraceViewer(trace, stages=5)
        assert '<script' not in viewer.page.value
