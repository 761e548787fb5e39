"The nano networks: what they are shown, and what they cannot do by construction."
import json, math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from rr.core import bundled_photos, psnr, read_photo, seeded
from rr.data import Recipe
from rr.degrade import DEGRADATIONS, KINDS, blur_kernel, degrade, strength
from rr.diagnosis import Diagnosis, Finding, diagnosis_vector, diagnosis_vectors
from rr.finetune import sample_diagnosis
from rr.nano import BLOCK, BOLD, CAREFUL, TOWER_DEPTHS, TOWER_WIDTHS, WINDOW, NanoRestorerNet, NanoTower, build_nano_reasoner, load_nano_reasoner
from rr.nano import SHIPPED_RESTORERS, is_nano_restorer, load_nano_restorer, nano_processor, nano_reasoner_config, save_correction, save_nano_reasoner, save_nano_restorer, tower_shape, train_tokenizer
from rr.nano import row_median, block_spectra, glance_at, tone_statistics, first_guesses, nano_views, read_blur, seamless, wiener, windows_of
from rr.restorer import NanoFlowPolicy
from rr.rl import lora_off, train_lora

PHOTO = read_photo(bundled_photos()['coffee']).image[:, 100:292, 200:392]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), severity=st.integers(1, 100))
def test_the_blur_is_read_back_from_the_numbers(seed, severity):
    drawn = DEGRADATIONS['blur'].sample(severity, seeded(seed))
    found = read_blur(diagnosis_vector(Diagnosis({'blur': Finding(severity, drawn)})))
    assert found['type'] == drawn['type'] and found['sigma'] == pytest.approx(drawn['sigma'], abs=1e-3)
    assert abs((found['angle'] - drawn.get('angle', 0) + 90) % 180 - 90) < 1e-2
    assert found['curvature'] == pytest.approx(drawn.get('curvature', 0), abs=1e-2)


def test_a_blur_without_a_width_takes_the_scale_s():
    assert read_blur(diagnosis_vector(Diagnosis({'blur': Finding(40)})))['sigma'] == pytest.approx(strength('blur', 40)['sigma'])
    assert read_blur(diagnosis_vector(Diagnosis({'noise': Finding(40)}))) == {}


@pytest.mark.parametrize('blur', [dict(type='gaussian', sigma=1.2), dict(type='defocus', sigma=1.5),
                                  dict(type='linear', sigma=2., angle=30), dict(type='curved', sigma=2., angle=100, curvature=90)])
def test_wiener_undoes_a_known_blur(blur):
    blurred = DEGRADATIONS['blur'].apply(PHOTO, blur, seeded(0))
    back = wiener(blurred, blur_kernel(blur), BOLD)
    assert back.shape == PHOTO.shape
    assert psnr(back, PHOTO) > psnr(blurred, PHOTO) + 1


def test_wiener_without_blur_keeps_the_photo_in_place():
    kernel = torch.zeros(5, 5)
    kernel[2, 2] = 1
    assert torch.allclose(wiener(PHOTO, kernel, 0.), PHOTO, atol=1e-4)
    flat = torch.full((3, 50, 50), .7)
    assert torch.allclose(wiener(flat, kernel, 1.), flat, atol=1e-4)  # brightness is no matter of noise
    fine = .5 + .4 * (torch.arange(64) % 2 * 2. - 1).expand(3, 64, 64)
    assert torch.allclose(wiener(fine, kernel, 1.), (fine + .5) / 2, atol=1e-2)  # of detail the formula keeps half


def test_lines_that_fall_vanish_across_the_streaks():
    flat = torch.full((3, 40, 40), .4)
    rain = flat.clone()
    rain[:, :, 20] = 1
    assert torch.equal(row_median(rain), flat)


def test_row_median_is_the_median():
    image = torch.rand(2, 5, 23, generator=torch.Generator().manual_seed(0))
    padded = torch.cat([image[..., 1:4].flip(-1), image, image[..., -4:-1].flip(-1)], -1)
    assert torch.equal(row_median(image), padded.unfold(-1, 7, 1).median(-1).values)
    assert row_median(torch.rand(1, 1, 1)).shape == (1, 1, 1)


def test_tones_tell_fog_from_its_absence():
    clear, foggy = (tone_statistics(x[None])[0].view(8, 11) for x in (PHOTO, .3 * PHOTO + .6))
    assert clear.shape == (8, 11) and (clear.diff(dim=1) >= 0).all()
    assert (foggy[5] > clear[5]).all() and foggy[7, 5] < clear[7, 5]  # the dark channel rises, colours fade
    assert torch.allclose(foggy[0], .3 * clear[0] + .6, atol=1e-5)


