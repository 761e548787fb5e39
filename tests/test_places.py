"Where damage is: maps of severities, names of places, and a restorer that keeps to them."
import json
from copy import copy
from dataclasses import replace

import pytest
import torch

from rr.cli import main
from rr.core import bundled_photos, psnr, read_photo, write_photo
from rr.degrade import PAPER_KINDS, REGIONS, Region, degrade, region_mask
from rr.diagnosis import Diagnosis, Finding, parse_cot
from rr.pipeline import ReasonRestore, measurement
from rr.places import parts_of, place_of, place_templates, severity_map, with_places
from rr.reasoner import corner_looks
from rr.restorer import by_place


@pytest.fixture(scope='module')
def nano():
    return ReasonRestore.from_pretrained()


@pytest.fixture(scope='module')
def photo():
    return read_photo(bundled_photos()['coffee']).image


def damaged(photo, severities, places=(), seed=2):
    places = {k: Region(name, region_mask(name, *photo.shape[-2:])) for k, name in dict(places).items()}
    return degrade(photo, severities, seed, regions=places)


@pytest.mark.parametrize('height,width', [(400, 600), (600, 400), (161, 900), (100, 100), (16, 20)])
def test_the_parts_cover_the_photo_and_every_place_has_a_template_of_its_own(height, width):
    parts, covered = parts_of(height, width), torch.zeros(height, width)
    for rows, columns in parts:
        assert 0 <= rows.start < rows.stop <= height and 0 <= columns.start < columns.stop <= width
        covered[rows, columns] = 1
    assert len(parts) == 16 and covered.all()
    templates = place_templates(height, width)
    assert templates.shape == (2, 1 + len(REGIONS), 4, 4) and 0 <= templates.min() and templates.amax((2, 3)).eq(1).all()
    if min(height, width) < 400:
        return  # along a side that all parts fill there is only one place
    for shape in templates:
        for name, template in zip(('', *REGIONS), shape):
            place, severity = place_of(60 * template + torch.rand(4, 4), templates)
            assert place == name and abs(severity - 60) < 4


def test_a_flat_map_and_an_empty_one_have_no_place():
    templates = place_templates(400, 600)
    assert place_of(torch.full((4, 4), 30.0), templates) == ('', 30.0)
    assert place_of(torch.zeros(4, 4), templates) == ('', 0.0)


@pytest.mark.parametrize('kind,place', [('noise', 'left half'), ('fog', 'upper half'), ('noise', 'lower right')])
def test_damage_in_one_place_is_found_there(nano, photo, kind, place):
    local = damaged(photo, {kind: 80}, {kind: place}).image
    found = with_places(nano.reasoner, local, nano.reasoner.diagnose(local)[0]).findings
    assert kind in found and found[kind].region == place and found[kind].severity >= 30
    assert found[kind].parameters, 'read where it is worst, if the whole does not show it'


def test_damage_everywhere_gets_no_place_and_a_clean_photo_stays_clean(nano, photo):
    for severities in (dict(rain=70), dict(fog=60, noise=40), {}):
        whole = damaged(photo, severities).image
        said, = nano.reasoner.diagnose(whole)
        placed = with_places(nano.reasoner, whole, said)
        assert placed == said and bool(said.findings) == bool(severities) and not placed.regions, severities


def test_a_map_has_the_severities_of_its_parts(nano, photo):
    found = severity_map(nano.reasoner, photo, grid=2)
    assert found.kinds == PAPER_KINDS and found.severity.shape == found.present.shape == (4, 2, 2)
    rows, columns = parts_of(*photo.shape[-2:], 2)[3]
    torch.testing.assert_close(found.severity[:, 1, 1], nano.reasoner.severity(photo[:, rows, columns])[0], atol=0.05, rtol=1e-3)
    torch.testing.assert_close(found['noise'], found.severity[found.kinds.index('noise')])
    several = copy(nano.reasoner)
    several.looks = corner_looks()
    assert severity_map(several, photo, grid=2).severity.equal(found.severity), 'a part is looked at once'
    half = torch.tensor([[80., 0.], [80., 0.]]).expand_as(found.severity)
    placed = with_places(nano.reasoner, photo, Diagnosis(), replace(found, severity=half, present=half / 80))
    assert placed.regions == dict.fromkeys(PAPER_KINDS, 'left half'), 'a map that is given is not made again'


