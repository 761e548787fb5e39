"Pictures show what they are given, and model text can never become HTML."
import re
from html.parser import HTMLParser
from types import SimpleNamespace
import matplotlib.pyplot as plt
import pytest, torch
from hypothesis import given, settings, strategies as st
from rr.core import Photo, bundled_photos, read_photo
from rr.degrade import DEGRADATIONS, KINDS, Degradation, degrade, register
from rr.diagnosis import Diagnosis, Finding, Scene
from rr.viz import (COLOURS, bars_html, compare_strip, cot_html, data_uri, kind_colour, line_seconds, pair_grid, reply_lines, severity_bars,
                    severity_values, token_html, trace_page, with_kinds)

photo = read_photo(bundled_photos()['cat']).image[:, :96, :128]
damaged = degrade(photo, {'fog': 50, 'noise': 30}, seed=3)
truth = Diagnosis.from_degraded(damaged, Scene('indoor', 'daylight', 'a cat', ('cat',), 'the whiskers'))
ATTACK = '<script>alert(1)</script><img src=x onerror="alert(2)">'

class Page(HTMLParser):
    "Tags, attributes and text of a page; complains about tags that do not nest."
    def __init__(self, page):
        super().__init__()
        self.tags, self.open, self.text = [], [], ''
        self.feed(page); self.close()
        assert not self.open, f'never closed: {self.open}'
    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ('img', 'meta', 'br'): self.open.append(tag)
    def handle_endtag(self, tag): assert self.open.pop() == tag
    def handle_data(self, data): self.text += data

def restoration(text=None, **changes):
    reply = SimpleNamespace(text=truth.to_cot() if text is None else text, tokens=(), probabilities=(), repairs=(), error='')
    fields = dict(name='cat.jpg', photo=Photo(damaged.image), restored=Photo(photo), untouched=False, edited=False,
                  before=truth, after=Diagnosis(), severity_before=torch.tensor([50., 0, 0, 30]), severity_after=torch.zeros(4),
                  reply=reply, seconds={'diagnose': 1.25}, reward=.4, steps=1, seed=0)
    return SimpleNamespace(**fields | changes)

def bar_lengths(fig): return [round(patch.get_width()) for patch in fig.axes[0].patches]

def test_severity_bars_are_as_long_as_the_severities():
    assert bar_lengths(severity_bars(truth)) == list(truth.severities().values())
    both = severity_bars({'fog': 80}, torch.tensor([10., 20, 30, 40]))
    assert bar_lengths(both) == [80, 0, 0, 0, 10, 20, 30, 40]
    assert [t.get_text() for t in both.axes[0].texts][:2] == ['before 80', 'before 0']

def test_severity_values_take_three_forms_and_refuse_others():
    assert severity_values(truth) == truth.severities() and severity_values({'rain': 3})['rain'] == 3
    with pytest.raises(ValueError, match='got 3 severities; expected 4'): severity_values(torch.zeros(3))

def test_compare_strip_shows_the_pixels_and_the_psnr():
    fig = compare_strip(damaged.image, photo, photo, zoom=(10, 20, 32))
    assert len(fig.axes) == 6 and 'dB' in fig.axes[0].get_title() and 'inf' in fig.axes[1].get_title()
    shown = torch.as_tensor(fig.axes[0].images[0].get_array()).permute(2, 0, 1)
    assert torch.equal(shown, damaged.image)
    close_up = fig.axes[3].images[0].get_array()
    assert close_up.shape == (32, 32, 3) and torch.equal(torch.as_tensor(close_up), damaged.image[:, 20:52, 10:42].permute(1, 2, 0))
    assert len(compare_strip(damaged.image, photo).axes) == 2

def test_pair_grid_titles_tell_the_truth():
    pair = SimpleNamespace(degraded=damaged.image, clean=photo, diagnosis=truth, name='cat')
    fig = pair_grid([pair] * 5, ncols=3)
    assert len(fig.axes) == 12 and fig.axes[0].get_title() == 'fog 50\nnoise 30'

def test_figures_are_closed():
    before = plt.get_fignums()
    severity_bars(truth); compare_strip(photo, photo)
    assert plt.get_fignums() == before

def test_one_colour_a_kind():
    assert set(COLOURS) == set(DEGRADATIONS) and len({kind_colour(k) for k in DEGRADATIONS}) == 7
    new = type('Hail', (Degradation,), {'name': 'hail'})()
    register(new)
    try: assert re.fullmatch('#[0-9A-F]{6}', kind_colour('hail')) and kind_colour('hail') not in COLOURS.values()
    finally: del DEGRADATIONS['hail']

@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.text() | st.text('<>"\'&{}\n:.12 fograinscipt'))
def test_model_text_stays_text(text):
    page = Page(str(cot_html(text)))
    assert not {tag for tag, _ in page.tags} - {'style', 'div', 'details', 'summary', 'p', 'pre', 'b', 'span'}
    assert all(set(attributes) <= {'class', 'style', 'open', 'title'} for _, attributes in page.tags)