def test_gist_is_standardised_and_silent_before_training():
    torch.manual_seed(0)
    tower, views = NanoTower(16), torch.rand(6, 3, 96, 96)
    statistics = tower.gist.statistics(views, block_spectra(views))
    assert not tower.gist(views, block_spectra(views)).any()
    tower.gist.standardise(statistics)
    scaled = (statistics - tower.gist.mean) / tower.gist.scale
    assert scaled.mean(0).abs().max() < 1e-3 and scaled.std(0, correction=0).max() < 1 + 1e-3
    assert torch.isfinite(tower.features(torch.rand(1, 3, 32, 32))).all()  # one block has no spread


def test_a_patch_is_repaired_with_the_whole_photo_in_mind():
    net, photo = random_net(), PHOTO[None]
    told, part = diagnosis_vectors([Diagnosis({'fog': Finding(50)})]), photo[..., :64, :64]
    t, whole = torch.ones(1), glance_at(photo)
    with torch.no_grad():
        alone, known = net(part, t, part, numbers=told), net(part, t, part, numbers=told, whole=whole)
        assert torch.allclose(net(photo, t, photo, numbers=told), net(photo, t, photo, numbers=told, whole=whole))
    assert whole.shape == (1, 3, 64, 64) and (alone - known).abs().max() > 1e-3


def test_first_guesses_are_zero_for_kinds_that_are_absent():
    told = [Diagnosis(), Diagnosis({'fog': Finding(50), 'noise': Finding(50)}), Diagnosis({'blur': Finding(50, dict(type='gaussian', sigma=2.))}),
            Diagnosis({'rain': Finding(50)})]
    guesses = first_guesses(PHOTO.expand(4, -1, -1, -1), diagnosis_vectors(told))
    assert guesses.shape == (4, 9, 192, 192)
    used = guesses.flatten(2).abs().amax(-1) > 0
    assert used.tolist() == [[False] * 9, [False] * 9, [True] * 6 + [False] * 3, [False] * 6 + [True] * 3]


def test_noise_makes_the_first_guess_careful():
    blurry = Diagnosis({'blur': Finding(50, dict(type='gaussian', sigma=2.))})
    noisy = Diagnosis(blurry.findings | {'noise': Finding(70, dict(type='gaussian', sigma=40.))})
    bold, damped = first_guesses(PHOTO.expand(2, -1, -1, -1), diagnosis_vectors([blurry, noisy]))[:, :3].flatten(1).abs().mean(1)
    assert damped < .8 * bold and CAREFUL > BOLD


def random_net(seed=0):
    torch.manual_seed(seed)
    net = NanoRestorerNet(widths=(8, 8, 8), depths=(1, 1, 1)).eval()
    for p in net.parameters(): torch.nn.init.normal_(p, std=.2)
    return net


def correction(net, *findings):
    numbers = diagnosis_vectors([Diagnosis(dict(findings))])
    photo = PHOTO[None, :, :64, :64]
    with torch.no_grad(): return net(photo, torch.ones(1), photo, numbers=numbers)


def test_nothing_found_changes_nothing_whatever_the_weights():
    for seed in range(3): assert not correction(random_net(seed)).any()


@pytest.mark.parametrize('adapter', [False, True])
def test_one_photo_takes_the_short_way_to_the_same_correction(adapter):
    "Factors are folded into the weights where that is allowed: one photo, no gradients, no adapter."
    net, photo = random_net(), PHOTO[None, :, :64, :64]
    for w in net.parameters(): w.data *= .5  # a correction of the order of the photo
    if adapter:
        policy = train_lora(NanoFlowPolicy(net, None), rank=2)
        net = policy.module
        for name, w in net.named_parameters():
            if 'lora_B' in name: torch.nn.init.normal_(w, std=.3)
    numbers = diagnosis_vectors([Diagnosis({'fog': Finding(40), 'rain': Finding(6), 'noise': Finding(70)})])
    long = net(photo, torch.ones(1), photo, numbers=numbers).detach()
    with torch.no_grad(): short = net(photo, torch.ones(1), photo, numbers=numbers)
    assert long.abs().max() > .05 and torch.allclose(short, long, atol=1e-5 * float(long.abs().max()))
    if adapter:  # the comparison means something: the adapter changes the correction
        with lora_off(net), torch.no_grad(): assert not torch.allclose(net(photo, torch.ones(1), photo, numbers=numbers), long, atol=1e-2)


