"Turning the knobs of the explorers changes what they show, and they show what the library computes."
import json
from types import SimpleNamespace
import ipywidgets as widgets
import pytest, torch
from rr.core import Photo, bundled_photos, psnr, read_photo, to_tensor
from rr.data import Pair, PairFolder, PairStream, Recipe, clean_photos, synthesize
from rr.degrade import DEGRADATIONS, KINDS, Degradation, degrade, register
from rr.diagnosis import Diagnosis, Finding
from rr.pipeline import ReasonRestore
from rr.restorer import Restorer
from rr.reasoner import Reply
from rr.rl import GRPO, GRPOConfig, GaussianFlow
from rr.widgets import (Busy, Compare, DatasetBrowser, GroupViewer, Picture, RLMonitor, SeverityExplorer, StepScrubber, TraceViewer, WhatIf,
                        png_bytes, shrink)

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
    assert explorer.picture.png == png_bytes(explorer.clean) == explorer.original.png
    seen = [explorer.picture.png]
    for severity in (30, 80):
        explorer.sliders[kind].value = severity
        made = degrade(explorer.clean, {kind: severity}, 3)
        assert explorer.picture.png == png_bytes(made.image) and explorer.picture.png not in seen
        assert f'{kind} {severity} of 100' in explorer.report.value
        assert f'PSNR {psnr(made.image, explorer.clean).item():.1f} dB' in explorer.report.value
        assert explorer.degraded.parameters == made.parameters
        seen.append(explorer.picture.png)

def test_the_seed_decides_the_draws(explorer):
    explorer.sliders['noise'].value = 50
    before = explorer.picture.png
    explorer.seed.value = 4
    assert explorer.picture.png != before
    explorer.seed.value = 3
    assert explorer.picture.png == before

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
    assert made.picture.png == png_bytes(degrade(clean, {'fog': 60}, 5).image)
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
        assert made.picture.png == png_bytes(made.clean * .5)
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
    shown = [picture.png for picture in viewer.children[-1].children]
    assert shown == [png_bytes(shrink(photo, 80)), png_bytes(shrink(photo.flip(-1), 80))]
    assert 'fog before 40 of 100' in viewer.bars.value and 'fog after 5 of 100' in viewer.bars.value

def test_hostile_text_is_escaped():
    attack = '1. Identify: fog.\n<script>alert(1)</script>'
    for trace in (attack, reply(attack)):
        viewer = TraceViewer(trace, stages=5)
        assert '<script' not in viewer.page.value


# What-if, steps, curtain, data, groups, reinforcement learning

class Darkener(Restorer):
    "A restorer whose result is known: fog 10 takes away a tenth of the light."
    def __init__(self): self.asked = []
    def restore(self, images, diagnoses, steps=1, seed=0, on_step=None):
        self.asked.append(diagnoses[0])
        for i in range(steps or 1):
            if on_step: on_step(i, 1 - i / steps, images[0][None] * (1 - i / 10), images[0][None] / 2)
        return [images[0] * (1 - diagnoses[0].severity('fog') / 100)]
    policy = SimpleNamespace(decode=lambda x: x.clamp(0, 1))


@pytest.fixture
def what_if():
    said = Diagnosis({'fog': Finding(40, {'airlight': .9}), 'noise': Finding(20)})
    reasoner = SimpleNamespace(kinds=KINDS, reply=lambda photos: [SimpleNamespace(diagnosis=said, present=None)])
    return WhatIf(photo, ReasonRestore(reasoner, Darkener()), longest=64)


def test_what_if_begins_as_diagnosed_and_follows_its_sliders(what_if):
    assert what_if.sliders['fog'].value == 40 and what_if.restored.png == png_bytes(what_if.photo * .6)
    what_if.sliders['fog'].value = 70
    assert what_if.restored.png == png_bytes(what_if.photo * (1 - .7))
    assert json.loads(what_if.text.value)['fog'] == {'severity': 70, 'airlight': .9}
    what_if.sliders['fog'].value = 0
    assert 'fog' not in json.loads(what_if.text.value) and what_if.restored.png == png_bytes(what_if.photo)
    what_if.reset.click()
    assert what_if.sliders['fog'].value == 40 and what_if.diagnosis.findings['fog'].parameters == {'airlight': .9}
    assert len(what_if.restorer.asked) == 3, 'what was shown before is remembered'


def test_what_if_reads_edited_text_and_says_what_it_cannot_read(what_if):
    what_if.text.value = '{"fog": {"severity": 55, "airlight": 0.7}, "rain": 12}'
    assert what_if.sliders['fog'].value == 55 and what_if.sliders['rain'].value == 12 and what_if.sliders['noise'].value == 0
    shown = what_if.restored.png
    what_if.text.value = 'nothing <b>here</b>'
    assert 'no severity' in what_if.note.value and '<b>' not in what_if.note.value and what_if.restored.png == shown
    what_if.text.value = '{"fog": {"severity": 250}}'
    assert what_if.sliders['fog'].value == 100 and 'clipped' in what_if.note.value


def test_what_if_with_the_shipped_weights():
    made = degrade(to_tensor(bundled_photos()['coffee'])[:, :200, :200], {'noise': 60}, 0).image
    explorer = WhatIf(made, longest=160)
    before = explorer.restored.png
    explorer.sliders['noise'].value = 0 if explorer.sliders['noise'].value else 60
    assert explorer.restored.png != before