@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.text(max_size=8) | st.just('</span>\n<script>'), st.floats(0, 1)), max_size=8))
def test_tokens_stay_text(pieces):
    tokens, probabilities = [t for t, _ in pieces], [p for _, p in pieces]
    page = Page(str(cot_html(''.join(tokens), probabilities, tokens)))
    assert 'script' not in {tag for tag, _ in page.tags}
    lines = reply_lines(''.join(tokens), tokens, probabilities)
    assert '\n'.join(''.join(piece for piece, _ in line) for line in lines) == ''.join(tokens)

@pytest.mark.parametrize('place', ['text', 'name', 'repairs', 'error', 'title', 'token', 'seconds'])
def test_an_attack_is_shown_and_not_run(place):
    made = restoration(ATTACK) if place == 'text' else restoration(**({'name': ATTACK} if place == 'name' else {}))
    if place == 'repairs': made.reply.repairs = (ATTACK,)
    if place == 'error': made.reply.error = ATTACK
    if place == 'token': made.reply.tokens, made.reply.probabilities = (ATTACK,), (.5,)
    if place == 'seconds': made.seconds = {ATTACK: 1.}
    html = trace_page(made, title=ATTACK if place == 'title' else None)
    page = Page(html)
    assert 'script' not in {tag for tag, _ in page.tags} and not any('onerror' in attributes for _, attributes in page.tags)
    assert 'alert(1)' in page.text or place == 'name'

def test_trace_page_is_self_contained():
    page = Page(trace_page(restoration()))
    images = [attributes for tag, attributes in page.tags if tag == 'img']
    assert len(images) == 2 and all(i['src'].startswith('data:image/') and i['alt'] for i in images)
    assert not any(re.match('https?:|//', str(value)) for _, attributes in page.tags for value in attributes.values())
    for part in ('Identify', 'Quantify', 'Parameters', 'Scene', 'Plan', 'JSON', 'airlight', '1.25 s', '0.400'): assert part in page.text
    labels = [attributes['aria-label'] for _, attributes in page.tags if 'aria-label' in attributes]
    assert 'fog before 50 of 100' in labels and 'fog after 0 of 100' in labels

def test_untouched_and_edited_are_said():
    assert 'nothing was wrong: returned untouched' in trace_page(restoration(untouched=True, before=Diagnosis()))
    assert 'nothing that this restorer repairs: returned untouched' in trace_page(restoration(untouched=True)) and 'edited' in trace_page(restoration(edited=True))
    assert 'untouched' not in trace_page(restoration())

def test_a_fragment_for_every_kind_of_trace():
    for trace in (truth, truth.to_cot(), restoration().reply, restoration()):
        page = Page(str(cot_html(trace)))
        assert 'fog 050' in page.text and cot_html(trace)._repr_html_() == cot_html(trace)
    assert cot_html(truth, folded=0).count('<details open') == 0 and cot_html(truth).count('<details open') == 5

def test_confidence_is_visible():
    assert 'rgba(230,159,0,0.00)' in token_html('a', 1.) and 'rgba(230,159,0,0.85)' in token_html('a', 0.)
    assert 'probability 0.25' in token_html('a', .25)

def test_pictures_survive_the_data_uri():
    import base64, io
    from PIL import Image
    kind, payload = data_uri(photo).split(';base64,')
    opened = Image.open(io.BytesIO(base64.b64decode(payload)))
    assert kind == 'data:image/jpeg' and opened.size == (128, 96)
    assert data_uri(photo, torch.ones(1, 96, 128)).startswith('data:image/png')
    small = data_uri(photo, longest=64).split(',')[1]
    assert max(Image.open(io.BytesIO(base64.b64decode(small))).size) == 64

def test_bars_escape_and_name():
    assert '<i' not in with_kinds('fog<i>') and bars_html({'fog': 42}).count('width:42%') == 1


def test_each_stage_says_how_long_it_took():
    text = '1. Identify: rain.\n2. Quantify: rain 040.\n\n{"rain":{"severity":40}}'
    tokens = ('1. Identify:', ' rain', '.\n', '2. Quantify: rain 040', '.\n\n', '{"rain":{"severity":40}}')
    reply = SimpleNamespace(text=text, tokens=tokens, probabilities=(1.,) * 6, times=(.5, .6, .7, .8, 1., 1.5))
    assert line_seconds(reply) == pytest.approx([.7, .3, 0, .5])
    page = str(cot_html(reply))
    assert re.findall(r'<small>(.*?)</small>', page) == ['0.70 s', '0.30 s']
    assert '<small>' not in str(cot_html(text)) and line_seconds(text) == []


def test_a_figure_tells_what_it_shows():
    import matplotlib.pyplot as plt
    from rr.core import figure_text, show_images

    assert figure_text(show_images([torch.zeros(3, 8, 8)] * 2, ['a cat', 'a\ncup'])) == 'picture: a cat; picture: a cup'
    figure, (left, right) = plt.subplots(1, 2)
    for name in ('fog', 'rain'): left.plot([0, 1], label=name)
    left.set(xlabel='severity', ylabel='PSNR, dB', title='cost'); left.legend()
    figure.colorbar(left.scatter([0, 1], [0, 1], c=[0, 1]))
    plt.close(figure)
    assert figure_text(figure) == 'plot: cost: PSNR, dB against severity: fog, rain', 'empty axes and colour bars say nothing'
    assert figure_text(plt.figure()) == 'a figure'
    plt.close('all')