def test_each_kind_has_a_head_of_its_own():
    net = random_net()
    for k, kind in enumerate(KINDS):
        before = correction(net, (kind, Finding(50)))
        assert before.any()
        kept = net.heads.weight.data.clone()
        for other in set(range(len(KINDS))) - {k}: net.heads.weight.data[12 * other:12 * other + 12] = 7.
        assert torch.equal(correction(net, (kind, Finding(50))), before)
        net.heads.weight.data[12 * k:12 * k + 12] *= 2
        assert not torch.equal(correction(net, (kind, Finding(50))), before)
        net.heads.weight.data = kept


def test_spectra_of_white_noise_are_flat_and_know_its_strength():
    for sigma in (.05, .2):
        noise = sigma * torch.randn(64, 3, 64, 64, generator=seeded(1))
        spectra = block_spectra(noise).unflatten(2, (5, BLOCK, BLOCK // 2 + 1))[:, :, :3]  # (N, T, 3, 32, 17)
        power = (4 * spectra - 5).exp().mean((0, 1))[:, 4:-4, 4:-1] - 1e-5  # away from the mean that was taken out
        window = torch.hann_window(BLOCK).square().mean() ** 2
        variance = sigma ** 2 * torch.tensor([1 / 3, 1 / 2, 1 / 16 + 1 / 16 + 1 / 4]) * window
        assert torch.allclose(power.mean((1, 2)), variance, rtol=.05)
        assert power.std() / power.mean() < .5


def test_tokens_stay_in_their_place():
    tower = NanoTower(16).eval()
    with torch.no_grad():
        tower.summary.weight.zero_()
        for layer in tower.body: 
            for p in layer.parameters(): p.zero_()
        dark, lit = torch.zeros(1, 3, 96, 160), torch.zeros(1, 3, 96, 160)
        lit[..., 32:64, 96:128] = torch.rand(3, 32, 32, generator=seeded(0))
        changed = (tower.features(lit) - tower.features(dark)).abs().sum(-1)[0].view(3, 5) > 1e-6
    assert changed.nonzero().tolist() == [[1, 3]]


def test_one_window_is_busy_and_one_is_quiet():
    photo = torch.full((3, 640, 640), .5)
    photo[:, 320:] += .3 * torch.randn(1, 80, 160, generator=seeded(0)).repeat_interleave(4, 1).repeat_interleave(4, 2)
    (busy, _), (quiet, _) = windows_of(photo)
    assert busy >= 320 and quiet + WINDOW <= 320
    assert nano_views(photo)[2].std() == 0


def test_training_shakes_numbers_in_proportion():
    from rr.flow import shake_numbers

    numbers = diagnosis_vectors([sample_diagnosis(seeded(s), Recipe()) for s in range(400)])
    shaken = shake_numbers(numbers, seeded(1))
    assert torch.equal(shaken == 0, numbers == 0)
    errors = (shaken / numbers - 1)[numbers != 0]
    assert errors.std() == pytest.approx(.1, abs=.01) and abs(errors.mean()) < .01


def test_degraded_photos_get_better_guesses_from_true_parameters():
    gains = []
    for seed in range(6):
        damaged = degrade(PHOTO, dict(blur=40), seed)
        told = Diagnosis.from_degraded(damaged)
        guess = damaged.image + first_guesses(damaged.image[None], diagnosis_vectors([told]))[0, :3]
        gains.append(float(psnr(guess.clamp(0, 1), PHOTO) - psnr(damaged.image, PHOTO)))
    assert sum(gains) / len(gains) > 2 and not any(map(math.isnan, gains))


@pytest.mark.parametrize('height,width', [(1, 1), (1, 7), (2, 3), (40, 25)])
def test_a_seamless_image_has_no_jump_at_its_end(height, width):
    image = torch.linspace(0, 1, width).expand(3, height, width)
    whole = seamless(image, height + 20, width + 20)
    assert whole.shape == (3, height + 20, width + 20) and torch.equal(whole[:, :height, :width], image)
    around = torch.cat([whole, whole], 2)
    step = 1 / max(1, width - 1)
    assert (around[:, :, 1:] - around[:, :, :-1]).abs().max() <= step + 1 / 20 + 1e-6


def test_a_map_is_cut_where_the_patch_lies():
    from rr.nano import cut_map
    h, w = 64, 64
    maps = torch.stack(torch.meshgrid((torch.arange(h) + .5) / h, (torch.arange(w) + .5) / w, indexing='ij'))[None]
    whole = cut_map(maps, torch.tensor([[0., 0, 1, 1]]), (h, w))
    assert torch.allclose(whole, maps, atol=1e-5)
    part = cut_map(maps.expand(2, -1, -1, -1), torch.tensor([[.25, .5, .75, 1.], [0, 0, .5, .5]]), (8, 16))
    assert part.shape == (2, 2, 8, 16)
    assert torch.allclose(part[0, 0, :, 3], .25 + .5 * (torch.arange(8) + .5) / 8, atol=1e-5)
    assert torch.allclose(part[0, 1, 3, :-1], (.5 + .5 * (torch.arange(16) + .5) / 16)[:-1], atol=1e-5)
    assert torch.allclose(part[1, 1, 3, 1:], (.5 * (torch.arange(16) + .5) / 16)[1:], atol=1e-5)


def test_a_patch_knows_where_it_lies():
    net, photo = random_net(), PHOTO[None]
    told, t, whole = diagnosis_vectors([Diagnosis({'fog': Finding(50)})]), torch.ones(1), glance_at(photo)
    part, box = photo[..., :96, 96:], torch.tensor([[0., .5, .5, 1.]])
    with torch.no_grad():
        there, elsewhere = (net(part, t, part, numbers=told, whole=whole, place=p) for p in (box, torch.tensor([[.5, 0, 1, .5]])))
        assert (there - elsewhere).abs().max() > 1e-4


def test_patches_carry_their_place():
    from rr.data import Pair
    from rr.flow import cut_patches
    columns = torch.linspace(0, 1, 200).expand(3, 100, 200)
    damaged, clean, place = cut_patches(Pair(columns, columns, None, '', 0), 32, 6, seeded(0))
    assert torch.allclose(damaged[:, 0, 0, 0], place[:, 1] * 200 / 199, atol=1e-4)
    assert torch.allclose(place[:, 2] - place[:, 0], torch.full((6,), .32)) and torch.allclose(place[:, 3] - place[:, 1], torch.full((6,), .16))

def test_the_shape_of_the_tower_travels_with_the_configuration(tmp_path):
    tokenizer = train_tokenizer(['1. Identify: fog.'], vocab_size=300)
    model = build_nano_reasoner(nano_reasoner_config(tokenizer, 32, 1, 2, 1, (8, 8, 16, 16), (1, 1, 1, 2)))
    save_nano_reasoner(model, nano_processor(tokenizer), tmp_path)
    again, _ = load_nano_reasoner(tmp_path)
    assert again.model.visual.body[1].out_channels == 8 and len(again.model.visual.body) == len(model.model.visual.body)
    config = json.loads((tmp_path/'config.json').read_text())
    for name in ('tower_widths', 'tower_depths'): del config['vision_config'][name]
    (tmp_path/'config.json').write_text(json.dumps(config))
    from transformers import Qwen3VLConfig
    assert tower_shape(Qwen3VLConfig.from_pretrained(tmp_path)) == (TOWER_WIDTHS, TOWER_DEPTHS), 'as before shapes were written down'

def test_a_correction_is_what_a_low_rank_change_did_and_belongs_to_its_weights(tmp_path):
    base, tuned = random_net(), random_net()
    with torch.no_grad():
        conv, linear = tuned.down[0][0].conv1.weight, tuned.embed_numbers[0].weight
        conv += (torch.randn(len(conv), 2, generator=seeded(1)) @ torch.randn(2, conv[0].numel(), generator=seeded(2))).mul(.01).view_as(conv)
        linear += torch.randn(len(linear), 2, generator=seeded(3)) @ torch.randn(2, linear.shape[1], generator=seeded(4)) * .01
        tuned.into.bias += .5
    save_nano_restorer(base, tmp_path/'base')
    save_correction(tuned, base, tmp_path/'tuned', 2, str(tmp_path/'base'))
    for (name, a), b in zip(load_nano_restorer(tmp_path/'tuned').state_dict().items(), tuned.state_dict().values()): assert torch.allclose(a, b, atol=2e-3), name
    with torch.no_grad(): base.into.bias += .1
    save_nano_restorer(base, tmp_path/'base')
    with pytest.raises(ValueError, match='other weights'): load_nano_restorer(tmp_path/'tuned')

def test_shipped_restorers_share_a_shape_and_differ():
    nets = {name: load_nano_restorer(name) for name in SHIPPED_RESTORERS}
    assert list(nets) == ['nano', 'nano-rl'] and all(is_nano_restorer(name) for name in nets) and not is_nano_restorer('Qwen/Qwen-Image-Edit-2509')
    before, after = (net.state_dict() for net in nets.values())
    assert before.keys() == after.keys() and any(not torch.equal(before[k], after[k]) for k in before)