def test_busy_sign_stands_while_the_work_is_done():
    busy = Busy()
    with pytest.raises(ZeroDivisionError):
        with busy.during('a <hard> thing'):
            assert 'a &lt;hard&gt; thing' in busy.value and 'role="status"' in busy.value
            1 / 0
    assert busy.value == ''


def test_pictures_say_what_they_show():
    shown = Picture(photo, 'a "cup" & saucer')
    assert 'alt="a &quot;cup&quot; &amp; saucer"' in shown.value and shown.png == png_bytes(photo)


def test_scrubber_holds_every_state():
    scrubber = StepScrubber(photo, Diagnosis({'fog': Finding(30)}), Darkener(), steps=4, longest=64)
    assert len(scrubber.frames) == 5 and [f[0] for f in scrubber.frames] == [1, .75, .5, .25, 0]
    clean = shrink(photo, 64)
    for i in (2, 4, 0):
        scrubber.step.value = i
        assert scrubber.state.png == png_bytes(clean * (1 - i / 10) if i < 4 else clean * .7)
        assert scrubber.ahead.png == png_bytes(clean / 2 if i < 4 else clean * .7)
    assert 't = 1.00' in scrubber.label.value


@pytest.mark.parametrize('percent', [0, 30, 100])
def test_curtain_shows_each_photo_on_its_side(percent):
    curtain = Compare(torch.zeros(3, 20, 50), torch.full((3, 20, 50), .5))
    curtain.curtain.value = percent
    column = percent // 2
    want = torch.cat([torch.zeros(3, 20, column), torch.full((3, 20, 50 - column), .5)], -1)
    if percent == 30: want[..., column - 1:column + 1] = 1
    assert curtain.picture.png == png_bytes(want)
    with pytest.raises(ValueError, match='same size'): Compare(torch.zeros(3, 8, 8), torch.zeros(3, 8, 9))


def pairs_of(*severities):
    make = lambda i, found: Pair(photo[:, :32, :32] / (i + 1), photo[:, :32, :32], Diagnosis({k: Finding(s) for k, s in found.items()}), f'photo {i}', i)
    return [make(i, found) for i, found in enumerate(severities)]


def test_browser_shows_only_what_passes_the_filter():
    browser = DatasetBrowser(pairs_of({'fog': 80}, {}, {'rain': 20}, {'rain': 70, 'fog': 5}, {'rain': 60}))
    assert browser.at == 0 and 'photo 0' in browser.label.value
    browser.kind.value = 'rain'
    assert browser.at == 2
    browser.range.value = (50, 100)
    assert browser.at == 3
    browser.forth.click()
    assert browser.at == 4 and browser.degraded.png == png_bytes(browser.pair(4).degraded)
    browser.forth.click()
    assert browser.at == 4 and 'no further' in browser.label.value
    browser.back.click(); assert browser.at == 3
    browser.kind.value = 'clean'; assert browser.at == 1


def test_browser_takes_streams_and_folders(tmp_path):
    photos = clean_photos(bundled_photos()['cat'].parent)
    assert DatasetBrowser(PairStream(photos, 48, Recipe(max_kinds=1)), n=9).n == 9
    synthesize(photos, tmp_path, 3, size=48)
    browser = DatasetBrowser(PairFolder(tmp_path))
    assert browser.n == 3 and sum(browser.fits(i) for i in range(3)) == 3


def test_group_viewer_orders_and_enlarges():
    images = torch.stack([torch.full((3, 8, 8), v) for v in (.4, .5, .6)])
    group = GroupViewer(images, [1., 3., 2.])
    assert [p.png for p in group.pictures] == [png_bytes(images[i]) for i in (1, 2, 0)]
    assert 'member 1: reward 3.000' in group.labels[0].value
    group.enlarge.value = 2
    assert group.pictures[1].png == png_bytes(torch.full((3, 8, 8), .8))
    group.ordered.value = False
    assert 'member 0' in group.labels[0].value and group.pictures[0].png == png_bytes(torch.full((3, 8, 8), .2))


def test_monitor_draws_every_update_and_follows_a_file(tmp_path):
    flow = GaussianFlow(torch.nn.Parameter(torch.zeros(3, 4, 4)), .1)
    trainer = GRPO(flow, lambda before, after, clean=None: -after.mean((1, 2, 3)), GRPOConfig(group=4), log=tmp_path / 'log.jsonl')
    monitor = RLMonitor(trainer)
    assert 'no update' in monitor.last.value
    seen = set()
    for _ in range(2):
        trainer.update([torch.zeros(3, 4, 4)], [Diagnosis()])
        seen.add(monitor.chart.value)
    assert len(seen) == 2 and len(monitor.history) == 2 and '2 updates' in monitor.last.value
    with open(tmp_path / 'log.jsonl', 'a') as f: f.write('{"update": 2, "rew')
    reader = RLMonitor(tmp_path / 'log.jsonl')
    assert reader.history == trainer.history
    with open(tmp_path / 'log.jsonl', 'a') as f: f.write('ard": 1.0}\n')
    reader.again.click()
    assert len(reader.history) == 3
    assert RLMonitor(tmp_path / 'not yet').history == []