def test_places_are_written_and_read_back():
    said = Diagnosis({'noise': Finding(47, region='left half'), 'fog': Finding(50, {'airlight': 0.9}, 'upper half')})
    assert parse_cot(said.to_cot()).diagnosis.findings == said.findings


def test_the_parts_of_a_diagnosis_add_up():
    said = Diagnosis({'fog': Finding(50, region='upper half'), 'rain': Finding(30), 'noise': Finding(40, region='left half')})
    parts = by_place(said, 60, 80)
    assert torch.allclose(sum(weight for _, weight in parts), torch.ones(1, 60, 80))
    assert {told.present for told, _ in parts} == {('rain',), ('fog', 'rain'), ('rain', 'noise'), ('fog', 'rain', 'noise')}
    assert not any(told.regions for told, _ in parts)
    apart = Diagnosis({'fog': Finding(50, region='upper left'), 'noise': Finding(40, region='lower right')})
    assert {told.present for told, _ in by_place(apart, 60, 80)} == {(), ('fog',), ('noise',)}, 'they do not meet'
    (told, weight), = by_place(Diagnosis({'blur': Finding(30, region='number plate')}), 60, 80)
    assert told.findings['blur'].region == 'number plate' and weight.eq(1).all(), 'a name that tells no place'


def test_what_is_not_in_the_place_is_not_touched(nano, photo):
    local = damaged(photo, dict(noise=70, blur=60), dict(noise='left half', blur='lower right'))
    truth = Diagnosis.from_degraded(local)
    everywhere = replace(truth, findings={k: replace(f, region='') for k, f in truth.findings.items()})
    placed, spread = nano.restorer.restore([local.image] * 2, [truth, everywhere])
    outside = by_place(truth, *photo.shape[-2:])[0][1][0] == 1  # the first part: nothing is wrong
    assert outside.float().mean() > 0.2 and torch.equal(placed[:, outside], local.image[:, outside])
    assert psnr(placed, photo) > max(psnr(local.image, photo), psnr(spread, photo)) + 1


def test_a_photo_comes_back_repaired_in_its_place_alone(nano, photo):
    local = damaged(photo, dict(noise=70), dict(noise='left half')).image
    result = ReasonRestore(nano.reasoner, nano.restorer, locate=with_places)(local)
    assert result.before.findings['noise'].region == 'left half' and 'noise: severity' in result.measured and 'left half' in result.measured
    assert psnr(result.restored.image, photo) > psnr(local, photo) + 3
    assert 'left half' in result.trace_html()
    assert not nano(local).before.regions, 'only where it is asked for'


def test_a_finding_that_the_whole_does_not_show_is_told_in_words():
    placed = Diagnosis({'fog': Finding(50, region='upper half')})
    assert measurement(Diagnosis(), placed) == 'fog: severity 50, upper half, as parts of the photo show; nothing in the whole'
    assert measurement(Diagnosis({'fog': Finding(20)}), placed).endswith('severity 20 in the whole')


def test_the_command_tells_places(photo, tmp_path, capsys):
    write_photo(tmp_path / 'half.png', damaged(photo, dict(noise=80), dict(noise='left half')).image)
    assert main(['diagnose', str(tmp_path / 'half.png'), '--places', '--json']) == 0
    record = json.loads(capsys.readouterr().out)
    assert record['regions']['noise'] == 'left half' and 'region left half' in record['cot']
    assert main(['diagnose', str(tmp_path / 'half.png'), '--places']) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.strip().startswith('noise'))
    assert line.endswith('left half')
